"""How large the experiment of notebook 03 is: presets, and parameters that override them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from irlkit.flows.schedules import FIELD_NAMES, check_n_steps
from irlkit.lab.experiments.presets import Rung, check_training, choose, parse_seeds
from irlkit.rl.config import TrainerConfig
from irlkit.utils.checks import checked, is_number

POLICIES = ("score", "velocity")
ANNEALINGS = ("none", "learn")
"""What ``EnergyPreset.annealing`` can be besides coefficients and a path."""


@checked
@dataclass(frozen=True)
class Variant:
    """A policy to be trained.

    Attributes:
        policy: "score" (7) or "velocity" (13).
        noise: level of the exploration noise.
        ref_noise: level of the reference policy's noise; None: the same.
        grpo: further arguments of ``TrainerConfig``, before those of the preset.
        n_seeds: how many of the preset's seeds it is trained with; None: all.
    """

    policy: str
    noise: str = "medium"
    ref_noise: str | None = None
    grpo: Mapping[str, Any] = field(default_factory=dict)
    n_seeds: int | None = None

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"policy must be one of {POLICIES}, got {self.policy!r}")


@dataclass(frozen=True)
class AnnealingTraining:
    """How the annealing that the policies keep is learned, with cRMSE as the reward.

    Attributes:
        iterations: of GRPO.
        grpo: further arguments of ``TrainerConfig``.
        noise: field -> scale of the constant exploration noise (no unit for "pos", Å for "cell").
        schedule: arguments of ``LearnedAnnealing``.
    """

    iterations: int = 120
    grpo: Mapping[str, Any] = field(default_factory=dict)
    noise: Mapping[str, float] = field(default_factory=lambda: {"pos": 0.4, "cell": 0.1})
    schedule: Mapping[str, Any] = field(default_factory=dict)


@checked
@dataclass(frozen=True)
class EnergyPreset:
    """Size and settings of notebook 03.

    Attributes:
        name: of the preset.
        checkpoint: model that is reinforced: what ``load_pretrained`` takes.
        dataset: what it predicts: a name, or a path.
        potential: what computes all energies: a name for ``potentials.get``.
        fields: that are reinforced: ("pos",), as in the paper, ("cell",) or both.
        noise: level -> field -> scale of the square-root schedule (no unit for "pos", Å for
            "cell"); the fields that are not reinforced are not looked at.
        policies: name -> policy; those of the main comparison, one of each kind.
        noise_study: name -> policies with other scales of the noise (Fig. 6); trained on request.
        annealing: that the velocities of the policies keep: "none"; "learn": one is learned before
            the policies are trained, see `annealing_training`; coefficients (pos, cell) of a
            handcrafted one; or the path of a learned one (notebook 04).
        annealing_training: how it is learned.
        n_steps: integration steps of validation and evaluation.
        train_steps: of the rollouts; None: n_steps.
        iterations: of GRPO, per policy and seed.
        grpo: further arguments of ``TrainerConfig``.
        reference_steps: many steps, which the handcrafted annealing is tuned for.
        test_size: structures of the test split, about; None: all.
        seeds: of training, and of the base samples of the evaluation.
        n_seeds_at_reference: how many of the seeds are evaluated at reference_steps; None: all.
        reference_sweep: rounds of the handcrafted sweep for reference_steps, on validation.
        candidates: coefficients (pos, cell) that the sweep tries besides its own.
        diversity: test compositions, and structures of each, whose diversity is looked at.
        max_batch: structures per network call; small ones stay in a processor's cache.
        n_workers: processes that match structures, and policies trained at a time, in processes of
            their own (with a potential given by name, on a CPU); None: one per core, 0: all in
            this process.
    """

    name: str
    checkpoint: str = "trig-sde-gamma"
    dataset: str = "prototypes"
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
        default_factory=lambda: {
            "score-based": Variant("score"),
            "velocity-based": Variant("velocity"),
        }
    )
    noise_study: Mapping[str, Variant] = field(
        default_factory=lambda: {
            "score-based, small noise": Variant("score", noise="small"),
            "score-based, large noise": Variant("score", noise="large"),
            "velocity-based, small reference noise": Variant("velocity", ref_noise="small"),
        }
    )
    annealing: tuple[float, float] | str = "none"
    annealing_training: AnnealingTraining = field(default_factory=AnnealingTraining)
    n_steps: int = 50
    train_steps: int | None = None
    iterations: int = 40
    grpo: Mapping[str, Any] = field(default_factory=dict)
    reference_steps: int = 500
    test_size: int | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    n_seeds_at_reference: int | None = None
    reference_sweep: tuple[Rung, ...] = (Rung(24, 128, 100), Rung(4, 256, 500))
    candidates: tuple[tuple[float, float], ...] = ((2, 0), (2, 2), (4, 0), (5, 5), (10, 2))
    diversity: tuple[int, int] = (8, 16)
    max_batch: int | None = 64
    n_workers: int | None = None

    def __post_init__(self) -> None:
        check_n_steps(self.n_steps)
        check_n_steps(self.reference_steps, "reference_steps")
        check_n_steps(1 if self.train_steps is None else self.train_steps, "train_steps")
        if self.n_steps >= self.reference_steps:
            raise ValueError(
                f"n_steps must be smaller than reference_steps, {self.reference_steps}, "
                f"got {self.n_steps}"
            )
        if not self.fields or set(self.fields) - set(FIELD_NAMES):
            raise ValueError(f"fields must be one or more of {FIELD_NAMES}, got {self.fields}")
        check_training(self.seeds, self.iterations)
        kinds = [variant.policy for variant in self.policies.values()]
        if sorted(kinds) != sorted(POLICIES):
            raise ValueError(f"policies must be one of each kind of {POLICIES}, got {kinds}")
        if both := set(self.policies) & set(self.noise_study):
            raise ValueError(f"noise_study must have other names than policies, got {sorted(both)}")
        for name, variant in self.variants.items():
            for level in (variant.noise, variant.ref_noise or variant.noise):
                if not set(self.fields) <= set(self.noise.get(level, ())):
                    raise ValueError(
                        f"noise must have a scale for {self.fields} of level {level!r}, which "
                        f"{name} uses, got {dict(self.noise.get(level, {}))}"
                    )
            self.config(name, 0)  # Checks the settings of GRPO.
        if not isinstance(self.annealing, str) and not (
            isinstance(self.annealing, tuple)
            and len(self.annealing) == 2
            and all(map(is_number, self.annealing))
        ):
            raise ValueError(
                f"annealing must be one of {ANNEALINGS}, two coefficients (pos, cell) or the path "
                f"of a learned one, got {self.annealing!r}"
            )
        if self.annealing == "learn":
            check_training(self.seeds, self.annealing_training.iterations)
            self.annealing_config()

    @property
    def variants(self) -> dict[str, Variant]:
        """All policies by name."""
        return {**self.policies, **self.noise_study}

    def config(self, name: str, seed: int) -> TrainerConfig:
        """Settings of a training run of a policy."""
        settings = {
            "n_steps": self.n_steps if self.train_steps is None else self.train_steps,
            "validation_n_steps": self.n_steps,
            "max_batch": self.max_batch,
            "iterations": self.iterations,
            **self.grpo,
            **self.variants[name].grpo,
        }
        return TrainerConfig.from_settings(settings, seed)

    def annealing_config(self) -> TrainerConfig:
        """Settings of the training of the annealing; its seed is the first."""
        settings = {
            "n_steps": self.n_steps if self.train_steps is None else self.train_steps,
            "validation_n_steps": self.n_steps,
            "max_batch": self.max_batch,
            "iterations": self.annealing_training.iterations,
            "shared_x_0": True,
            **self.annealing_training.grpo,
        }
        return TrainerConfig.from_settings(settings, self.seeds[0])

    def seeds_of(self, name: str) -> tuple[int, ...]:
        """Seeds that a policy is trained with."""
        return self.seeds[: self.variants[name].n_seeds]

    def seeds_for(self, n_steps: int) -> tuple[int, ...]:
        """Seeds to evaluate the pretrained model with."""
        many = n_steps >= self.reference_steps
        return self.seeds[: self.n_seeds_at_reference] if many else self.seeds

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON can hold them."""
        configs = {name: self.config(name, self.seeds[0]).to_settings() for name in self.variants}
        learned = self.annealing_config().to_settings() if self.annealing == "learn" else {}
        settings = asdict(self)
        settings["annealing_training"]["grpo"] = learned
        return {**settings, "grpo": configs}


