"""Large files: the second load of a data set, a pass by parts, published checkpoints.

The data set is a CSV file of CIFs of random crystals with MP-20's numbers of atoms; the checkpoint
has random weights of the published size (512 channels, 6 layers).
"""

from __future__ import annotations

import csv
import gzip
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from pymatgen.core import Element

from benchmarks.common import parser, random_crystals, report, start
from irlkit import load_omatg
from irlkit.data import CrystalDataset, load
from irlkit.evaluate.metrics import MatchPool, evaluate
from irlkit.networks.cspnet import CSPNet
from irlkit.networks.omatg import dynamics_of, read_config

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "tests" / "goldens" / "omatg_linear_ode.yaml"
SIZES = {"hidden_dim": 512, "num_layers": 6, "num_freqs": 128}
N_SECOND, N_PARTS, N_MATCHED = 7_000, 45_000, 64
STEPS = 10
"""Of the generation for the match rate."""
PEAK = """
import sys
from benchmarks.common import process_peak
from irlkit.data import load, load_parts
path, how = sys.argv[1:]
parts = load_parts(path) if how == "parts" else [load(path, cache=False, progress=False)]
print(sum(len(part) for part in parts), process_peak())
"""
CIF = """data_x
_cell_length_a {:.5f}
_cell_length_b {:.5f}
_cell_length_c {:.5f}
_cell_angle_alpha {:.5f}
_cell_angle_beta {:.5f}
_cell_angle_gamma {:.5f}
loop_
_atom_site_type_symbol
_atom_site_label
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
"""


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    options = parser(__doc__).parse_args(arguments)
    device = start(options)
    references = load("prototypes", split="test", progress=False)
    n_second, n_parts, n_matched = (40, 80, 2) if options.quick else (N_SECOND, N_PARTS, N_MATCHED)
    before = os.environ.get("IRLKIT_CACHE")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["IRLKIT_CACHE"] = str(folder / "cache")
        try:
            rows = [
                _second_load(write_csv(folder / "second.csv.gz", n_second)),
                _pass_by_parts(write_csv(folder / "parts.csv.gz", n_parts), n_parts),
                *_checkpoint(folder, references.subset(n_matched), options.quick),
            ]
        finally:
            if before is None:
                del os.environ["IRLKIT_CACHE"]
            else:
                os.environ["IRLKIT_CACHE"] = before
    report("files", rows, device)


def write_csv(path: Path, n_structures: int) -> Path:
    """Write random crystals as a gzipped CSV file with the columns material_id and cif."""
    with gzip.open(path, "wt", newline="", compresslevel=1) as file:
        table = csv.writer(file)
        table.writerow(["material_id", "cif"])
        for begin in range(0, n_structures, 1000):
            batch = random_crystals(min(1000, n_structures - begin), seed=begin)
            for i, structure in enumerate(batch.to_structures()):
                lattice = structure.lattice
                atoms = "".join(
                    "{0} {0} {1:.6f} {2:.6f} {3:.6f}\n".format(Element.from_Z(z).symbol, *x)
                    for z, x in zip(structure.atomic_numbers, structure.frac_coords, strict=True)
                )
                head = CIF.format(*lattice.lengths, *lattice.angles)
                table.writerow([begin + i, head + atoms])
    return path


def _seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = function()
    return time.perf_counter() - began, result


def _second_load(path: Path) -> dict[str, Any]:
    first, parsed = _seconds(lambda: load(path, progress=False))
    second, cached = _seconds(lambda: load(path, progress=False))
    assert torch.equal(parsed.batch.pos, cached.batch.pos)
    return {
        "case": f"second load of {len(cached):,} structures against the first",
        "ratio": first / second,
        "seconds": second,
    }


def _pass_by_parts(path: Path, n_structures: int) -> dict[str, Any]:
    """Peak memory of processes of their own; all at once against by parts."""
    peak = {}
    for how in ("parts", "whole"):
        command = [sys.executable, "-c", PEAK, str(path), how]
        printed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        n_read, megabytes = printed.stdout.split()
        assert int(n_read) == n_structures, f"{n_read} of {n_structures} structures were read"
        peak[how] = float(megabytes)
    return {
        "case": f"pass by parts over {n_structures:,} structures, memory against all at once",
        "ratio": peak["whole"] / peak["parts"],
        "peak_mb": peak["parts"],
    }


def _checkpoint(folder: Path, references: CrystalDataset, quick: bool) -> list[dict[str, Any]]:
    config = yaml.safe_load(CONFIG.read_text())
    config["model"]["model"]["init_args"]["encoder"]["init_args"] = (
        {"hidden_dim": 16, "num_layers": 1, "num_freqs": 4} if quick else SIZES
    )
    torch.manual_seed(0)
    network = CSPNet(**read_config(config).network, denoiser=True)
    state = {f"model.encoder.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state}, folder / "model.ckpt")
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    load_omatg(folder)  # what is imported at the first call is not counted
    plain, _ = _seconds(lambda: torch.load(folder / "model.ckpt", weights_only=True))
    seconds, model = _seconds(lambda: load_omatg(folder))
    generator = torch.Generator().manual_seed(0)

    def match_rate() -> float:
        generated = dynamics_of(model).generate(references.batch, STEPS, generator=generator)
        with MatchPool(0) as pool:
            return evaluate(generated, references, pool).match_rate

    took, rate = _seconds(match_rate)
    assert 0 <= rate <= 1
    n_weights = sum(value.numel() for value in network.parameters())
    return [
        {
            "case": f"load_omatg, {n_weights / 1e6:.1f} million weights, against torch.load",
            "ratio": seconds / plain,
            "seconds": seconds,
        },
        {
            "case": f"match rate with it, {len(references)} structures, {STEPS} steps",
            "ratio": None,
            "seconds": took,
            "match_rate": rate,
        },
    ]


if __name__ == "__main__":
    main()
