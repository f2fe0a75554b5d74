"""What all experiments share: model, data, base samples, evaluations, sweeps, training, results.

Base samples depend on nothing but seed and compositions. Everything that is compared starts from
the same x_0, and differences are paired.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch

from irlkit.crystals import CrystalBatch
from irlkit.data import CrystalDataset
from irlkit.evaluate import metrics
from irlkit.flows.dynamics import Dynamics
from irlkit.flows.schedules import (
    Annealing,
    LinearAnnealing,
    NoiseSchedule,
)
from irlkit.lab.experiments.claims import Claim
from irlkit.lab.experiments.handcrafted import best_of, sweep
from irlkit.lab.experiments.presets import Rung
from irlkit.lab.experiments.splits import load_splits
from irlkit.lab.experiments.training import Run, Trainings
from irlkit.networks.flow_model import FlowModel, load_pretrained
from irlkit.rewards import CRMSEReward, Reward
from irlkit.utils.checks import checked
from irlkit.utils.progress import progress_bar

SWEEP_SEED = 1_000_003
"""Seed of the base samples of sweeps: another one than those of evaluations."""

NOISE_SEED = 2_000_003
"""Added to a seed for the noise: its stream is not that of the base samples."""


class Measured(Protocol):
    """Metrics of a set of generated structures: ``metrics.Metrics``, or more."""

    @property
    def table(self) -> pd.DataFrame:
        """One row per structure."""

    def summary(self) -> dict[str, Any]:
        """All numbers by name."""


@dataclass(frozen=True)
class Job:
    """One evaluation on the test split.

    Attributes:
        labels: columns that tell it from others; has n_steps and seed (of the base samples).
        annealing: of the velocity; None: none.
        options: further arguments of ``Experiment.generate``.
    """

    labels: Mapping[str, Any]
    annealing: Annealing | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


class Experiment:
    """A pretrained model on a data set, and what was measured with it.

    Args:
        checkpoint: what ``load_pretrained`` takes.
        dataset: what ``load_splits`` takes.
        preset: size and settings, with the attributes of ``Settings``.
        device: of the network; structures are matched on the CPU.
        out_dir: folder for results; made when needed.
        progress: show bars.

    Attributes:
        model: the pretrained model, frozen.
        train, validation, test: splits; the evaluation and the sweeps use parts of the latter two.
        sweeps: number of steps -> trials of the handcrafted sweep for it.
        best_iteration: name of a training run -> iteration of its best policy.
        seconds: what -> how long it took.

    Raises:
        FileNotFoundError: no such checkpoint or data file.
        ValueError: a checkpoint or data file that is none, a device that is not there, or a folder
            for results that cannot be made.
    """

    @checked
    def __init__(
        self,
        checkpoint: str | Path,
        dataset: str | Path,
        preset: Any,
        *,
        device: str | torch.device = "cpu",
        out_dir: str | Path,
        progress: bool = True,
    ) -> None:
        self.checkpoint, self.dataset = str(checkpoint), str(dataset)
        self.settings = preset
        self.out_dir = _make_folder(out_dir)
        self.progress = progress
        self.model = self._load(checkpoint, torch.device(device))
        splits = load_splits(dataset, progress)
        self.train, self.validation, whole_test = splits
        self.split_sizes = {s.split: len(s) for s in splits}
        self.test = whole_test.subset(preset.test_size)
        self.pool = metrics.MatchPool(preset.n_workers)
        self.sweeps: dict[int, pd.DataFrame] = {}
        self.seconds: dict[str, float] = {}
        self._evaluated: dict[tuple, tuple[dict[str, Any], pd.DataFrame]] = {}
        self._trainings = Trainings(self.out_dir / "training", self.train, progress)
        self._histories = self._trainings.histories
        self.best_iteration = self._trainings.best_iteration

    @staticmethod
    def _load(checkpoint: str | Path, device: torch.device) -> FlowModel:
        model = load_pretrained(checkpoint, device)
        model.requires_grad_(False)
        return model

    # ----------------------------------------------------------------------------------------------
    # What is there
    # ----------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.model.device

    @property
    def history(self) -> pd.DataFrame:
        """Training history of all runs."""
        return _join(self._histories.values())

    @property
    def evaluation(self) -> pd.DataFrame:
        """One row per evaluation: its labels, metrics and seconds."""
        return pd.DataFrame([row for row, _ in self._evaluated.values()])

    @property
    def structures(self) -> pd.DataFrame:
        """One row per evaluation and test structure."""
        return _join(table for _, table in self._evaluated.values())

    def summary(self) -> pd.DataFrame:
        """Sizes of model and data, for people."""
        n_parameters = sum(p.numel() for p in self.model.parameters())
        rows = {
            "model": f"{self.checkpoint}: {n_parameters:,} parameters on {self.device}",
            "data set": f"{self.dataset}: "
            + ", ".join(f"{size} {name}" for name, size in self.split_sizes.items()),
            "evaluated": f"{len(self.test)} test structures, "
            f"{len(self.test.references())} compositions",
            **self._summary(),
            "results": f"in {self.out_dir.resolve()}",
        }
        return pd.DataFrame({"": rows})

    def _summary(self) -> dict[str, str]:
        """Further rows of ``summary``."""
        return {}

    # ----------------------------------------------------------------------------------------------
    # Generation and evaluation
    # ----------------------------------------------------------------------------------------------

    def base_sample(self, batch: CrystalBatch, seed: int, model: Any = None) -> CrystalBatch:
        """x_0 of a seed, the same on every device; of another model if one is given."""
        generator = torch.Generator().manual_seed(seed)
        sampler = self.model if model is None else model
        return sampler.sample_base(batch, generator).to(self.device)

    def generate(
        self,
        batch: CrystalBatch,
        n_steps: int,
        annealing: Annealing | None,
        seed: int,
        *,
        model: Any = None,
        x_0: CrystalBatch | None = None,
        noise: Mapping[str, NoiseSchedule] | None = None,
        **options: Any,
    ) -> Any:
        """Generate for the compositions of `batch` from x_0 of `seed`; see ``integrate``.

        Args:
            batch: the compositions.
            n_steps: integration steps.
            annealing: of the velocity; None: none.
            seed: of x_0, and of the noise.
            model: what to integrate; None: the pretrained model.
            x_0: start here; None: from the base sample of the seed.
            noise: field -> sigma(t); None: none.
            **options: kind of the ``Dynamics``, and further ones of its ``generate``.
        """
        if noise:
            options["generator"] = torch.Generator().manual_seed(NOISE_SEED + seed)
        kind = options.pop("kind", "ode")
        dynamics = Dynamics(self.model if model is None else model, annealing, noise or {}, kind)
        return dynamics.generate(
            batch.to(self.device),
            n_steps,
            x_0=self.base_sample(batch, seed, model) if x_0 is None else x_0,
            max_batch=self.settings.max_batch,
            **options,
        )

    def judge(self, generated: CrystalBatch, data: CrystalDataset) -> Measured:
        """Metrics of one generated structure per structure of `data`."""
        return metrics.evaluate(generated.to("cpu"), data, self.pool)

    def measure(
        self,
        data: CrystalDataset,
        n_steps: int,
        annealing: Annealing | None,
        seed: int,
        **options: Any,
    ) -> Measured:
        """Metrics of one structure generated per structure of `data`; see ``generate``."""
        return self.judge(self.generate(data.batch, n_steps, annealing, seed, **options), data)

    def _run(self, name: str, jobs: Sequence[Job]) -> pd.DataFrame:
        """Evaluate on the test split; what has the labels of an earlier evaluation replaces it.

        Returns:
            The new rows of ``evaluation``.
        """
        rows: list[dict[str, Any]] = []
        with (
            self._timed(f"evaluation of {name}", add=True),
            progress_bar(
                total=sum(job.labels["n_steps"] for job in jobs),
                disable=not self.progress,
                desc=name,
                unit="step",
            ) as bar,
        ):
            for job in jobs:
                n_steps, seed = job.labels["n_steps"], job.labels["seed"]
                started = time.perf_counter()
                measured = self.measure(self.test, n_steps, job.annealing, seed, **job.options)
                seconds = time.perf_counter() - started
                row = {**job.labels, **measured.summary(), "seconds": seconds}
                rows.append(row)
                key = tuple(str(value) for value in job.labels.values())
                self._evaluated[key] = (row, measured.table.assign(**job.labels))
                bar.update(n_steps)
        return pd.DataFrame(rows)

    # ----------------------------------------------------------------------------------------------
    # Handcrafted annealing
    # ----------------------------------------------------------------------------------------------

    def sweep_reference(self) -> pd.DataFrame:
        """Seek the best handcrafted annealing for many steps (Appendix H)."""
        return self._sweep(self.settings.reference_sweep)

    def _sweep(self, rungs: Sequence[Rung]) -> pd.DataFrame:
        n_steps = rungs[-1].n_steps
        with self._timed(f"sweep at {n_steps} steps"):
            self.sweeps[n_steps] = sweep(
                self._measure_for_sweep,
                self.validation,
                rungs,
                self.settings.candidates,
                self.progress,
            )
        return self.sweeps[n_steps]

    def _measure_for_sweep(
        self, data: CrystalDataset, n_steps: int, annealing: Annealing
    ) -> metrics.Metrics:
        """Structures alone: energies decide nothing here, and are slow where trials are poor."""
        generated = self.generate(data.batch, n_steps, annealing, SWEEP_SEED)
        return metrics.evaluate(generated.to("cpu"), data, self.pool)

    def best_handcrafted(self, n_steps: int) -> LinearAnnealing:
        """The best of the sweep for so many steps.

        Raises:
            ValueError: that sweep was not run.
        """
        if n_steps not in self.sweeps:
            known = (
                f"there are sweeps for {sorted(self.sweeps)}" if self.sweeps else "there is none"
            )
            raise ValueError(
                f"there was no sweep for {n_steps} steps ({known}); call sweep_reference, or "
                "another method that sweeps for this number"
            )
        return best_of(self.sweeps[n_steps])

    # ----------------------------------------------------------------------------------------------
    # Training
    # ----------------------------------------------------------------------------------------------

    def _train_all(
        self,
        runs: Sequence[Run],
        reward: Reward,
        validation: CrystalDataset,
        validation_reward: Reward,
        kept: dict[Any, Any],
        what: str = "training",
        **processes: Any,
    ) -> pd.DataFrame:
        """Train policies; see ``Trainings.train``, whose time is noted.

        Returns:
            The history of all runs.
        """
        if all(run.key in kept for run in runs):
            self.seconds.pop(what, None)
        try:
            with self._timed(what, add=True):
                self._trainings.train(
                    runs, reward, validation, validation_reward, kept, **processes
                )
        finally:
            self.seconds[what] += self._trainings.seconds_before
        return self.history

    def _train_annealings(
        self, runs: Sequence[Run], kept: dict[Any, Any], what: str = "training"
    ) -> pd.DataFrame:
        """Train policies that learn an annealing, with cRMSE as the reward; see ``_train_all``."""
        validation = self.validation.subset(runs[0].config.validation_size)
        with (
            CRMSEReward(self.train, self.pool) as reward,
            CRMSEReward(validation, self.pool) as validation_reward,
        ):
            return self._train_all(runs, reward, validation, validation_reward, kept, what)

    def finish(self) -> None:
        """Note that results are written: what is trained from now on begins anew."""
        self._trainings.finish()

    @contextlib.contextmanager
    def _timed(self, name: str, add: bool = False) -> Iterator[None]:
        """Notes the seconds of its block; with `add`, added to those that are there."""
        started = time.perf_counter()
        try:
            yield
        finally:
            before = self.seconds.get(name, 0.0) if add else 0.0
            self.seconds[name] = before + time.perf_counter() - started

    # ----------------------------------------------------------------------------------------------
    # Results
    # ----------------------------------------------------------------------------------------------

    def claims(self) -> list[Claim]:
        """What holds of the paper's claims."""
        raise NotImplementedError

    def save_learned(self) -> list[Path]:
        """Write what was learned to `out_dir`."""
        return []

    def tables(self) -> dict[str, pd.DataFrame]:
        """Tables to be written, by name; empty ones are not."""
        return {name: getattr(self, name) for name in ("history", "evaluation", "structures")}

    def results(self) -> dict[str, Any]:
        """What results.json has besides parameters, environment, data set, sweeps and claims."""
        return {}

    def evaluation_records(self) -> list[dict[str, Any]]:
        """``evaluation`` as results.json has it: coefficients only where something was tuned."""
        records = []
        for record in self.evaluation.to_dict("records"):
            row = {str(name): value for name, value in record.items()}
            coefficients = {name: row.pop(name) for name in ("pos", "cell")}
            tuned = row["schedule"] == "handcrafted"
            row["tuned_at"] = int(row["tuned_at"]) if row["tuned_at"] > 0 else None  # Or nan.
            records.append({**row, "coefficients": coefficients if tuned else None})
        return records


