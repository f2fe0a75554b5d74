"""How large the experiment of notebook 02 is: presets, and parameters that override them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from irlkit.flows.schedules import FIELD_NAMES, check_n_steps
from irlkit.lab.experiments.presets import Rung, check_seeds, choose, parse_seeds
from irlkit.utils.checks import checked

SPLITS = ("val", "test")


@checked
@dataclass(frozen=True)
class NoisePreset:
    """Size and settings of notebook 02.

    Attributes:
        name: of the preset.
        split: that is generated for: "test", as in the paper, or "val", for choosing a scale that
            a training shall use.
        fields: that get noise.
        scales: of the noise, ascending; no noise is added.
        levels: name -> which share of the quality without noise its scale costs; quality is 0.5
            minus cRMSE.
        n_steps: integration steps with noise.
        step_counts: numbers of steps of the comparison with and without annealing; n_steps and
            reference_steps are added.
        reference_steps: many steps, which the handcrafted annealing is tuned for.
        test_size: structures that are generated for, about; None: all.
        seeds: of the base samples and of the noise.
        n_seeds_at_reference: how many of them are used at reference_steps; None: all.
        reference_sweep: rounds of the handcrafted sweep for reference_steps, on validation.
        candidates: coefficients (pos, cell) that the sweep tries besides its own.
        max_batch: structures per network call; small ones stay in a processor's cache.
        n_workers: processes that match structures; None: one per core, 0: in this process.
    """

    name: str
    split: str = "test"
    fields: tuple[str, ...] = ("pos",)
    scales: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
    levels: Mapping[str, float] = field(
        default_factory=lambda: {"small": 0.02, "medium": 0.1, "large": 0.5}
    )
    n_steps: int = 50
    step_counts: tuple[int, ...] = (50, 100, 500)
    reference_steps: int = 500
    test_size: int | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    n_seeds_at_reference: int | None = None
    reference_sweep: tuple[Rung, ...] = (Rung(24, 128, 100), Rung(4, 256, 500))
    candidates: tuple[tuple[float, float], ...] = ((2, 0), (2, 2), (4, 0), (5, 5), (10, 2))
    max_batch: int | None = 64
    n_workers: int | None = None

    def __post_init__(self) -> None:
        check_n_steps(self.n_steps)
        check_n_steps(self.reference_steps, "reference_steps")
        for n_steps in self.step_counts:
            check_n_steps(n_steps, "step_counts")
        if self.n_steps >= self.reference_steps:
            raise ValueError(
                f"n_steps must be smaller than reference_steps, {self.reference_steps}, "
                f"got {self.n_steps}"
            )
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {self.split!r}")
        if not self.fields or set(self.fields) - set(FIELD_NAMES):
            raise ValueError(f"fields must be one or more of {FIELD_NAMES}, got {self.fields}")
        if not self.scales or list(self.scales) != sorted(set(self.scales)) or self.scales[0] <= 0:
            raise ValueError(f"scales must be positive and ascending, got {self.scales}")
        check_seeds(self.seeds)

    @property
    def evaluation_steps(self) -> tuple[int, ...]:
        """All numbers of steps without noise, ascending."""
        return tuple(sorted({*self.step_counts, self.n_steps, self.reference_steps}))

    def seeds_for(self, n_steps: int) -> tuple[int, ...]:
        """Seeds to evaluate a number of steps with."""
        return (
            self.seeds[: self.n_seeds_at_reference]
            if n_steps >= self.reference_steps
            else (self.seeds)
        )

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON can hold them."""
        return asdict(self)


# --------------------------------------------------------------------------------------------------
# The one place to tune.
# --------------------------------------------------------------------------------------------------

NOISE_PRESETS: dict[str, NoisePreset] = {
    preset.name: preset
    for preset in (
        # About a minute on two cores: shows that everything works, not how well.
        NoisePreset(
            "quick",
            scales=(0.05, 0.2, 0.8),
            n_steps=20,
            step_counts=(20, 50),
            reference_steps=100,
            test_size=48,
            seeds=(0,),
            reference_sweep=(Rung(4, 32, 100),),
            candidates=((2, 0), (5, 2)),
            max_batch=48,
            n_workers=0,
        ),
        # Less than fifteen minutes on two cores.
        NoisePreset(
            "laptop",
            scales=(0.03, 0.1, 0.2, 0.4, 0.8, 1.6),
            test_size=300,
            seeds=(0, 1),
            n_seeds_at_reference=1,
            reference_sweep=(Rung(10, 64, 100), Rung(3, 96, 500)),
        ),
        # For a GPU: the whole split, and as many steps as the paper's model was tuned for.
        NoisePreset(
            "paper",
            scales=(0.01, 0.02, 0.05, 0.1, 0.17, 0.3, 0.5, 1.0, 2.0),
            step_counts=(50, 100, 740),
            reference_steps=740,
            reference_sweep=(Rung(48, 512, 740), Rung(6, 2048, 740)),
            max_batch=None,
        ),
    )
}


@checked
def resolve_noise(
    preset: str = "laptop",
    *,
    split: str | None = None,
    n_steps: int | None = None,
    scales: Iterable[float] | None = None,
    test_size: int | None = None,
    seeds: Iterable[int] | int | str | None = None,
) -> NoisePreset:
    """A preset with the parameters that were given; None keeps what the preset says.

    Args:
        preset: a name in ``NOISE_PRESETS``.
        split: see ``NoisePreset``.
        n_steps: see ``NoisePreset``.
        scales: see ``NoisePreset``.
        test_size: see ``NoisePreset``.
        seeds: numbers, or as a command line has them: one number, or a text such as "0,1,2".

    Raises:
        ValueError: no such preset, or a value that makes no sense.
    """
    given: dict[str, Any] = {
        "split": split,
        "n_steps": n_steps,
        "scales": None if scales is None else tuple(float(scale) for scale in scales),
        "test_size": test_size,
        "seeds": parse_seeds(seeds),
    }
    return choose(NOISE_PRESETS, preset, given)
