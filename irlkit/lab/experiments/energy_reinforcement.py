"""The experiment of notebook 03: reinforcing low energies (section 4.2, Figs. 3, 6)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch

from irlkit.crystals import CrystalBatch
from irlkit.flows.dynamics import Dynamics
from irlkit.flows.schedules import (
    Annealing,
    LearnedAnnealing,
    LinearAnnealing,
    NoAnnealing,
    SquareRootNoise,
    load_annealing,
    save_annealing,
)
from irlkit.lab.diagnostics import judge
from irlkit.lab.experiments._changes import atom_changes, count_distinct
from irlkit.lab.experiments._energies import energy_rewards
from irlkit.lab.experiments._energy_claims import (
    ANNEALED,
    PRETRAINED,
    energy_claims,
    untrained,
)
from irlkit.lab.experiments._jobs import make_job, seed_pairs
from irlkit.lab.experiments._judged import JudgedExperiment
from irlkit.lab.experiments._training import Run, annealing_policy, file_name
from irlkit.lab.experiments.claims import Claim
from irlkit.lab.experiments.presets import ANNEALING, EnergyPreset
from irlkit.rl.policies import AnnealingPolicy, Policy, ScorePolicy, VelocityPolicy
from irlkit.utils.system import available_cores

_POLICIES: Mapping[str, type[ScorePolicy] | type[VelocityPolicy]] = {
    "score": ScorePolicy,
    "velocity": VelocityPolicy,
}
POLYMORPH_TOLERANCE = 1e-3
"""eV/atom above the lowest polymorph that count as none."""
VALIDATION_COLUMNS = {
    "validation_info_energy_energy_above_reference": "energy_above_lowest",
    "validation_info_match_matched": "polymorph_match_rate",
    "validation_info_match_rmsd": "polymorph_rmse",
    "validation_info_energy_valid": "valid_rate",
}
"""Column of a trainer's history -> metric."""
CURVES = ("energy_above_lowest", "polymorph_match_rate", "polymorph_rmse", "invalid_rate")
"""Metrics of validations that are compared with those on the test split."""


