"""The experiment of notebook 07: reinforcing de novo generation with Chemeleon2's rewards."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from ase.data import chemical_symbols
from pymatgen.core import Composition

from irlkit import data, potentials, rewards
from irlkit.crystals import CrystalBatch
from irlkit.crystals.formulas import MAX_ATOMIC_NUMBER
from irlkit.data.writers import write
from irlkit.evaluate.denovo import METASTABLE, DeNovoMetrics, denovo
from irlkit.evaluate.diversity import composition_diversity
from irlkit.evaluate.evidence import Bootstrap, Estimate
from irlkit.evaluate.hull import Hull
from irlkit.evaluate.matching import MatchPool
from irlkit.evaluate.novelty import TOLERANCES, KnownStructures
from irlkit.flows.constraints import Constraints
from irlkit.lab.experiments import _energies
from irlkit.lab.experiments._denovo_claims import GAP, REINFORCED, RULE, START, denovo_claims
from irlkit.lab.experiments._denovo_sizes import ABLATIONS, ELEMENTS_TOO, DeNovoSize
from irlkit.lab.experiments._denovo_sizes import SIZES as SIZES
from irlkit.lab.experiments.claims import Claim, _verdicts_in_words
from irlkit.lab.experiments.records import write_records
from irlkit.lab.plots._denovo import novelty_and_stability, reward_parts
from irlkit.networks.flow_model import FlowModel
from irlkit.rl import GRPOConfig, GRPOTrainer, TrainerConfig, generate
from irlkit.rl.policies.species import SpeciesPolicy
from irlkit.rl.process import Request
from irlkit.utils.progress import progress_bar

OPEN = "open hull"
_TUNING_SEED = 10_000
_GAP_TARGET = 3.0


class DeNovoReinforcement:
    """Trains policies of species with several rewards, and measures what they generate.

    Args:
        size: how much.
        model: with a flow of species.
        out_dir: folder of checkpoints, from which a training continues.
        device: of the network.
        judge: a potential that was not rewarded, with its hull; None: none.
        potential: rewarded, and what structures are relaxed with.
        n_workers: processes that compare structures; None for one per core, 0 for none.
        progress: show bars.

    Attributes:
        training: the training split of the embedded data set.
        hull: of its energies, completed.
        policies: (variant, seed) -> trained policy.
        metrics: (variant, seed) -> what was measured.
    """

    def __init__(
        self,
        size: DeNovoSize,
        model: FlowModel,
        out_dir: str | Path = "runs/07",
        *,
        judge: tuple[potentials.Potential, Hull] | None = None,
        potential: potentials.Potential | str = "chgnet",
        n_workers: int | None = None,
        progress: bool = True,
    ) -> None:
        self.size, self.model, self.out_dir = size, model, Path(out_dir)
        self.judge = judge if size.judged else None
        self.progress = progress
        self.potential = potentials.get(potential)
        self.training = data.load("prototypes", "train", progress=False)
        self.known = KnownStructures(self.training)
        self.hull = Hull.prototypes()
        self._pool = MatchPool(n_workers, **TOLERANCES)
        self._gap = rewards.BandGapReward(_GAP_TARGET)
        self.policies: dict[tuple[str, int], SpeciesPolicy] = {}
        self.metrics: dict[tuple[str, int], DeNovoMetrics] = {}
        self.history = pd.DataFrame()
        self._samples: dict[tuple[str, str, int, int], np.ndarray] = {}

    def reward(self, variant: str = REINFORCED) -> rewards.CompositeReward:
        """Return the reward of a variant; see `irlkit.rewards.chemeleon`.

        All but `ELEMENTS_TOO` and the band gap's ask for compounds.
        """
        if variant == GAP:
            return rewards.band_gap_and_diversity(self.training, _GAP_TARGET)
        hull = Hull.prototypes(completed=False, strict=False) if variant == OPEN else self.hull
        return rewards.creativity_and_stability(
            self.training,
            hull,
            self.potential,
            without=ABLATIONS.get(variant, ()),
            relax_steps=self.size.relax_steps,
            least_elements=1 if variant == ELEMENTS_TOO else 2,
        )

    def request(self, n: int, seed: int, constraints: Constraints | None = None) -> Request:
        """Draw numbers of atoms as the data has them."""
        generator = torch.Generator().manual_seed(seed)
        bounds = () if constraints is None else (constraints.divisor(), constraints.least())
        return Request(self.model.base.sample_n_atoms(n, generator, *bounds))

    def config(self, variant: str, seed: int) -> TrainerConfig:
        """Return the settings of a training."""
        size = self.size
        return TrainerConfig(
            GRPOConfig(clip_eps=0.2, normalization="per_atom_surrogate"),
            n_groups=size.n_groups,
            group_size=size.group_size,
            n_steps=size.n_steps,
            n_ppo_epochs=2,
            learning_rate=size.learning_rate,
            max_batch=160,
            validate_every=1_000_000,  # What is kept is the end: scaled rewards are no measure.
            validation_size=1,
            seed=seed,
        )

    def trainer(self, variant: str, seed: int) -> GRPOTrainer:
        """Return the trainer of a variant, which continues where an earlier one has stopped."""
        folder = self.out_dir / variant.replace(" ", "_") / f"seed_{seed}"
        return GRPOTrainer(
            SpeciesPolicy(self.model),
            self.reward(variant),
            self.request(2000, seed),
            self.config(variant, seed),
            out_dir=folder,
            resume=(folder / "checkpoint.pt").exists(),
        )

    def train(self, *variants: str) -> pd.DataFrame:
        """Train variants with every seed; return the histories so far.

        An interrupted training loses at most one iteration.
        """
        parts = [self.history] if len(self.history) else []
        runs = [(variant, seed) for variant in variants for seed in self.size.seeds]
        many = {REINFORCED: self.size.iterations, GAP: self.size.gap_iterations}
        totals = [many.get(variant, self.size.ablation_iterations) for variant, _ in runs]
        with progress_bar(total=sum(totals), disable=not self.progress, unit="iteration") as bar:
            for (variant, seed), total in zip(runs, totals, strict=True):
                trainer = self.trainer(variant, seed)
                bar.set_description(f"{variant}, seed {seed}")
                bar.update(min(trainer.iteration, total))
                while trainer.iteration < total:
                    trainer.run(trainer.iteration + 1, progress=False)
                    bar.update(1)
                self.policies[variant, seed] = cast(SpeciesPolicy, trainer.policy)
                trainer.reward.close()
                parts.append(trainer.history.assign(variant=variant, seed=seed))
        self.history = pd.concat(parts, ignore_index=True)
        return self.history

    def tune_temperature(self) -> pd.DataFrame:
        """Find the temperature of the species that gives the highest mSUN, the rule of `RULE`.

        It needs no learning: a sharper distribution repeats what is common in the data. It is
        chosen on samples of its own, and evaluated as the variants are.
        """
        assert self.model.species is not None
        temperatures = self.size.temperatures
        rows = []
        for temperature in temperatures:
            colder = copy.copy(self.model)
            colder.species = replace(self.model.species, temperature=temperature)
            policy = SpeciesPolicy(colder)
            made = self.generate(policy, self.size.n_structures, _TUNING_SEED)
            table = self.measure(made).table
            rows.append({"temperature": temperature, "msun": float(table["msun"].mean())})
            if rows[-1]["msun"] >= max(row["msun"] for row in rows):
                self.policies |= {(RULE, seed): policy for seed in self.size.seeds}
        return pd.DataFrame(rows)

    def generate(
        self,
        policy: SpeciesPolicy,
        n: int,
        seed: int,
        constraints: Constraints | None = None,
    ) -> CrystalBatch:
        """Generate with a policy as it is deployed, on the CPU."""
        draws = torch.Generator(self.model.device).manual_seed(1000 + seed)
        if constraints is not None:
            bound = SpeciesPolicy(policy.model, constraints=constraints)
            bound.load_state_dict(policy.state_dict())
            policy = bound
        request = self.request(n, 1000 + seed, constraints).to(self.model.device)
        steps = self.size.n_steps
        return generate(policy, request, steps, generator=draws, max_batch=160).to("cpu")

    def evaluate(self, *variants: str) -> pd.DataFrame:
        """Measure what variants generate, relaxed, and return `table`."""
        for variant in variants:
            for seed in self.size.seeds:
                if (variant, seed) in self.metrics:
                    continue
                policy = self.policies.get((variant, seed)) or SpeciesPolicy(self.model)
                if variant != START and (variant, seed) not in self.policies:
                    raise ValueError(f"variants must be trained before, got {variant!r}")
                made = self.generate(policy, self.size.n_structures, seed)
                judged = variant in (START, REINFORCED)
                self.metrics[variant, seed] = self.measure(made, judged)
        return self.table()

    def measure(self, structures: CrystalBatch, judged: bool = False) -> DeNovoMetrics:
        """Measure structures as `evaluate` does; the table has their predicted `band_gap` too.

        Args:
            structures: B structures.
            judged: ask the judge as well, if there is one.
        """
        judge, judge_hull = (self.judge if judged else None) or (None, None)
        found = denovo(
            structures,
            self.known,
            potential=self.potential,
            hull=self.hull,
            judge=judge,
            judge_hull=judge_hull,
            max_steps=self.size.max_steps,
            pool=self._pool,
            progress=self.progress,
        )
        gap = self._gap(structures).info
        pure = found.table["n_elements"] == 1
        table = found.table.assign(
            band_gap=gap["band_gap"],
            on_target=gap["on_target"],
            pure_elements=pure,
            msun_compounds=found.table["msun"].astype(bool) & ~pure,
        )
        return replace(found, table=table)

    def samples(self, metric: str, variant: str, n_samples: int = 1000) -> np.ndarray:
        """Return a metric and its resamples, of formulas and training seeds, (1 + n_samples,)."""
        seeds = [seed for name, seed in self.metrics if name == variant]
        if not seeds:
            raise ValueError(f"variant must be one that was measured, got {variant!r}")
        key = (metric, variant, n_samples, len(seeds))
        if key in self._samples:
            return self._samples[key]
        draws = torch.Generator().manual_seed(0)
        each = np.stack([self._resampled(metric, self.metrics[variant, s], draws, n_samples)
                         for s in seeds])  # fmt: skip
        weights = np.ones((1 + n_samples, len(seeds)))
        if variant != START and len(seeds) > 1:
            drawn = torch.randint(len(seeds), (n_samples, len(seeds)), generator=draws)
            weights[1:] = torch.nn.functional.one_hot(drawn, len(seeds)).sum(1).numpy()
        self._samples[key] = (weights * each.T).sum(1) / weights.sum(1)
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
            rows[variant] = {_METRICS.get(m, m): _text(e) for m, e in estimates.items()}
        return pd.DataFrame.from_dict(rows, orient="index").fillna("")

    def pooled(self, variant: str) -> pd.DataFrame:
        """Return the tables of all seeds of a variant, one below the other."""
        tables = [m.table.assign(seed=s) for (v, s), m in self.metrics.items() if v == variant]
        return pd.concat(tables, ignore_index=True)

    def cheated(self, hull: Hull) -> pd.DataFrame:
        """Return shares that are metastable by the open hull and by the completed one.

        Args:
            hull: the open one.
        """
        rows = {}
        for variant in dict.fromkeys(name for name, _ in self.metrics):
            found, taken = [], []
            for (name, _), measured in self.metrics.items():
                if name == variant and measured.relaxed is not None:
                    energy = measured.table["relaxed_energy_per_atom"].to_numpy(dtype=float)
                    value = hull.energy_above_hull(measured.relaxed, energy).value
                    found.append(np.nan_to_num(value, nan=np.inf) <= METASTABLE)
                    taken.append(measured.table["metastable"].to_numpy(dtype=bool))
            by_open, by_ours = np.concatenate(found), np.concatenate(taken)
            rows[variant] = {
                "metastable by the open hull": by_open.mean(),
                "by the completed hull": by_ours.mean(),
                "only by the open one": (by_open & ~by_ours).mean(),
            }
        return pd.DataFrame.from_dict(rows, orient="index").round(3)

    def elements(self) -> list[str]:
        """Return the symbols of the elements that the model generates."""
        assert self.model.species is not None
        known = self.model.species.elements or range(1, MAX_ATOMIC_NUMBER + 1)
        return [chemical_symbols[z] for z in known]

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
            name = f"{variant.replace(' ', '_')}_seed_{seed}"
            tables[name] = found.table
            paths.append(
                write(
                    self.out_dir / f"{name}.extxyz",
                    found.structures if found.relaxed is None else found.relaxed,
                )
            )
        for (variant, seed), policy in self.policies.items():
            path = self.out_dir / f"{variant.replace(' ', '_')}_seed_{seed}.safetensors"
            policy.save(path)
            paths.append(path)
        return paths + write_records(
            self.out_dir,
            parameters=parameters,
            device=self.model.device,
            dataset={"name": "prototypes", "split": "train", "size": len(self.training)},
            claims=claims,
            tables={**tables, "history": self.history},
            figures=figures,
            potential=self.potential.name,
        )

    def claims(self) -> list[Claim]:
        """Check what reinforcement should have done; see `denovo_claims`."""
        measured = {name for name, _ in self.metrics}
        return denovo_claims(self.samples, measured, self.judge is not None)

    def conclusion(self, claims: Sequence[Claim], preset: str) -> str:
        """Say in Markdown which claims hold."""
        text = _verdicts_in_words(claims)
        if preset == "quick":
            text += " The preset *quick* only shows that everything works: judge nothing by it."
        return text

    def __repr__(self) -> str:
        judge = "no judge" if self.judge is None else f"judge {self.judge[0].name}"
        return (
            f"DeNovoReinforcement({len(self.training)} training structures, "
            f"{self.potential.name}, hull of {len(self.hull)} entries, {judge}, {self.size})"
        )


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


def find_judge(name: str) -> tuple[potentials.Potential, Hull] | None:
    """Return SevenNet and its hull, if it is asked for, or "auto" and it is installed.

    Raises:
        ImportError: it is asked for and is not installed.
        ValueError: another name.
    """
    if name not in ("7net-0", "auto", "none"):
        raise ValueError(f"judge must be '7net-0', 'auto' or 'none', got {name!r}")
    judge = _energies.find_judge(name)
    if judge is None:
        return None
    return judge, Hull.prototypes(potential=judge.name)


def best_rows(table: pd.DataFrame, n: int) -> list[int]:
    """Return rows of the structures that are lowest above the hull, those of mSUN first."""
    order = table.sort_values(["msun", "relaxed_e_above_hull"], ascending=[False, True])
    return order[order["relaxed_e_above_hull"].notna()].head(n).index.tolist()


def panels(found: DeNovoMetrics, rows: Sequence[int]) -> dict[str, CrystalBatch]:
    """Return relaxed structures by what a figure calls them."""
    crystals = found.structures if found.relaxed is None else found.relaxed
    above = found.table["relaxed_e_above_hull"]
    return {f"{i}: {above[i]:+.2f} eV/atom to the hull": crystals[i] for i in rows}


def element_shares(structures: CrystalBatch) -> dict[str, float]:
    """Return the share of structures that contain an element, by symbol, in percent."""
    counts: dict[str, int] = {}
    for formula in structures.reduced_formulas():
        for symbol in Composition(formula).as_dict():
            counts[symbol] = counts.get(symbol, 0) + 1
    return {symbol: 100 * n / len(structures) for symbol, n in counts.items()}


def _text(estimate: Estimate) -> str:
    digits = 3 if abs(estimate.value) < 10 else 1
    value, low, high = (f"{x:.{digits}f}" for x in vars(estimate).values())
    return value if estimate.low == estimate.high else f"{value} ({low} to {high})"
