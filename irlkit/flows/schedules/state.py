"""An annealing that sees more than the time: step size, composition, state and velocity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from irlkit.flows.schedules._perceptron import check_sizes, perceptron
from irlkit.flows.schedules.annealing import Annealing
from irlkit.flows.schedules.endpoint import EndpointAnnealing
from irlkit.flows.schedules.grid import FIELD_NAMES
from irlkit.utils.checks import checked
from irlkit.utils.settings import torch_settings

if TYPE_CHECKING:
    from irlkit.crystals import CrystalBatch

N_FEATURES = 12


class FlowSteps(NamedTuple):
    """Where k steps of a flow are taken, and how it moves there.

    Attributes:
        t: times, shape (k,).
        dt: step sizes, shape (k,).
        batch: the compositions; its positions and cells are not used.
        state: "pos" (k, n, 3) and "cell" (k, B, 3, 3) before the steps.
        velocity: of the same shapes, per unit of time.
    """

    t: Tensor
    dt: Tensor
    batch: CrystalBatch
    state: Mapping[str, Tensor]
    velocity: Mapping[str, Tensor]


class StateAnnealing(nn.Module):
    """1 + s(t, dt, c, x) = [1 + s_rule(t, dt)] exp f(features), one s per structure and field.

    f is a perceptron with SiLU, zero before training: an untrained annealing is its rule. The
    features of a structure are

    | of | feature |
    |---|---|
    | time | ln(1 - t), ln dt, ln (1 - t) / dt |
    | composition | ln N, number of species, mean and spread of ln Z |
    | cell | ln of the volume per atom; rate of strain times 1 - t: ln of its norm, and its trace |
    | positions | distance to the predicted end points, in units of (V / N)^(1/3): ln of its
        root mean square over atoms, and ln of how far the farthest is beyond that |

    so f depends on no other structure of a batch, nor on the order of atoms.

    Args:
        rule: schedule of time that it starts from.
        hidden_dim: width of the hidden layers.
        n_hidden_layers: hidden layers after the first.
        generator: draws the initial weights (of all but the last layer, which is zero); without
            one they are those of seed 0.

    Raises:
        ValueError: ``hidden_dim`` < 1 or ``n_hidden_layers`` < 0.
    """

    sees_state = True

    @checked
    @torch_settings(plain=True)
    def __init__(
        self,
        rule: Annealing | None = None,
        hidden_dim: int = 32,
        n_hidden_layers: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = check_sizes(hidden_dim=hidden_dim, n_hidden_layers=n_hidden_layers)
        self.rule: Annealing = EndpointAnnealing() if rule is None else rule
        self.arguments = {"rule": self.rule, **sizes}
        widths = [N_FEATURES] + [hidden_dim] * (n_hidden_layers + 1) + [len(FIELD_NAMES)]
        self.network = perceptron(widths, generator or torch.Generator().manual_seed(0))

    def forward(self, steps: FlowSteps) -> dict[str, Tensor]:
        """Return s per field and structure, shape (k, B)."""
        change = self.network(_features(steps).to(next(self.parameters()))).unbind(-1)
        rule = self.rule(steps.t, steps.dt)
        return {
            field: (1.0 + rule[field])[:, None] * f.to(steps.t).exp() - 1.0
            for field, f in zip(FIELD_NAMES, change, strict=True)
        }

    def factors(self, steps: FlowSteps) -> dict[str, Tensor]:
        """Return 1 + s, to multiply velocities: "pos" (k, n, 1) and "cell" (k, B, 1, 1)."""
        s = self(steps)
        return {
            "pos": (1.0 + s["pos"])[:, steps.batch.batch, None],
            "cell": (1.0 + s["cell"])[..., None, None],
        }


@torch.no_grad()
def _features(steps: FlowSteps) -> Tensor:
    """What a `StateAnnealing` sees, shape (k, B, N_FEATURES), each between -4 and 4."""
    t, dt, batch, state, velocity = steps
    cell, n_atoms = state["cell"], batch.n_atoms.to(t)
    k, n_structures = cell.shape[:2]

    def mean(of_atoms: Tensor) -> Tensor:
        """Over each structure's atoms: (k, n) to (k, B)."""
        sums = of_atoms.new_zeros(len(of_atoms), n_structures)
        return sums.index_add(1, batch.batch, of_atoms) / n_atoms

    log_z = batch.species.to(t).log()[None]
    mean_z = mean(log_z)
    spread_z = (mean(log_z.square()) - mean_z.square()).clamp(min=0.0).sqrt()
    same = batch.batch * 128 + batch.species
    species = torch.bincount(same.unique() // 128, minlength=n_structures).to(t)
    left = (1.0 - t)[:, None]
    volume = (torch.linalg.det(cell).abs() / n_atoms).clamp(min=1e-6)
    # The strain is v_cell cell^-1; solved, because an inverse of a flat cell would raise.
    strain, failed = torch.linalg.solve_ex(
        cell.transpose(-1, -2), velocity["cell"].transpose(-1, -2)
    )
    strain = torch.where((failed > 0)[..., None, None], 0.0, strain) * left[..., None, None]
    step = velocity["pos"][:, :, None, :] @ cell[:, batch.batch]
    distance = step.squeeze(2).square().sum(-1) * left.square()
    squared = mean(distance) / volume.pow(2 / 3)
    farthest = distance.new_zeros(k, n_structures).scatter_reduce(
        1, batch.batch.expand(k, -1), distance, "amax"
    )
    ratio = farthest / mean(distance).clamp(min=1e-12)
    columns = [
        0.5 * _log(left) + 1.0,
        0.5 * _log(dt[:, None]) + 2.0,
        0.5 * _log(left / dt[:, None]) - 1.0,
        n_atoms.log()[None] - 1.5,
        species[None] - 2.0,
        2.0 * (mean_z - 3.0),
        2.0 * spread_z - 1.0,
        _log(volume) - 3.0,
        0.5 * _log(strain.square().sum((-2, -1))) + 2.0,
        4.0 * strain.diagonal(dim1=-2, dim2=-1).sum(-1),
        0.5 * _log(squared) + 2.0,
        _log(ratio) - 0.5,
    ]
    features = torch.stack([column.expand(k, n_structures) for column in columns], -1)
    return features.clamp(-4.0, 4.0)


def _log(values: Tensor) -> Tensor:
    return values.clamp(min=math.exp(-16.0)).log()
