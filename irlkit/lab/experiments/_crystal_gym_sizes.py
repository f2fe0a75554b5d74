"""How much notebook 08 does, preset by preset, and what is asked of a filling."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from irlkit.envs._benchmark import LIBRARIES

ALGORITHMS = ("GRPO", *(name for name in LIBRARIES if LIBRARIES[name] == "tianshou"))
"""Of the presets that compare."""


@dataclass(frozen=True)
class Task:
    """What is asked of a filling.

    Attributes:
        property: of `irlkit.envs.PROPERTIES`.
        target: of its value.
        stable: energies above the hull are rewarded as well.
    """

    property: str
    target: float
    stable: bool = False


DENSITY, BULK, STABLE = "density 3 g/cm³", "bulk modulus 300 GPa", "300 GPa and stable"
LIGHT_STABLE = "3 g/cm³ and stable"
TASKS = {
    DENSITY: Task("density", 3.0),
    "density 8 g/cm³": Task("density", 8.0),
    BULK: Task("bulk_modulus", 300.0),
    "bulk modulus 500 GPa": Task("bulk_modulus", 500.0),
    STABLE: Task("bulk_modulus", 300.0, stable=True),
    LIGHT_STABLE: Task("density", 3.0, stable=True),
    "band gap 1.12 eV": Task("band_gap", 1.12),
    "band gap 2 eV": Task("band_gap", 2.0),
}
"""Targets of CrystalGym (table 1), and two with stability."""


@dataclass(frozen=True)
class CrystalGymSize:
    """How much notebook 08 does.

    Attributes:
        evaluations: fillings that every run judges.
        tasks: that all algorithms are trained on.
        hard: tasks for GRPO and the control alone.
        algorithms: "GRPO" and others of `irlkit.envs.benchmark`; those whose library is not
            installed are left out.
        seeds: of the runs.
        skeletons: to train on; see `irlkit.envs.Skeletons.get`.
        unseen: to try the trained policies on; None: none.
        elements: "small", "medium" or "large".
        n_best: fillings of each task and algorithm that are relaxed, the best of all seeds.
        max_steps: of their relaxation.
        backend: computes energies and gaps; see `irlkit.envs.get_backend`.
        backend_options: of it, for `irlkit.envs.get_backend`.
        n_dft: fillings that density functional theory judges, where it is installed.
        settings: of algorithms; see `irlkit.envs.benchmark`.
    """

    evaluations: int
    tasks: tuple[str, ...] = (DENSITY, BULK)
    hard: tuple[str, ...] = (STABLE, "density 8 g/cm³")
    algorithms: tuple[str, ...] = ("GRPO",)
    seeds: tuple[int, ...] = (0,)
    skeletons: Any = "train"
    unseen: Any = "test"
    elements: str = "small"
    n_best: int = 20
    max_steps: int = 200
    backend: str = "chgnet"
    backend_options: dict[str, Any] = field(default_factory=dict)
    n_dft: int = 0
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        few = self.evaluations < 10 or self.n_best < 1 or not self.seeds
        if few or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                "at least 10 evaluations, 1 best filling and 1 seed are needed, no seed twice, got "
                f"{self}"
            )
        trained = ("GRPO", *LIBRARIES)
        for name, known in (("tasks", TASKS), ("hard", TASKS), ("algorithms", trained)):
            if unknown := sorted(set(getattr(self, name)) - set(known)):
                raise ValueError(f"{name} must be of {list(known)}, got {unknown}")
        if not self.tasks or "GRPO" not in self.algorithms:
            raise ValueError("tasks must name at least one, and algorithms hold GRPO")


SIZES = {
    "quick": CrystalGymSize(evaluations=160, hard=(STABLE,), n_best=4, max_steps=20),
    "laptop": CrystalGymSize(evaluations=2400, seeds=(0, 1, 2)),
    "compare": CrystalGymSize(evaluations=4000, algorithms=ALGORITHMS, seeds=(0, 1, 2, 3, 4)),
    "dft": CrystalGymSize(
        evaluations=160,
        tasks=("band gap 1.12 eV",),
        hard=(),
        skeletons=("AuSb3", "Li3Bi"),
        unseen=None,
        backend="gpaw",
        backend_options={"k_density": 2.0},
    ),
    "paper": CrystalGymSize(
        evaluations=100_000,
        tasks=tuple(TASKS)[:4],
        hard=(STABLE,),
        algorithms=ALGORITHMS,
        seeds=(0, 1, 2, 3, 4),
        elements="medium",
        n_best=100,
        n_dft=30,
    ),
}
