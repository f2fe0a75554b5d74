"""The experiment of notebook 07: reinforcing de novo generation with Chemeleon2's rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pymatgen.core import Composition

from irlkit import data, potentials, rewards
from irlkit.crystals import CrystalBatch
from irlkit.evaluate.denovo import DeNovoMetrics, denovo
from irlkit.evaluate.hull import METASTABLE, Hull
from irlkit.evaluate.matching import MatchPool
from irlkit.evaluate.novelty import TOLERANCES, KnownStructures
from irlkit.flows.constraints import Constraints
from irlkit.lab.experiments import _energies
from irlkit.lab.experiments._denovo_claims import GAP, REINFORCED, RULE, START, denovo_claims
from irlkit.lab.experiments._denovo_generators import generator_of
from irlkit.lab.experiments._denovo_measured import Measured
from irlkit.lab.experiments._denovo_sizes import ABLATIONS, ELEMENTS_TOO, DeNovoSize
from irlkit.lab.experiments._denovo_sizes import SIZES as SIZES
from irlkit.lab.experiments.claims import Claim
from irlkit.networks.flow_model import FlowModel
from irlkit.networks.latent_diffusion import LatentDiffusion
from irlkit.rl import GRPOTrainer, TrainerConfig, generate
from irlkit.rl._until import train_until
from irlkit.rl.policies.base import Policy
from irlkit.rl.process import Request
from irlkit.utils.progress import progress_bar

OPEN = "open hull"
_TUNING_SEED = 10_000
_GAP_TARGET = 3.0


class DeNovoReinforcement(Measured):
    """Trains policies with several rewards, and measures what they generate.

    Args:
        size: how much.
        model: with a flow of species, or a latent diffusion.
        out_dir: folder of checkpoints, from which a training continues.
        device: of the network.
        judge: a potential that was not rewarded, with its hull; None: none.
        potential: rewarded, and what structures are relaxed with.
        n_workers: processes that compare structures; None for one per core, 0 for none.
        progress: show bars.

    Attributes:
        training: the training split of the embedded data set.
        hull: of its energies, completed.
        generator: makes policies of the model.
        policies: (variant, seed) -> trained policy.
        metrics: (variant, seed) -> what was measured.
    """

    def __init__(
        self,
        size: DeNovoSize,
        model: FlowModel | LatentDiffusion,
        out_dir: str | Path = "runs/07",
        *,
        judge: tuple[potentials.Potential, Hull] | None = None,
        potential: potentials.Potential | str = "chgnet",
        n_workers: int | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__()
        self.size, self.model, self.out_dir = size, model, Path(out_dir)
        self.judge = judge if size.judged else None
        self.progress = progress
        self.potential = potentials.get(potential)
        self.training = data.load("prototypes", "train", progress=False)
        self.generator = generator_of(model, self.training)
        self.device = self.generator.device
        self.known = KnownStructures(self.training)
        self.hull = Hull.prototypes()
        self._pool = MatchPool(n_workers, **TOLERANCES)
        self._gap = rewards.BandGapReward(_GAP_TARGET)

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
        draws = torch.Generator().manual_seed(seed)
        return Request(self.generator.n_atoms(n, draws, constraints))

    def config(self, variant: str, seed: int) -> TrainerConfig:
        """Return the settings of a training."""
        size = self.size
        return TrainerConfig(
            self.generator.grpo,
            n_groups=size.n_groups,
            group_size=size.group_size,
            n_steps=size.n_steps,
            **self.generator.updates,
            learning_rate=size.learning_rate,
            max_batch=160,
            validate_every=1_000_000,  # What is kept is the end: scaled rewards are no measure.
            validation_size=1,
            seed=seed,
        )

    def _folder(self, variant: str, seed: int) -> Path:
        """Return where a training keeps its checkpoint."""
        return self.out_dir / variant.replace(" ", "_") / f"seed_{seed}"

    def trainer(self, variant: str, seed: int) -> GRPOTrainer:
        """Return the trainer of a variant, which continues where an earlier one has stopped."""
        folder = self._folder(variant, seed)
        return GRPOTrainer(
            self.generator.policy(),
            self.reward(variant),
            self.request(2000, seed),
            self.config(variant, seed),
            out_dir=folder,
            resume=(folder / "checkpoint.pt").exists(),
        )

    def train(self, *variants: str) -> pd.DataFrame:
        """Train variants with every seed; return the histories so far.

        An interrupted training loses at most one iteration; another call goes on from there.

        Raises:
            KeyboardInterrupt: interrupted.
            ValueError: a training in this folder has more iterations than are asked for.
        """
        runs = [(variant, seed) for variant in variants for seed in self.size.seeds]
        parts = []
        if len(self.history):
            of = zip(self.history["variant"], self.history["seed"], strict=True)
            parts = [self.history[[run not in runs for run in of]]]
        many = {REINFORCED: self.size.iterations, GAP: self.size.gap_iterations}
        totals = [many.get(variant, self.size.ablation_iterations) for variant, _ in runs]
        with progress_bar(total=sum(totals), disable=not self.progress, unit="iteration") as bar:
            for (variant, seed), total in zip(runs, totals, strict=True):
                trainer = self.trainer(variant, seed)
                bar.set_description(f"{variant}, seed {seed}")
                if trainer.iteration > total:
                    trainer.reward.close()
                    raise ValueError(
                        f"iterations must be at least {trainer.iteration}, got {total}: {variant}, "
                        f"seed {seed}, has as many in {self.out_dir}; for fewer take another folder"
                    )
                bar.update(trainer.iteration)
                while trainer.iteration < total:
                    train_until(trainer, trainer.iteration + 1)
                    bar.update(1)
                self.policies[variant, seed] = trainer.policy
                trainer.reward.close()
                parts.append(trainer.history.assign(variant=variant, seed=seed))
        self.history = pd.concat(parts, ignore_index=True)
        return self.history

    def tune_temperature(self) -> pd.DataFrame:
        """Find the temperature that gives the highest mSUN, the rule of `RULE`.

        It needs no learning: a sharper distribution repeats what is common in the data. It is
        chosen on samples of its own, and evaluated as the variants are.
        """
        rows: list[dict[str, float]] = []
        for temperature in self.size.temperatures:
            policy = self.generator.policy(temperature)
            made = self.generate(policy, self.size.n_structures, _TUNING_SEED)
            table = self.measure(made).table
            rows.append({"temperature": temperature, "msun": float(table["msun"].mean())})
            if rows[-1]["msun"] >= max(row["msun"] for row in rows):
                self.policies |= {(RULE, seed): policy for seed in self.size.seeds}
        return pd.DataFrame(rows)

    def generate(
        self,
        policy: Policy,
        n: int,
        seed: int,
        constraints: Constraints | None = None,
    ) -> CrystalBatch:
        """Generate with a policy as it is deployed, on the CPU."""
        draws = torch.Generator(self.device).manual_seed(1000 + seed)
        if constraints is not None:
            policy = self.generator.bound(policy, constraints)
        request = self.request(n, 1000 + seed, constraints).to(self.device)
        steps = self.size.n_steps
        return generate(policy, request, steps, generator=draws, max_batch=160).to("cpu")

    def evaluate(self, *variants: str) -> pd.DataFrame:
        """Measure what variants generate, relaxed, and return `table`."""
        for variant in variants:
            for seed in self.size.seeds:
                if (variant, seed) in self.metrics:
                    continue
                policy = self.policies.get((variant, seed)) or self.generator.policy()
                if variant != START and (variant, seed) not in self.policies:
                    raise ValueError(f"variants must be trained before, got {variant!r}")
                made = self.generate(policy, self.size.n_structures, seed)
                judged = variant in (START, REINFORCED)
                self.metrics[variant, seed] = self.measure(made, judged)
        return self.table()

    def measure(
        self, structures: CrystalBatch, judged: bool = False, relax: bool = True
    ) -> DeNovoMetrics:
        """Measure structures as `evaluate` does; the table has their predicted `band_gap` too.

        Args:
            structures: B structures.
            judged: ask the judge as well, if there is one.
            relax: and ask the potential; else there is no stability.
        """
        judge, judge_hull = (self.judge if judged else None) or (None, None)
        found = denovo(
            structures,
            self.known,
            potential=self.potential if relax else None,
            hull=self.hull if relax else None,
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
        )
        if relax:
            table = table.assign(msun_compounds=table["msun"].astype(bool) & ~pure)
        return replace(found, table=table)

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
        return self.generator.elements()

    def claims(self) -> list[Claim]:
        """Check what reinforcement should have done; see `denovo_claims`."""
        measured = {name for name, _ in self.metrics}
        return denovo_claims(self.samples, measured, self.judge is not None)

    def __repr__(self) -> str:
        judge = "no judge" if self.judge is None else f"judge {self.judge[0].name}"
        return (
            f"DeNovoReinforcement({len(self.training)} training structures, "
            f"{self.potential.name}, hull of {len(self.hull)} entries, {judge}, {self.size})"
        )


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
