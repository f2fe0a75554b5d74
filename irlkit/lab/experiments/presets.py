"""How large the experiments of notebooks 02 to 05 are: presets, and parameters in their place.

The numbers are in ``presets.yaml``; here is what they mean, and what is refused.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

import yaml

from irlkit.flows.schedules import FIELD_NAMES, check_n_steps
from irlkit.lab.experiments._settings import AnnealingTraining, Rung, Variant, _Checked
from irlkit.rl.config import TrainerConfig
from irlkit.utils.checks import check_count, check_kind, checked, is_number

ANNEALING = "annealing"
"""What the training of the annealing is called beside those of the policies, in notebook 03."""


def _to_tuples(value: Any) -> Any:
    """Lists as tuples, in lists and on the outside."""
    return tuple(map(_to_tuples, value)) if isinstance(value, list) else value


@dataclass(frozen=True)
class _Preset(_Checked):
    """What all presets share; see ``Settings`` for the fields."""

    kind: ClassVar[str]

    name: str
    n_steps: int | None = None
    test_size: int | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    max_batch: int | None = 256
    n_workers: int | None = None
    rule_size: int = 96

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_steps", "reference_steps", "train_steps", "step_counts"):
            counts = getattr(self, name, None)
            for n_steps in counts if isinstance(counts, tuple | list) else (counts,):
                if n_steps is not None:
                    check_n_steps(n_steps, name)
        if len(set(self.seeds)) < max(len(self.seeds), 1) or min(self.seeds) < 0:
            raise ValueError(
                f"seeds must be different non-negative integers, at least one, got {self.seeds}"
            )

    @classmethod
    def _from_dict(cls, name: str, data: Mapping[str, Any]) -> _Preset:
        """Build a preset from what the file says."""
        entries = {key: _to_tuples(value) for key, value in data.items()}
        if "reference_sweep" in entries:
            entries["reference_sweep"] = tuple(Rung(*rung) for rung in entries["reference_sweep"])
        return cls(name, **entries)

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as JSON can hold them."""
        return {**asdict(self), **self._resolved()}

    def _resolved(self) -> dict[str, Any]:
        """What ``to_dict`` has in place of fields: settings with their defaults."""
        return {}


@dataclass(frozen=True)
class Settings(_Preset):
    """What the presets of notebooks 02 to 04 share.

    Attributes:
        checkpoint, dataset: names or paths of the model, and of what it predicts.
        n_steps: few integration steps, where the claims are tested.
        reference_steps: many steps, which the handcrafted annealing is tuned for.
        test_size: structures of the test split, about; None: all.
        seeds: of training, and of the base samples of the evaluation.
        n_seeds_at_reference: how many seeds are evaluated at reference_steps; None: all. Of 04:
            schedule -> how many.
        reference_sweep: rounds of the handcrafted sweep for reference_steps, on validation.
        candidates: coefficients (pos, cell) that every sweep tries besides its own.
        rule_size: the same for the rule's constants: validation structures, about.
        max_batch: structures per network call, which bounds memory; fewer than some hundred are
            slower. Results are the same up to rounding.
        n_workers: processes that match, and policies trained at a time in notebook 03; None: one
            per core, 0: in this process.
    """

    checkpoint: str = "linear-ode"
    dataset: str = "prototypes"
    n_steps: int = 50
    reference_steps: int = 500
    n_seeds_at_reference: int | Mapping[str, int] | None = None
    reference_sweep: tuple[Rung, ...] = (Rung(24, 128, 100), Rung(4, 256, 500))
    candidates: tuple[tuple[float, float], ...] = ((2, 0), (2, 2), (4, 0), (5, 5), (10, 2))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_steps >= self.reference_steps:
            raise ValueError(
                f"n_steps must be smaller than reference_steps, {self.reference_steps}, "
                f"got {self.n_steps}"
            )
        for rung in self.reference_sweep:
            check_n_steps(rung.n_steps, "reference_sweep")
        names = getattr(self, "fields", FIELD_NAMES)
        if not names or set(names) - set(FIELD_NAMES):
            raise ValueError(f"fields must be one or more of {FIELD_NAMES}, got {names}")

    @property
    def evaluation_steps(self) -> tuple[int, ...]:
        """All numbers of steps to evaluate, ascending."""
        counts = getattr(self, "step_counts", ())
        return tuple(sorted({*counts, self.n_steps, self.reference_steps}))

    def seeds_for(self, n_steps: int, schedule: str = "none") -> tuple[int, ...]:
        """Return the seeds to evaluate a number of steps (and a schedule) with."""
        limit = self.n_seeds_at_reference
        if isinstance(limit, Mapping):
            limit = limit.get(schedule)
        return self.seeds[:limit] if n_steps >= self.reference_steps else self.seeds


