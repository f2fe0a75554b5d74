"""The experiment of notebook 04: annealing by nothing, hand, rule and learning (section 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch

from irlkit.crystals import CrystalBatch
from irlkit.data import CrystalDataset
from irlkit.evaluate import metrics
from irlkit.evaluate.evidence import Bootstrap, Estimate
from irlkit.flows.schedules import (
    FIELD_NAMES,
    Annealing,
    LearnedAnnealing,
    NoAnnealing,
    NoiseSchedule,
    annealing_on_grid,
    time_grid,
)
from irlkit.lab.experiments._annealing_claims import annealing_claims
from irlkit.lab.experiments._handcrafted import SWEEP_SEED, AnnealedExperiment
from irlkit.lab.experiments._jobs import make_job, seed_pairs
from irlkit.lab.experiments._training import Run, annealing_policy
from irlkit.lab.experiments.base import NOISE_SEED
from irlkit.lab.experiments.claims import Claim, _Group
from irlkit.lab.experiments.finished import FinishedAnnealing, _some_found
from irlkit.lab.experiments.noise_schedules import KINDS
from irlkit.lab.experiments.presets import AnnealingPreset, Rung
from irlkit.rewards import CRMSEReward
from irlkit.rl import rollout
from irlkit.rl.policies import AnnealingPolicy
from irlkit.utils.progress import progress_bar

VALIDATION_COLUMNS = {
    "validation_info_matched": "polymorph_match_rate",
    "validation_info_rmsd": "polymorph_rmse",
    "validation_info_crmse": "polymorph_crmse",
    "validation_info_valid": "valid_rate",
}
"""Column of a trainer's history -> metric."""

ELSEWHERE = {"learned": "learned elsewhere", "rule": "rule from elsewhere"}
"""What evaluations with schedules of other data are called."""
_NAMES = {"pos": "positions", "cell": "lattice"}


