"""The experiment of notebook 04: velocity annealing, none, handcrafted and learned (section 4.3).

Base samples depend on nothing but seed and compositions. All schedules and numbers of steps are
therefore compared from the same x_0, and differences between them are paired.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from irlkit import datasets, metrics
from irlkit.crystals import CrystalBatch
from irlkit.datasets import CrystalDataset
from irlkit.experiments.claims import Claim, annealing_claims, annealing_conclusion
from irlkit.experiments.handcrafted import best_of, sweep
from irlkit.experiments.presets import Preset, Rung
from irlkit.model import FlowModel, load_pretrained
from irlkit.policies import AnnealingPolicy
from irlkit.progress import progress_bar
from irlkit.rewards import CRMSEReward
from irlkit.sampler import integrate
from irlkit.schedules import (
    FIELD_NAMES,
    Annealing,
    ConstantNoise,
    LearnedAnnealing,
    LinearAnnealing,
    NoAnnealing,
    annealing_on_grid,
    time_grid,
)
from irlkit.trainer import GRPOTrainer

SWEEP_SEED = 1_000_003
"""Seed of the base samples of sweeps: another one than those of evaluations."""


class VelocityAnnealing:
    """Compares annealing schedules of one pretrained model on one data set.

    Args:
        checkpoint: name of a shipped model or path of a checkpoint.
        dataset: name of a shipped data set or path of a data file.
        preset: size and settings.
        device: of the network; structures are matched on the CPU.
        out_dir: folder for results; made when needed.
        progress: show bars.

    Attributes:
        model: the pretrained model, frozen.
        train, validation, test: splits; the evaluation and the sweeps use parts of the latter two.
        learned: seed -> trained schedule.
        history: training history with a column "seed".
        evaluation: one row per evaluation on the test split.
        structures: one row per generated test structure.
        sweeps: number of steps -> trials of the handcrafted sweep for it.

    Raises:
        FileNotFoundError: no such checkpoint or data file.
        ValueError: a checkpoint or data file that is none, a device that is not there, or a folder
            for results that cannot be made.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        dataset: str | Path,
        preset: Preset,
        *,
        device: str | torch.device = "cpu",
        out_dir: str | Path = "runs/04",
        progress: bool = True,
    ) -> None:
        self.checkpoint, self.dataset = str(checkpoint), str(dataset)
        self.preset = preset
        self.out_dir = _make_folder(out_dir)
        self.progress = progress
        self.model: FlowModel = load_pretrained(checkpoint, _find_device(device))
        self.model.requires_grad_(False)
        splits = [
            datasets.load(dataset, split=name, progress=progress)
            for name in ("train", "val", "test")
        ]
        self.train, self.validation, whole_test = splits
        self.split_sizes = {s.split: len(s) for s in splits}
        self.test = whole_test.subset(preset.test_size)
        self.pool = metrics.MatchPool(preset.n_workers)
        self.learned: dict[int, LearnedAnnealing] = {}
        self.best_iteration: dict[int, int] = {}
        self.sweeps: dict[int, pd.DataFrame] = {}
        self.seconds: dict[str, float] = {}
        self._histories: dict[int, pd.DataFrame] = {}
        self._evaluated: dict[tuple, tuple[dict[str, Any], pd.DataFrame]] = {}

    # ----------------------------------------------------------------------------------------------
    # What is there
    # ----------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.model.device

    @property
    def history(self) -> pd.DataFrame:
        """Training history of all seeds."""
        tables = list(self._histories.values())
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    @property
    def evaluation(self) -> pd.DataFrame:
        """One row per evaluation: schedule, tuned_at, pos, cell, n_steps, seed and metrics.

        "tuned_at" is the number of steps that a handcrafted schedule was tuned for, "pos" and
        "cell" are its coefficients; they are nan for other schedules.
        """
        return pd.DataFrame([row for row, _ in self._evaluated.values()])

    @property
    def structures(self) -> pd.DataFrame:
        """One row per evaluation and test structure."""
        tables = [table for _, table in self._evaluated.values()]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    def summary(self) -> pd.DataFrame:
        """Sizes of model and data, for people."""
        n_parameters = sum(p.numel() for p in self.model.parameters())
        rows = {
            "model": f"{self.checkpoint}: {n_parameters:,} parameters on {self.device}",
            "data set": f"{self.dataset}: "
            + ", ".join(f"{size} {name}" for name, size in self.split_sizes.items()),
            "evaluated": f"{len(self.test)} test structures, "
            f"{len(self.test.references())} compositions",
            "training": f"{self.preset.iterations} iterations of "
            f"{self.preset.config(0).n_groups} groups of {self.preset.config(0).group_size}, "
            f"seeds {', '.join(map(str, self.preset.seeds))}",
            "steps": f"few: {self.preset.n_steps}, many: {self.preset.reference_steps}",
            "results": f"in {self.out_dir.resolve()}",
        }
        return pd.DataFrame({"": rows})

    # ----------------------------------------------------------------------------------------------
    # Generation and evaluation
    # ----------------------------------------------------------------------------------------------

    def base_sample(self, batch: CrystalBatch, seed: int) -> CrystalBatch:
        """x_0 of a seed, the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        return self.model.sample_base(batch, generator).to(self.device)

    def generate(
        self,
        batch: CrystalBatch,
        n_steps: int,
        annealing: Annealing | None,
        seed: int,
        **options: Any,
    ) -> Any:
        """Generate for the compositions of `batch` from x_0 of `seed`; see ``integrate``."""
        return integrate(
            self.model,
            batch.to(self.device),
            n_steps,
            annealing=annealing,
            x_0=self.base_sample(batch, seed),
            max_batch=self.preset.max_batch,
            **options,
        )

    def measure(
        self, data: CrystalDataset, n_steps: int, annealing: Annealing | None, seed: int
    ) -> metrics.Metrics:
        """Metrics of one structure generated per structure of `data`."""
        generated = self.generate(data.batch, n_steps, annealing, seed)
        return metrics.evaluate(generated.to("cpu"), data, self.pool)

    def evaluate(
        self, schedule: str, n_steps: int | Iterable[int] | None = None, tuned_at: int | None = None
    ) -> pd.DataFrame:
        """Evaluate a schedule on the test split for every seed, and keep the results.

        What was evaluated before is evaluated again and replaced.

        Args:
            schedule: "none"; "handcrafted", the best of the sweep for `tuned_at` steps; or
                "learned", of each training seed.
            n_steps: numbers of steps; None takes those of the preset.
            tuned_at: None means the many steps of the reference.

        Returns:
            The new rows of ``evaluation``.

        Raises:
            ValueError: an unknown schedule, or its sweep or training was not run yet.
        """
        if schedule not in ("none", "handcrafted", "learned"):
            raise ValueError(f"schedule must be none, handcrafted or learned, got {schedule!r}")
        if n_steps is None:
            n_steps = self.preset.evaluation_steps
        counts = [n_steps] if isinstance(n_steps, int) else sorted(n_steps)
        if schedule == "handcrafted":
            tuned_at = self.preset.reference_steps if tuned_at is None else tuned_at
        name = schedule if tuned_at is None else f"{schedule} for {tuned_at} steps"
        jobs = [(k, seed) for k in counts for seed in self.preset.seeds_for(schedule, k)]
        rows: list[dict[str, Any]] = []
        with (
            self._timed(f"evaluation of {name}"),
            progress_bar(
                total=sum(k for k, _ in jobs), disable=not self.progress, desc=name, unit="step"
            ) as bar,
        ):
            for k, seed in jobs:
                annealing = self.annealing(schedule, seed, tuned_at)
                started = time.perf_counter()
                measured = self.measure(self.test, k, annealing, seed)
                linear = annealing if isinstance(annealing, LinearAnnealing) else None
                labels = {
                    "schedule": schedule,
                    "tuned_at": np.nan if tuned_at is None else tuned_at,
                    "pos": np.nan if linear is None else linear.pos,
                    "cell": np.nan if linear is None else linear.cell,
                    "n_steps": k,
                    "seed": seed,
                }
                seconds = time.perf_counter() - started
                rows.append({**labels, **measured.summary(), "seconds": seconds})
                self._evaluated[schedule, tuned_at, k, seed] = (
                    rows[-1],
                    measured.table.assign(**labels),
                )
                bar.update(k)
        return pd.DataFrame(rows)

    def annealing(self, schedule: str, seed: int = 0, tuned_at: int | None = None) -> Annealing:
        """A schedule by its name; see ``evaluate``."""
        if schedule == "none":
            return NoAnnealing()
        if schedule == "handcrafted":
            return self.best_handcrafted(
                self.preset.reference_steps if tuned_at is None else tuned_at
            )
        if seed not in self.learned:
            raise ValueError(f"schedule of seed {seed} is not learned yet; call train_schedules")
        return self.learned[seed]

    def metrics_table(self, *n_steps: int) -> pd.DataFrame:
        """Mean metrics over seeds, for people.

        Args:
            *n_steps: numbers of steps; none: all.
        """
        rows = self.evaluation
        if n_steps:
            rows = rows[rows["n_steps"].isin(n_steps)]
        names = {
            "metre": "METRe",
            "crmse": "cRMSE",
            "match_rate": "match rate",
            "rmse": "RMSE",
            "valid_rate": "valid",
        }
        rows = rows.assign(
            annealing=[
                schedule if np.isnan(tuned_at) else f"{schedule}, tuned at {tuned_at:.0f} steps"
                for schedule, tuned_at in zip(rows["schedule"], rows["tuned_at"], strict=True)
            ]
        )
        groups = rows.groupby(["annealing", "n_steps"], sort=False)
        table = groups[list(names)].mean().rename(columns=names)
        table = table.map(lambda value: "" if np.isnan(value) else f"{value:.3f}")
        return table.assign(seeds=groups.size()).rename_axis(index={"n_steps": "steps"})

    def named_schedules(self) -> dict[str, Annealing]:
        """The schedules of the comparison, by what they are called; the learned one first."""
        seed = self.preset.seeds[0]
        handcrafted = {f"handcrafted, for {k} steps": best_of(t) for k, t in self.sweeps.items()}
        return {"learned": self.learned[seed], **handcrafted, "none": NoAnnealing()}

    def few_structures(self, size: int = 8) -> CrystalDataset:
        """Some test structures: half that the learned schedule finds in few steps, half others."""
        found = np.isfinite(self._rmsd("learned", self.preset.seeds[0]))
        good, bad = np.flatnonzero(found), np.flatnonzero(~found)
        n_bad = min(len(bad), max(size // 2, size - len(good)))
        rows = np.concatenate([good[: size - n_bad], bad[:n_bad]])
        return self.test.select(torch.from_numpy(np.sort(rows)))

    # ----------------------------------------------------------------------------------------------
    # Handcrafted schedules
    # ----------------------------------------------------------------------------------------------

    def sweep_few_steps(self) -> pd.DataFrame:
        """Seek the best handcrafted annealing for n_steps (Appendix H)."""
        n_trials, n_structures = self.preset.few_step_sweep
        return self._sweep((Rung(n_trials, n_structures, self.preset.n_steps),))

    def sweep_reference(self) -> pd.DataFrame:
        """Seek the best handcrafted annealing for reference_steps."""
        return self._sweep(self.preset.reference_sweep)

    def _sweep(self, rungs: Sequence[Rung]) -> pd.DataFrame:
        n_steps = rungs[-1].n_steps
        with self._timed(f"sweep at {n_steps} steps"):
            self.sweeps[n_steps] = sweep(
                lambda data, k, annealing: self.measure(data, k, annealing, SWEEP_SEED),
                self.validation,
                rungs,
                self.preset.candidates,
                self.progress,
            )
        return self.sweeps[n_steps]

    def best_handcrafted(self, n_steps: int) -> LinearAnnealing:
        """The best of the sweep for so many steps.

        Raises:
            ValueError: that sweep was not run.
        """
        if n_steps not in self.sweeps:
            raise ValueError(
                f"there was no sweep for {n_steps} steps; call sweep_reference for "
                f"{self.preset.reference_steps}, sweep_few_steps for "
                f"{self.preset.n_steps}"
            )
        return best_of(self.sweeps[n_steps])

    def learned_on_sweep(self, n_steps: int) -> metrics.Metrics:
        """Metrics of the first learned schedule on the structures of a sweep's last round."""
        n_structures = int(self.sweeps[n_steps]["n_structures"].iloc[-1])
        data = self.validation.subset(n_structures)
        return self.measure(data, n_steps, self.learned[self.preset.seeds[0]], SWEEP_SEED)

    # ----------------------------------------------------------------------------------------------
    # Learned schedules
    # ----------------------------------------------------------------------------------------------

    def train_schedules(self) -> pd.DataFrame:
        """Learn a schedule with GRPO for every seed and keep the best by validation reward.

        Once finished, a further call begins anew; after an interruption, it goes on from there.

        Returns:
            The history of all seeds.

        Raises:
            KeyboardInterrupt: interrupted; says how far training was.
        """
        validation = self.validation.subset(self.preset.grpo.get("validation_size"))
        if len(self.learned) == len(self.preset.seeds):
            self._histories, self.learned, self.best_iteration = {}, {}, {}
            del self.seconds["training"]
        with (
            self._timed("training", self.seconds.get("training", 0.0)),
            CRMSEReward(self.train, self.pool) as reward,
            CRMSEReward(validation, self.pool) as validation_reward,
        ):
            for seed in self.preset.seeds:
                if seed in self.learned:
                    continue
                generator = torch.Generator().manual_seed(seed)
                policy = AnnealingPolicy(
                    self.model,
                    LearnedAnnealing(**self.preset.annealing, generator=generator),
                    {field: ConstantNoise(scale) for field, scale in self.preset.noise.items()},
                )
                trainer = GRPOTrainer(
                    policy,
                    reward,
                    self.train,
                    self.preset.config(seed),
                    validation=validation,
                    validation_reward=validation_reward,
                    out_dir=self.out_dir / "training" / f"seed_{seed}",
                    resume=seed in self._histories,
                )
                trainer.run(self.preset.iterations, progress=self.progress)
                if len(trainer.history):
                    self._histories[seed] = trainer.history.assign(seed=seed)
                if trainer.iteration < self.preset.iterations:
                    raise KeyboardInterrupt(
                        f"training stopped at iteration {trainer.iteration} of "
                        f"{self.preset.iterations} of seed {seed}; run this cell again to go on "
                        "from there"
                    )
                trainer.restore_best()
                self.learned[seed] = policy.annealing
                assert trainer.best is not None  # A validation split was given.
                self.best_iteration[seed] = int(trainer.best["iteration"])
        return self.history

    def schedule_curves(self, *n_steps: int) -> pd.DataFrame:
        """1 + s(t) of all schedules (Fig. 5).

        Args:
            *n_steps: grids, whose step size learned schedules may depend on; handcrafted ones are
                given on the first alone. None: few steps, and where the step size matters, the
                smallest and largest numbers of steps as well.

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
        parts = []
        for schedule, tuned_at, seed, k, annealing in entries:
            times = time_grid(k, self.model.dtype, self.device)
            labels = {"schedule": schedule, "tuned_at": tuned_at, "seed": seed, "n_steps": k}
            with torch.no_grad():
                s = annealing_on_grid(annealing, times)
            for field in FIELD_NAMES:
                curve = {
                    "t": times[:-1].cpu().double().numpy(),
                    "factor": 1.0 + s[field].cpu().double().numpy(),
                }
                parts.append(pd.DataFrame({**labels, "field": field, **curve}))
        return pd.concat(parts, ignore_index=True)

    def smallest_factor(self) -> float:
        """Smallest 1 + s(t) of the learned schedules on the grids of all numbers of steps."""
        curves = self.schedule_curves(*self.preset.evaluation_steps)
        return float(curves.loc[curves["schedule"] == "learned", "factor"].min())

    # ----------------------------------------------------------------------------------------------
    # Results
    # ----------------------------------------------------------------------------------------------

    def example(self, seed: int | None = None) -> tuple[int, dict[str, list[CrystalBatch]]]:
        """A test structure that the learned schedule finds in few steps and no annealing does not.

        Returns:
            Its number, and per title the states of the integration; the last is the reference.
        """
        few = self.preset.n_steps
        seed = self.preset.seeds[0] if seed is None else seed
        rmsd = {schedule: self._rmsd(schedule, seed) for schedule in ("learned", "none")}
        n_atoms = self.test.batch.n_atoms.numpy()
        # Best first: found by the learned schedule only; then several atoms, but not too many.
        found = {schedule: np.isfinite(values) for schedule, values in rmsd.items()}
        score = (
            4.0 * found["learned"]
            + 2.0 * ~found["none"]
            + ((n_atoms >= 4) & (n_atoms <= 10))
            - np.nan_to_num(rmsd["learned"], nan=0.5)
        )
        number = int(score.argmax())
        reference = self.test.batch[number]
        # Drawn for all of the split, so that it is that of the evaluation.
        x_0 = self.base_sample(self.test.batch, seed)[number]
        shown = {}
        for schedule, title in (("none", "no annealing"), ("learned", "learned annealing")):
            _, states = integrate(
                self.model,
                reference.to(self.device),
                few,
                annealing=self.annealing(schedule, seed),
                x_0=x_0,
                record=True,
            )
            displacement = rmsd[schedule][number]
            outcome = f"RMSD {displacement:.2f}" if found[schedule][number] else "no match"
            shown[f"{title}: {outcome}"] = [state.to("cpu") for state in states]
        return number, {**shown, "reference": [reference]}

    def claims(self) -> list[Claim]:
        """What holds of the paper's claims."""
        return annealing_claims(self.evaluation, self.preset, self.smallest_factor())

    def conclusion(self, claims: Sequence[Claim]) -> str:
        """What was learned, in Markdown, from the results."""
        return annealing_conclusion(self.evaluation, self.preset, claims)

    # ----------------------------------------------------------------------------------------------

    def _rmsd(self, schedule: str, seed: int) -> np.ndarray:
        """Displacement of each test structure in few steps, nan where unmatched."""
        table = self.structures
        keep = (table["schedule"] == schedule) & (table["n_steps"] == self.preset.n_steps)
        return table.loc[keep & (table["seed"] == seed), "rmsd"].to_numpy()

    @contextlib.contextmanager
    def _timed(self, name: str, before: float = 0.0) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = before + time.perf_counter() - started


def _find_device(device: str | torch.device) -> torch.device:
    """The device, if it is there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {str(device)!r} cannot be used here ({str(error).splitlines()[0]}); 'cpu' "
            "always can, 'cuda' needs an NVIDIA GPU and a PyTorch built for it"
        ) from None
    return torch.device(device)


def _make_folder(path: str | Path) -> Path:
    """The folder, made now rather than after minutes of work."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out_dir: the folder {str(path)!r} cannot be made: {error}") from None
    return Path(path)