def _check_scales(name: str, scales: Sequence[float]) -> None:
    if not scales or list(scales) != sorted(set(scales)) or scales[0] <= 0:
        raise ValueError(f"{name} must be positive and ascending, got {scales}")


@dataclass(frozen=True)
class AnnealingPreset(Settings):
    """Size and settings of notebook 04; see also ``Settings``.

    Attributes:
        train_steps: numbers of steps of rollouts besides n_steps; each iteration draws one.
        train_at_n_steps: n_steps is one of them.
        step_counts: of the evaluation; n_steps and reference_steps are added.
        iterations: of GRPO, per seed.
        grpo: further settings of ``TrainerConfig``.
        annealing: arguments of ``LearnedAnnealing``.
        start: what the learned annealing begins as: "none", as in the paper, or "rule", with the
            constants that are best for n_steps.
        noise: field -> constant noise scale of rollouts (no unit for "pos", Å for "cell").
        few_step_sweep: trials and validation structures of the handcrafted sweep at n_steps.
        noise_scales: ascending, of the scan of the noise (Fig. 7); each for either field.
        noise_scan_size: validation structures of the scan, about.
    """

    kind: ClassVar[str] = "annealing"

    n_steps: int = 10
    n_seeds_at_reference: Mapping[str, int] = field(default_factory=dict)
    train_steps: tuple[int, ...] = ()
    train_at_n_steps: bool = True
    step_counts: tuple[int, ...] = (5, 10, 20, 50, 100, 500)
    iterations: int = 60
    grpo: Mapping[str, Any] = field(default_factory=dict)
    annealing: Mapping[str, Any] = field(
        default_factory=lambda: {"positive": True, "n_frequencies": 3}
    )
    start: str = "none"
    noise: Mapping[str, float] = field(default_factory=lambda: {"pos": 0.4, "cell": 0.1})
    few_step_sweep: tuple[int, int] = (24, 256)
    noise_scales: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8, 1.6)
    noise_scan_size: int = 96

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_scales("noise_scales", self.noise_scales)
        if self.start not in ("none", "rule"):
            raise ValueError(f"start must be 'none' or 'rule', got {self.start!r}")
        if not self.train_at_n_steps and not self.train_steps:
            raise ValueError("train_steps must not be empty if train_at_n_steps is False")
        self.config(0)  # Checks the settings of GRPO.

    def config(self, seed: int) -> TrainerConfig:
        """Return the settings of a training run."""
        steps = {*self.train_steps, self.n_steps} if self.train_at_n_steps else {*self.train_steps}
        own = {"max_batch": self.max_batch, "iterations": self.iterations, **self.grpo}
        return TrainerConfig.from_settings({"n_steps": tuple(sorted(steps)), **own}, seed)

    def _resolved(self) -> dict[str, Any]:
        return {"grpo": self.config(self.seeds[0]).to_settings()}


