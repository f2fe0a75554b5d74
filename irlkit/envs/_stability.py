"""Whether a filling could exist: its energy above the hull, and its chemical validity."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from irlkit.crystals import CrystalBatch
from irlkit.envs._backends import Backend
from irlkit.envs._properties import BandGap, BulkModulus, Density, Property, Values
from irlkit.evaluate.hull import Hull
from irlkit.evaluate.novelty import is_valid_composition
from irlkit.utils.checks import checked


class EnergyAboveHull(Property):
    """Energy above the hull of known compounds at the volume of lowest energy, eV/atom.

    The volume is that of the equation of state of `BulkModulus`; the shape of the skeleton stays.
    A filling whose chemical system the hull does not cover has failed, with the reason: where
    nothing competes, everything seems stable.

    Args:
        hull: of the backend's potential; None: that of the embedded data set, completed.

    >>> from irlkit.envs import Evaluator, Skeletons
    >>> Evaluator("e_above_hull")(Skeletons.get("NaCl").crystals).values.round(2)
    array([0.])
    """

    name, unit, highest = "e_above_hull", "eV/atom", 0.0

    @checked
    def __init__(self, hull: Hull | None = None) -> None:
        self.hull = Hull.prototypes() if hull is None else hull
        self.curve = BulkModulus()

    def values(self, batch: CrystalBatch, backend: Backend) -> Values:
        """Return energies above the hull, below 0 for what is more stable than it knows."""
        n, formulas = len(batch), batch.reduced_formulas()
        covered = self.hull.energy_above_hull(batch, np.zeros(n)).covered
        reasons = {
            i: f"the hull does not cover the elements of {formulas[i]}"
            for i in np.flatnonzero(~covered).tolist()
        }
        result = Values(np.full(n, np.nan), reasons, [{} for _ in range(n)])
        rows = np.flatnonzero(covered)
        if not len(rows):
            return result
        found = self.curve.values(batch[rows], backend)
        energy = np.array([entry.get("energy", np.nan) for entry in found.details], dtype=float)
        result.values[rows] = self.hull.energy_above_hull(batch[rows], energy).value
        for k, i in enumerate(rows.tolist()):
            if k in found.reasons:
                reasons[i] = found.reasons[k]
            else:
                modulus = float(found.values[k])
                result.details[i] = {"energy": float(energy[k]), "bulk_modulus": modulus}
        return result

    def closeness(self, values: np.ndarray, target: float) -> np.ndarray:
        """Return 0 up to the target, -(p - target) above it, at least -1.

        Values p, in eV/atom, and rewards have shape (B,).
        """
        return -np.clip(values - target, 0.0, 1.0)

    def check(self, backend: Backend) -> None:
        """Raise a ValueError for energies that are not those of the hull."""
        self.hull._check_potential(backend.name)

    def settings(self, backend: Backend) -> str:
        """Return the curve's settings and what tells hulls apart."""
        return f"{self.name}-{self.hull.digest}|{self.curve.settings(backend)}"


class ValidComposition(Property):
    """1 for formulas that pass SMACT's test of charges and electronegativities, else 0.

    Needs the package smact (extra `denovo`); no backend is asked.
    """

    name, unit, highest = "valid_composition", "", 0.0

    def values(self, batch: CrystalBatch, backend: Backend) -> Values:
        """Return the test's outcomes."""
        return Values(is_valid_composition(batch).astype(np.float64), {}, [{}] * len(batch))

    def closeness(self, values: np.ndarray, target: float) -> np.ndarray:
        """Return -|p - target|: with a target of 1, 0 for what is valid and -1 for the rest.

        Values p, 0 or 1, and rewards have shape (B,).
        """
        return -np.abs(values - target)

    def settings(self, backend: Backend) -> str:
        """Return the name: no backend takes part."""
        return self.name


PROPERTIES: dict[str, Callable[[], Property]] = {
    "band_gap": BandGap,
    "bulk_modulus": BulkModulus,
    "density": Density,
    "e_above_hull": EnergyAboveHull,
    "valid_composition": ValidComposition,
}
"""Properties by name: CrystalGym's three, and whether a filling could exist."""


@checked
def get_property(of: str | Property) -> Property:
    """Return the property of a name, or one that is there already.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(of, Property):
        return of
    if of not in PROPERTIES:
        raise ValueError(f"property must be one of {sorted(PROPERTIES)}, got {of!r}")
    return PROPERTIES[of]()
