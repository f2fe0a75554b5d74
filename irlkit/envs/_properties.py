"""Properties of a filled skeleton, and CrystalGym's rewards for their targets (section 3.2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from irlkit.crystals import CrystalBatch, validity
from irlkit.envs._backends import Backend
from irlkit.utils.checks import check_finite, checked

GPA = 160.21766208
"""GPa per eV/Å³."""


@dataclass(frozen=True)
class Values:
    """A property of B crystals.

    Attributes:
        values: float64, nan where it could not be told, shape (B,).
        reasons: number of a crystal -> why not.
        details: one dictionary for each, such as the points and the fit of a curve.
    """

    values: np.ndarray
    reasons: dict[int, str] = field(default_factory=dict)
    details: list[dict[str, Any]] = field(default_factory=list)


class Property(ABC):
    """A number that a filled skeleton has, and how near it is to a target.

    Attributes:
        name: as in `PROPERTIES`.
        unit: of the values.
        failure: reward of a crystal without a value.
        highest: reward of a crystal on target.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    failure: ClassVar[float] = -1.0
    highest: ClassVar[float] = 1.0

    @abstractmethod
    def values(self, batch: CrystalBatch, backend: Backend) -> Values:
        """Return values, or reasons why there are none."""

    @abstractmethod
    def closeness(self, values: np.ndarray, target: float) -> np.ndarray:
        """Return the reward of values, shape (B,); those that are nan give anything."""

    def reward(self, values: np.ndarray, target: float) -> np.ndarray:
        """Return the reward of values, shape (B,), `failure` where they are nan."""
        known = np.isfinite(values)
        return np.where(known, self.closeness(np.where(known, values, 0.0), target), self.failure)

    def check(self, backend: Backend) -> None:  # noqa: B027
        """Raise a ValueError where a backend cannot tell it."""

    def settings(self, backend: Backend) -> str:
        """Return what values depend on, for caches."""
        return f"{self.name}|{backend.name}"


class Density(Property):
    """Mass over volume, g/cm³; no backend is asked."""

    name, unit = "density", "g/cm³"

    def values(self, batch: CrystalBatch, backend: Backend) -> Values:
        """Return densities of crystals whose atoms keep their distance (Appendix B)."""
        density = batch.density.numpy().astype(np.float64)
        bad = np.flatnonzero(~validity.check(batch).valid)
        density[bad] = np.nan
        reasons = dict.fromkeys(bad.tolist(), "atoms are too close to one another")
        return Values(density, reasons, [{}] * len(batch))

    def closeness(self, values: np.ndarray, target: float) -> np.ndarray:
        """Return exp(-(p - target)² / target), values p in g/cm³, shape (B,)."""
        return np.exp(-np.square(values - target) / target)

    def settings(self, backend: Backend) -> str:
        """Return the name: no backend takes part."""
        return self.name


class BandGap(Property):
    """The gap between occupied and empty states, eV."""

    name, unit = "band_gap", "eV"

    def values(self, batch: CrystalBatch, backend: Backend) -> Values:
        """Return the backend's gaps."""
        found = backend.gaps(batch)
        return Values(found.values, dict(found.reasons), [{}] * len(batch))

    def closeness(self, values: np.ndarray, target: float) -> np.ndarray:
        """Return exp(-(p - target)²), values p in eV, shape (B,)."""
        return np.exp(-np.square(values - target))

    def check(self, backend: Backend) -> None:
        """Raise a ValueError for a potential, which knows energies alone."""
        if not backend.has_gap:
            raise ValueError(
                f"backend {backend.name} computes no band gaps; take one of density functional "
                "theory, such as backend='gpaw'"
            )