# --------------------------------------------------------------------------------------------------
# The one place to tune.
# --------------------------------------------------------------------------------------------------

# Found on validation compositions; docs/results.md has the trials.
_GRPO = {
    "n_ppo_epochs": 2,
    "learning_rate": 1e-3,
    "final_learning_rate": 3e-4,
    "clip_eps": 0.2,
    "kl_weight": 1e-3,
    "distillation_weight": 1e-5,
    "step_fraction": 0.25,
    "max_minibatch": 640,
    "shared_x_0": True,
    "average_decay": 0.95,
}
# As notebook 04 learns it, but for the steps of this notebook and with fewer iterations.
_LEARNED = AnnealingTraining(
    iterations=120,
    grpo={
        "n_groups": 32,
        "group_size": 8,
        "n_ppo_epochs": 8,
        "learning_rate": 2e-2,
        "final_learning_rate": 3e-3,
        "noise_decay": 0.4,
        "average_decay": 0.95,
        "validate_every": 20,
        "validation_size": 256,
    },
    schedule={"positive": True, "n_frequencies": 3},
)
_OTHER_NOISE = {
    "score-based, small noise": Variant("score", noise="small", n_seeds=1),
    "score-based, large noise": Variant("score", noise="large", n_seeds=1),
}

# As published with the paper's code.
_PAPER_SCORE = {
    "learning_rate": 1.3424e-4,
    "clip_eps": 0.2567,
    "policy_weight": 2.372,
    "kl_weight": 1e-5,
    "distillation_weight": 3e-5,
}
_PAPER_VELOCITY = {
    "learning_rate": 1.1706e-4,
    "clip_eps": 0.2812,
    "policy_weight": 2.298,
    "kl_weight": 1e-3,
}