class EnergyReinforcement(JudgedExperiment):
    """Trains score- and velocity-based policies on energies, and compares them.

    All start from the same pretrained model, with a denoiser for the reinforced fields, and all
    energies are of one potential. See ``Experiment`` for other arguments.

    Its ``table`` are "metrics"; "polymorphs", which of them the structures of the test split match;
    "findings", what the diagnostics say of each training run; and "gain", what energies that were
    not rewarded have gained.

    Args:
        potential: a potential, or its name for ``potentials.get``.
        judge: another one, which is not rewarded: itself, its name, "auto" for SevenNet-0 if it is
            installed, or "none".

    Attributes:
        policies: (name, seed) -> trained policy.
        annealing: that the policies keep; None: it is to be learned and was not yet.

    Raises:
        FileNotFoundError: see ``Experiment``; or weights of the potential are missing.
        ValueError: see ``Experiment``; a split of which nothing has an energy, or a policy that
            does not fit the model.
    """

    preset_kind = EnergyPreset
    folder = "runs/03"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._diversity = pd.DataFrame()
        self._learned: dict[Any, Policy] = {}
        self.annealing, self._schedule = _find_annealing(self.preset.annealing)
        if isinstance(self.annealing, LearnedAnnealing):
            self.annealing.to(next(self.model.parameters())).requires_grad_(False)
        for name in self.preset.variants:
            self.policy(name)  # Fails now if it does not fit the model.

    def _summary(self) -> dict[str, str]:
        config = self.preset.config(next(iter(self.preset.policies)), 0)
        return {
            **super()._summary(),
            "training": f"{', '.join(self.preset.policies)}: {self.preset.iterations} iterations "
            f"of {config.n_groups} groups of {config.group_size} at {config.n_steps} steps, "
            f"seeds {', '.join(map(str, self.preset.seeds))}",
            "reinforced": ", ".join(self.preset.fields),
            "steps": f"few: {self.preset.n_steps}, many: {self.preset.reference_steps}",
        }

    # --- Training ---

    def learn_annealing(self) -> pd.DataFrame:
        """Learn the annealing that the policies keep, if the preset says so; return the history.

        As in notebook 04, the reward is cRMSE, with no energy in it. See also ``train_policies``.
        """
        if self.preset.annealing != "learn":
            return pd.DataFrame()
        seed, training = self.preset.seeds[0], self.preset.annealing_training
        key = (ANNEALING, seed)
        make = partial(annealing_policy, self.model, training.schedule, training.noise, seed)
        labels, config = {"policy": ANNEALING, "seed": seed}, self.preset.config(ANNEALING, seed)
        run = Run(key, ANNEALING, labels, make, config)
        self._train_annealings([run], self._learned, "training of the annealing")
        learned = cast(AnnealingPolicy, self._learned[key]).annealing
        self.annealing = learned.eval().requires_grad_(False)
        return self._histories[key]

    def _kept_annealing(self) -> Annealing:
        if self.annealing is None:
            raise ValueError(
                "the annealing that the policies keep is not learned yet; call learn_annealing"
            )
        return self.annealing

    def train_policies(self) -> pd.DataFrame:
        """Train every policy of the main comparison with every seed; return the history of all.

        Once finished, a further call begins anew; after an interruption, it goes on from there.

        Raises:
            KeyboardInterrupt: interrupted; says how far training was.
            ValueError: the annealing that the policies keep is not learned yet.
        """
        return self._train(self.preset.policies, "training", judged=True)

    def study_noise(self) -> pd.DataFrame:
        """Train the policies with other scales of the noise (Fig. 6); see ``train_policies``."""
        return self._train(self.preset.noise_study, "training with other noise")

    def _train(self, names: Iterable[str], what: str, judged: bool = False) -> pd.DataFrame:
        self._kept_annealing()  # Fails now if there is none yet.
        runs = []
        for name in names:
            for seed in self.preset._seeds_of(name):
                labels, config = {"policy": name, "seed": seed}, self.preset.config(name, seed)
                make = partial(self.policy, name)
                runs.append(Run((name, seed), f"{name}, seed {seed}", labels, make, config))
        validation = self.validation.subset(self.preset.grpo.get("validation_size"))
        validation = self._with_energies(validation)
        relaxed = (self.preset.n_relaxed[0], self.preset.relax_steps) if judged else None
        here = partial(
            energy_rewards, self.preset.grpo.get("group_size"), validation, relaxed=relaxed
        )
        judge: tuple[Any, Any] = ("none", "none")
        if judged and self.judge is not None:
            judge = (self.judge, self._judge_name)
        elsewhere = None
        if None not in (self._potential_name, judge[1]) and self.device.type == "cpu":
            elsewhere = partial(here, self._potential_name, judge[1])
        n_processes = available_cores() if self.preset.n_workers is None else self.preset.n_workers
        rewards = here(self.potential, judge[0], self.pool)
        processes = {"n_processes": n_processes, "make_rewards": elsewhere}
        with rewards[0], rewards[1]:
            return self._train_all(runs, rewards, validation, self.policies, what, **processes)

    def policy(self, name: str) -> Policy:
        """Make the policy that the trainings of this name begin with."""
        variant, fields = self.preset.variants[name], self.preset.fields
        levels = (variant.noise, variant.ref_noise or variant.noise)
        noise, ref_noise = (
            {
                field: SquareRootNoise(self.preset.noise[level][field], variant.noise_offset)
                for field in fields
            }
            for level in levels
        )
        kept_ref = None if variant.ref_noise is None else ref_noise
        return _POLICIES[variant.policy](self.model, noise, kept_ref, self.annealing)

    def curves(self, names: Iterable[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return metrics of the validations, and on the test split beside (Figs. 3, 6).

        Args:
            names: of policies.

        Returns:
            A row per policy, seed and iteration of a validation, and a row per policy on the test
            split, means over seeds, to which the annealed pretrained model is added; with the
            columns energy_above_lowest (eV/atom above the composition's lowest polymorph),
            polymorph_match_rate, polymorph_rmse and invalid_rate.
        """
        names = list(names)
        table = self.history
        table = table[table["policy"].isin(names) & table["validation_reward"].notna()]
        table = table.rename(columns=VALIDATION_COLUMNS)
        table = table.assign(invalid_rate=1.0 - table["valid_rate"])
        validations = table[["policy", "seed", "iteration", *CURVES]].reset_index(drop=True)
        many, table = self.preset.reference_steps, self.evaluation
        best = (table["policy"] == PRETRAINED) & (table["n_steps"] == many)
        best &= table["schedule"] == "handcrafted"
        rows = {f"pretrained, annealed, {many} steps": table[best]}
        rows |= {name: table[table["policy"] == name] for name in names}
        means = {name: table[list(CURVES)].mean() for name, table in rows.items() if len(table)}
        return validations, pd.DataFrame(means).T.rename_axis("policy").reset_index()

    # --- Evaluation ---

    def evaluate_pretrained(self) -> pd.DataFrame:
        """Evaluate the pretrained model on the test split; return the new rows of ``evaluation``.

        With few and many steps, without annealing and with the best handcrafted one; with few also
        with the rule, if its constants were sought (``sweep_rule``).
        """
        few, many = self.preset.n_steps, self.preset.reference_steps
        make = partial(make_job, policy=PRETRAINED)
        best = self.best_handcrafted(many)
        jobs = []
        for k in (few, many):
            for seed in self.preset.seeds_for(k):
                jobs.append(make(k, seed, "none", NoAnnealing()))
                jobs.append(make(k, seed, "handcrafted", best, tuned_at=many))
        if few in self.rule_sweeps:
            rule = self.best_rule(few)
            jobs += [make(few, seed, "rule", rule, tuned_at=few) for seed in self.preset.seeds]
        return self._run("the pretrained model", jobs)

    def evaluate_annealing(self) -> pd.DataFrame:
        """Evaluate the pretrained model with the learned annealing that policies keep, if any."""
        if self._schedule != "learned":
            return pd.DataFrame()
        jobs = [
            make_job(k, seed, "learned", self._kept_annealing(), policy=PRETRAINED)
            for k in (self.preset.n_steps, self.preset.reference_steps)
            for seed in self.preset.seeds_for(k)
        ]
        return self._run("the learned annealing", jobs)

    def evaluate_policies(self, names: Iterable[str] | None = None) -> pd.DataFrame:
        """Evaluate trained policies on the test split; return the new rows of ``evaluation``.

        Those of the main comparison for all pairs of training and base seeds, and before training.

        Args:
            names: None: those of the main comparison.

        Raises:
            ValueError: one was not trained yet.
        """
        names = self.preset.policies if names is None else names
        few, kept = self.preset.n_steps, (self._schedule, self.annealing)
        jobs = []
        for name in names:
            trained, main = self.preset._seeds_of(name), name in self.preset.policies
            make = partial(make_job, few)
            for training_seed, seed in seed_pairs(trained, self.preset.seeds, main):
                dynamics = self._deployed(name, training_seed)
                labels: dict[str, Any] = {"policy": name, "training_seed": training_seed}
                jobs.append(make(seed, *kept, dynamics=dynamics, **labels))
            start = self.policy(name).deploy()
            for seed in self.preset.seeds if main else ():
                jobs.append(make(seed, *kept, dynamics=start, policy=untrained(name)))
        return self._run("policies", jobs)

    def _deployed(self, name: str, seed: int) -> Dynamics:
        """What generates with a policy, or with what it was before training; see ``_start``."""
        if name in (PRETRAINED, ANNEALED):
            annealing = NoAnnealing() if name == PRETRAINED else self._kept_annealing()
            return Dynamics(self.model, annealing)
        if (name, seed) not in self.policies:
            raise ValueError(
                f"{name!r} of seed {seed} is not trained yet; call train_policies or study_noise "
                f"(there are {sorted(self.policies)})"
            )
        return self.policies[name, seed].deploy()

    # --- What it says ---

    def _shown(self) -> dict[str, Callable[[], pd.DataFrame]]:
        return {
            "metrics": lambda: self._means(self.evaluation, "policy", "schedule", "n_steps"),
            "polymorphs": self._polymorphs,
            "findings": self._findings,
            "gain": self._gain_in_words,
        }

    def _polymorphs(self) -> pd.DataFrame:
        """Match rates, means over seeds, by whether the reference is the lowest polymorph.

        A model that seeks low energies may generate a composition's lowest polymorph where the
        reference is another one. Then the match rate with other polymorphs falls.
        """
        table = self.structures
        lowest = table.groupby("formula")["reference_energy"].transform("min")
        is_lowest = table["reference_energy"] <= lowest + POLYMORPH_TOLERANCE
        matched = table["rmsd"].notna().astype(float)
        columns = {
            "lowest polymorph": matched.where(is_lowest),
            "other polymorphs": matched.mask(is_lowest),
            "any polymorph": table["polymorph_rmsd"].notna().astype(float),
        }
        keys = {"policy": "policy", "schedule": "annealing", "n_steps": "steps"}
        groups = table[list(keys)].rename(columns=keys).assign(**columns)
        return groups.groupby(list(keys.values()), sort=False).mean().round(4)

    def _findings(self) -> pd.DataFrame:
        """What the diagnostics say of each run, worst first."""
        return pd.DataFrame(
            {"policy": name, "seed": seed, **vars(found)}
            for (name, seed), history in self._histories.items()
            for found in judge(history, self.preset.config(name, seed))
        )

    # --- What has changed ---

    @property
    def _start(self) -> str:
        """What the policies were before training: "pretrained", or "pretrained, annealed"."""
        return ANNEALED if self._schedule == "learned" else PRETRAINED

    def energies(self) -> dict[str, np.ndarray]:
        """Return energies above the reference of the first seed.

        By policy, in eV/atom, shape (structures,); nan where missing.
        """
        table, seed = self.structures, self.preset.seeds[0]
        few = table[(table["n_steps"] == self.preset.n_steps) & (table["seed"] == seed)]
        few = few[few["training_seed"].isin((seed, np.nan))]
        annealed = (few["policy"] == PRETRAINED) & (few["schedule"] == "learned")
        few = few[(few["policy"] != PRETRAINED) | (few["schedule"] == "none") | annealed]
        few = few.assign(policy=few["policy"].mask(annealed, ANNEALED))
        names = dict.fromkeys((PRETRAINED, self._start, *self.preset.policies))
        return {
            name: few.loc[few["policy"] == name, "energy_above_reference"].to_numpy()
            for name in names
        }

    def _examples(self, name: str) -> np.ndarray:
        """Numbers of three test structures: of the largest, the median and the smallest gain."""
        energies = self.energies()
        gain = energies[self._start] - energies[name]
        small = self.test.batch.n_atoms.numpy() <= 10
        rows = np.flatnonzero(np.isfinite(gain) & small)
        if len(rows) < 3:
            raise ValueError(
                f"{len(rows)} test structures have an energy before and after; three are needed"
            )
        order = rows[np.argsort(-gain[rows], kind="stable")]
        return order[[0, len(order) // 2, -1]]

    def before_and_after(self, name: str) -> tuple[dict[str, CrystalBatch], pd.DataFrame]:
        """Generate three examples before and after training, from the same noise.

        Args:
            name: of a policy that was evaluated; of its first seed.

        Returns:
            Title -> structure (before, after and reference of each), and a row per atom: how far
            it moved, and the distance to the nearest atom, in Å.

        Raises:
            ValueError: fewer than three structures have an energy before and after.
        """
        seed, rows = self.preset.seeds[0], torch.from_numpy(self._examples(name))
        data = self.test.select(rows)
        # Drawn for all of the split, so that it is that of the evaluation.
        x_0 = self._base_sample(self.test.batch, seed)[rows]
        generated = {}
        for when, policy in (("before", self._start), ("after", name)):
            dynamics = self._deployed(policy, seed)
            new = self.generate(data.batch, self.preset.n_steps, dynamics, seed, x_0=x_0)
            generated[when] = new.to("cpu")
        reference = self._energies_of_references(data).energy_per_atom
        above = {
            when: self.potential(batch).energy_per_atom - reference
            for when, batch in generated.items()
        }
        panels: dict[str, CrystalBatch] = {}
        for i, formula in enumerate(data.batch.reduced_formulas()):
            for when, batch in generated.items():
                panels[f"{i + 1}. {formula} {when}: {above[when][i]:+.2f} eV/atom"] = batch[i]
            panels[f"{i + 1}. {formula}: reference"] = data.batch[i]
        return panels, atom_changes(generated["before"], generated["after"], data.batch)

    def diversity(self) -> pd.DataFrame:
        """Count how many structures of a composition differ, before and after training.

        Returns:
            Columns policy, formula, n_generated, n_valid, n_distinct (of the valid ones, by
            matching) and energy_std (eV/atom, of the composition's structures).
        """
        seed = self.preset.seeds[0]
        n_compositions, size = self.preset.diversity
        first = [rows[0] for rows in self.test.references().values()]
        chosen = np.random.default_rng(0).permutation(first)[:n_compositions]
        groups = self.test.batch[np.sort(chosen)].repeat(size)
        tables = []
        with self._timed("diversity"):
            for name in (self._start, *self.preset.policies):
                dynamics = self._deployed(name, seed)
                generated = self.generate(groups, self.preset.n_steps, dynamics, seed).to("cpu")
                energy = self.potential(generated).energy_per_atom.reshape(-1, size)
                table = count_distinct(generated, size, self.pool)
                deviation = [
                    np.std(e[np.isfinite(e)]) if np.isfinite(e).any() else np.nan for e in energy
                ]
                tables.append(table.assign(energy_std=deviation, policy=name))
        self._diversity = pd.concat(tables, ignore_index=True)
        return self._diversity

    # --- Results ---

    def _claims(self) -> list[Claim]:
        learned = self._schedule == "learned"
        claims = energy_claims(self._evidence(), self.preset, learned, bool(self.rule_sweeps))
        return claims + self._gain_claims()

    def _remark(self) -> str:
        size = int(self.evaluation["n_structures"].max())
        text = f"All energies are {self.potential.name}'s, on {size} test structures."
        if self.judge is None:
            return f"{text} No judge was asked, which needs the extra `judge` (SevenNet)."
        return f"{text} The judge is {self.judge.name}."

    def _save_learned(self) -> list[Path]:
        paths = []
        for (name, seed), policy in self.policies.items():
            path = self.out_dir / f"{file_name(name)}_seed_{seed}.safetensors"
            policy.save(path)
            paths.append(path)
        if isinstance(self.annealing, LearnedAnnealing):
            path = self.out_dir / "annealing.safetensors"
            steps = list(self.preset.config(ANNEALING, 0).step_choices)
            metadata = {"checkpoint": self.checkpoint, "dataset": self.dataset}
            save_annealing(self.annealing, path, {**metadata, "train_steps": steps})
            paths.append(path)
        return paths

    def _tables(self) -> dict[str, pd.DataFrame]:
        return {**super()._tables(), "diversity": self._diversity, "gain": self._gain}

    def _results(self) -> dict[str, Any]:
        best: dict[str, dict[int, float]] = defaultdict(dict)
        iterations: dict[str, dict[int, int]] = defaultdict(dict)
        for (name, seed), table in self._histories.items():
            best[name][seed] = float(table["validation_reward"].max())
        for (name, seed), iteration in self.best_iteration.items():
            iterations[name][seed] = iteration
        counts = ["policy", "n_valid", "n_distinct"]
        found = self._diversity.reindex(columns=counts).groupby("policy").mean()
        return {
            **super()._results(),
            "training": {
                "iterations": self.preset.iterations,
                "seconds": self.seconds.get("training"),
                "best_iteration": iterations,
                "best_validation_reward": best,
            },
            "diversity": {"group_size": self.preset.diversity[1], "means": found.to_dict("index")},
        }


def _find_annealing(annealing: tuple[float, float] | str) -> tuple[Annealing | None, str]:
    """The annealing of a preset, None if it is to be learned, and what tables call it."""
    if annealing == "none":
        return NoAnnealing(), "none"
    if annealing == "learn":
        return None, "learned"
    if isinstance(annealing, str):
        return load_annealing(annealing), "learned"
    return LinearAnnealing(*annealing), "handcrafted"
