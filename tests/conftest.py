"""Fixtures that several test modules share."""

import irlkit  # noqa: F401  # before torch, whose idle threads then soon sleep

# isort: split
import os
from pathlib import Path

import pytest
import torch

from irlkit.crystals import CrystalBatch
from irlkit.utils.system import available_cores

# Processes that test side by side share the cores.
torch.set_num_threads(
    max(1, available_cores() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of public data files next to the repository, which does not contain them."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the public data files in {folder}")
    return folder


@pytest.fixture
def small_batch() -> CrystalBatch:
    """Four skewed structures of 2, 1, 5 and 3 atoms, float64."""
    generator = torch.Generator().manual_seed(0)
    n_atoms = torch.tensor([2, 1, 5, 3])
    noise = torch.randn(4, 3, 3, generator=generator, dtype=torch.float64)
    return CrystalBatch(
        species=torch.tensor([11, 17, 26, 20, 22, 8, 8, 8, 22, 8, 8]),
        pos=torch.rand(11, 3, generator=generator, dtype=torch.float64),
        cell=4.0 * torch.eye(3, dtype=torch.float64) + 0.5 * noise,
        n_atoms=n_atoms,
    )
