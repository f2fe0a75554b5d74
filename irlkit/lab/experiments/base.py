"""What all experiments share: model, data, base samples, evaluations, training, results.

Base samples depend on nothing but seed and compositions. Everything that is compared starts from
the same x_0, and differences are paired.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import pandas as pd
import torch

from irlkit.crystals import CrystalBatch
from irlkit.data import CrystalDataset
from irlkit.evaluate import metrics
from irlkit.evaluate.evidence import spread_of_seeds
from irlkit.flows.dynamics import Dynamics, VelocityField
from irlkit.flows.schedules import Annealing
from irlkit.lab._splits import load_splits
from irlkit.lab.experiments._jobs import Job, evaluation_records, fingerprint
from irlkit.lab.experiments._stages import announce
from irlkit.lab.experiments._training import Run, Trainings
from irlkit.lab.experiments.claims import Claim, _Evidence, _verdicts_in_words, _with_range
from irlkit.lab.experiments.presets import _Preset
from irlkit.lab.experiments.records import write_records
from irlkit.networks.flow_model import FlowModel
from irlkit.networks.pretrained import load_pretrained
from irlkit.rewards import CRMSEReward, Reward
from irlkit.rl.policies import Policy
from irlkit.utils.checks import check_kind, checked
from irlkit.utils.progress import progress_bar
from irlkit.utils.system import make_folder, write_atomically

P = TypeVar("P", bound=_Preset)

NOISE_SEED = 2_000_003
"""Added to a seed for the noise: its stream is not that of the base samples."""


class Experiment(Generic[P]):
    """A pretrained model on a data set, and what was measured with it.

    Args:
        checkpoint: name of a shipped model or path of a checkpoint.
        dataset: name of a shipped data set or path of a data file; see ``load_splits``.
        preset: size and settings.
        device: of the network; structures are matched on the CPU.
        out_dir: folder for results, made when needed; None: that of the notebook.
        progress: show bars.

    Attributes:
        model: the pretrained model, frozen, on `device`.
        train, validation, test: splits; the evaluation and the sweeps use parts of the latter two.
        policies: name of a training run -> its best policy.
        best_iteration: name of a training run -> iteration of its best policy.
        seconds: stage -> how long it took.
        planned: stage -> seconds that it was expected to take, once ``estimate`` was asked.

    Raises:
        FileNotFoundError: no such checkpoint or data file.
        ValueError: a checkpoint or data file that is none, a device that is not there, or a folder
            for results that cannot be made.
    """

    preset_kind: type
    folder = "runs"
    metric_names: Mapping[str, str] = {
        "metre": "METRe",
        "crmse": "cRMSE",
        "match_rate": "match rate",
        "rmse": "RMSE",
        "valid_rate": "valid",
    }
    """Metric -> what people call it, in the order of tables."""

    @checked
    def __init__(
        self,
        checkpoint: str | Path,
        dataset: str | Path,
        preset: P,
        *,
        device: str | torch.device = "cpu",
        out_dir: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        check_kind("preset", preset, self.preset_kind)
        self.checkpoint, self.dataset = str(checkpoint), str(dataset)
        self.preset = preset
        self.out_dir = make_folder(self.folder if out_dir is None else out_dir)
        self.progress = progress
        self.model = self._load(checkpoint, torch.device(device))
        self.device = self.model.device
        self.train, self.validation, whole_test = splits = load_splits(dataset, progress)
        self.split_sizes = {s.split: len(s) for s in splits}
        self.test = whole_test.subset(preset.test_size)
        self.pool = metrics.MatchPool(preset.n_workers)
        self.seconds: dict[str, float] = {}
        self.planned: dict[str, float] = {}
        self._began = time.perf_counter()
        self._evaluated: dict[tuple, tuple[dict[str, Any], pd.DataFrame]] = {}
        self._unwritten = self.out_dir / "evaluated"
        self.policies: dict[Any, Policy] = {}
        self._trainings = Trainings(self.out_dir / "training", self.train, progress)
        self._histories = self._trainings.histories
        self.best_iteration = self._trainings.best_iteration

    @staticmethod
    def _load(checkpoint: str | Path, device: torch.device) -> FlowModel:
        model = load_pretrained(checkpoint, device)
        model.requires_grad_(False)
        return model

    # --- What is there ---

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
        """Return the sizes of model and data, for people."""
        n_parameters = sum(p.numel() for p in self.model.parameters())
        sizes = ", ".join(f"{size} {name}" for name, size in self.split_sizes.items())
        rows = {
            "model": f"{self.checkpoint}: {n_parameters:,} parameters on {self.device}",
            "data set": f"{self.dataset}: {sizes}",
            "evaluated": f"{len(self.test)} test structures, "
            f"{len(self.test.references())} compositions",
            **self._summary(),
            "results": f"in {self.out_dir.resolve()}",
        }
        return pd.DataFrame({"": rows})

    def _summary(self) -> dict[str, str]:
        """Further rows of ``summary``."""
        return {}

    # --- Generation and evaluation ---

    def _base_sample(
        self, batch: CrystalBatch, seed: int, model: VelocityField | None = None
    ) -> CrystalBatch:
        """Draw x_0 of a seed, the same on every device; of another model if one is given."""
        generator = torch.Generator().manual_seed(seed)
        return (model or self.model).sample_base(batch, generator).to(self.device)

    def generate(
        self,
        batch: CrystalBatch,
        n_steps: int,
        dynamics: Dynamics | Annealing | None,
        seed: int,
        **options: Any,
    ) -> CrystalBatch:
        """Generate for the compositions of `batch` from x_0 of `seed`.

        Args:
            batch: the compositions.
            n_steps: integration steps.
            dynamics: what generates; an annealing, or None, stands for the pretrained model with
                it.
            seed: of x_0, and of the noise.
            **options: of ``Dynamics.generate``, such as `x_0`, to start elsewhere.
        """
        if not isinstance(dynamics, Dynamics):
            dynamics = Dynamics(self.model, dynamics)
        if dynamics.noise:
            options["generator"] = torch.Generator().manual_seed(NOISE_SEED + seed)
        if options.get("x_0") is None:
            options["x_0"] = self._base_sample(batch, seed, dynamics.model)
        options.setdefault("max_batch", self.preset.max_batch)
        return dynamics.generate(batch.to(self.device), n_steps, **options)

    def measure(
        self, data: CrystalDataset, n_steps: int, dynamics: Dynamics | Annealing | None, seed: int
    ) -> metrics.Metrics:
        """Compare one generated structure per structure of `data` with it; see ``generate``."""
        generated = self.generate(data.batch, n_steps, dynamics, seed).to("cpu")
        return metrics.evaluate(generated, data, self.pool)

    def _judge(
        self, generated: CrystalBatch, data: CrystalDataset
    ) -> tuple[dict[str, Any], pd.DataFrame]:
        """All metrics of one generated structure per structure of `data`, and a row for each."""
        measured = metrics.evaluate(generated, data, self.pool)
        return measured.summary(), measured.table

    def _run(self, name: str, jobs: Sequence[Job]) -> pd.DataFrame:
        """Evaluate on the test split, in place of what has the same labels; the new rows."""
        rows: list[dict[str, Any]] = []
        total = sum(job.labels["n_steps"] for job in jobs)
        bar = progress_bar(total=total, disable=not self.progress, desc=name, unit="step")
        with self._timed(f"evaluation of {name}", add=True), bar:
            for job in jobs:
                n_steps = job.labels["n_steps"]
                table = self._evaluate(job.dynamics, n_steps, job.labels["seed"])
                row: dict[str, Any] = dict(job.labels) | cast(dict[str, Any], table.attrs)
                rows.append(row)
                key = tuple(str(value) for value in job.labels.values())
                self._evaluated[key] = (row, table.assign(**job.labels))
                bar.update(n_steps)
        return pd.DataFrame(rows)

    def _evaluate(
        self, dynamics: Dynamics | Annealing | None, n_steps: int, seed: int
    ) -> pd.DataFrame:
        """A row per test structure, metrics in its ``attrs``: of files, until results are written.

        So an evaluation that was interrupted goes on, and what is the same is evaluated once.
        """
        if not isinstance(dynamics, Dynamics):
            dynamics = Dynamics(self.model, dynamics)
        batch = self.test.batch
        parameters = {**self._parameters(), "settings": None, "out_dir": None}
        what = (vars(dynamics), n_steps, seed, parameters, batch.species, batch.pos, batch.cell)
        path = self._unwritten / f"{fingerprint(*what)}.parquet"
        if path.is_file():
            return pd.read_parquet(path)
        started = time.perf_counter()
        generated = self.generate(batch, n_steps, dynamics, seed)
        measured, table = self._judge(generated.to("cpu"), self.test)
        table.attrs.update(measured, seconds=time.perf_counter() - started)
        write_atomically(path, table.to_parquet(index=False))
        return table

    # --- What it says ---

    def table(self, name: str = "metrics") -> pd.DataFrame:
        """Return a table of what was measured so far, for people.

        Args:
            name: "metrics", means over seeds with the range in brackets, or another table that the
                class names.

        Raises:
            ValueError: there is no such table.
        """
        tables = self._shown()
        if name not in tables:
            raise ValueError(f"name must be one of {[*tables]}, got {name!r}")
        return tables[name]()

    def _shown(self) -> dict[str, Callable[[], pd.DataFrame]]:
        """What ``table`` returns, by name."""
        raise NotImplementedError

    def _means(self, rows: pd.DataFrame, *by: str) -> pd.DataFrame:
        """Means over seeds as text, with their range and number, by these columns."""
        groups = rows.groupby(list(by), sort=False)
        table = groups[list(self.metric_names)].agg(_with_range)
        names: dict[str | int, str] = {"n_steps": "steps", "schedule": "annealing"}
        table = table.rename(columns=dict(self.metric_names)).rename_axis(index=names)
        return table.assign(runs=groups.size())

    def claims(self) -> list[Claim]:
        """Judge the claims of the experiment by what was measured."""
        return self._claims()

    def _claims(self) -> list[Claim]:
        raise NotImplementedError

    def _evidence(self, **labels: Any) -> _Evidence:
        """What claims are judged by: evaluations with these labels, structure by structure."""
        evaluated = [
            (row, table)
            for row, table in self._evaluated.values()
            if all(row[name] == value for name, value in labels.items())
        ]
        return _Evidence(evaluated, self.metric_names, self.pool.stol)

    def seed_spreads(self, metric: str, by: str = "schedule") -> pd.DataFrame:
        """Tell apart what training seeds and base seeds do to a metric (standard deviations).

        Args:
            metric: a column of ``evaluation``.
            by: column whose values are compared; each has rows for all pairs of both seeds.
        """
        rows, keys = {}, [by, "n_steps"]
        for key, group in self.evaluation.dropna(subset="training_seed").groupby(keys, sort=False):
            table = group.pivot(index="training_seed", columns="seed", values=metric)
            if table.notna().all(axis=None):
                rows[key] = {"mean": table.mean(axis=None), **spread_of_seeds(table.to_numpy())}
        table = pd.DataFrame.from_dict(rows, orient="index")
        table.index = pd.MultiIndex.from_tuples(rows, names=[by, "steps"])
        return table

    def conclusion(self, claims: Sequence[Claim]) -> str:
        """Say in Markdown which claims hold, and what else the numbers say."""
        text = f"{_verdicts_in_words(claims)} {self._remark()}"
        if self.preset.name == "quick":
            text += " The preset *quick* only shows that everything works: judge nothing by it."
        return text

    def _remark(self) -> str:
        """What ``conclusion`` says besides."""
        raise NotImplementedError

    # --- Training ---

    def _train_all(
        self,
        runs: Sequence[Run],
        rewards: tuple[Reward, Reward],
        validation: CrystalDataset,
        kept: dict[Any, Any],
        what: str = "training",
        **processes: Any,
    ) -> pd.DataFrame:
        """Train policies; see ``Trainings.train``, whose time is noted. The history of all runs."""
        if all(run.key in kept for run in runs):
            self.seconds.pop(what, None)
        try:
            with self._timed(what, add=True):
                self._trainings.train(runs, rewards, validation, kept, **processes)
        finally:
            self.seconds[what] += self._trainings.seconds_before
        return self.history

    def _train_annealings(
        self, runs: Sequence[Run], kept: dict[Any, Any], what: str = "training"
    ) -> pd.DataFrame:
        """Train policies that learn an annealing, with cRMSE as the reward; see ``_train_all``."""
        validation = self.validation.subset(runs[0].config.validation_size)
        rewards = CRMSEReward(self.train, self.pool), CRMSEReward(validation, self.pool)
        with rewards[0], rewards[1]:
            return self._train_all(runs, rewards, validation, kept, what)

    @contextlib.contextmanager
    def _timed(self, name: str, add: bool = False) -> Iterator[None]:
        """Notes the seconds of its block; with `add`, added to those that are there."""
        started = time.perf_counter()
        announce(self.out_dir, name, started - self._began, self.seconds, self.planned)
        try:
            yield
        finally:
            before = self.seconds.get(name, 0.0) if add else 0.0
            self.seconds[name] = before + time.perf_counter() - started

    # --- Results ---

    def write_results(
        self, claims: Sequence[Claim], figures: Mapping[str, Any] | None = None
    ) -> list[Path]:
        """Write results.json, tables, what was learned and figures; return the files.

        What is trained from now on begins anew.

        Args:
            claims: of the experiment.
            figures: name -> plotly figure.
        """
        dataset = {
            "name": self.dataset,
            "split_sizes": self.split_sizes,
            "n_test_structures": len(self.test),
            "n_skipped": len(self.test.skipped),
            "checkpoint": self.checkpoint,
        }
        paths = self._save_learned() + write_records(
            self.out_dir,
            parameters=self._parameters(),
            device=self.device,
            dataset=dataset,
            claims=claims,
            tables=self._tables(),
            figures=figures or {},
            seconds=self.seconds,
            evaluation=evaluation_records(self.evaluation),
            **self._results(),
        )
        self._trainings.finish()
        shutil.rmtree(self._unwritten, ignore_errors=True)
        return paths

    def _save_learned(self) -> list[Path]:
        """What was learned, written to `out_dir`."""
        return []

    def _tables(self) -> dict[str, pd.DataFrame]:
        """Tables to be written, by name; empty ones are not."""
        return {name: getattr(self, name) for name in ("history", "evaluation", "structures")}

    def _parameters(self) -> dict[str, Any]:
        """What the experiment was made with, for results.json."""
        return {
            "preset": self.preset.name,
            "checkpoint": self.checkpoint,
            "dataset": self.dataset,
            "device": str(self.device),
            "out_dir": str(self.out_dir),
            "settings": self.preset.to_dict(),
        }

    def _results(self) -> dict[str, Any]:
        """What results.json has besides parameters, data set, evaluation and claims."""
        return {}


def _join(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    tables = list(tables)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
