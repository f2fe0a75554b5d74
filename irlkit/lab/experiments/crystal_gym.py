"""The experiment of notebook 08: algorithms that fill the sites of crystal skeletons."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from irlkit import envs
from irlkit.crystals import CrystalBatch
from irlkit.data.writers import write
from irlkit.envs._benchmark import LIBRARIES, settings_of
from irlkit.envs._stability import EnergyAboveHull
from irlkit.envs._symmetry import canonical_keys
from irlkit.evaluate.evidence import Bootstrap, Estimate, _mean_of_runs
from irlkit.evaluate.hull import METASTABLE, Hull
from irlkit.lab.experiments._crystal_gym_claims import RANDOM, crystal_gym_claims
from irlkit.lab.experiments._crystal_gym_sizes import BULK as BULK
from irlkit.lab.experiments._crystal_gym_sizes import DENSITY as DENSITY
from irlkit.lab.experiments._crystal_gym_sizes import SIZES as SIZES
from irlkit.lab.experiments._crystal_gym_sizes import STABLE as STABLE
from irlkit.lab.experiments._crystal_gym_sizes import TASKS, CrystalGymSize
from irlkit.lab.experiments._jobs import fingerprint
from irlkit.lab.experiments.claims import Claim, _verdicts_in_words
from irlkit.lab.experiments.records import write_records
from irlkit.lab.plots._crystal_gym import learning
from irlkit.potentials import relax
from irlkit.utils.progress import progress_bar
from irlkit.utils.system import write_atomically

_ON_TARGET = 0.05
"""Of the target: how near a filling has to be to count."""
_STABILITY_WEIGHT = 1.0


class SkeletonFilling:
    """Trains algorithms on tasks, and looks at what they find.

    Args:
        size: how much.
        out_dir: folder of runs, evaluations and results; what is there is not done again.
        backend: of `irlkit.envs`, in place of the size's.
        progress: show bars.

    Attributes:
        left_out: algorithms whose library is not installed.
        n_dft: fillings to be judged by GPAW: the size's, 0 where that is not installed.
        comparisons: task -> its runs.
        relaxed: (task, algorithm) -> a row per best filling, relaxed.
    """

    def __init__(
        self,
        size: CrystalGymSize,
        out_dir: str | Path = "runs/08",
        *,
        backend: Any = None,
        progress: bool = True,
    ) -> None:
        self.size, self.out_dir, self.progress = size, Path(out_dir), progress
        options = size.backend_options if backend is None else {}
        self.backend = envs.get_backend(size.backend if backend is None else backend, **options)
        self.n_dft = size.n_dft if importlib.util.find_spec("gpaw") is not None else 0
        self.left_out = tuple(
            name for name in size.algorithms
            if name in LIBRARIES and importlib.util.find_spec(LIBRARIES[name]) is None
        )  # fmt: skip
        self.skeletons = envs.Skeletons.get(size.skeletons)
        self.cache = envs.EvaluationCache(self.out_dir / "evaluations.sqlite")
        self.comparisons: dict[str, envs.Comparison] = {}
        self.relaxed: dict[tuple[str, str], pd.DataFrame] = {}
        self._evaluators: dict[str, envs.Evaluator] = {}
        self._samples: dict[tuple[str, str, str], np.ndarray] = {}
        for task in (*size.tasks, *size.hard):
            self.reward(task)  # Fails now if the backend cannot tell what is asked.

    def _evaluator(self, property: str) -> envs.Evaluator:
        """Return the evaluator of a property, with the experiment's cache."""
        if property not in self._evaluators:
            self._evaluators[property] = envs.Evaluator(property, self.backend, self.cache)
        return self._evaluators[property]

    def _also(self, task: str) -> list[tuple[envs.PropertyReward, float]]:
        """Return what a task rewards besides its property: stability, or nothing."""
        if not TASKS[task].stable:
            return []
        stability = envs.PropertyReward(self._evaluator("e_above_hull"), METASTABLE)
        return [(stability, _STABILITY_WEIGHT)]

    def reward(self, task: str) -> envs.PropertyReward:
        """Return the reward of a task."""
        asked = TASKS[task]
        return envs.PropertyReward(self._evaluator(asked.property), asked.target, self._also(task))

    def estimate(self, task: str, n: int = 2) -> float:
        """Return how many seconds the evaluations of one run of a task take at most.

        Judges n random fillings; what is known already, and comes again, costs nothing.

        Args:
            task: of the experiment.
            n: fillings.
        """
        process = envs.SiteFilling(self.size.skeletons, self.size.elements)
        draws = np.random.default_rng(0)
        species = draws.choice(process.numbers.numpy(), (n, process.n_steps))
        batch = process.skeletons.filled(np.arange(n) % len(process.skeletons), species)
        began = time.perf_counter()
        found = self.reward(task)(batch).info["seconds"]
        spent = time.perf_counter() - began
        return max(spent, float(found.sum()) / self.backend.in_parallel) / n * self.size.evaluations

    def train(self, *tasks: str) -> pd.DataFrame:
        """Train on tasks with every seed; return metrics with 95 % intervals over seeds, as text.

        On hard tasks GRPO alone. The control "random" goes with each. A run that is finished is
        read from its file.
        """
        runs = [(task, who, seed) for task in tasks for who in self._algorithms(task)
                for seed in self.size.seeds]  # fmt: skip
        parts: dict[str, list[envs.Comparison]] = {task: [] for task in tasks}
        with progress_bar(total=len(runs), disable=not self.progress, unit="run") as bar:
            for task, algorithm, seed in runs:
                bar.set_postfix_str(f"{task}: {algorithm}, seed {seed}")
                parts[task].append(self._run(task, algorithm, seed))
                bar.update()
        for task, found in parts.items():
            self.comparisons[task] = envs.Comparison(
                pd.concat([part.episodes for part in found], ignore_index=True),
                pd.concat([part.unseen for part in found], ignore_index=True),
                found[0].judge,
            )
            self._samples = {k: v for k, v in self._samples.items() if k[1] != task}
        return self._table(*tasks)

    def _algorithms(self, task: str) -> list[str]:
        """Return what is trained on a task, and the control."""
        trained = self.size.algorithms if task in self.size.tasks else ("GRPO",)
        return [*(name for name in trained if name not in self.left_out), RANDOM]

    def _run(self, task: str, algorithm: str, seed: int) -> envs.Comparison:
        size, asked = self.size, TASKS[task]
        settings = size.settings.get(algorithm, {})
        reward = self.reward(task)
        sites = self.skeletons.crystals
        chosen = settings_of(algorithm, settings)
        what = (size.evaluations, size.elements, str(size.unseen), json.dumps(chosen))
        name = fingerprint(task, algorithm, seed, *what, reward.energies(), sites.pos, sites.cell)
        path = self.out_dir / "runs" / f"{name}.parquet"
        others = path.with_suffix(".unseen.parquet")
        if path.is_file():
            kept = pd.read_parquet(path), pd.read_parquet(others)
            if len(kept[0]) == size.evaluations:
                return envs.Comparison(*kept, reward.energies())
        found = envs.benchmark(
            reward.evaluator,
            asked.target,
            algorithms=[algorithm],
            seeds=[seed],
            evaluations=size.evaluations,
            also=reward.also,
            skeletons=size.skeletons,
            unseen=size.unseen,
            elements=size.elements,
            settings={algorithm: settings},
            n_unseen=max(min(size.evaluations // 40, 64), 1),
            progress=False,
        )
        write_atomically(others, found.unseen.to_parquet(index=False))
        write_atomically(path, found.episodes.to_parquet(index=False))
        return found

    def _metric(self, metric: str, task: str, algorithm: str) -> np.ndarray:
        """Return a metric's mean over seeds and its draws (Student's t over seeds).

        Args:
            metric: column of `envs.Comparison.runs`; "on_target": different fillings within 5 % of
                the target; or "remembered": mean over skeletons of the best reward of each.
            task: that was trained.
            algorithm: or "random".
        """
        key = metric, task, algorithm
        if key not in self._samples:
            comparison = self.comparisons[task]
            runs = comparison.runs()
            runs = runs[runs["algorithm"] == algorithm]
            if metric in runs:
                values = runs[metric].to_numpy(dtype=float)
            elif metric in ("on_target", "remembered"):
                rows = comparison.episodes
                of_seed = rows[rows["algorithm"] == algorithm].groupby("seed")
                count = _on_target if metric == "on_target" else _remembered
                values = np.array([count(r, TASKS[task].target) for _, r in of_seed])
            else:
                values = np.full(len(runs), np.nan)
            self._samples[key] = _mean_of_runs(values)
        return self._samples[key]

    def _table(self, *tasks: str) -> pd.DataFrame:
        """Return metrics with 95 % intervals as text, a row per task and algorithm."""
        rows = {}
        for task in tasks or self.comparisons:
            for algorithm in self.comparisons[task].episodes["algorithm"].unique():
                found = {m: Estimate.of(self._metric(m, task, algorithm)) for m in _METRICS}
                rows[task, algorithm] = {_METRICS[m]: str(e) for m, e in found.items()}
        return pd.DataFrame.from_dict(rows, orient="index")

    def unseen(self, task: str) -> pd.DataFrame:
        """Return mean rewards on unseen skeletons: a row per algorithm, a column for each."""
        rows = self.comparisons[task].unseen
        table = rows.pivot_table(index="algorithm", columns="skeleton", values="reward", sort=False)
        return table.round(3)

    def best(
        self,
        task: str,
        algorithm: str | None = None,
        n: int | None = None,
        skeletons: Sequence[str] | None = None,
    ) -> CrystalBatch:
        """Return the different fillings of the highest rewards of all seeds.

        Args:
            task: that was trained.
            algorithm: or "random"; None for all.
            n: how many; None for the size's `n_best`.
            skeletons: names of those to look at; None for all.
        """
        rows = self._best_rows(task, algorithm, n or self.size.n_best, skeletons)
        return self._crystals(rows["key"])

    def _best_rows(
        self, task: str, algorithm: str | None, n: int, skeletons: Sequence[str] | None = None
    ) -> pd.DataFrame:
        rows = self.comparisons[task].episodes
        if skeletons is not None:
            rows = rows[rows["skeleton"].isin(skeletons)]
        if algorithm is not None:
            rows = rows[rows["algorithm"] == algorithm]
        rows = rows[~rows["failed"].astype(bool)].sort_values(
            "reward", ascending=False, kind="stable"
        )
        return rows.drop_duplicates("key").head(n)

    def _crystals(self, keys: pd.Series) -> CrystalBatch:
        """Crystals of keys, which name a skeleton and its species."""
        of = [key.split("|") for key in keys]
        numbers = {k: i for i, (k, _) in enumerate(canonical_keys(self.skeletons.crystals))}
        most = int(self.skeletons.n_atoms.max())
        species = np.zeros((len(of), most), dtype=np.int64)
        for row, (_, text) in zip(species, of, strict=True):
            found = [int(z) for z in text.split("-")]
            row[: len(found)] = found
        return self.skeletons.filled(np.array([numbers[k] for k, _ in of], dtype=int), species)

    def relax_best(self, *tasks: str) -> pd.DataFrame:
        """Relax the best fillings of GRPO and of the control, and ask the hull; return shares.

        What the hull does not cover is not metastable. An algorithm all of whose fillings failed
        has no row.

        Raises:
            ValueError: the backend is no potential, or not that of the hull.
        """
        EnergyAboveHull(hull := Hull.prototypes()).check(self.backend)
        rows = {}
        for task in tasks:
            for algorithm in ("GRPO", RANDOM):
                best = self._best_rows(task, algorithm, self.size.n_best)
                if not len(best):
                    continue
                crystals = self._crystals(best["key"])
                found = relax(crystals, self._potential(), max_steps=self.size.max_steps,
                              progress=self.progress)  # fmt: skip
                placed = hull.energy_above_hull(found.crystals, found.energy_per_atom)
                table = best[["formula", "skeleton", "value", "reward"]].reset_index(drop=True)
                table["e_above_hull"], table["covered"] = placed.value, placed.covered
                table["metastable"] = np.nan_to_num(placed.value, nan=np.inf) <= METASTABLE
                if importlib.util.find_spec("smact") is not None:
                    property = envs.PROPERTIES["valid_composition"]()
                    table["valid"] = property.values(crystals, self.backend).values
                self.relaxed[task, algorithm] = table
                shares = {m: str(Estimate.of(self._share(m, task, algorithm)))
                          for m in ("covered", "metastable", "valid") if m in table}  # fmt: skip
                median = float(np.nanmedian(placed.value)) if placed.covered.any() else np.nan
                rows[task, algorithm] = {
                    "fillings": len(table), **shares, "median above the hull": round(median, 3),
                    "best mean reward": round(float(table["reward"].mean()), 3),
                }  # fmt: skip
        return pd.DataFrame.from_dict(rows, orient="index")

    def _potential(self) -> Any:
        if not isinstance(self.backend, envs.PotentialBackend):
            raise ValueError(f"{self.backend.name} relaxes nothing: backend must be a potential")
        return self.backend.potential

    def _share(self, metric: str, task: str, algorithm: str) -> np.ndarray:
        table = self.relaxed[task, algorithm]
        return Bootstrap(table["formula"].to_numpy(dtype=str)).mean(
            table[metric].to_numpy(dtype=float)
        )

    def check_by(self, backend: Any, crystals: CrystalBatch) -> pd.DataFrame:
        """Compare bulk moduli of fillings by the experiment's backend and by another.

        The other backend begins at the volume of lowest energy of the first, and looks between 0.85
        and 1.2 of it, where a calculation of density functional theory converges.

        Args:
            backend: such as "gpaw"; see `irlkit.envs.get_backend`.
            crystals: such as those of `best`; one after the other, so that a run that is stopped
                goes on with the next.

        Returns:
            A row per crystal: formula, modulus by both (GPa; nan where there is none), the reason
            why the other has none, its seconds.
        """
        ours = self._evaluator("bulk_modulus")(crystals)
        volume = np.array([entry.get("volume", np.nan) for entry in ours.details])
        scale = np.cbrt(volume * crystals.n_atoms.numpy() / crystals.volume.numpy())
        scale = torch.from_numpy(np.nan_to_num(scale, nan=1.0))
        at_rest = crystals.replace(cell=crystals.cell * scale[:, None, None])
        judge = envs.Evaluator(envs.BulkModulus(reach=(0.85, 1.2)), backend, self.cache)
        formulas, rows = crystals.reduced_formulas(), []
        numbers = range(len(crystals))
        for i in progress_bar(iterable=numbers, desc=judge.backend.name, disable=not self.progress):
            found = judge(at_rest[[i]])
            rows.append(
                {
                    "formula": formulas[i],
                    self.backend.name: ours.values[i],
                    judge.backend.name: found.values[0],
                    "reason": found.reasons[0],
                    "seconds": found.seconds[0],
                }
            )
        return pd.DataFrame(rows)

    def draw_learning(self, *tasks: str) -> go.Figure:
        """Draw learning curves, a panel per task."""
        shown = {task: self.comparisons[task].episodes for task in tasks}
        return learning(shown, max(self.size.evaluations // 20, 1))

    def cost(self) -> pd.DataFrame:
        """Return what evaluations cost so far: hits and misses of the cache, failures, seconds."""
        rows = {name: e.report() for name, e in self._evaluators.items()}
        table = pd.DataFrame.from_dict(rows, orient="index")
        return table.drop(columns="reasons", errors="ignore").round(1)

    def claims(self) -> list[Claim]:
        """Check what was claimed; see `crystal_gym_claims`."""
        trained = {task: [a for a in self._algorithms(task) if a != RANDOM]
                   for task in self.comparisons}  # fmt: skip
        return crystal_gym_claims(self._metric, trained, self._metastable, len(self.size.seeds))

    def _metastable(self, task: str, algorithm: str) -> np.ndarray | None:
        there = (task, algorithm) in self.relaxed
        return self._share("metastable", task, algorithm) if there else None

    def write_results(
        self,
        claims: Sequence[Claim],
        figures: Mapping[str, go.Figure],
        parameters: Mapping[str, Any],
    ) -> list[Path]:
        """Write tables, the best fillings, claims and figures; return the files."""
        tables, paths = {}, []
        for i, (task, found) in enumerate(self.comparisons.items()):
            tables[f"episodes_{i}"] = found.episodes.assign(task=task)
            tables[f"unseen_{i}"] = found.unseen.assign(task=task)
            best = self.best(task)
            if len(best):  # All fillings may have failed.
                paths.append(write(self.out_dir / f"best_{i}.extxyz", best))
        for i, ((task, algorithm), table) in enumerate(self.relaxed.items()):
            tables[f"relaxed_{i}"] = table.assign(task=task, algorithm=algorithm)
        names = ", ".join(self.skeletons.names)
        return paths + write_records(
            self.out_dir,
            parameters=parameters,
            device=parameters.get("device", "cpu"),
            dataset={"name": "skeletons", "split": names, "size": len(self.skeletons)},
            claims=claims,
            tables=tables,
            figures=figures,
            potential=self.backend.name,
        )

    def conclusion(self, claims: Sequence[Claim], preset: str) -> str:
        """Say in Markdown which claims hold."""
        text = _verdicts_in_words(claims)
        if len(self.size.seeds) < 3:
            text += " With fewer than three seeds, intervals of returns say little."
        if preset == "quick":
            text += " The preset *quick* only shows that everything works: judge nothing by it."
        return text

    def __repr__(self) -> str:
        without = f", without {', '.join(self.left_out)} (extra gym)" if self.left_out else ""
        return f"SkeletonFilling({self.backend.name}{without}, {self.size})"


_METRICS = {
    "first": "first tenth",
    "last": "last tenth",
    "auc": "mean of all",
    "best": "best",
    "distinct": "different fillings",
    "on_target": "of them within 5 % of the target",
    "remembered": "best of each skeleton",
    "failed": "failed",
    "unseen": "on unseen skeletons",
}
"""Metric -> what tables call it."""


def _on_target(rows: pd.DataFrame, target: float) -> float:
    near = (rows["value"] / target - 1).abs() <= _ON_TARGET
    return float(rows["key"][near].nunique())


def _remembered(rows: pd.DataFrame, target: float) -> float:
    return float(rows.groupby("skeleton")["reward"].max().mean())