class VelocityAnnealing(AnnealedExperiment[AnnealingPreset]):
    """Compares annealing schedules of one pretrained model on one data set; see ``Experiment``.

    Its ``table`` is "metrics".
    """

    preset_kind = AnnealingPreset
    folder = "runs/04"

    @property
    def learned(self) -> dict[int, LearnedAnnealing]:
        """Seed -> trained schedule."""
        return {
            seed: cast(AnnealingPolicy, policy).annealing for seed, policy in self.policies.items()
        }

    def policy(self, seed: int) -> AnnealingPolicy:
        """Make the policy that a training with this seed begins with; seeks the rule if need be."""
        few, rule = self.preset.n_steps, None
        if self.preset.start == "rule":
            if few not in self.rule_sweeps:
                self.sweep_rule(few)
            rule = self.best_rule(few)
        return annealing_policy(self.model, self.preset.annealing, self.preset.noise, seed, rule)

    def reward(self) -> CRMSEReward:
        """Make the reward of the training: closeness to a reference of the composition."""
        return CRMSEReward(self.train, self.pool)

    def scan_noise(self) -> pd.DataFrame:
        """Measure what noise of the velocity's length costs (Eq. 14), on validation (Fig. 7).

        The policy before training, with noise on one field at a time.

        Returns:
            A row per field, schedule of the noise ("constant" or "square root"), scale (0: none)
            and seed of the base samples: metrics, "line" as a figure calls it, and "cost", the
            change of the cRMSE with its 95 % interval, as text, of all seeds.
        """
        data = self.validation.subset(self.preset.noise_scan_size)
        bootstrap, rows = Bootstrap(data.batch.reduced_formulas()), []
        lines = [(field, kind) for field in FIELD_NAMES for kind in KINDS]
        total = len(self.preset.seeds) * (1 + len(lines) * len(self.preset.noise_scales))
        with (
            self._timed("scan of the noise"),
            progress_bar(total=total, disable=not self.progress, desc="scan of the noise") as bar,
        ):

            def measured(noise: Mapping[str, NoiseSchedule]) -> list[metrics.Metrics]:
                found = [self._perturbed(data, noise, seed) for seed in self.preset.seeds]
                bar.update(len(found))
                return found

            plain = measured({})
            for field, kind in lines:
                for scale in (0.0, *self.preset.noise_scales):
                    found = measured({field: KINDS[kind](scale)}) if scale else plain
                    closest = (
                        np.stack([m.table["best_rmsd"].fillna(self.pool.stol) for m in those])
                        for those in (found, plain)
                    )
                    ours, theirs = map(bootstrap.mean, closest)
                    labels = {"field": field, "noise": kind, "scale": scale}
                    labels["line"] = f"{_NAMES[field]}, {kind}"
                    labels["cost"] = str(Estimate.of(ours - theirs))
                    rows += [
                        {**labels, "seed": seed, **m.summary()}
                        for seed, m in zip(self.preset.seeds, found, strict=True)
                    ]
        return pd.DataFrame(rows)

    def _perturbed(
        self, data: CrystalDataset, noise: Mapping[str, NoiseSchedule], seed: int
    ) -> metrics.Metrics:
        """What the policy before training gives with this noise."""
        n_steps, limit = self.preset.n_steps, self.preset.max_batch
        if not noise:
            return self.measure(data, n_steps, None, seed)
        x_0 = self._base_sample(data.batch, seed)
        draws = torch.Generator().manual_seed(NOISE_SEED + seed)
        policy = AnnealingPolicy(self.model, None, noise)
        found = rollout(policy, x_0, n_steps, draws, False, limit).final
        return metrics.evaluate(found.to("cpu"), data, self.pool)

    def _summary(self) -> dict[str, str]:
        config = self.preset.config(0)
        return {
            "training": f"{self.preset.iterations} iterations of "
            f"{config.n_groups} groups of {config.group_size}, "
            f"seeds {', '.join(map(str, self.preset.seeds))}",
            "steps": f"few: {self.preset.n_steps}, many: {self.preset.reference_steps}",
        }

    def evaluate(
        self, schedule: str, n_steps: int | Iterable[int] | None = None, tuned_at: int | None = None
    ) -> pd.DataFrame:
        """Evaluate a schedule on the test split for every seed; return the new rows.

        A learned one is evaluated for all pairs of training and base seeds where steps are few, and
        else with the base samples of its own seed.

        Args:
            schedule: "none"; "handcrafted", the best of the sweep for `tuned_at` steps; "rule", the
                same of its sweep; or "learned", of each training seed.
            n_steps: numbers of steps; None takes those of the preset.
            tuned_at: None means the many steps of the reference, of the rule the few.

        Raises:
            ValueError: an unknown schedule, or its sweep or training was not run yet.
        """
        defaults = {"handcrafted": self.preset.reference_steps, "rule": self.preset.n_steps}
        if schedule not in ("none", "learned", *defaults):
            raise ValueError(
                f"schedule must be none, handcrafted, rule or learned, got {schedule!r}"
            )
        if n_steps is None:
            n_steps = self.preset.evaluation_steps
        counts = [n_steps] if isinstance(n_steps, int) else sorted(n_steps)
        tuned_at = defaults.get(schedule) if tuned_at is None else tuned_at
        name = schedule if tuned_at is None else f"{schedule} for {tuned_at} steps"
        jobs = []
        for k in counts:
            seeds = self.preset.seeds_for(k, schedule)
            pairs: list[tuple[Any, int]] = [(None, seed) for seed in seeds]
            if schedule == "learned":
                pairs = list(seed_pairs(self.preset.seeds, seeds, k <= self.preset.n_steps))
            for trained, seed in pairs:
                annealing = self._annealing(schedule, trained, tuned_at)
                options = {"tuned_at": tuned_at, "training_seed": trained}
                jobs.append(make_job(k, seed, schedule, annealing, **options))
        return self._run(name, jobs)

    def _annealing(
        self, schedule: str, seed: int | None = None, tuned_at: int | None = None
    ) -> Annealing:
        """A schedule by its name."""
        if schedule == "none":
            return NoAnnealing()
        if schedule == "handcrafted":
            return self.best_handcrafted(tuned_at or self.preset.reference_steps)
        if schedule == "rule":
            return self.best_rule(tuned_at or self.preset.n_steps)
        if seed not in self.learned:
            raise ValueError(f"schedule of seed {seed} is not learned yet; call train_schedules")
        return self.learned[seed]

    def _shown(self) -> dict[str, Callable[[], pd.DataFrame]]:
        return {"metrics": self._metrics}

    def _metrics(self) -> pd.DataFrame:
        rows = self.evaluation
        names = [
            schedule if np.isnan(tuned_at) else f"{schedule}, tuned at {tuned_at:.0f} steps"
            for schedule, tuned_at in zip(rows["schedule"], rows["tuned_at"], strict=True)
        ]
        return self._means(rows.assign(annealing=names), "annealing", "n_steps")

    def finished(self, n_structures: int = 8) -> FinishedAnnealing:
        """Return what an explorer needs, as ``load_finished`` reads it when results are written.

        Args:
            n_structures: test structures, half of which the learned schedule finds in few steps.
        """
        few, seed = self.preset.n_steps, self.preset.seeds[0]
        found = np.isfinite(self._rmsd("learned", seed))
        schedules: dict[str, Annealing] = {"learned": self.learned[seed]}
        for n_steps in self.rule_sweeps:
            schedules[f"rule, for {n_steps} steps"] = self.best_rule(n_steps)
        for n_steps in self.sweeps:
            schedules[f"handcrafted, for {n_steps} steps"] = self.best_handcrafted(n_steps)
        chosen = self.test.select(_some_found(found, n_structures))
        return FinishedAnnealing(self.model, chosen, schedules | {"none": NoAnnealing()}, few)

    # --- Handcrafted schedules ---

    def sweep_few_steps(self) -> pd.DataFrame:
        """Seek the best handcrafted annealing for n_steps (Appendix H)."""
        n_trials, n_structures = self.preset.few_step_sweep
        return self._sweep((Rung(n_trials, n_structures, self.preset.n_steps),))

    def on_sweep(self, n_steps: int, schedule: str = "learned") -> metrics.Metrics:
        """Measure a schedule, learned with the first seed, on the structures of a sweep's end."""
        data = self.validation.subset(int(self.sweeps[n_steps]["n_structures"].iloc[-1]))
        annealing = self._annealing(schedule, self.preset.seeds[0], n_steps)
        return self.measure(data, n_steps, annealing, SWEEP_SEED)

    # --- Learned schedules ---

    def train_schedules(self) -> pd.DataFrame:
        """Learn a schedule for every seed, keep the best by validation; return all histories.

        Once finished, a further call begins anew; after an interruption, it goes on from there.

        Raises:
            KeyboardInterrupt: interrupted; says how far training was.
        """
        runs = []
        for seed in self.preset.seeds:
            make, config = partial(self.policy, seed), self.preset.config(seed)
            runs.append(Run(seed, f"seed {seed}", {"seed": seed}, make, config))
        return self._train_annealings(runs, self.policies)

    def schedule_curves(self, *n_steps: int) -> pd.DataFrame:
        """Return 1 + s(t) of all schedules (Fig. 5).

        Args:
            *n_steps: grids, whose step size learned schedules may depend on; handcrafted ones are
                given on the first alone, rules on those that they are tuned for. None: few steps,
                and where the step size matters, the smallest and largest numbers of steps as well.

        Returns:
            Columns schedule, tuned_at, seed, n_steps, field, t, factor.
        """
        if not n_steps:
            few, counts = self.preset.n_steps, self.preset.evaluation_steps
            more = (counts[0], counts[-1]) if self.preset.annealing.get("condition_on_dt") else ()
            n_steps = (few, *(k for k in more if k != few))
        entries: list[tuple[str, float, float, int, Annealing]] = [
            ("learned", np.nan, seed, k, annealing)
            for k in n_steps
            for seed, annealing in self.learned.items()
        ]
        entries += [
            ("handcrafted", k, np.nan, n_steps[0], self.best_handcrafted(k)) for k in self.sweeps
        ]
        entries += [("rule", k, np.nan, k, self.best_rule(k)) for k in self.rule_sweeps]
        parts = []
        for schedule, tuned_at, seed, k, annealing in entries:
            times = time_grid(k, self.model.dtype, self.device)
            labels = {"schedule": schedule, "tuned_at": tuned_at, "seed": seed, "n_steps": k}
            with torch.no_grad():
                s = annealing_on_grid(annealing, times)
            t = times[:-1].cpu().double().numpy()
            for field in FIELD_NAMES:
                factor = 1.0 + s[field].cpu().double().numpy()
                parts.append(pd.DataFrame({**labels, "field": field, "t": t, "factor": factor}))
        return pd.concat(parts, ignore_index=True)

    def curves(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return metrics of the validations, and on the test split beside (Fig. 8).

        Returns:
            A row per seed and iteration of a validation, and a row per schedule at few steps, and
            of the handcrafted one at many, on the test split, means over seeds; with the columns of
            ``VALIDATION_COLUMNS``, matches and displacements being those with the closest
            polymorph.
        """
        columns = [*VALIDATION_COLUMNS.values()]
        validated = self.history[self.history["validation_reward"].notna()]
        validated = validated.rename(columns=VALIDATION_COLUMNS).assign(policy="learned annealing")
        few, many, found = self.preset.n_steps, self.preset.reference_steps, self.structures
        at_many = (found["n_steps"] == many) & (found["tuned_at"] == many)
        at_many &= found["schedule"] == "handcrafted"
        at_few = (found["n_steps"] == few) & (found["tuned_at"].isna() | (found["tuned_at"] == few))
        reference = f"handcrafted, {many} steps"
        found = found.assign(schedule=found["schedule"].mask(at_many, reference))
        found = found[at_few | at_many]
        closest = found["polymorph_rmsd"]
        values = (closest.notna(), closest, closest.fillna(self.pool.stol), found["valid"])
        found = found.assign(**dict(zip(columns, values, strict=True)))
        tests = found.groupby("schedule", sort=False)[columns].mean().rename_axis("policy")
        tests = tests.rename(index={"learned": "learned annealing", "none": "no annealing"})
        return validated[["policy", "seed", "iteration", *columns]], tests.reset_index()

    # --- Other data ---

    def transfer(self, other: VelocityAnnealing, *n_steps: int) -> pd.DataFrame:
        """Use what was found on either data set on the other as well, on the test splits.

        Args:
            other: another model, on other data, with learned schedules; both with the rule's
                sweeps.
            *n_steps: numbers of steps; none: the few.

        Returns:
            A row per test split, number of steps and schedule (none, rule, learned, and the latter
            two from elsewhere): METRe and cRMSE with 95 % intervals, and the cRMSE minus those of
            the rule that was tuned here and of no annealing, with verdicts on "< 0"; as text.

        Raises:
            ValueError: no schedule was learned, or a rule not sought for these steps.
        """
        if not (self.learned and other.learned):
            raise ValueError("no schedule is learned yet; call train_schedules of both experiments")
        rows = {}
        for here, there in ((self, other), (other, self)):
            where = f"{Path(here.dataset).name} ({Path(here.checkpoint).name})"
            for k in n_steps or (self.preset.n_steps,):
                here.evaluate("none", k)
                here.evaluate("rule", k, tuned_at=k)
                here._evaluate_found(here, k, {"learned": "learned"})
                here._evaluate_found(there, k, ELSEWHERE)
                for name, row in here._transferred(k).items():
                    rows[where, k, name] = row
        table = pd.DataFrame.from_dict(rows, orient="index").fillna("")
        table.index = pd.MultiIndex.from_tuples(rows, names=["test split of", "steps", "annealing"])
        return table

    def _evaluate_found(self, there: VelocityAnnealing, k: int, names: Mapping[str, str]) -> None:
        """Evaluate the learned schedules and, if it is named, the rule of an experiment here."""
        jobs = [
            make_job(k, seed, names["learned"], there._annealing("learned", t), training_seed=t)
            for t, seed in seed_pairs([*there.learned], self.preset.seeds)
        ]
        if "rule" in names:
            rule = there.best_rule(k)
            jobs += [
                make_job(k, seed, names["rule"], rule, tuned_at=k) for seed in self.preset.seeds
            ]
        self._run("what was found elsewhere", jobs)

    def _transferred(self, k: int) -> dict[str, dict[str, str]]:
        """A row of ``transfer`` for each schedule."""
        evidence, rows = self._evidence(n_steps=k), {}
        tuned = {"rule": {"tuned_at": k}}
        groups = {
            name: _Group(name, {"schedule": name, **tuned.get(name, {})})
            for name in ("none", "rule", "learned", *ELSEWHERE.values())
        }
        for name, group in groups.items():
            row = {
                self.metric_names[metric]: str(
                    Estimate.of(evidence.draw.mean(*evidence.values(metric, group)))
                )
                for metric in ("metre", "crmse")
            }
            for against in ("rule", "none"):
                if name != against:
                    ours, theirs = evidence.values("crmse", group, groups[against])
                    gain = Estimate.of(evidence.draw.mean(ours) - evidence.draw.mean(theirs))
                    row[f"cRMSE minus {against}"] = f"{gain}, {gain.verdict('< 0')}"
            rows[name] = row
        return rows

    # --- Results ---

    def example(self) -> tuple[int, dict[str, list[CrystalBatch]]]:
        """Find a test structure that only the learned schedule finds in few steps.

        Returns:
            Its number, and per title the states of the integration; the last is the reference.
        """
        few, seed = self.preset.n_steps, self.preset.seeds[0]
        rmsd = {schedule: self._rmsd(schedule, seed) for schedule in ("learned", "none")}
        n_atoms = self.test.batch.n_atoms.numpy()
        # Best first: found by the learned schedule only; then several atoms, but not too many.
        found = {schedule: np.isfinite(values) for schedule, values in rmsd.items()}
        score = 4.0 * found["learned"] + 2.0 * ~found["none"] + ((n_atoms >= 4) & (n_atoms <= 10))
        score -= np.nan_to_num(rmsd["learned"], nan=0.5)
        number = int(score.argmax())
        reference = self.test.batch[number]
        # Drawn for all of the split, so that it is that of the evaluation.
        x_0 = self._base_sample(self.test.batch, seed)[number]
        shown = {}
        for schedule, title in (("none", "no annealing"), ("learned", "learned annealing")):
            states: list[CrystalBatch] = []
            annealing = self._annealing(schedule, seed)
            self.generate(reference, few, annealing, seed, x_0=x_0, record=states)
            displacement = rmsd[schedule][number]
            outcome = f"RMSD {displacement:.2f}" if found[schedule][number] else "no match"
            shown[f"{title}: {outcome}"] = [state.to("cpu") for state in states]
        return number, {**shown, "reference": [reference]}

    def _claims(self) -> list[Claim]:
        curves = self.schedule_curves(*self.preset.evaluation_steps)
        smallest = float(curves.loc[curves["schedule"] == "learned", "factor"].min())
        start, times = 1.0, [time_grid(k) for k in self.preset.evaluation_steps]
        if self.preset.start == "rule":
            rule = self.best_rule(self.preset.n_steps)
            start += min(float(s.min()) for t in times for s in annealing_on_grid(rule, t).values())
        return annealing_claims(self._evidence(), self.preset, smallest, start)

    def _remark(self) -> str:
        size = int(self.evaluation["n_structures"].max())
        return f"All intervals are those of {size} test structures."

    def _save_learned(self) -> list[Path]:
        paths = []
        for seed, policy in self.policies.items():
            paths.append(self.out_dir / f"schedule_seed_{seed}.safetensors")
            metadata = {
                "seed": seed,
                "checkpoint": self.checkpoint,
                "dataset": self.dataset,
                "iteration": self.best_iteration[seed],
                "train_steps": list(self.preset.config(seed).step_choices),
            }
            policy.save(paths[-1], metadata)
        return paths

    def _results(self) -> dict[str, Any]:
        rewards = {seed: table["validation_reward"] for seed, table in self._histories.items()}
        training = {
            "iterations": self.preset.iterations,
            "seconds": self.seconds.get("training"),
            "best_iteration": self.best_iteration,
            "best_validation_reward": {seed: table.max() for seed, table in rewards.items()},
        }
        return {**super()._results(), "training": training}

    def _rmsd(self, schedule: str, seed: int) -> np.ndarray:
        """Displacement of each test structure in few steps, nan where unmatched."""
        table = self.structures
        keep = (table["schedule"] == schedule) & (table["n_steps"] == self.preset.n_steps)
        keep &= (table["seed"] == seed) & table["training_seed"].isin((seed, np.nan))
        return table.loc[keep, "rmsd"].to_numpy()
