"""How much notebook 07 does, preset by preset."""

from __future__ import annotations

from dataclasses import dataclass

ELEMENTS_TOO = "pure elements too"
ABLATIONS = {
    ELEMENTS_TOO: (),
    "without diversity": ("structure", "composition"),
    "without creativity": ("creativity",),
    "without stability": ("stability",),
}
"""Variant -> parts of the reward that are left out; `ELEMENTS_TOO` is Chemeleon2's own reward."""


@dataclass(frozen=True)
class DeNovoSize:
    """How much notebook 07 does.

    Attributes:
        n_structures: generated to measure, per seed.
        iterations: of GRPO with all parts of the reward.
        ablation_iterations: of each ablation, and of the open hull.
        gap_iterations: with the band gap as the reward.
        ablations: variants that are trained.
        seeds: of training and of the samples.
        n_groups: numbers of atoms per iteration.
        group_size: structures of each.
        n_steps: from masks to crystals.
        learning_rate: of Adam.
        relax_steps: of each structure before its energy is rewarded.
        max_steps: of the relaxation of what is measured.
        temperatures: among which the rule is chosen.
        judged: whether a judge is asked, if there is one.
    """

    n_structures: int
    iterations: int
    ablation_iterations: int
    gap_iterations: int
    ablations: tuple[str, ...] = tuple(ABLATIONS)
    seeds: tuple[int, ...] = (0,)
    n_groups: int = 5
    group_size: int = 64
    n_steps: int = 20
    learning_rate: float = 4e-3
    relax_steps: int = 10
    max_steps: int = 200
    temperatures: tuple[float, ...] = (0.5, 0.7, 0.85)
    judged: bool = True

    def __post_init__(self) -> None:
        least = min(self.iterations, self.ablation_iterations, self.gap_iterations)
        if self.n_structures < 2 or least < 1:
            raise ValueError(
                f"at least 2 structures and 1 iteration of everything are needed, got {self}"
            )
        if unknown := sorted(set(self.ablations) - set(ABLATIONS)):
            raise ValueError(f"ablations must be of {sorted(ABLATIONS)}, got {unknown}")
        if not self.seeds:
            raise ValueError("seeds must name at least one, got none")


SIZES = {
    "quick": DeNovoSize(
        n_structures=16,
        iterations=2,
        ablation_iterations=1,
        gap_iterations=1,
        ablations=("without diversity",),
        n_groups=2,
        group_size=8,
        n_steps=8,
        relax_steps=2,
        max_steps=50,
        temperatures=(0.7,),
        judged=False,
    ),
    "laptop": DeNovoSize(200, 25, 10, 10, ("without diversity",)),
    "long": DeNovoSize(1000, 60, 25, 25, seeds=(0, 1, 2)),
    "paper": DeNovoSize(10_000, 300, 100, 100, seeds=(0, 1, 2), group_size=128, n_steps=100),
}
