"""The experiment of notebook 05: a sweep of hyperparameters, and whether its winner is better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from irlkit.lab import sweeps
from irlkit.lab.experiments.base import Experiment, Job, annealing_labels, means_for_people
from irlkit.lab.experiments.claims import Claim
from irlkit.lab.experiments.presets import Rung, choose, parse_seeds
from irlkit.lab.sweeps import objective as sweep_objective
from irlkit.lab.sweeps.objective import train_until
from irlkit.rl.policies import Policy
from irlkit.utils.checks import checked

METRIC_NAMES = {
    "metre": "METRe",
    "crmse": "cRMSE",
    "match_rate": "match rate",
    "rmse": "RMSE",
    "valid_rate": "valid",
}
BACKENDS = ("optuna", "ray")


@checked
@dataclass(frozen=True)
class SweepPreset:
    """Size and settings of notebook 05.

    Attributes:
        name: of the preset.
        n_steps: integration steps of an annealing policy; others take `n_network_steps`.
        n_network_steps: integration steps of velocity- and score-based policies.
        n_trials: configurations that are tried.
        iterations: of GRPO, per trial.
        retrain_iterations: of GRPO, per seed, when the best is trained again.
        seeds: of that; other ones than the 0 of the trials.
        narrowed: parameter -> choices or bounds other than those of Appendix F.
        n_groups: compositions per iteration.
        prune: end trials below the median early.
        validate_every: iterations between validations.
        validation_size: structures of the validation split, about.
        test_size: structures of the test split, about; None: all.
        max_batch: structures per network call.
        n_workers: processes that match structures; None: one per core, 0: in this process.
    """

    name: str
    n_steps: int = 10
    n_network_steps: int = 50
    n_trials: int = 20
    iterations: int = 30
    retrain_iterations: int = 60
    seeds: tuple[int, ...] = (1, 2, 3)
    narrowed: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    n_groups: int = 16
    prune: bool = True
    validate_every: int = 5
    validation_size: int = 128
    test_size: int | None = None
    max_batch: int | None = 64
    n_workers: int | None = None
    reference_sweep: tuple[Rung, ...] = ()
    candidates: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        positive = ("n_steps", "n_network_steps", "n_trials", "iterations", "retrain_iterations")
        for name in (*positive, "n_groups", "validate_every", "validation_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        for name in ("iterations", "retrain_iterations"):
            if getattr(self, name) < self.validate_every:
                raise ValueError(
                    f"{name} must be at least validate_every, {self.validate_every}, "
                    f"got {getattr(self, name)}"
                )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be different and at least one, got {self.seeds}")

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON can hold them."""
        return asdict(self)


SWEEP_PRESETS: dict[str, SweepPreset] = {
    preset.name: preset
    for preset in (
        # About a minute on two cores: shows that everything works, not which setting is good.
        SweepPreset(
            "quick",
            n_trials=6,
            iterations=4,
            retrain_iterations=6,
            seeds=(1,),
            narrowed={"group_size": (8, 16)},
            n_groups=4,
            validate_every=2,
            validation_size=32,
            test_size=48,
            n_workers=0,
        ),
        # Groups are half as large as in the paper, and trials shorter: large learning rates win.
        SweepPreset(
            "laptop",
            n_trials=24,
            iterations=30,
            retrain_iterations=90,
            seeds=(1, 2),
            narrowed={"group_size": (16, 32)},
            n_groups=8,
            test_size=400,
        ),
        # The space of Appendix F as it is, for a GPU.
        SweepPreset(
            "paper",
            n_trials=100,
            iterations=200,
            retrain_iterations=300,
            validation_size=512,
            max_batch=None,
        ),
    )
}


@checked
def resolve_sweep(
    preset: str = "laptop",
    *,
    n_steps: int | None = None,
    n_trials: int | None = None,
    iterations: int | None = None,
    seeds: Iterable[int] | int | str | None = None,
) -> SweepPreset:
    """A preset with the parameters that were given; None keeps what the preset says.

    Args:
        preset: a name in ``SWEEP_PRESETS``.
        n_steps: integration steps, of every policy.
        n_trials: configurations that are tried.
        iterations: of GRPO, per trial.
        seeds: of the training of the best; numbers, or a text such as "1,2".

    Raises:
        ValueError: no such preset, or a value that makes no sense.
    """
    given: dict[str, Any] = {
        "n_steps": n_steps,
        "n_network_steps": n_steps,
        "n_trials": n_trials,
        "iterations": iterations,
        "seeds": parse_seeds(seeds),
    }
    return choose(SWEEP_PRESETS, preset, given)


