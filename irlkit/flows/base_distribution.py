"""Base distributions: where generation starts.

Positions are uniform, or normal where an interpolant is one-sided; cells have log-normal lengths
and uniform angles, or normal entries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from irlkit.crystals.batch import wrap_positions
from irlkit.utils.checks import checked

# Angles near the corners of the allowed cube give flat cells; those are drawn again.
MIN_POLAR_SINE = 0.05
ANGLE_RANGE = (60.0, 120.0)

#: Mean and standard deviation of ln(length / Å) per lattice vector of public training sets, under
#: the names of OMatG's configurations. Those of FlowMM (lattice_params_stats.yaml; Perov-5 is
#: cubic, so its three are one) and, for Alex-MP-20, OMatG (InformedLatticeDistribution).
LATTICE_STATISTICS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "mp_20": (
        (1.575442910194397, 1.7017393112182617, 1.9781638383865356),
        (0.24437622725963593, 0.26526379585266113, 0.3535512685775757),
    ),
    "mpts_52": (
        (1.6565313339233398, 1.8407557010650635, 2.1225264072418213),
        (0.2952289581298828, 0.3340013027191162, 0.41885802149772644),
    ),
    "perov_5": ((1.419227957725525,) * 3, (0.07268335670232773,) * 3),
    "carbon_24": (
        (0.9852757453918457, 1.3865314722061157, 1.7068126201629639),
        (0.14957907795906067, 0.20431114733219147, 0.2403733879327774),
    ),
    "alex_mp_20": (
        (1.5808929163076058, 1.74672046352959, 2.065243388307474),
        (0.27284015410437057, 0.2944785731740152, 0.30899526911753017),
    ),
}


def cell_from_parameters(lengths: Tensor, angles: Tensor) -> Tensor:
    """Return cells in the standard orientation: first vector along x, second in the xy plane.

    Args:
        lengths: a, b, c in Å, shape (B, 3).
        angles: alpha, beta, gamma in degrees, shape (B, 3); they must span a cell.

    Returns:
        Shape (B, 3, 3), lattice vectors as rows, positive volume.

    >>> cell_from_parameters(torch.tensor([[2.0, 3.0, 4.0]]), torch.full((1, 3), 90.0)).round()
    tensor([[[2., 0., 0.],
             [-0., 3., 0.],
             [-0., -0., 4.]]])
    """
    cos_alpha, cos_beta, cos_gamma = torch.deg2rad(angles).cos().unbind(1)
    sin_gamma = torch.sqrt(1 - cos_gamma**2)
    c_y = (cos_alpha - cos_beta * cos_gamma) / sin_gamma
    c_z = torch.sqrt((1 - cos_beta**2 - c_y**2).clamp(min=0))
    zero = torch.zeros_like(c_y)
    rows = [
        torch.stack([torch.ones_like(c_y), zero, zero], 1),
        torch.stack([cos_gamma, sin_gamma, zero], 1),
        torch.stack([cos_beta, c_y, c_z], 1),
    ]
    return lengths[:, :, None] * torch.stack(rows, 1)


@checked
@dataclass(frozen=True)
class BaseDistribution:
    """Where generation starts.

    Without more than the lengths, positions are uniform in [0, 1) and cells have log-normal lengths
    per lattice vector and angles uniform in 60° to 120°.

    Attributes:
        log_length_mean: mean of ln(length / Å) of each lattice vector.
        log_length_std: standard deviation of the same.
        normal_pos: mean and standard deviation of normal fractional positions instead.
        normal_cell: mean and standard deviation (Å) of normal cell entries instead; the lengths
            are then not used and may be None.
        n_atoms: weights of 1, 2, 3, ... atoms, for generation without compositions.

    Raises:
        ValueError: neither lengths nor `normal_cell`, or a standard deviation that is not positive.
    """

    log_length_mean: tuple[float, float, float] | None = None
    log_length_std: tuple[float, float, float] | None = None
    normal_pos: tuple[float, float] | None = None
    normal_cell: tuple[float, float] | None = None
    n_atoms: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.normal_cell is None and (
            self.log_length_mean is None or self.log_length_std is None
        ):
            raise ValueError(
                "log_length_mean and log_length_std: a base distribution needs both, or normal_cell"
            )
        if any(not std >= 0 for std in self.log_length_std or ()):
            raise ValueError(f"log_length_std must not be negative, got {self.log_length_std}")
        for name in ("normal_pos", "normal_cell"):
            pair = getattr(self, name)
            if pair is not None and not (isinstance(pair, Sequence) and pair[1] > 0):
                raise ValueError(
                    f"{name} must be a mean and a positive standard deviation, got {pair!r}"
                )

    @classmethod
    def informed(cls, dataset: str) -> BaseDistribution:
        """Return the lengths of a public training set, one of `LATTICE_STATISTICS`.

        Raises:
            ValueError: another name.

        >>> BaseDistribution.informed("perov_5").log_length_mean
        (1.419227957725525, 1.419227957725525, 1.419227957725525)
        """
        if dataset not in LATTICE_STATISTICS:
            raise ValueError(
                f"dataset: no lattice statistics of {dataset!r}, known are "
                f"{sorted(LATTICE_STATISTICS)}; BaseDistribution.fit makes them from cells"
            )
        return cls(*LATTICE_STATISTICS[dataset])

    @classmethod
    def fit(cls, cell: Tensor, n_atoms: Tensor | None = None) -> BaseDistribution:
        """Fit the lengths of a training set's cells, shape (B, 3, 3), B at least 2.

        Args:
            cell: the cells.
            n_atoms: atoms per structure, shape (B,), for generation without compositions.

        Raises:
            ValueError: fewer than two cells.
        """
        if cell.shape[1:] != (3, 3) or len(cell) < 2:
            raise ValueError(
                f"cell must be of shape (B, 3, 3), B at least 2, got {tuple(cell.shape)}"
            )
        log_lengths = cell.double().norm(dim=2).log()
        mean, std = log_lengths.mean(0), log_lengths.std(0)
        shares = None if n_atoms is None else n_atoms.bincount()[1:] / len(n_atoms)
        weights = None if shares is None else tuple(shares.tolist())
        return cls(tuple(mean.tolist()), tuple(std.tolist()), n_atoms=weights)

    def sample_n_atoms(
        self, n: int, generator: torch.Generator, divisor: int = 1, least: int = 1
    ) -> Tensor:
        """Draw numbers of atoms as in the training set, int64 of shape (n,).

        Args:
            n: how many.
            generator: draws them.
            divisor: only multiples of it, such as the atoms of one formula unit.
            least: none below it.

        Raises:
            ValueError: the numbers are not known, or none of them fits.

        >>> base = BaseDistribution(normal_cell=(0.0, 1.0), n_atoms=(0.0, 0.5, 0.2, 0.3))
        >>> base.sample_n_atoms(3, torch.Generator().manual_seed(0), divisor=4)
        tensor([4, 4, 4])
        """
        if self.n_atoms is None:
            raise ValueError(
                "n_atoms: this model does not know how many atoms its training structures had; "
                "give numbers of atoms"
            )
        weights = torch.tensor(self.n_atoms, dtype=torch.float64, device=generator.device)
        numbers = torch.arange(1, len(weights) + 1, device=generator.device)
        weights = weights * (numbers % divisor == 0) * (numbers >= least)
        if not bool(weights.sum() > 0):
            seen = [i + 1 for i, weight in enumerate(self.n_atoms) if weight > 0]
            raise ValueError(
                f"n_atoms: the constraints need multiples of {divisor} of at least {least} atoms, "
                f"the training structures have {seen}; give a number of atoms"
            )
        return numbers[weights.multinomial(n, replacement=True, generator=generator)]

    def sample_pos(self, n: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Draw fractional positions in [0, 1), shape (n, 3), on the generator's device."""
        device = generator.device
        if self.normal_pos is None:
            return torch.rand(n, 3, generator=generator, device=device, dtype=dtype)
        mean, std = self.normal_pos
        normal = torch.randn(n, 3, generator=generator, device=device, dtype=dtype)
        return wrap_positions(mean + std * normal)

    def sample_cell(self, n: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Draw cells of shape (n, 3, 3); those of lengths and angles are never flat.

        Their polar sine is above `MIN_POLAR_SINE`. Cells of normal entries are as they are drawn.
        """
        device = generator.device
        if self.normal_cell is not None:
            centre, spread = self.normal_cell
            entries = torch.randn(n, 3, 3, generator=generator, device=device, dtype=torch.float64)
            return (centre + spread * entries).to(dtype)
        low, high = ANGLE_RANGE
        mean = torch.tensor(self.log_length_mean, device=device, dtype=torch.float64)
        std = torch.tensor(self.log_length_std, device=device, dtype=torch.float64)
        normal = torch.randn(n, 3, generator=generator, device=device, dtype=torch.float64)
        lengths = (mean + std * normal).exp()
        angles = torch.full((n, 3), math.nan, device=device, dtype=torch.float64)
        todo = torch.arange(n, device=device)
        while len(todo):
            draw = torch.rand(len(todo), 3, generator=generator, device=device, dtype=torch.float64)
            angles[todo] = low + (high - low) * draw
            cosines = torch.deg2rad(angles[todo]).cos()
            square = 1 - (cosines**2).sum(1) + 2 * cosines.prod(1)
            todo = todo[square <= MIN_POLAR_SINE**2]
        return cell_from_parameters(lengths, angles).to(dtype)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for `from_dict`."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BaseDistribution:
        """Undo `to_dict`."""
        return cls(**{name: tuple(value) for name, value in data.items()})
