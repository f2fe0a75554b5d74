"""A model whose velocity field is known in closed form, and rewards to go with it."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import save_file

from irlkit.crystals import CrystalBatch
from irlkit.flows.base_distribution import BaseDistribution
from irlkit.flows.dynamics import Dynamics
from irlkit.networks.cspnet import CSPNet
from irlkit.networks.flow_model import FlowModel
from irlkit.pretraining import KINDS
from irlkit.rl.config import TrainerConfig


def crystals(n_atoms=(2, 1, 5, 3), dtype=torch.float64, seed=0):
    """Structures of several sizes; a different composition each."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(n_atoms)
    return CrystalBatch(
        torch.randint(1, 90, (n,), generator=generator),
        torch.rand(n, 3, generator=generator, dtype=dtype),
        4 * torch.eye(3, dtype=dtype)
        + torch.rand(len(n_atoms), 3, 3, generator=generator, dtype=dtype),
        torch.tensor(n_atoms),
    )


def trainer_config(seed=0, **settings):
    """A configuration of settings by name, those of the loss among them."""
    return TrainerConfig.from_settings(settings, seed)


def integrate(
    model, batch, n_steps, *, annealing=None, noise=None, kind="ode", record=False, **options
):
    """Structures along dynamics; with ``record``, and all states."""
    states = [] if record else None
    dynamics = Dynamics(model, annealing, noise or {}, kind)
    final = dynamics.generate(batch, n_steps, record=states, **options)
    return (final, states) if record else final


class ToyModel(torch.nn.Module):
    """Constant velocities: of an atom, set by its species; of a cell, by its number of atoms.

    The denoiser is proportional to the velocity. ``scale`` multiplies all and can be trained.
    """

    has_denoiser = ("pos", "cell")

    def __init__(self, scale=1.0, dtype=torch.float64):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale, dtype=dtype))
        self.n_evaluations = 0
        self.n_preparations = 0

    def prepare(self, batch):
        self.n_preparations += 1
        return batch

    def velocity(self, t, pos, cell, conditioning, heads=("velocity",)):
        self.n_evaluations += 1
        assert pos.shape == (len(conditioning.species), 3)
        assert cell.shape == (len(conditioning), 3, 3)
        assert torch.as_tensor(t).ndim == 0 or t.shape == (len(conditioning),)
        axes = torch.tensor([1.0, 0.7, -0.4], dtype=pos.dtype)
        velocity = {
            "pos": self.scale * conditioning.species[:, None].to(pos) / 50 * axes,
            "cell": self.scale
            * conditioning.n_atoms.to(pos)[:, None, None]
            * torch.eye(3, dtype=pos.dtype).expand(len(cell), 3, 3),
        }
        denoiser = {name: 0.1 * value for name, value in velocity.items()}
        return SimpleNamespace(velocity=velocity, denoiser=denoiser if "denoiser" in heads else {})

    def gamma(self, field, t):
        return torch.sqrt(0.05 * t * (1 - t))

    def save(self, path):
        save_file(self.state_dict(), path)

    def sample_base(self, batch, generator):
        pos = torch.rand(batch.pos.shape, generator=generator, dtype=batch.dtype)
        lengths = 3 + torch.rand(len(batch), generator=generator, dtype=batch.dtype)
        return batch.replace(pos=pos, cell=lengths[:, None, None] * torch.eye(3, dtype=batch.dtype))


@dataclass
class Result:
    """What a reward returns."""

    values: torch.Tensor
    info: dict = field(default_factory=dict)


def volume_reward(structures):
    """Best at a mean cell length of 4 + 2 n_atoms, which the toy reaches with 1 + s = 2 (about)."""
    lengths = structures.cell.diagonal(dim1=1, dim2=2).mean(1)
    error = (lengths / (3.5 + 2 * structures.n_atoms) - 1).abs()
    return Result(
        (0.5 - error).double().cpu(), {"length": lengths.numpy(), "name": np.array(["a"])}
    )


def flow_model(dtype=torch.float32):
    """A network with velocity and denoiser, random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = CSPNet(16, 2, 3, 8, denoiser=True)
    base = BaseDistribution((1.5, 1.5, 1.5), (0.2, 0.2, 0.2))
    return FlowModel(network, KINDS["trig-sde-gamma"], base).to(dtype)