class SweepExperiment(Experiment):
    """Sweeps the hyperparameters of one policy and trains the best configuration again.

    A sweep that is in the folder is continued; what is trained already is read.

    Args:
        policy: "annealing", "velocity" or "score".
        checkpoint: name of a shipped model or path of a checkpoint; None: the shipped one that fits
            the policy.
        dataset: name of a shipped data set or path of a data file.
        preset: size and settings.
        reward: "crmse" or "energy"; None: that of the paper for the policy.
        potential: of the energy.
        backend: "optuna" or "ray".
        device: of the network.
        out_dir: folder for results.
        progress: show bars.

    Attributes:
        space: what is searched.
        objective: what is maximised.
        sweep: its folder.
        policies: (name, seed) -> trained policy; names are "first" and "best".

    Raises:
        FileNotFoundError: no such checkpoint or data file.
        ValueError: an argument is wrong, or `out_dir` holds a sweep with other settings.
    """

    @checked
    def __init__(
        self,
        policy: str,
        checkpoint: str | Path | None,
        dataset: str | Path,
        preset: SweepPreset,
        *,
        reward: str | None = None,
        potential: str = "chgnet",
        backend: str = "optuna",
        device: str | torch.device = "cpu",
        out_dir: str | Path = "runs/05",
        progress: bool = True,
    ) -> None:
        if policy not in sweeps.POLICIES:
            raise ValueError(f"policy must be one of {sweeps.POLICIES}, got {policy!r}")
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
        annealing = policy == "annealing"
        if checkpoint is None:
            checkpoint = "linear-ode" if annealing else "trig-sde-gamma"
        super().__init__(
            checkpoint, dataset, preset, device=device, out_dir=out_dir, progress=progress
        )
        self.preset, self.backend = preset, backend
        self.n_steps = preset.n_steps if annealing else preset.n_network_steps
        self.space = sweeps.SPACES[policy].narrowed(preset.narrowed, n_groups=preset.n_groups)
        self.objective = sweeps.PolicyObjective(
            self.space,
            sweeps.TrainingSettings(
                checkpoint=str(checkpoint),
                dataset=str(dataset),
                reward=reward or ("crmse" if annealing else "energy"),
                potential=potential,
                iterations=preset.iterations,
                grpo={
                    "n_steps": self.n_steps,
                    "validate_every": preset.validate_every,
                    "validation_size": preset.validation_size,
                    "max_batch": preset.max_batch,
                },
                device=str(device),
                n_workers=preset.n_workers,
            ),
        )
        self.sweep = sweeps.SweepFolder.create(
            self.out_dir / "sweep", self.space, self.objective.describe(), backend=backend
        )
        self.policies: dict[tuple[str, int], Policy] = {}

    def _summary(self) -> dict[str, str]:
        settings = self.objective.settings
        judged = f" of {settings.potential}" if settings.reward == "energy" else ""
        return {
            "sweep": f"{self.preset.n_trials} trials of {self.preset.iterations} iterations, "
            f"{self.space.policy} policy, by {self.backend}",
            "reward": settings.reward + judged,
            "steps": str(self.n_steps),
        }

    # ----------------------------------------------------------------------------------------------
    # The sweep
    # ----------------------------------------------------------------------------------------------

    def run_sweep(self) -> pd.DataFrame:
        """Run the sweep, or what is left of it.

        Returns:
            One row per trial.

        Raises:
            ImportError: the backend is not installed.
            KeyboardInterrupt: interrupted; a further call continues.
        """
        with self._timed("sweep"):
            if self.backend == "ray":
                return sweeps.run_ray(
                    self.sweep, self.objective, self.preset.n_trials, prune=self.preset.prune
                )
            return sweeps.run_optuna(
                self.sweep,
                self.objective,
                self.preset.n_trials,
                prune=self.preset.prune,
                progress=self.progress,
            )

    @property
    def trials(self) -> pd.DataFrame:
        """One row per trial."""
        return self.sweep.trials()

    def trials_table(self, count: int = 10) -> pd.DataFrame:
        """The best complete trials, for people."""
        trials = self.trials
        best = trials[trials["state"] == "complete"].sort_values("value", ascending=False)
        columns = ["number", "value", *self.space.names, "iterations", "seconds"]
        return best[columns].head(count).set_index("number")

    def importance(self) -> pd.Series:
        """Which parameters make the difference; see ``sweeps.importance``."""
        return sweeps.importance(self.trials, self.space)

    @property
    def logarithmic(self) -> tuple[str, ...]:
        """Parameters that are searched on a logarithmic scale."""
        return tuple(p.name for p in self.space.parameters if getattr(p, "log", False))

    def configurations(self) -> dict[str, sweeps.TrialRecord]:
        """What is trained again: the first trial, known settings, and the best one.

        Raises:
            ValueError: no trial is complete.
        """
        return {"first": self.sweep.records()[0], "best": self.sweep.best()}

    def best_table(self) -> pd.DataFrame:
        """First and best configuration beside each other, for people."""
        return pd.DataFrame(
            {
                f"{name}, trial {trial.number}": {
                    **trial.config,
                    "validation reward": f"{trial.value:.4f}" if trial.value is not None else "",
                }
                for name, trial in self.configurations().items()
            }
        )

    # ----------------------------------------------------------------------------------------------
    # The best configuration
    # ----------------------------------------------------------------------------------------------

    def retrain(self) -> pd.DataFrame:
        """Train the first and the best configuration longer, with seeds new to the sweep.

        Returns:
            The histories of all, with columns name and seed.

        Raises:
            KeyboardInterrupt: interrupted; a further call continues.
        """
        with self._timed("training", add=True):
            for name, trial in self.configurations().items():
                for seed in self.preset.seeds:
                    if (name, seed) in self.policies:
                        continue
                    folder = self.out_dir / "training" / f"trial_{trial.number}" / f"seed_{seed}"
                    trainer = self.objective.trainer(
                        trial.config, folder, seed=seed, iterations=self.preset.retrain_iterations
                    )
                    history = train_until(
                        trainer, self.preset.retrain_iterations, progress=self.progress
                    )
                    self.policies[name, seed] = trainer.restore_best()
                    assert trainer.best is not None  # There is a validation split.
                    self.best_iteration[name, seed] = int(trainer.best["iteration"])
                    self._histories[name, seed] = history.assign(name=name, seed=seed)
        return self.history

    def evaluate(self) -> pd.DataFrame:
        """Metrics on the test split: without reinforcement, and what was trained again.

        Raises:
            ValueError: nothing was trained again yet.
        """
        if not self.policies:
            raise ValueError("nothing is trained yet; call retrain")
        jobs = []
        for seed in self.preset.seeds:
            labels = {"n_steps": self.n_steps, "seed": seed}
            jobs.append(Job({**annealing_labels("none", None), **labels}))
            for name in ("first", "best"):
                dynamics = self.policies[name, seed].deploy()
                options = {
                    "model": dynamics.model,
                    "noise": dynamics.noise,
                    "kind": dynamics.kind,
                }
                jobs.append(
                    Job({**annealing_labels(name, None), **labels}, dynamics.annealing, options)
                )
        return self._run("the test split", jobs)

    def metrics_table(self) -> pd.DataFrame:
        """Means over seeds on the test split, for people."""
        table = means_for_people(self.evaluation, ("schedule",), METRIC_NAMES)
        return table.rename_axis("configuration")

    # ----------------------------------------------------------------------------------------------
    # Results
    # ----------------------------------------------------------------------------------------------

    def _rows(self, name: str) -> pd.DataFrame:
        table = self.evaluation
        return table[table["schedule"] == name].set_index("seed")

    def _validation(self, name: str) -> pd.Series:
        """Best validation reward per seed of what was trained again."""
        table = self.history[self.history["name"] == name]
        return table.groupby("seed")["validation_reward"].max()

    def claims(self) -> list[Claim]:
        """What the sweep was good for."""
        none, first, best = (self._rows(name) for name in ("none", "first", "best"))
        records = self.configurations()
        gain = math.nan
        if records["best"].value is not None and records["first"].value is not None:
            gain = records["best"].value - records["first"].value
        untrained = self.history[
            (self.history["name"] == "best") & (self.history["iteration"] == 0)
        ].set_index("seed")["validation_reward"]
        check = Claim.check
        return [
            check(
                "validation reward of the best configuration, trained again, minus that of the "
                "untrained policy, mean over seeds",
                float((self._validation("best") - untrained).mean()),
                "> 0",
            ),
            check(
                "cRMSE of the best configuration on the test split minus that without "
                "reinforcement, mean over seeds",
                float((best["crmse"] - none["crmse"]).mean()),
                "< 0",
                required=self.objective.settings.reward == "crmse",
            ),
            check(
                "validation reward of the best trial minus that of the first",
                gain,
                "> 0",
                required=False,
            ),
            check(
                "validation reward of the best configuration minus that of the first, both trained "
                "again with new seeds, mean",
                float((self._validation("best") - self._validation("first")).mean()),
                "> 0",
                required=False,
            ),
            check(
                "cRMSE of the best configuration on the test split minus that of the first, mean "
                "over seeds",
                float((best["crmse"] - first["crmse"]).mean()),
                "< 0",
                required=False,
            ),
        ]

    def conclusion(self, claims: Sequence[Claim]) -> str:
        """What the numbers say, in Markdown."""
        lines = ["| configuration | METRe | cRMSE | validation reward |", "|:--|--:|--:|--:|"]
        for name in ("none", "first", "best"):
            rows = self._rows(name)
            reward = "" if name == "none" else f"{self._validation(name).mean():.4f}"
            lines.append(
                f"| {name} | {rows['metre'].mean():.3f} | {rows['crmse'].mean():.3f} | {reward} |"
            )
        required = [claim for claim in claims if claim.required]
        held = sum(claim.holds for claim in required)
        counts = self.trials["state"].value_counts()
        text = ", ".join(f"{count} {state}" for state, count in counts.items())
        lines += ["", f"**{held} of {len(required)} claims hold.** Trials: {text}."]
        failing = [
            f"{number} ({'claim' if claim.required else 'aim'})"
            for number, claim in enumerate(claims, start=1)
            if not claim.holds
        ]
        lines[-1] += f" Those that do not: number {', '.join(failing)}." if failing else ""
        lines[-1] += (
            " The best of many noisy trials looks better than it is: what counts is the comparison "
            "of the last two rows, which were trained with seeds that the sweep has not seen, on "
            "structures that it has not seen either."
        )
        if self.preset.name == "quick":
            lines[-1] += (
                " The preset *quick* only shows that everything works: do not judge a setting by "
                "it."
            )
        return "\n".join(lines)

    def save_learned(self) -> list[Path]:
        paths = []
        for (name, seed), policy in self.policies.items():
            path = self.out_dir / f"{name}_seed_{seed}.safetensors"
            policy.save(path, {"configuration": name, "seed": seed, "checkpoint": self.checkpoint})
            paths.append(path)
        return paths

    def tables(self) -> dict[str, pd.DataFrame]:
        return {**super().tables(), "trials": self.trials, "validations": self.sweep.validations()}

    def results(self) -> dict[str, Any]:
        importance = self.importance()
        return {
            "sweep": {
                "backend": self.backend,
                "space": self.space.to_dict(),
                "objective": self.objective.describe(),
                "best": asdict(self.sweep.best()),
                "trials": self.trials.astype(object)
                .where(self.trials.notna(), None)
                .to_dict("records"),
                "importance": {} if np.isnan(importance).any() else importance.to_dict(),
            },
            "training": {
                "iterations": self.preset.retrain_iterations,
                "seconds": self.seconds.get("training"),
                "best_iteration": {
                    f"{n}, seed {s}": i for (n, s), i in self.best_iteration.items()
                },
            },
        }

    def close(self) -> None:
        """End the worker processes of the trials and of the evaluation."""
        sweep_objective.close()
        self.pool.close()