@dataclass(frozen=True)
class EnergyPreset(Settings):
    """Size and settings of notebook 03; see also ``Settings``.

    Attributes:
        potential: of all energies: a name for ``potentials.get``.
        fields: that are reinforced; the paper has ("pos",).
        noise: level -> field -> scale of the square-root schedule (pos without unit, cell in Å).
        policies: name -> policy; those of the main comparison, one of each kind.
        noise_study: name -> policies with other noise (Fig. 6); trained on request.
        annealing: that the velocities of the policies keep: "none"; "learn", before the policies
            are; coefficients (pos, cell) of a handcrafted one; or the path of a learned one.
        annealing_training: how it is learned.
        train_steps: of the rollouts; None: n_steps.
        iterations: of GRPO, per policy and seed.
        grpo: further settings of ``TrainerConfig``.
        diversity: test compositions, and structures of each, whose diversity is looked at.
        n_relaxed: structures that are relaxed to see what is left of the gain: of each validation
            (the first ones), and of the test split (about so many).
        relax_steps: of each, at most.
    """

    kind: ClassVar[str] = "energy"

    checkpoint: str = "trig-sde-gamma"
    potential: str = "chgnet"
    fields: tuple[str, ...] = ("pos",)
    noise: Mapping[str, Mapping[str, float]] = field(
        default_factory=lambda: {
            "small": {"pos": 0.1, "cell": 0.02},
            "medium": {"pos": 0.5, "cell": 0.05},
            "large": {"pos": 0.9, "cell": 0.15},
        }
    )
    policies: Mapping[str, Variant] = field(
        default_factory=lambda: {f"{kind}-based": Variant(kind) for kind in ("score", "velocity")}
    )
    noise_study: Mapping[str, Variant] = field(default_factory=dict)
    annealing: tuple[float, float] | str = "none"
    annealing_training: AnnealingTraining = field(default_factory=AnnealingTraining)
    train_steps: int | None = None
    iterations: int = 40
    grpo: Mapping[str, Any] = field(default_factory=dict)
    diversity: tuple[int, int] = (8, 16)
    n_relaxed: tuple[int, int] = (16, 64)
    relax_steps: int = 20

    @classmethod
    def _from_dict(cls, name: str, data: Mapping[str, Any]) -> _Preset:
        built: dict[str, Any] = {}
        for group in ("policies", "noise_study"):
            if group in data:
                built[group] = {key: Variant(**entry) for key, entry in data[group].items()}
        if "annealing_training" in data:
            built["annealing_training"] = AnnealingTraining(**data["annealing_training"])
        return super()._from_dict(name, {**data, **built})

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = [variant.policy for variant in self.policies.values()]
        if sorted(kinds) != ["score", "velocity"]:
            raise ValueError(f"policies must be one of each kind, score and velocity, got {kinds}")
        if both := set(self.policies) & set(self.noise_study):
            raise ValueError(f"noise_study must have other names than policies, got {sorted(both)}")
        for n in (*self.n_relaxed, self.relax_steps):
            check_count("n_relaxed and relax_steps", n)
        for name, variant in self.variants.items():
            for level in (variant.noise, variant.ref_noise or variant.noise):
                if not set(self.fields) <= set(self.noise.get(level, ())):
                    raise ValueError(
                        f"noise must have a scale for {self.fields} of level {level!r}, which "
                        f"{name} uses, got {dict(self.noise.get(level, {}))}"
                    )
            self.config(name, 0)  # Checks the settings of GRPO.
        if not isinstance(self.annealing, str) and not all(map(is_number, self.annealing)):
            raise ValueError(
                f"annealing must be 'none', 'learn', two coefficients (pos, cell) or the path of a "
                f"learned one, got {self.annealing!r}"
            )
        if self.annealing == "learn":
            self.config(ANNEALING, self.seeds[0])

    @property
    def variants(self) -> dict[str, Variant]:
        """All policies by name."""
        return {**self.policies, **self.noise_study}

    def config(self, name: str, seed: int) -> TrainerConfig:
        """Return the settings of a training run of a policy, or of "annealing"."""
        if name == ANNEALING:
            training = self.annealing_training
            own = {"iterations": training.iterations, "shared_x_0": True, **training.grpo}
        else:
            own = {"iterations": self.iterations, **self.grpo, **self.variants[name].grpo}
        shared = {
            "n_steps": self.n_steps if self.train_steps is None else self.train_steps,
            "validation_n_steps": self.n_steps,
            "max_batch": self.max_batch,
        }
        return TrainerConfig.from_settings({**shared, **own}, seed)

    def _seeds_of(self, name: str) -> tuple[int, ...]:
        """The seeds that a policy is trained with."""
        return self.seeds[: self.variants[name].n_seeds]

    def _resolved(self) -> dict[str, Any]:
        names = [*self.variants, *([ANNEALING] if self.annealing == "learn" else [])]
        configs = {name: self.config(name, self.seeds[0]).to_settings() for name in names}
        training = {**asdict(self.annealing_training), "grpo": configs.pop(ANNEALING, {})}
        return {"annealing_training": training, "grpo": configs}


@dataclass(frozen=True)
class NoisePreset(Settings):
    """Size and settings of notebook 02; see also ``Settings``.

    Attributes:
        split: that is generated for: "test", as in the paper, or "val", to choose a scale with.
        fields: that get noise.
        scales: of the noise, ascending; no noise is added.
        levels: name -> which share of the quality without noise its scale costs; quality is 0.5
            minus cRMSE.
        step_counts: of the comparison of annealings; n_steps and reference_steps are added.
    """

    kind: ClassVar[str] = "noise"

    checkpoint: str = "trig-sde-gamma"
    split: str = "test"
    fields: tuple[str, ...] = ("pos",)
    scales: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
    levels: Mapping[str, float] = field(
        default_factory=lambda: {"small": 0.02, "medium": 0.1, "large": 0.5}
    )
    step_counts: tuple[int, ...] = (50, 100, 500)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split not in ("val", "test"):
            raise ValueError(f"split must be one of ('val', 'test'), got {self.split!r}")
        _check_scales("scales", self.scales)