# Less than fifteen minutes on two cores.
_LAPTOP = EnergyPreset(
    "laptop",
    annealing_training=_LEARNED,
    train_steps=25,
    iterations=70,
    noise_study=_OTHER_NOISE,
    grpo={
        **_GRPO,
        "n_groups": 16,
        "group_size": 8,
        "validate_every": 14,
        "validation_size": 192,
    },
    test_size=400,
    n_seeds_at_reference=1,
    reference_sweep=(Rung(10, 64, 100), Rung(2, 96, 500)),
)

ENERGY_PRESETS: dict[str, EnergyPreset] = {
    preset.name: preset
    for preset in (
        # About a minute on two cores: shows that everything works, not how well.
        EnergyPreset(
            "quick",
            annealing_training=replace(
                _LEARNED,
                iterations=4,
                grpo={
                    **_LEARNED.grpo,
                    "n_groups": 8,
                    "n_ppo_epochs": 4,
                    "validate_every": 2,
                    "validation_size": 32,
                },
            ),
            n_steps=20,
            iterations=3,
            noise_study={"score-based, large noise": Variant("score", noise="large", n_seeds=1)},
            grpo={
                **_GRPO,
                "n_groups": 4,
                "group_size": 8,
                "validate_every": 1,
                "validation_size": 32,
            },
            reference_steps=100,
            test_size=32,
            seeds=(0, 1),
            n_seeds_at_reference=1,
            reference_sweep=(Rung(4, 24, 100),),
            candidates=((2, 0), (5, 2)),
            diversity=(4, 8),
            max_batch=48,
            n_workers=0,
        ),
        _LAPTOP,
        # Seven times the iterations, a learning rate that falls further, slower averages, fewer and
        # larger validations, all test structures, and no other scales of the noise.
        replace(
            _LAPTOP,
            name="long",
            iterations=500,
            noise_study={},
            grpo={
                **_LAPTOP.grpo,
                "final_learning_rate": 1e-4,
                "average_decay": 0.98,
                "validate_every": 50,
                "validation_size": 384,
            },
            test_size=None,
        ),
        # The paper's run, for a GPU: its published settings for the two policies, all steps in
        # every update, and as many steps as its model was tuned for. The small and large noise of
        # Appendix D are not published as numbers.
        EnergyPreset(
            "paper",
            checkpoint="omatg/MP-20-CSP/Trig-SDE-Gamma",
            dataset="mp-20",
            potential="mace-mpa-0",
            iterations=300,
            noise={
                "small": {"pos": 0.05, "cell": 0.1},
                "medium": {"pos": 0.16681, "cell": 0.3},
                "large": {"pos": 0.5, "cell": 0.9},
            },
            policies={
                "score-based": Variant("score", grpo=_PAPER_SCORE),
                "velocity-based": Variant("velocity", grpo=_PAPER_VELOCITY),
            },
            noise_study={
                "score-based, small noise": Variant("score", noise="small", grpo=_PAPER_SCORE),
                "score-based, large noise": Variant("score", noise="large", grpo=_PAPER_SCORE),
                "velocity-based, small reference noise": Variant(
                    "velocity", ref_noise="small", grpo=_PAPER_VELOCITY
                ),
            },
            grpo={
                "n_groups": 16,
                "group_size": 64,
                "n_ppo_epochs": 4,
                "max_grad_norm": 1.0,
                "validate_every": 10,
                "validation_size": 1024,
                "max_minibatch": 8192,
                "max_batch": 256,
                "overlap_rewards": True,
            },
            reference_steps=740,
            n_seeds_at_reference=1,
            reference_sweep=(Rung(48, 512, 200), Rung(6, 2048, 740)),
            diversity=(64, 32),
            max_batch=4096,
        ),
    )
}


