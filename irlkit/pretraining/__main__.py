"""Command line: pretrain on a data set or file, with validation; started again, it continues."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from irlkit.data import load
from irlkit.networks import composition
from irlkit.networks.autoencoder import Autoencoder
from irlkit.pretraining import (
    KINDS,
    SPECIES,
    PretrainingConfig,
    denovo_evaluation,
    metre_evaluation,
    pretrain,
)
from irlkit.pretraining.latent import (
    AutoencoderConfig,
    DiffusionConfig,
    pretrain_autoencoder,
    pretrain_diffusion,
    reconstruction_evaluation,
    sample_evaluation,
)

SETTINGS = (
    "iterations",
    "batch_size",
    "learning_rate",
    "validate_every",
    "checkpoint_every",
    "seed",
)
CONFIGS = {
    **dict.fromkeys(KINDS, PretrainingConfig),
    "autoencoder": AutoencoderConfig,
    "latent-diffusion": DiffusionConfig,
}
#: Settings of a larger network, for a GPU; nobody has trained with them yet.
LARGE: dict[str, Mapping[str, Any]] = {
    **{kind: {"hidden_dim": 512, "n_layers": 6, "batch_size": 256} for kind in KINDS},
    "autoencoder": {"width": 512, "n_layers": 8, "n_heads": 8, "batch_size": 512},
    "latent-diffusion": {"width": 768, "n_layers": 12, "n_heads": 12, "batch_size": 512},
}


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments and pretrain; exit with status 130 if that was interrupted."""
    parser = argparse.ArgumentParser(prog="irlkit pretrain", description=__doc__)
    parser.add_argument("--dataset", default="prototypes", help="name, or path of a data file")
    parser.add_argument("--kind", default=PretrainingConfig.kind, choices=sorted(CONFIGS))
    parser.add_argument("--out-dir", required=True, type=Path)
    parser.add_argument("--large", action="store_true", help="a network of a size for a GPU")
    for name in SETTINGS:
        kind = type(getattr(PretrainingConfig, name))
        said = "default: that of the kind"
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=said)
    parser.add_argument("--width", type=int, help="channels; default: those of the kind")
    said = "of latent-diffusion: name, or path of a file"
    parser.add_argument("--autoencoder", default="chemeleon-vae", help=said)
    parser.add_argument(
        "--target",
        choices=("none", "band-gap"),
        default="none",
        help="what a latent-diffusion may be told: band gaps, predicted from compositions",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    given = {name: getattr(arguments, name) for name in SETTINGS}
    settings: dict[str, Any] = {**LARGE[arguments.kind]} if arguments.large else {}
    given["hidden_dim" if arguments.kind in KINDS else "width"] = arguments.width
    settings |= {name: value for name, value in given.items() if value is not None}
    model, total = _train(arguments, settings)
    done = model.info["iterations"]
    last = "".join(f", {json.dumps(row)}" for row in model.info["history"])
    print(f"{arguments.out_dir / 'model.safetensors'}: {done} iterations{last}")
    if done < total:
        sys.exit(130)  # interrupted


def _train(arguments: argparse.Namespace, settings: Mapping[str, Any]) -> tuple[Any, int]:
    """Return the model and the iterations that were asked for."""
    training, validation = (load(arguments.dataset, split=split) for split in ("train", "val"))
    kind, where = arguments.kind, {"out_dir": arguments.out_dir, "device": arguments.device}
    config = CONFIGS[kind](**({"kind": kind} if kind in KINDS else {}), **settings)
    options: dict[str, Any] = {"validation": validation, **where}
    if kind == "autoencoder":
        options["evaluate"] = reconstruction_evaluation(validation)
        return pretrain_autoencoder(training, config, **options), config.iterations
    if kind == "latent-diffusion":
        options["evaluate"] = sample_evaluation(training)
        options["info"] = {"autoencoder": arguments.autoencoder, "target": arguments.target}
        if arguments.target == "band-gap":
            options["target"] = composition.load("band-gap")(training.batch)
        autoencoder = Autoencoder.load(arguments.autoencoder)
        return pretrain_diffusion(training, autoencoder, config, **options), config.iterations
    denovo = kind in SPECIES
    options["evaluate"] = denovo_evaluation(training) if denovo else metre_evaluation(validation)
    return pretrain(training, config, **options), config.iterations


if __name__ == "__main__":
    main()