@dataclass(frozen=True)
class SweepPreset(_Preset):
    """Size and settings of notebook 05; see also ``Settings``.

    Attributes:
        n_steps: integration steps; None: what `steps_of` says.
        steps_of: policy -> integration steps; of others 10 for an annealing policy, else 50.
        n_trials: configurations that are tried.
        iterations: of GRPO, per trial.
        retrain_iterations: of GRPO, per seed, when the best is trained again.
        seeds: of that; other ones than the 0 of the trials.
        narrowed: parameter -> choices or bounds other than those of Appendix F.
        n_groups: compositions per iteration.
        prune: end trials below the median early.
        validate_every: iterations between validations.
        validation_size: structures of the validation split, about.
    """

    kind: ClassVar[str] = "sweep"

    steps_of: Mapping[str, int] = field(default_factory=dict)
    n_trials: int = 20
    iterations: int = 30
    retrain_iterations: int = 60
    seeds: tuple[int, ...] = (1, 2, 3)
    narrowed: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    n_groups: int = 16
    prune: bool = True
    validate_every: int = 5
    validation_size: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        for policy, n_steps in self.steps_of.items():
            check_n_steps(n_steps, f"steps_of[{policy!r}]")


_KINDS: dict[str, type[_Preset]] = {
    kind.kind: kind for kind in (AnnealingPreset, EnergyPreset, NoisePreset, SweepPreset)
}


@cache
def presets(kind: str) -> Mapping[str, Any]:
    """Return the presets of a kind of experiment by name, the smallest first.

    Args:
        kind: "noise" (notebook 02), "energy" (03), "annealing" (04) or "sweep" (05).

    >>> presets("noise")["quick"].scales
    (0.05, 0.2, 0.8)
    """
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {sorted(_KINDS)}, got {kind!r}")
    data = yaml.safe_load(Path(__file__).with_name("presets.yaml").read_text(encoding="utf-8"))
    found = {name: _KINDS[kind]._from_dict(name, entry) for name, entry in data[kind].items()}
    return types.MappingProxyType(found)


@checked
def resolve(kind: str, preset: str = "laptop", **given: Any) -> Any:
    """Return a preset with the parameters that were given; None keeps what the preset says.

    Args:
        kind: see ``presets``.
        preset: a name in ``presets(kind)``.
        **given: see ``choose``, also for what is refused.

    >>> resolve("annealing", "quick", seeds="4,5", group_size=16).config(4).group_size
    16
    """
    return choose(presets(kind), preset, given)


def choose(known: Mapping[str, Any], name: str, given: Mapping[str, Any]) -> Any:
    """Return a preset with what was given in place of its values; None keeps them.

    Args:
        known: name -> preset, a dataclass.
        name: which.
        given: field -> value or None, several values also as one number or "0,1,2"; n_groups,
            group_size and kl_weight go to its ``grpo``.

    Raises:
        ValueError: no such preset or field, or a value that the preset refuses.
    """
    if name not in known:
        raise ValueError(f"preset must be one of {sorted(known)}, got {name!r}")
    chosen = known[name]
    changes = {key: value for key, value in given.items() if value is not None}
    own = {entry.name for entry in fields(chosen)}
    of_grpo = {"n_groups", "group_size", "kl_weight"} - own if "grpo" in own else set()
    if unknown := sorted(set(changes) - own - of_grpo):
        raise ValueError(f"{unknown[0]} is no parameter of the preset, which has {sorted(own)}")
    grpo = {key: changes.pop(key) for key in sorted(of_grpo & set(changes))}
    hints = get_type_hints(type(chosen))
    changes = {key: _as_annotated(key, value, hints[key]) for key, value in changes.items()}
    if grpo:
        changes["grpo"] = {**chosen.grpo, **grpo}
        for group in ("policies", "noise_study"):  # What a preset says of one policy comes after.
            if "kl_weight" in grpo and group in own:
                changes[group] = {
                    key: replace(entry, grpo={**entry.grpo, "kl_weight": grpo["kl_weight"]})
                    for key, entry in getattr(chosen, group).items()
                }
    return replace(chosen, **changes)


def _as_annotated(name: str, value: Any, hint: Any) -> Any:
    """Several values as a tuple, where the annotation says so."""
    if get_origin(hint) is not tuple:
        return tuple(value) if isinstance(value, list) else value
    of = get_args(hint)[0]
    if isinstance(value, str):
        parts = [part.strip() for part in value.strip("[]() ").split(",")]
        try:
            return tuple(of(part) for part in parts if part)
        except ValueError:
            raise ValueError(f"{name} must be numbers such as '0,1,2', got {value!r}") from None
    if isinstance(value, int):
        return (value,)
    check_kind(name, value, Iterable)
    return tuple(value)
