"""Command line: pretrain on a data set or file, with validation; started again, it continues."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from irlkit.data import load
from irlkit.pretraining import (
    KINDS,
    SPECIES,
    PretrainingConfig,
    denovo_evaluation,
    metre_evaluation,
    pretrain,
)

SETTINGS = ("iterations", "batch_size", "learning_rate", "validate_every", "seed")


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments and pretrain; exit with status 130 if that was interrupted."""
    defaults = PretrainingConfig()
    parser = argparse.ArgumentParser(prog="irlkit pretrain", description=__doc__)
    parser.add_argument("--dataset", default="prototypes", help="name, or path of a data file")
    parser.add_argument("--kind", default=defaults.kind, choices=sorted(KINDS))
    parser.add_argument("--out-dir", required=True, type=Path)
    for name in SETTINGS:
        default = getattr(defaults, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    training, validation = (load(arguments.dataset, split=split) for split in ("train", "val"))
    denovo = arguments.kind in SPECIES
    model = pretrain(
        training,
        PretrainingConfig(
            kind=arguments.kind, **{name: getattr(arguments, name) for name in SETTINGS}
        ),
        validation=validation,
        evaluate=denovo_evaluation(training) if denovo else metre_evaluation(validation),
        out_dir=arguments.out_dir,
        device=arguments.device,
    )
    done = model.info["iterations"]
    last = "".join(f", {json.dumps(row)}" for row in model.info["history"])
    print(f"{arguments.out_dir / 'model.safetensors'}: {done} iterations{last}")
    if done < arguments.iterations:
        sys.exit(130)  # interrupted


if __name__ == "__main__":
    main()