class BulkModulus(Property):
    """B = V d²E/dV² at the volume of the lowest energy, GPa, from Birch and Murnaghan's equation.

    Three to five volumes across the reach locate the minimum, the smallest, which cost most, only
    while energies fall towards them; then the equation is fitted to points around it, which are
    moved (three times at most) while the minimum is not among them. The shape of the skeleton
    stays. A curve without a minimum within the reach has no bulk modulus.

    Args:
        n_points: volumes of the fit, at least 4.
        half_width: of the points' range, as a share of the volume in the middle.
        reach: smallest and largest volume, in the skeleton's volumes.

    Raises:
        ValueError: a number out of its range.
    """

    name, unit, failure, highest = "bulk_modulus", "GPa", -5.0, 0.0

    @checked
    def __init__(
        self,
        n_points: int = 5,
        half_width: float = 0.06,
        reach: tuple[float, float] = (0.3, 3.0),
    ) -> None:
        if n_points < 4:
            raise ValueError(f"n_points must be at least 4, as the fit needs, got {n_points}")
        check_finite("half_width", half_width, above=0)
        if not 0 < reach[0] < reach[1] or half_width >= 0.5:
            raise ValueError(
                f"reach must be two rising volumes and half_width below 0.5, got {reach}, "
                f"{half_width}"
            )
        if reach[1] * (1 - half_width) < reach[0] * (1 + half_width):
            raise ValueError(
                f"reach must leave room for points {half_width:g} of the volume to either side, "
                f"got {reach}"
            )
        self.n_points, self.half_width, self.reach = n_points, half_width, reach

    def values(self, batch: CrystalBatch, backend: Backend) -> Values:
        """Return bulk moduli, with the points and the fit of each in the details."""
        low, high = self.reach
        volume = (batch.volume / batch.n_atoms).numpy()
        n = len(batch)
        center, reasons = _locate(batch, np.geomspace(low, high, 7)[1:-1], backend)
        result = Values(np.full(n, np.nan), reasons, [{} for _ in range(n)])
        spread = np.linspace(-self.half_width, self.half_width, self.n_points)
        left = np.array([i for i in range(n) if i not in reasons], dtype=np.int64)
        for attempt in range(4):
            if not len(left):
                break
            middle = np.clip(center[left], low / (1 + spread[0]), high / (1 + spread[-1]))
            points = middle[:, None] * (1 + spread)
            energy, failed = _curve(batch[left], points, backend)
            v0, e0, modulus, slope = _birch_murnaghan(points, energy)
            # A curvature at the end of the points is not worth much.
            width = self.half_width * (0.5 if attempt < 3 else 1.0)
            inside = (np.abs(v0 / middle - 1) <= width) & (modulus > 0)
            for k, i in enumerate(left.tolist()):
                result.details[i] = {
                    "volumes": (volume[i] * points[k]).tolist(),
                    "energies": energy[k].tolist(),
                }
                if k in failed:
                    reasons[i] = failed[k]
                elif inside[k]:
                    result.values[i] = modulus[k] / volume[i] * GPA
                    result.details[i] |= {
                        "volume": volume[i] * v0[k],
                        "energy": e0[k],
                        "derivative": slope[k],
                    }
            # To the minimum of the fit, or downhill where it is far or there is none.
            downhill = np.where(energy[:, 0] < energy[:, -1], 0.85, 1.18) * middle
            near = np.abs(np.log(np.where(v0 > 0, v0, np.inf) / middle)) < 0.3
            center[left] = np.where(near, v0, downhill)
            left = left[[not (k in failed or inside[k]) for k in range(len(left))]]
        for i in left.tolist():
            reasons[i] = (
                f"the equation of state has no minimum between {low:g} and {high:g} times the "
                "skeleton's volume, or no smooth one"
            )
        return result

    def closeness(self, values: np.ndarray, target: float) -> np.ndarray:
        """Return -|p - target| / target, at least -5, values p in GPa, shape (B,)."""
        return np.maximum(-np.abs(values - target) / target, -5.0)

    def settings(self, backend: Backend) -> str:
        """Return the points and the backend."""
        low, high = self.reach
        fit = f"birch-{self.n_points}-{self.half_width:g}-{low:g}-{high:g}"
        return f"{self.name}-{fit}|{backend.name}"


