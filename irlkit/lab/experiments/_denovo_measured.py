"""What was measured of generated variants: resamples, tables, a figure, files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from irlkit import potentials
from irlkit.data import CrystalDataset
from irlkit.data.writers import write
from irlkit.evaluate.denovo import DeNovoMetrics
from irlkit.evaluate.diversity import composition_diversity
from irlkit.evaluate.evidence import Bootstrap, Estimate, _few_runs, _of_runs
from irlkit.lab.experiments._denovo_claims import START
from irlkit.lab.experiments._training import file_name
from irlkit.lab.experiments.claims import Claim, _verdicts_in_words
from irlkit.lab.experiments.records import write_records
from irlkit.lab.plots._denovo import novelty_and_stability, reward_parts
from irlkit.rl.policies.base import Policy


class Measured:
    """Shows what an experiment measured; the experiment sets the attributes.

    Attributes:
        out_dir: folder for files.
        device: of the network.
        training: the training split of the embedded data set.
        potential: rewarded, and what structures are relaxed with.
        policies: (variant, seed) -> trained policy.
        metrics: (variant, seed) -> what was measured.
        history: rows of all trainings.
    """

    out_dir: Path
    device: torch.device
    training: CrystalDataset
    potential: potentials.Potential
    policies: dict[tuple[str, int], Policy]
    metrics: dict[tuple[str, int], DeNovoMetrics]
    history: pd.DataFrame

    def __init__(self) -> None:
        self.policies, self.metrics, self.history = {}, {}, pd.DataFrame()
        self._samples: dict[tuple[str, str, int, int], np.ndarray] = {}

    def samples(self, metric: str, variant: str, n_samples: int = 1000) -> np.ndarray:
        """Return a metric and what it could have been, shape (1 + n_samples,).

        Formulas are drawn with replacement, and the spread of training seeds is added as
        ``Bootstrap`` adds it.
        """
        seeds = [seed for name, seed in self.metrics if name == variant]
        if not seeds:
            raise ValueError(f"variant must be one that was measured, got {variant!r}")
        key = (metric, variant, n_samples, len(seeds))
        if key in self._samples:
            return self._samples[key]
        draws = torch.Generator().manual_seed(0)
        each = np.stack([self._resampled(metric, self.metrics[variant, s], draws, n_samples)
                         for s in seeds])  # fmt: skip
        drawn = each.mean(0)
        if not variant.endswith(START):
            drawn = drawn + _of_runs(_few_runs(len(seeds), draws, n_samples), each[:, 0])
        if metric in _METRICS:  # Shares, and a diversity: Student's t knows no bounds.
            drawn = drawn.clip(*((1, np.inf) if metric == "composition_diversity" else (0, 1)))
        self._samples[key] = drawn
        return self._samples[key]

    def _resampled(
        self, metric: str, found: DeNovoMetrics, draws: torch.Generator, n_samples: int
    ) -> np.ndarray:
        draw = Bootstrap(found.table["formula"].to_numpy(dtype=str), draws, n_samples)
        if metric == "composition_diversity":
            return draw.centred(partial(composition_diversity, found.structures))
        return draw.mean(found.table[metric].to_numpy(dtype=float))

    def table(self, metrics: Sequence[str] = ()) -> pd.DataFrame:
        """Return metrics of all variants measured: value and 95 % interval, as text."""
        chosen = tuple(metrics) or tuple(_METRICS)
        variants = dict.fromkeys(name for name, _ in self.metrics)
        rows = {}
        for variant in variants:
            known = self.pooled(variant)
            there = [m for m in chosen if m in known or m == "composition_diversity"]
            estimates = {m: Estimate.of(self.samples(m, variant)) for m in there}
            rows[variant] = {_METRICS.get(m, m): str(e) for m, e in estimates.items()}
        return pd.DataFrame.from_dict(rows, orient="index").fillna("")

    def pooled(self, variant: str) -> pd.DataFrame:
        """Return the tables of all seeds of a variant, one below the other."""
        tables = [m.table.assign(seed=s) for (v, s), m in self.metrics.items() if v == variant]
        return pd.concat(tables, ignore_index=True)

    def draw_training(self) -> go.Figure:
        """Draw the parts of the reward during all trainings."""
        present = {k: v for k, v in _PARTS.items() if k in self.history}
        return reward_parts(self.history, present, "variant")

    def draw_pareto(self) -> go.Figure:
        """Draw novelty against stability of all variants measured."""
        rows = {}
        for variant in dict.fromkeys(name for name, _ in self.metrics):
            row = {"diversity": float(self.samples("composition_diversity", variant)[0])}
            for metric in ("novel", "metastable"):
                estimate = Estimate.of(self.samples(metric, variant))
                row |= {metric: estimate.value, f"{metric}_low": estimate.low}
                row[f"{metric}_high"] = estimate.high
            rows[variant] = row
        return novelty_and_stability(pd.DataFrame.from_dict(rows, orient="index"))

    def write_results(
        self,
        claims: Sequence[Claim],
        figures: Mapping[str, go.Figure],
        parameters: Mapping[str, Any],
    ) -> list[Path]:
        """Write tables, structures, networks, claims and figures; return the files."""
        tables, paths = {}, []
        for (variant, seed), found in self.metrics.items():
            name = f"{file_name(variant)}_seed_{seed}"
            tables[name] = found.table
            paths.append(
                write(
                    self.out_dir / f"{name}.extxyz",
                    found.structures if found.relaxed is None else found.relaxed,
                )
            )
        for (variant, seed), policy in self.policies.items():
            path = self.out_dir / f"{file_name(variant)}_seed_{seed}.safetensors"
            policy.save(path)
            paths.append(path)
        return paths + write_records(
            self.out_dir,
            parameters=parameters,
            device=self.device,
            dataset={"name": "prototypes", "split": "train", "size": len(self.training)},
            claims=claims,
            tables={**tables, "history": self.history},
            figures=figures,
            potential=self.potential.name,
        )

    def conclusion(self, claims: Sequence[Claim], preset: str) -> str:
        """Say in Markdown which claims hold."""
        text = _verdicts_in_words(claims)
        if preset == "quick":
            text += " The preset *quick* only shows that everything works: judge nothing by it."
        return text


_METRICS: Mapping[str, str] = {
    "msun": "mSUN",
    "msun_compounds": "mSUN, compounds",
    "sun": "SUN",
    "metastable": "metastable",
    "covered": "covered",
    "valid": "valid",
    "valid_composition": "composition valid",
    "unique": "unique",
    "novel": "novel",
    "judge_msun": "mSUN, judge",
    "pure_elements": "pure elements",
    "on_target": "gap within 0.5 eV of 3 eV",
    "composition_diversity": "composition diversity",
}
"""Column or number of `DeNovoMetrics` -> what tables call it."""
_PARTS = {
    "reward": "reward",
    "info_creativity": "creativity",
    "info_creativity_passes": "compounds",
    "info_stability_metastable": "metastable",
    "info_stability_covered": "covered",
    "distinct": "distinct in a group",
    "species_entropy": "entropy of the species",
}
"""Columns of histories that are drawn."""