def annealing_labels(
    schedule: str, annealing: Annealing | None, tuned_at: int | None = None
) -> dict[str, Any]:
    """Columns that say how the velocity was annealed.

    Args:
        schedule: "none", "handcrafted" or "learned".
        annealing: the schedule.
        tuned_at: number of steps that a handcrafted one was tuned for.

    Returns:
        schedule, tuned_at, and the coefficients pos and cell, nan where there are none.
    """
    linear = annealing if isinstance(annealing, LinearAnnealing) else None
    return {
        "schedule": schedule,
        "tuned_at": np.nan if tuned_at is None else tuned_at,
        "pos": np.nan if linear is None else linear.pos,
        "cell": np.nan if linear is None else linear.cell,
    }


def means_for_people(
    rows: pd.DataFrame, by: Sequence[str], columns: Mapping[str, str]
) -> pd.DataFrame:
    """Means over seeds as text, and how many there are.

    Args:
        rows: of ``evaluation``.
        by: columns of the index.
        columns: metric -> what people call it.
    """
    groups = rows.groupby(list(by), sort=False)
    table = groups[list(columns)].mean().rename(columns=dict(columns))
    table = table.map(lambda value: "" if np.isnan(value) else f"{value:.3f}")
    return table.assign(seeds=groups.size())


def _join(tables: Any) -> pd.DataFrame:
    tables = list(tables)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _make_folder(path: str | Path) -> Path:
    """The folder, made now rather than after minutes of work."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out_dir: the folder {str(path)!r} cannot be made: {error}") from None
    return Path(path)
