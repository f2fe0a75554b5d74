"""The experiment of notebook 09: discrete flow and latent diffusion, reinforced on one loop."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import cast

import pandas as pd
import torch
from ase.data import atomic_numbers
from scipy.optimize import linear_sum_assignment

from irlkit import potentials
from irlkit.crystals import CrystalBatch
from irlkit.evaluate.hull import Hull
from irlkit.lab.experiments._denovo_claims import REINFORCED
from irlkit.lab.experiments._denovo_measured import Measured
from irlkit.lab.experiments._latent_claims import FLOW, GUIDED, LATENT, LONGER, latent_claims
from irlkit.lab.experiments._latent_sizes import SIZES as SIZES
from irlkit.lab.experiments._latent_sizes import LatentSize
from irlkit.lab.experiments.claims import Claim
from irlkit.lab.experiments.denovo import _GAP_TARGET, _TUNING_SEED, DeNovoReinforcement
from irlkit.lab.plots._geometry import _element_data
from irlkit.networks.flow_model import FlowModel
from irlkit.networks.latent_diffusion import LatentDiffusion
from irlkit.rl.trajectory import Trajectory
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

    def at_equal(self) -> dict[str, dict[str, str]]:
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
        parts = [experiment.history]
        for seed in self.size.seeds:
            folder = experiment.folder(LONGER, seed)
            if not (folder / "checkpoint.pt").exists():
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(experiment.folder(REINFORCED, seed) / "checkpoint.pt", folder / "part")
                (folder / "part").rename(folder / "checkpoint.pt")
            trainer = experiment.trainer(LONGER, seed)
            with progress_bar(total=round(budget), disable=not self.progress, unit="s") as bar:
                bar.set_description(f"{name}, {LONGER}, seed {seed}")
                while (spent := float(trainer.history[_SECONDS].to_numpy().sum())) < budget:
                    bar.update(round(spent) - bar.n)
                    trainer.run(trainer.iteration + 1, progress=False)
            experiment.policies[LONGER, seed] = trainer.policy
            trainer.reward.close()
            parts.append(trainer.history.assign(variant=LONGER, seed=seed))
        experiment.history = pd.concat(parts, ignore_index=True)
        self._collect()
        return name

    def guided(
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
            made = self.guided(self.size.n_structures, _TUNING_SEED, guidance)
            table = experiment.measure(made, relax=False).table
            good = table["on_target"].astype(bool) & table["unique"]
            shares = table[["on_target", "valid", "unique"]].astype(float).mean()
            rows.append({"guidance": guidance, **shares, "unique and on target": good.mean()})
        found = pd.DataFrame(rows)
        best = float(found["guidance"].iloc[int(found["unique and on target"].argmax())])
        for seed in self.size.seeds:
            made = self.guided(self.size.n_structures, seed, best)
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
        return latent_claims(self.samples, measured, self.at_equal(), self.judge is not None)

    def __repr__(self) -> str:
        parts = "\n".join(f"  {name}: {e}" for name, e in self.experiments.items())
        return f"GeneratorComparison(\n{parts}\n)"


# --- the latent space ---


_FAMILIES = {
    "oxides": "O",
    "halides": "F Cl Br I",
    "chalcogenides": "S Se Te",
    "pnictides": "N P As Sb Bi",
    "hydrides": "H",
    "borides to germanides": "B C Si Ge",
}
_METALS = "metals alone"


@torch.no_grad()
def latent_map(model: LatentDiffusion, crystals: CrystalBatch) -> pd.DataFrame:
    """Project mean latents of structures on their two principal components.

    Args:
        model: whose autoencoder encodes.
        crystals: B structures.

    Returns:
        A row per structure: first, second, formula, and its class by the most electronegative
        element that is no metal; `attrs["explained"]` has the components' shares of the variance.
    """
    mean, _ = model.autoencoder.encode(crystals.to(next(model.parameters()).device))
    of_atoms = mean.cpu().double()
    sums = of_atoms.new_zeros(len(crystals), mean.shape[1])
    latents = sums.index_add(0, crystals.batch, of_atoms) / crystals.n_atoms[:, None]
    centred = latents - latents.mean(0)
    _, spread, axes = torch.linalg.svd(centred, full_matrices=False)
    first, second = (centred @ axes[:2].T).T.numpy()
    columns = {"first": first, "second": second, "formula": crystals.reduced_formulas()}
    table = pd.DataFrame({**columns, "class": _families(crystals)})
    table.attrs["explained"] = (spread[:2] ** 2 / (spread**2).sum()).tolist()
    return table


def _families(crystals: CrystalBatch) -> list[str]:
    """What chemists call each structure by its most electronegative element (Pauling)."""
    family = {atomic_numbers[s]: name for name, of in _FAMILIES.items() for s in of.split()}
    scale = torch.as_tensor(_element_data()[1]).nan_to_num()
    scale[[z for z in range(len(scale)) if z not in family]] = 0.0
    of_atoms = scale[crystals.species]
    highest = of_atoms.new_zeros(len(crystals)).scatter_reduce(0, crystals.batch, of_atoms, "amax")
    here = of_atoms == highest[crystals.batch]
    best = crystals.species.new_zeros(len(crystals))
    best[crystals.batch[here]] = crystals.species[here]
    return [family.get(z, _METALS) for z in best.tolist()]


@torch.no_grad()
def interpolate(
    model: LatentDiffusion, first: CrystalBatch, second: CrystalBatch, n_points: int = 6
) -> CrystalBatch:
    """Decode points on the line between the latents of two crystals.

    Atoms of the second go to those of the first so that the line is shortest.

    Args:
        model: whose autoencoder encodes and decodes.
        first, second: one structure each, of equally many atoms.
        n_points: with both ends, at least 2.

    Raises:
        ValueError: other numbers of structures or atoms, or fewer points.
    """
    if not len(first) == len(second) == 1 or not torch.equal(first.n_atoms, second.n_atoms):
        raise ValueError(
            "first and second must be one structure each, of equally many atoms, got "
            f"{first.n_atoms.tolist()} and {second.n_atoms.tolist()}"
        )
    if n_points < 2:
        raise ValueError(f"n_points must be at least 2, got {n_points}")
    start, end = (model.autoencoder.encode(crystals)[0] for crystals in (first, second))
    _, order = linear_sum_assignment(torch.cdist(start, end).cpu().numpy())
    weights = torch.linspace(0, 1, n_points)[:, None, None].to(start)
    line = torch.lerp(start, end[torch.as_tensor(order)], weights)
    return model.autoencoder.crystals(line.flatten(0, 1), first.n_atoms.repeat(n_points))


def decoded_path(
    model: LatentDiffusion, trajectory: Trajectory, structure: int, n_frames: int = 13
) -> list[CrystalBatch]:
    """Decode the latents of one structure on its way from noise.

    Args:
        model: that generated.
        trajectory: with its states.
        structure: which.
        n_frames: states, spread over all.
    """
    path = trajectory.select(torch.tensor([structure])).states["latent"]
    kept = torch.linspace(0, len(path) - 1, min(n_frames, len(path))).round().long()
    n_atoms = cast(torch.Tensor, trajectory.request.n_atoms)[[structure]]
    return [model.latents_to_crystals(path[i], n_atoms).to("cpu") for i in kept]