def _curve(
    batch: CrystalBatch, factors: np.ndarray, backend: Backend
) -> tuple[np.ndarray, dict[int, str]]:
    """Energies per atom at volumes (n, p), all in one batch; why a crystal lacks one."""
    n, p = factors.shape
    repeated = batch.repeat(p)
    scale = torch.from_numpy(np.cbrt(factors)).reshape(-1, 1, 1)
    found = backend.energies(repeated.replace(cell=repeated.cell * scale), repeated)
    reasons = {i // p: why for i, why in reversed(sorted(found.reasons.items()))}
    return found.values.reshape(n, p), reasons


def _locate(
    batch: CrystalBatch, v: np.ndarray, backend: Backend
) -> tuple[np.ndarray, dict[int, str]]:
    """Volumes of the lowest energies, from a scan of rising volumes; why a crystal has none.

    The two smallest, where neighbours are many, are looked at while energies fall towards them.
    """
    energy = np.full((len(batch), len(v)), np.inf)
    energy[:, 2:], reasons = _curve(batch, np.tile(v[2:], (len(batch), 1)), backend)
    for k in (1, 0):
        falling = np.nan_to_num(energy, nan=np.inf).argmin(1) == k + 1
        rows = np.array([i for i in np.flatnonzero(falling) if i not in reasons], dtype=np.int64)
        if len(rows):
            found, failed = _curve(batch[rows], np.full((len(rows), 1), v[k]), backend)
            energy[rows, k] = found[:, 0]
            reasons |= {int(rows[i]): why for i, why in failed.items()}
    return _lowest(v, energy), reasons


def _lowest(v: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Volumes of the minima of scans (n, p) at volumes (p,), by parabolas in v^(-2/3); shape (n,).

    These are Birch's equation of the second order. A minimum beyond the three points about the
    lowest is taken at the lower end of them.
    """
    energy = np.nan_to_num(energy, nan=np.inf)
    at = energy.argmin(1).clip(1, len(v) - 2)
    rows = np.arange(len(at))
    (x0, x1, x2), (e0, e1, e2) = zip(
        *((v[at + d] ** (-2 / 3), energy[rows, at + d]) for d in (-1, 0, 1)), strict=True
    )
    with np.errstate(all="ignore"):
        first, second = (e1 - e0) / (x1 - x0), (e2 - e1) / (x2 - x1)
        x = (x0 + x1) / 2 - first * (x2 - x0) / (second - first) / 2
    inside = (x2 <= x) & (x <= x0) & (second < first)  # x falls: a minimum
    return np.where(inside, x, np.where(e0 < e2, x0, x2)) ** -1.5


def _birch_murnaghan(
    v: np.ndarray, energy: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fit E = a + b x + c x² + d x³ with x = v^(-2/3), the third-order equation, per row.

    Returns:
        Volume, energy and v d²E/dv² of the minimum, and its pressure derivative B'; nan where there
        is none. Each (n,); energy per atom over v in units of v.
    """
    x = v ** (-2 / 3)
    mean = x.mean(1, keepdims=True)
    powers = (x / mean - 1)[..., None] ** np.arange(4)
    energy = np.where(np.isfinite(energy).all(1, keepdims=True), energy, 0.0)
    with np.errstate(all="ignore"):
        a, b, c, d = np.moveaxis((np.linalg.pinv(powers) @ energy[..., None])[..., 0], -1, 0)
        root = np.sqrt(c * c - 3 * b * d)  # nan where the cubic has no minimum
        u = -b / (c + root)  # of the two stationary points, that of positive curvature
        x0 = (u + 1) * mean[:, 0]
        v0 = x0**-1.5
        first, second = -2 / 3 * v0 ** (-5 / 3), 10 / 9 * v0 ** (-8 / 3)
        e2 = (2 * c + 6 * d * u) / mean[:, 0] ** 2
        e3 = 6 * d / mean[:, 0] ** 3
        curvature = e2 * first**2
        # dE/dx is 0 there, so that d³E/dv³ has two terms.
        cubic = e3 * first**3 + 3 * e2 * first * second
        slope = -1 - v0 * cubic / curvature
    return v0, a + u * (b + u * (c + u * d)), v0 * curvature, slope


TARGETS = {
    "bulk_modulus": {"easy": 300.0, "hard": 500.0},
    "density": {"easy": 3.0, "hard": 5.0, "very hard": 8.0},
    "band_gap": {"easy": 1.12, "hard": 2.0},
}
"""CrystalGym's targets (table 1)."""
