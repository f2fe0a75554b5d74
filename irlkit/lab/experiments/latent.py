"""The experiment of notebook 09: discrete flow and latent diffusion, reinforced on one loop."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import torch

from irlkit import potentials
from irlkit.crystals import CrystalBatch
from irlkit.evaluate.hull import Hull
from irlkit.lab.experiments._denovo_claims import REINFORCED
from irlkit.lab.experiments._denovo_measured import Measured
from irlkit.lab.experiments._latent_claims import FLOW, GUIDED, LATENT, LONGER, latent_claims
from irlkit.lab.experiments._latent_sizes import SIZES as SIZES
from irlkit.lab.experiments._latent_sizes import LatentSize
from irlkit.lab.experiments._latent_space import decoded_path as decoded_path
from irlkit.lab.experiments._latent_space import interpolate as interpolate
from irlkit.lab.experiments._latent_space import latent_map as latent_map
from irlkit.lab.experiments.claims import Claim
from irlkit.lab.experiments.denovo import _GAP_TARGET, _TUNING_SEED, DeNovoReinforcement
from irlkit.networks.flow_model import FlowModel
from irlkit.networks.latent_diffusion import LatentDiffusion
from irlkit.rl._until import train_until
from irlkit.utils.progress import progress_bar

_SECONDS = ["rollout_seconds", "reward_seconds", "update_seconds"]


class GeneratorComparison(Measured):
    """Reinforces a discrete flow and a latent diffusion alike, and measures both alike.

    Args:
        size: how much.
        flow: with a flow of species.
        diffusion: told band gaps in its training, if it is to be guided.
        out_dir: folder of checkpoints, from which trainings continue.
        judge: a potential that was not rewarded, with its hull; None: none.
        potential: rewarded, and what structures are relaxed with.
        n_workers: processes that compare structures; None for one per core, 0 for none.
        progress: show bars.

    Attributes:
        experiments: `FLOW` and `LATENT` -> the experiment that trains and measures it.
        policies, metrics: those of both; a variant is called "generator, variant".
    """

    def __init__(
        self,
        size: LatentSize,
        flow: FlowModel,
        diffusion: LatentDiffusion,
        out_dir: str | Path = "runs/09",
        *,
        judge: tuple[potentials.Potential, Hull] | None = None,
        potential: potentials.Potential | str = "chgnet",
        n_workers: int | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__()
        self.size, self.diffusion, self.out_dir = size, diffusion, Path(out_dir)
        self.progress = progress
        self.experiments = {
            name: DeNovoReinforcement(
                of,
                model,
                self.out_dir / name.replace(" ", "_"),
                judge=judge,
                potential=potential,
                n_workers=n_workers,
                progress=progress,
            )
            for name, of, model in (
                (FLOW, size, flow),
                (LATENT, size.of_latents(), diffusion),
            )
        }
        first = self.experiments[FLOW]
        self.training, self.potential, self.device = first.training, first.potential, first.device
        self.judge = first.judge

    def train(self, variant: str = REINFORCED, *generators: str) -> pd.DataFrame:
        """Train generators, both if none is named, with every seed; return the histories so far."""
        for name in generators or self.experiments:
            self.experiments[name].train(variant)
        return self._collect()

    def evaluate(self, variant: str, *generators: str) -> pd.DataFrame:
        """Measure what generators make, both if none is named, and return `table`."""
        for name in generators or self.experiments:
            self.experiments[name].evaluate(variant)
        self._collect()
        return self.table()

    def tune_temperature(self) -> pd.DataFrame:
        """Find for each generator the temperature with the highest mSUN, the rule of `RULE`."""
        return pd.concat(
            [e.tune_temperature().assign(generator=name) for name, e in self.experiments.items()]
        )

    def seconds(self, variant: str = REINFORCED) -> pd.DataFrame:
        """Return what a training cost: rewards asked for, and seconds, means over seeds."""
        rows = {}
        for name, experiment in self.experiments.items():
            of = experiment.history
            of = of[of["variant"] == variant] if len(of) else of
            if len(of):
                per_seed = of.groupby("seed")[_SECONDS].sum().mean()
                count = len(of) / of["seed"].nunique()
                asked = int(count * self.size.n_groups * self.size.group_size)
                rows[name] = {"iterations": count, "rewards": asked, **per_seed}
                rows[name]["seconds"] = per_seed.sum()
        return pd.DataFrame.from_dict(rows, orient="index")

    def _at_equal(self) -> dict[str, dict[str, str]]:
        """Return "rewards" and "seconds" -> generator -> the variant to compare."""
        equal = {"rewards": dict.fromkeys(self.experiments, REINFORCED)}
        longer = {
            name
            for name, e in self.experiments.items()
            if (LONGER, self.size.seeds[0]) in e.policies
        }
        if longer:
            equal["seconds"] = {
                name: LONGER if name in longer else REINFORCED for name in self.experiments
            }
        return equal

    def train_equal_seconds(self) -> str:
        """Train the faster generator on until it has taken as many seconds as the slower.

        Returns:
            Which one that is.
        """
        seconds = self.seconds()["seconds"]
        name = str(seconds.idxmin())
        experiment, budget = self.experiments[name], float(seconds.max())
        parts = [experiment.history[experiment.history["variant"] != LONGER]]
        for seed in self.size.seeds:
            folder = experiment._folder(LONGER, seed)
            if not (folder / "checkpoint.pt").exists():
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(experiment._folder(REINFORCED, seed) / "checkpoint.pt", folder / "part")
                (folder / "part").rename(folder / "checkpoint.pt")
            trainer = experiment.trainer(LONGER, seed)
            with progress_bar(total=round(budget), disable=not self.progress, unit="s") as bar:
                bar.set_description(f"{name}, {LONGER}, seed {seed}")
                while (spent := float(trainer.history[_SECONDS].to_numpy().sum())) < budget:
                    bar.update(round(spent) - bar.n)
                    train_until(trainer, trainer.iteration + 1)
            experiment.policies[LONGER, seed] = trainer.policy
            trainer.reward.close()
            parts.append(trainer.history.assign(variant=LONGER, seed=seed))
        experiment.history = pd.concat(parts, ignore_index=True)
        self._collect()
        return name

    def _guided(
        self, n: int, seed: int, guidance: float, target: float = _GAP_TARGET
    ) -> CrystalBatch:
        """Generate with the latent diffusion, told a band gap, on the CPU.

        Args:
            n: structures, of numbers of atoms as the data has them.
            seed: of the samples; those of one seed begin as what `DeNovoReinforcement` generates.
            guidance: see `LatentDiffusion.generate`.
            target: eV.
        """
        experiment = self.experiments[LATENT]
        draws = torch.Generator(experiment.device).manual_seed(1000 + seed)
        request = experiment.request(n, 1000 + seed).n_atoms
        made = self.diffusion.generate(
            request, self.size.latent_steps, generator=draws, max_batch=160, target=target,
            guidance=guidance,
        )  # fmt: skip
        return made.to("cpu")

    def tune_guidance(self) -> pd.DataFrame:
        """Guide by the scale with the most unique structures within 0.5 eV, and measure `GUIDED`.

        It is chosen on samples of its own, and evaluated as the variants are.
        """
        experiment, rows = self.experiments[LATENT], []
        for guidance in self.size.guidances:
            made = self._guided(self.size.n_structures, _TUNING_SEED, guidance)
            table = experiment.measure(made, relax=False).table
            good = table["on_target"].astype(bool) & table["unique"]
            shares = table[["on_target", "valid", "unique"]].astype(float).mean()
            rows.append({"guidance": guidance, **shares, "unique and on target": good.mean()})
        found = pd.DataFrame(rows)
        best = float(found["guidance"].iloc[int(found["unique and on target"].argmax())])
        for seed in self.size.seeds:
            made = self._guided(self.size.n_structures, seed, best)
            experiment.metrics[GUIDED, seed] = experiment.measure(made)
        self._collect()
        return found.round(3)

    def _collect(self) -> pd.DataFrame:
        """Take over what the two experiments have; return the histories."""
        histories = []
        for name, e in self.experiments.items():
            self.metrics |= {(f"{name}, {v}", seed): m for (v, seed), m in e.metrics.items()}
            self.policies |= {(f"{name}, {v}", seed): p for (v, seed), p in e.policies.items()}
            if len(e.history):
                histories.append(e.history.assign(variant=name + ", " + e.history["variant"]))
        self.history = pd.concat(histories, ignore_index=True) if histories else self.history
        return self.history

    def claims(self) -> list[Claim]:
        """Check what reinforcement and guidance should have done; see `latent_claims`."""
        measured = {name for name, _ in self.metrics}
        return latent_claims(self.samples, measured, self._at_equal(), self.judge is not None)

    def __repr__(self) -> str:
        return f"GeneratorComparison({FLOW} and {LATENT}; {self.experiments[FLOW]})"
