"""Parts of presets: settings that check themselves, rounds of sweeps, and what is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from irlkit.utils.checks import check_finite, check_kind


@dataclass(frozen=True)
class _Checked:
    """Settings that check themselves by their annotations."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for entry in fields(self):
            check_kind(entry.name, getattr(self, entry.name), hints[entry.name])
        if (n := getattr(self, "iterations", 1)) < 1:
            raise ValueError(f"iterations must be a positive integer, got {n!r}")


@dataclass(frozen=True)
class Rung(_Checked):
    """A round of a sweep: the best so far are tried again, with more effort.

    Attributes:
        n_trials: how many coefficients.
        n_structures: of the validation split, about.
        n_steps: integration steps.
    """

    n_trials: int
    n_structures: int
    n_steps: int


@dataclass(frozen=True)
class Variant(_Checked):
    """A policy to be trained.

    Attributes:
        policy: "score" (Eq. 7) or "velocity" (Eq. 13).
        noise, ref_noise: levels of the noise of exploration and of the reference; None: the same.
        noise_offset: of both, see ``SquareRootNoise``; 0 as in the paper.
        grpo: further settings of ``TrainerConfig``, before those of the preset.
        n_seeds: how many of the preset's seeds it is trained with; None: all.
    """

    policy: str
    noise: str = "medium"
    ref_noise: str | None = None
    noise_offset: float = 0.0
    grpo: Mapping[str, Any] = field(default_factory=dict)
    n_seeds: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy not in ("score", "velocity"):
            raise ValueError(f"policy must be one of ('score', 'velocity'), got {self.policy!r}")
        check_finite("noise_offset", self.noise_offset, least=0.0)


@dataclass(frozen=True)
class AnnealingTraining(_Checked):
    """How notebook 03 learns the annealing that the policies keep; see also ``AnnealingPreset``.

    Its `schedule` are arguments of ``LearnedAnnealing``.
    """

    iterations: int = 120
    grpo: Mapping[str, Any] = field(default_factory=dict)
    noise: Mapping[str, float] = field(default_factory=lambda: {"pos": 0.4, "cell": 0.1})
    schedule: Mapping[str, Any] = field(default_factory=dict)
