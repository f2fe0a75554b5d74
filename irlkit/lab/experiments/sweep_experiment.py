"""The experiment of notebook 05: a sweep of hyperparameters, and whether its winner is better."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from optuna.trial import FrozenTrial

from irlkit.lab import sweeps
from irlkit.lab.experiments._handcrafted import AnnealedExperiment
from irlkit.lab.experiments._jobs import make_job, seed_pairs
from irlkit.lab.experiments.claims import Claim, Kind, _Group
from irlkit.lab.experiments.presets import SweepPreset
from irlkit.rl._until import train_until
from irlkit.rl.policies import Policy
from irlkit.utils.checks import checked

BACKENDS = ("optuna", "ray")


class SweepExperiment(AnnealedExperiment[Any]):
    """Sweeps the hyperparameters of one policy and trains the best configuration again.

    Its ``table`` are "metrics", on the test split, and "best", first and best configuration.

    A sweep that is in the folder is continued; what is trained already is read.

    Args:
        policy: "annealing", "velocity" or "score".
        checkpoint: name of a shipped model or path of a checkpoint; None: the shipped one that fits
            the policy.
        reward: "crmse" or "energy"; None: that of the paper for the policy.
        potential: of the energy.
        backend: "optuna" or "ray"; see ``Experiment`` for the other arguments.

    Attributes:
        space: what is searched.
        objective: what is maximised.
        sweep: its folder, and in `sweep.study` its trials.
        policies: (name, seed) -> trained policy; names are "first" and "best".

    Raises:
        FileNotFoundError: no such checkpoint or data file.
        ValueError: an argument is wrong, or `out_dir` holds a sweep with other settings.
    """

    preset_kind = SweepPreset
    folder = "runs/05"

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
        out_dir: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        if policy not in sweeps.SPACES:
            raise ValueError(f"policy must be one of {[*sweeps.SPACES]}, got {policy!r}")
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
        self.preset, self.backend = preset, backend
        self.space = sweeps.SPACES[policy].narrowed(preset.narrowed, n_groups=preset.n_groups)
        self.objective = sweeps.PolicyObjective(
            self.space,
            checkpoint=None if checkpoint is None else str(checkpoint),
            dataset=str(dataset),
            reward=reward,
            potential=potential,
            iterations=preset.iterations,
            grpo={
                "n_steps": preset.steps_of.get(policy)
                if preset.n_steps is None
                else preset.n_steps,
                "validate_every": preset.validate_every,
                "validation_size": preset.validation_size,
                "max_batch": preset.max_batch,
            },
            device=str(device),
            n_workers=preset.n_workers,
        )
        super().__init__(
            str(self.objective.checkpoint),
            dataset,
            preset,
            device=device,
            out_dir=out_dir,
            progress=progress,
        )
        self.sweep = sweeps.Sweep(self.out_dir / "sweep", self.space, self.objective.describe())
        self.policies: dict[tuple[str, int], Policy] = {}

    def _summary(self) -> dict[str, str]:
        judged = f" of {self.objective.potential}" if self.objective.reward == "energy" else ""
        return {
            "sweep": f"{self.preset.n_trials} trials of {self.preset.iterations} iterations, "
            f"{self.space.policy} policy, by {self.backend}",
            "reward": f"{self.objective.reward}{judged}",
            "steps": str(self.objective.grpo["n_steps"]),
        }

    def run_sweep(self) -> pd.DataFrame:
        """Run the sweep, or what is left of it; return ``sweeps.trials_table``.

        Raises:
            ImportError: the backend is not installed.
            KeyboardInterrupt: interrupted; a further call continues.
        """
        n_trials, prune = self.preset.n_trials, self.preset.prune
        with self._timed("sweep"):
            if self.backend == "ray":
                return sweeps.run_ray(self.sweep, self.objective, n_trials, prune=prune)
            return sweeps.run_optuna(
                self.sweep, self.objective, n_trials, prune=prune, progress=self.progress
            )

    def _configurations(self) -> dict[str, FrozenTrial]:
        """What is trained again: the first trial, known settings, and the best one."""
        study = self.sweep.study
        return {"first": study.get_trials(deepcopy=False)[0], "best": study.best_trial}

    def _shown(self) -> dict[str, Callable[[], pd.DataFrame]]:
        return {"metrics": self._metrics, "best": self._best}

    def _best(self) -> pd.DataFrame:
        """First and best configuration beside each other."""
        return pd.DataFrame(
            {
                f"{name}, trial {trial.number}": {
                    **trial.params,
                    "validation reward": "" if trial.value is None else f"{trial.value:.4f}",
                }
                for name, trial in self._configurations().items()
            }
        )

    def retrain(self) -> pd.DataFrame:
        """Train the first and the best configuration longer, with new seeds; return the histories.

        Raises:
            ValueError: no trial is complete.
            KeyboardInterrupt: interrupted; a further call continues.
        """
        iterations = self.preset.retrain_iterations
        with self._timed("training", add=True):
            for name, trial in self._configurations().items():
                for seed in self.preset.seeds:
                    if (name, seed) in self.policies:
                        continue
                    folder = self.out_dir / "training" / f"trial_{trial.number}" / f"seed_{seed}"
                    trainer = self.objective.trainer(
                        trial.params, folder, seed=seed, iterations=iterations
                    )
                    history = train_until(trainer, iterations, progress=self.progress)
                    self.policies[name, seed] = trainer.restore_best()
                    assert trainer.best is not None  # There is a validation split.
                    self.best_iteration[name, seed] = int(trainer.best["iteration"])
                    self._histories[name, seed] = history.assign(name=name, seed=seed)
        return self.history

    def evaluate(self) -> pd.DataFrame:
        """Measure on the test split: without reinforcement, and what was trained again.

        What anneals is compared with the rule as well, whose constants are sought here.

        Raises:
            ValueError: nothing was trained again yet.
        """
        if not self.policies:
            raise ValueError("nothing is trained yet; call retrain")
        make, seeds = partial(make_job, self.objective.grpo["n_steps"]), self.preset.seeds
        jobs = [make(seed) for seed in seeds]
        if self.space.policy == "annealing":
            self.sweep_rule(k := self.objective.grpo["n_steps"])
            jobs += [make(seed, "rule", self.best_rule(k), tuned_at=k) for seed in seeds]
        for name in ("first", "best"):
            for trained, seed in seed_pairs(seeds, seeds):
                dynamics = self.policies[name, trained].deploy()
                jobs.append(make(seed, name, dynamics=dynamics, training_seed=trained))
        return self._run("the test split", jobs)

    def _metrics(self) -> pd.DataFrame:
        table = self._means(self.evaluation, "schedule")
        rewards = {name: f"{values.mean():.4f}" for name, values in self._validated().items()}
        table["validation reward"] = pd.Series(rewards)
        return table.rename_axis("configuration")

    def _validated(self) -> dict[str, pd.Series]:
        """Name -> best validation reward by seed; for "none" that before any training."""
        history = self.history.set_index("seed")
        trained = {name: rows["validation_reward"] for name, rows in history.groupby("name")}
        untrained = history[(history["name"] == "best") & (history["iteration"] == 0)]
        return {
            "none": untrained["validation_reward"],
            **{str(name): values.groupby("seed").max() for name, values in trained.items()},
        }

    def _claims(self) -> list[Claim]:
        validated, check = self._validated(), self._evidence().check
        values = sweeps.trials_table(self.sweep.study)["value"]
        found = values[self.sweep.study.best_trial.number] - values[0]
        gain, lead = ((validated["best"] - validated[name]).mean() for name in ("none", "first"))
        none = _Group("no reinforcement", {"schedule": "none"})
        best, first = (
            _Group(f"the {name} configuration", {"schedule": name}, none)
            for name in ("best", "first")
        )
        kind: Kind = "claim" if self.objective.reward == "crmse" else "aim"
        # The best of several validations, or trials, is above one of them by chance alone.
        what, guard = "validation reward of the best", partial(Claim.check, kind="guard")
        rule = _Group("the rule", {"schedule": "rule"})
        return [
            check("crmse", best, none, "< 0", kind),
            check("crmse", best, first, "< 0", "aim"),
            *([check("crmse", best, rule, "< 0", "aim")] if self.rule_sweeps else []),
            guard(f"{what} configuration minus that of the untrained policy", gain, "> 0"),
            guard(f"{what} configuration minus that of the first, trained again", lead, "> 0"),
            guard(f"{what} trial minus that of the first", found, "> 0"),
        ]

    def _remark(self) -> str:
        counts = sweeps.trials_table(self.sweep.study)["state"].value_counts()
        return (
            f"Trials: {', '.join(f'{count} {state}' for state, count in counts.items())}. The best "
            "of many noisy trials looks better than it is: what counts is the comparison of *best* "
            "and *first*, which were trained with seeds that the sweep has not seen, on structures "
            "that it has not seen either."
        )

    def _save_learned(self) -> list[Path]:
        paths = []
        for (name, seed), policy in self.policies.items():
            path = self.out_dir / f"{name}_seed_{seed}.safetensors"
            policy.save(path, {"configuration": name, "seed": seed, "checkpoint": self.checkpoint})
            paths.append(path)
        return paths

    def _tables(self) -> dict[str, pd.DataFrame]:
        validations = [
            (trial.number, iteration, value)
            for trial in self.sweep.study.get_trials(deepcopy=False)
            for iteration, value in trial.intermediate_values.items()
        ]
        return {
            **super()._tables(),
            "trials": sweeps.trials_table(self.sweep.study),
            "validations": pd.DataFrame(validations, columns=["number", "iteration", "value"]),
        }

    def _results(self) -> dict[str, Any]:
        study = self.sweep.study
        importance, trials = sweeps.importance(study), sweeps.trials_table(study)
        return {
            **super()._results(),
            "sweep": {
                "backend": self.backend,
                **study.user_attrs["sweep"],
                "best": {"number": study.best_trial.number, "config": study.best_trial.params},
                "trials": trials.astype(object).where(trials.notna(), None).to_dict("records"),
                "importance": {} if importance.isna().any() else importance.to_dict(),
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
        self.objective.close()
        self.pool.close()
