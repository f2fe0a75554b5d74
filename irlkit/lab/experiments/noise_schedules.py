"""The experiment of notebook 02: how much noise generation bears (Fig. 2, Table 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression

from irlkit.evaluate.evidence import Estimate
from irlkit.flows.dynamics import Dynamics
from irlkit.flows.schedules import ConstantNoise, NoiseSchedule, SquareRootNoise
from irlkit.lab.experiments._energies import EnergyExperiment
from irlkit.lab.experiments._jobs import Job, make_job
from irlkit.lab.experiments._noise_claims import noise_claims
from irlkit.lab.experiments.claims import Claim, _Group
from irlkit.lab.experiments.presets import NoisePreset
from irlkit.networks.flow_model import FlowModel
from irlkit.utils.checks import checked

KINDS: Mapping[str, type[ConstantNoise] | type[SquareRootNoise]] = {
    "constant": ConstantNoise,
    "square root": SquareRootNoise,
}
"""Name -> schedule with a scale."""
ODE, SDE, PERTURBED = "ODE", "SDE", "perturbed ODE"
_STATISTICS = {
    "median_energy_above_reference": ("median", "energy_above_reference"),
    "trimmed_energy_above_reference": ("trimmed_mean", "energy_above_reference"),
}
LINE = ["model", "integration", "noise"]
"""Columns that tell the lines of Fig. 2 from each other."""


class NoiseSchedules(EnergyExperiment[NoisePreset]):
    """Compares SDE and perturbed ODE under noise schedules of several scales.

    Its ``table`` are "scales", small, medium and large ones of every line of Fig. 2, and
    "annealing", with and without it (Table 1), with 95 % intervals.

    Args:
        checkpoint: has a denoiser for the fields that get noise, which the SDE needs.
        velocity_checkpoint: a second model, integrated as a perturbed ODE; None: none.
        potential: a potential, or its name for ``potentials.get``; see ``Experiment`` for the rest.

    Raises:
        FileNotFoundError: see ``Experiment``; or weights of the potential are missing.
        ValueError: see ``Experiment``; an unknown element, or a model without denoiser.
    """

    preset_kind = NoisePreset
    folder = "runs/02"

    @checked
    def __init__(
        self, *arguments: Any, velocity_checkpoint: str | Path | None = None, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        if self.preset.split == "val":
            self.test = self._with_energies(self.validation.subset(self.preset.test_size))
        missing = [name for name in self.preset.fields if name not in self.model.has_denoiser]
        if missing:
            raise ValueError(
                f"checkpoint: {self.checkpoint} has no denoiser for {missing}, which an SDE with "
                "noise on them needs; take another checkpoint or other fields"
            )
        self.second: FlowModel | None = None
        self.second_name = None if velocity_checkpoint is None else str(velocity_checkpoint)
        if velocity_checkpoint is not None:
            self.second = self._load(velocity_checkpoint, self.device)

    def _summary(self) -> dict[str, str]:
        rows = super()._summary()
        if self.second is not None:
            rows["second model"] = f"{self.second_name}, perturbed ODE only"
        rows["split"] = self.preset.split
        rows["noise"] = f"on {', '.join(self.preset.fields)}, scales {self.preset.scales}"
        rows["steps"] = f"with noise: {self.preset.n_steps}, many: {self.preset.reference_steps}"
        return rows

    def schedules(self, scale: float) -> dict[str, NoiseSchedule]:
        """Return the kinds of schedules at one scale, by name."""
        return {name: kind(scale) for name, kind in KINDS.items()}

    # --- Evaluations ---

    def scan(self) -> pd.DataFrame:
        """Evaluate every way to integrate under every schedule and scale (Fig. 2).

        Returns:
            The new rows of ``evaluation``, those without noise once for each line of the figure
            that begins there; the column "line" names it.
        """
        ways = [(self.model, SDE), (self.model, PERTURBED)]
        if self.second is not None:
            ways.append((self.second, PERTURBED))
        n_steps = self.preset.n_steps
        jobs = []
        for seed in self.preset.seeds:
            for model, way in ways:
                if way == PERTURBED:  # Without noise, both are one.
                    jobs.append(self._job(n_steps, seed, model))
                jobs += [
                    self._job(n_steps, seed, model, way, kind, scale)
                    for kind in KINDS
                    for scale in self.preset.scales
                ]
        self._run("noise", jobs)
        return self._scanned()

    def compare_annealing(self) -> pd.DataFrame:
        """Evaluate with and without annealing at several numbers of steps; return the new rows.

        The SDE gets its small scale of the square-root schedule (Table 1).

        Raises:
            ValueError: ``scan`` or ``sweep_reference`` was not called before.
        """
        many = self.preset.reference_steps
        scale = float(self._scale(self._scales(), SDE, "square root", "small")[0])
        jobs = []
        for k in self.preset.evaluation_steps:
            for seed in self.preset.seeds_for(k):
                jobs.append(self._job(k, seed, self.model))
                jobs.append(self._job(k, seed, self.model, tuned_at=many))
        for seed in self.preset.seeds_for(many):
            jobs.append(self._job(many, seed, self.model, SDE, "square root", scale, tuned_at=many))
        return self._run("annealing", jobs)

    def _job(
        self,
        n_steps: int,
        seed: int,
        model: FlowModel,
        integration: str = ODE,
        noise: str = "none",
        scale: float = 0.0,
        tuned_at: int | None = None,
    ) -> Job:
        """An evaluation; with the best handcrafted annealing if `tuned_at` says for what."""
        annealing = None if tuned_at is None else self.best_handcrafted(tuned_at)
        noises = {}
        if noise != "none":
            noises = dict.fromkeys(self.preset.fields, KINDS[noise](scale))
        return make_job(
            n_steps,
            seed,
            "none" if annealing is None else "handcrafted",
            annealing,
            tuned_at=tuned_at,
            dynamics=Dynamics(model, annealing, noises, "sde" if integration == SDE else "ode"),
            model=self.checkpoint if model is self.model else self.second_name,
            integration=integration,
            noise=noise,
            scale=scale,
        )

    # --- What it says ---

    def _scanned(self) -> pd.DataFrame:
        """What ``scan`` returns."""
        rows = self.evaluation
        if not len(rows):
            raise ValueError("nothing was evaluated yet; call scan")
        rows = rows[(rows["schedule"] == "none") & (rows["n_steps"] == self.preset.n_steps)]
        noisy = rows[rows["noise"] != "none"]
        parts = []
        for model, way, noise in noisy[LINE].drop_duplicates().itertuples(index=False):
            line = f"{way} of {model}, {noise}" if self.second is not None else f"{way}, {noise}"
            own = noisy[(noisy[LINE] == [model, way, noise]).all(axis=1)]
            start = rows[(rows["noise"] == "none") & (rows["model"] == model)]
            start = start.assign(integration=way, noise=noise)
            parts.append(pd.concat([start, own]).assign(line=line))
        return pd.concat(parts, ignore_index=True)

    def _losses(self) -> pd.DataFrame:
        """Which share of the quality without noise, stol - cRMSE, a scale costs, mean over seeds.

        A loss never falls with the scale: what dips is averaged with its neighbours (isotonic
        regression). "resampled" has it for all structures and for resamples of them, see
        ``Bootstrap``.
        """
        rows, evidence, parts = self._scanned(), self._evidence(), []
        for (*key, line), of_line in rows.groupby([*LINE, "line"], sort=False):
            model, way, noise = key
            scales = np.sort(of_line["scale"].unique())
            groups = []
            for scale in scales:
                labels = {"model": model, "integration": way, "noise": noise, "scale": scale}
                if not scale:
                    labels |= {"integration": ODE, "noise": "none"}
                labels |= {"schedule": "none", "n_steps": self.preset.n_steps}
                groups.append(_Group("", labels))
            values = evidence.values("crmse", *groups)
            quality = np.stack([self.pool.stol - evidence.draw.mean(v) for v in values], 1)
            with np.errstate(invalid="ignore", divide="ignore"):
                loss = np.apply_along_axis(_monotonic, 1, 1.0 - quality / quality[:, :1])
            labels = dict(zip([*LINE, "line"], (*key, line), strict=True))
            of_scales = {"scale": scales, "loss": loss[0], "resampled": [*loss.T]}
            parts.append(pd.DataFrame({**labels, **of_scales}))
        return pd.concat(parts, ignore_index=True)

    def _scales(self) -> pd.DataFrame:
        """At which scales the loss reaches that of each level; inf where the largest costs less.

        Each is an array: of all structures, and of resamples of them.
        """
        rows = []
        for key, of_line in self._losses().groupby([*LINE, "line"], sort=False):
            scales, losses = of_line["scale"].to_numpy(), np.stack([*of_line["resampled"]], 1)
            found = {
                level: np.array([_scale_at(scales, of_one, loss) for of_one in losses])
                for level, loss in self.preset.levels.items()
            }
            rows.append({**dict(zip([*LINE, "line"], key, strict=True)), **found})
        return pd.DataFrame(rows)

    def _scale(self, table: pd.DataFrame, integration: str, noise: str, level: str) -> np.ndarray:
        """Of all scales, that of a level for the first model; at most the largest one tried."""
        chosen = (table[LINE] == [self.checkpoint, integration, noise]).all(axis=1)
        return np.minimum(table.loc[chosen, level].iloc[0], self.preset.scales[-1])

    def _shown(self) -> dict[str, Callable[[], pd.DataFrame]]:
        return {"scales": self._scales_in_words, "annealing": self._annealed}

    def _scales_in_words(self) -> pd.DataFrame:
        largest = self.preset.scales[-1]

        def text(value: float) -> str:
            return f"{value:.3f}" if np.isfinite(value) else f"above {largest:g}"

        def with_interval(samples: np.ndarray) -> str:
            low, high = np.quantile(samples, (0.025, 0.975), method="nearest")
            return f"{text(samples[0])} ({text(low)} to {text(high)})"

        table = self._scales().set_index("line")[list(self.preset.levels)].map(with_interval)
        names = {level: f"{level} ({loss:.0%} lost)" for level, loss in self.preset.levels.items()}
        return table.rename(columns=names).rename_axis(index=None)

    def _annealed(self) -> pd.DataFrame:
        rows = self.evaluation
        rows = rows[rows["model"] == self.checkpoint]
        rows = rows[(rows["noise"] == "none") | (rows["schedule"] != "none")]
        order = ["integration", "schedule", "n_steps"]
        rows = rows.sort_values(order, ascending=[False, True, False])
        evidence = self._evidence(model=self.checkpoint)
        table: dict[tuple, dict[str, str]] = {}
        for key, of_key in rows.groupby(order, sort=False):
            labels = dict(zip([*order, "noise"], (*key, of_key["noise"].iloc[0]), strict=True))
            table[key] = {}
            for metric, name in self.metric_names.items():
                statistic, of = _STATISTICS.get(metric, ("mean", metric))
                (values,) = evidence.values(of, _Group("", labels))
                table[key][name] = str(Estimate.of(getattr(evidence.draw, statistic)(values)))
            table[key]["runs"] = str(len(of_key))
        found = pd.DataFrame.from_dict(table, orient="index")
        found.index = pd.MultiIndex.from_tuples(table, names=["integration", "annealing", "steps"])
        return found

    def energies(self, integration: str, noise: str = "square root") -> dict[str, np.ndarray]:
        """Return energies above the reference (eV/atom) of the first seed, without noise and with.

        By scale of the noise, shape (structures,) each.

        Args:
            integration: "SDE" or "perturbed ODE", of the first model.
            noise: kind of the schedule.
        """
        table = self.structures
        table = table[
            (table["model"] == self.checkpoint)
            & (table["schedule"] == "none")
            & (table["n_steps"] == self.preset.n_steps)
            & (table["seed"] == self.preset.seeds[0])
        ]
        chosen = {"no noise": table[table["noise"] == "none"]}
        for scale in self.preset.scales:
            same = (table["integration"] == integration) & (table["noise"] == noise)
            chosen[f"scale {scale:g}"] = table[same & (table["scale"] == scale)]
        return {name: rows["energy_above_reference"].to_numpy() for name, rows in chosen.items()}

    # --- Results ---

    def _claims(self) -> list[Claim]:
        scales = self._scales()
        medium = {
            (way, kind): self._scale(scales, way, kind, "medium")
            for way in (SDE, PERTURBED)
            for kind in KINDS
        }
        losses = self._losses()
        line = (losses[LINE] == [self.checkpoint, PERTURBED, "constant"]).all(axis=1)
        largest = losses.loc[line, "resampled"].iloc[-1]
        return noise_claims(self._evidence(model=self.checkpoint), self.preset, medium, largest)

    def _remark(self) -> str:
        text = f"The annealing was tuned for {self.preset.reference_steps} steps."
        if self.preset.split == "test":
            text += ' A scale for a training is better chosen with `split = "val"`.'
        return text

    def _tables(self) -> dict[str, pd.DataFrame]:
        return {**super()._tables(), "losses": self._losses().drop(columns="resampled")}

    def _parameters(self) -> dict[str, Any]:
        return {**super()._parameters(), "velocity_checkpoint": self.second_name}

    def _results(self) -> dict[str, Any]:
        levels = list(self.preset.levels)
        scales = self._scales().drop(columns="line")
        scales[levels] = scales[levels].map(lambda samples: float(samples[0]))
        return {**super()._results(), "noise_scales": scales.to_dict("records")}


def _monotonic(losses: np.ndarray) -> np.ndarray:
    if not np.isfinite(losses).all():
        return losses
    return np.maximum(isotonic_regression(losses).x, 0.0)


def _scale_at(scales: np.ndarray, losses: np.ndarray, level: float) -> float:
    """Where a loss that does not fall reaches a level above 0; inf if it does not.

    Scales ascend from 0, losses begin at 0. Between two scales the loss is taken as linear in the
    logarithm of the scale, between 0 and the first one as linear in the scale.
    """
    above = np.flatnonzero(losses >= level)
    if not len(above):
        return float("inf")
    i = int(above[0])
    share = (level - losses[i - 1]) / (losses[i] - losses[i - 1])
    if scales[i - 1] == 0:
        return float(share * scales[i])
    return float(scales[i - 1] * (scales[i] / scales[i - 1]) ** share)