@checked
def resolve_energy(
    preset: str = "laptop",
    *,
    checkpoint: str | None = None,
    dataset: str | None = None,
    potential: str | None = None,
    fields: str | Iterable[str] | None = None,
    annealing: Sequence[float] | str | None = None,
    n_steps: int | None = None,
    iterations: int | None = None,
    n_groups: int | None = None,
    group_size: int | None = None,
    kl_weight: float | None = None,
    seeds: Iterable[int] | int | str | None = None,
) -> EnergyPreset:
    """A preset with the parameters that were given; None keeps what the preset says.

    Args:
        preset: a name in ``ENERGY_PRESETS``.
        checkpoint: see ``EnergyPreset``.
        dataset: see ``EnergyPreset``.
        potential: see ``EnergyPreset``.
        fields: see ``EnergyPreset``; a text such as "pos,cell" will do.
        annealing: see ``EnergyPreset``.
        n_steps: see ``EnergyPreset``.
        iterations: see ``EnergyPreset``.
        n_groups: compositions per iteration.
        group_size: structures per composition.
        kl_weight: of the KL to the reference policy, for all policies.
        seeds: numbers, or as a command line has them: one number, or a text such as "0,1,2".

    Raises:
        ValueError: no such preset, or a value that makes no sense.
    """
    if isinstance(fields, str):
        fields = [name.strip() for name in fields.split(",")]
    if fields is not None and not isinstance(fields, Iterable):
        raise ValueError(f"fields must be one or more of {FIELD_NAMES}, got {fields!r}")
    given: dict[str, Any] = {
        "checkpoint": checkpoint,
        "dataset": dataset,
        "potential": potential,
        "fields": None if fields is None else tuple(fields),
        "annealing": tuple(annealing) if isinstance(annealing, list | tuple) else annealing,
        "n_steps": n_steps,
        "iterations": iterations,
        "seeds": parse_seeds(seeds),
    }
    grpo = {"n_groups": n_groups, "group_size": group_size}
    chosen = choose(ENERGY_PRESETS, preset, given, grpo)
    if kl_weight is None:
        return chosen
    policies, noise_study = (
        {name: replace(v, grpo={**v.grpo, "kl_weight": kl_weight}) for name, v in variants.items()}
        for variants in (chosen.policies, chosen.noise_study)
    )
    return replace(chosen, policies=policies, noise_study=noise_study)
