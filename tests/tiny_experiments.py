"""What experiments need, as small as it can be: an untrained model and a file of salts."""

from itertools import product

import numpy as np
import pandas as pd
import torch
from pymatgen.core import Lattice, Structure

from irlkit.flows.base_distribution import BaseDistribution
from irlkit.networks.cspnet import CSPNet
from irlkit.networks.flow_model import FlowModel
from irlkit.pretraining import KINDS


def write_files(folder):
    """Checkpoints "model" (with denoiser) and "second" (without), and a CSV with 60 structures."""
    base = BaseDistribution((1.3,) * 3, (0.2,) * 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        FlowModel(CSPNet(8, 1, 3, 8, denoiser=True), KINDS["trig-sde-gamma"], base).save(
            folder / "model.safetensors"
        )
        FlowModel(CSPNet(8, 1, 3, 8), KINDS["linear-ode"], base).save(folder / "second.safetensors")
    rows = []
    for cation, anion in product(("Li", "Na", "K", "Rb", "Cs", "Ag"), ("F", "Cl", "Br", "I", "H")):
        sites = [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]]
        for lattice in (Lattice.cubic(3.5), Lattice.from_parameters(3.8, 3.8, 3.8, 60, 60, 60)):
            rows.append({"material_id": len(rows), "cif": Structure(lattice, *sites).to(fmt="cif")})
    pd.DataFrame(rows).to_csv(folder / "salts.csv", index=False)
    return folder


def evaluated(n=240, rmsd=0.1, metre=0.8, energy=0.5, invalid=0.0, **labels):
    """Labels of an evaluation, and structures of which these shares match and have no energy."""
    labels = {"training_seed": np.nan, "tuned_at": np.nan, **labels}
    rng = np.random.default_rng(int(labels["seed"]))
    place = (0.618034 * np.arange(n) + 0.3 * labels["seed"]) % 1  # Evenly, whatever the share.
    distance = np.where(place < metre, rmsd * rng.uniform(0.5, 1.5, n), np.nan)
    above = np.where(place < 1 - invalid, energy * rng.uniform(0.5, 1.5, n), np.nan)
    columns = {"rmsd": distance, "best_rmsd": distance, "polymorph_rmsd": distance}
    formulas = [f"c{i // 2}" for i in range(n)]
    return labels, pd.DataFrame({"formula": formulas, **columns, "energy_above_reference": above})
