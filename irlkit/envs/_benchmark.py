"""Algorithms compared at equal evaluations."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from irlkit.crystals import CrystalBatch
from irlkit.envs._site_filling import SiteFilling, SiteFillingPolicy
from irlkit.envs._symmetry import canonical_keys
from irlkit.envs.evaluation import Evaluator, PropertyReward
from irlkit.envs.skeletons import Elements, Skeletons, _symbols_of
from irlkit.evaluate.evidence import Estimate, _mean_of_runs
from irlkit.rewards import Reward, RewardResult
from irlkit.rl import GRPOTrainer, TrainerConfig, generate
from irlkit.rl._until import train_until
from irlkit.utils.checks import check_finite, checked, is_number
from irlkit.utils.progress import progress_bar

_TIANSHOU = ("PPO", "DQN", "Rainbow", "SAC")
LIBRARIES = dict.fromkeys(_TIANSHOU, "tianshou") | dict.fromkeys(
    ("PPO (sb3)", "DQN (sb3)"), "stable_baselines3"
)
"""Algorithm of another library -> what it is imported from."""
GRPO: dict[str, Any] = {
    # Small groups make many iterations of a budget.
    "group_size": 4,
    # In units of the reward, as the entropy's weight is: standard scores make as much of the small
    # differences in a group that has learned, and then its fillings are soon all the same.
    "advantages": "leave_one_out",
    # The entropy's weight, unless it is given, over the range that rewards can have.
    "entropy_share": 0.002,
    # What the entropy spreads is drawn together by a temperature that falls to this.
    "noise_decay": 0.2,
    # Without it the best that a run has seen is often forgotten; from the start it ends the search.
    "imitation_weight": 20.0,
    "imitation_start": 0.3,
    "n_ppo_epochs": 4,
    # Five times as many gradient steps per filling as PPO makes here.
    "minibatch_updates": 4,
    "learning_rate": 2e-3,
    # At the end of the budget.
    "final_learning_rate": 2e-4,
    "clip_eps": 0.2,
}
"""Settings of a trainer that are not given."""


def settings_of(algorithm: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `benchmark` sets of an algorithm: the given settings over its own defaults.

    Raises:
        ValueError: GRPO's settings hold what the skeletons say.
    """
    if algorithm == "random":
        return {}
    if algorithm == "GRPO":
        if fixed := sorted({"n_steps", "shared_x_0"} & set(given)):
            raise ValueError(f"settings of GRPO must not hold {fixed}: the skeletons say them")
        chosen = {**GRPO, **given}
        if "entropy_weight" in given:
            del chosen["entropy_share"]
        other = chosen["advantages"] != GRPO["advantages"] or chosen.get("replay")
        if other and "imitation_weight" not in given:
            chosen["imitation_weight"] = 0.0
        if "final_learning_rate" not in given and is_number(chosen["learning_rate"]):
            share = GRPO["final_learning_rate"] / GRPO["learning_rate"]
            chosen["final_learning_rate"] = share * chosen["learning_rate"]
        return chosen
    from irlkit.envs._baselines import Settings

    return asdict(Settings(**given))


@dataclass(frozen=True)
class Comparison:
    """What `benchmark` has found.

    Attributes:
        episodes: one row per evaluated filling, in order: algorithm, seed, evaluation (from 1),
            reward, value, cached, failed, formula, skeleton, and key (of the filling up to
            symmetry).
        unseen: mean reward of the trained policies on other skeletons: algorithm, seed, skeleton,
            reward.
        judge: property, backend and settings.
    """

    episodes: pd.DataFrame
    unseen: pd.DataFrame
    judge: str

    def runs(self) -> pd.DataFrame:
        """Return a row per algorithm and seed.

        Columns: first and last (mean rewards of the first and last tenth), auc (mean over all
        evaluations), distinct (fillings), failed (share), best, and, where there are others to
        try, unseen (mean reward).
        """
        rows = []
        for (name, seed), run in self.episodes.groupby(["algorithm", "seed"], sort=False):
            tenth = max(len(run) // 10, 1)
            rewards = run["reward"].to_numpy()
            rows.append(
                {
                    "algorithm": name,
                    "seed": seed,
                    "first": rewards[:tenth].mean(),
                    "last": rewards[-tenth:].mean(),
                    "auc": rewards.mean(),
                    "distinct": run["key"].nunique(),
                    "failed": run["failed"].mean(),
                    "best": rewards.max(),
                }
            )
        table = pd.DataFrame(rows)
        if len(self.unseen):
            of_run = self.unseen.groupby(["algorithm", "seed"])["reward"].mean()
            table = table.join(of_run.rename("unseen"), on=["algorithm", "seed"])
        return table

    def summary(self) -> pd.DataFrame:
        """Return a row per algorithm: means of `runs` over seeds, the best of all.

        `low` and `high` are the 95 % interval of last (Student's t over seeds); nan for one seed.
        """
        rows = []
        for name, table in self.runs().groupby("algorithm", sort=False):
            many = len(table) > 1
            found = Estimate.of(_mean_of_runs(table["last"].to_numpy()))
            means = table.drop(columns=["algorithm", "seed"]).mean().to_dict()
            row = {"algorithm": name, "seeds": len(table), **means, "best": table["best"].max()}
            ends = {"low": found.low, "high": found.high} if many else {}
            rows.append(row | {"low": np.nan, "high": np.nan} | ends)
        return pd.DataFrame(rows)

    def best(self, n: int = 10) -> pd.DataFrame:
        """Return the fillings of the highest rewards, each once."""
        ordered = self.episodes.sort_values("reward", ascending=False, kind="stable")
        columns = ["formula", "skeleton", "value", "reward", "algorithm"]
        return ordered.drop_duplicates("key")[columns].head(n).reset_index(drop=True)


class _Recording(Reward):
    """A reward that keeps what it was asked, up to a budget."""

    def __init__(self, reward: PropertyReward, skeletons: Skeletons, budget: int) -> None:
        self.reward, self.budget = reward, budget
        self._names = dict(
            zip((k for k, _ in canonical_keys(skeletons.crystals)), skeletons.names, strict=True)
        )
        self.rows: list[dict[str, Any]] = []

    def __call__(self, batch: CrystalBatch) -> RewardResult:
        result = self.reward(batch)
        keys, formulas = canonical_keys(batch), batch.reduced_formulas()
        kept = {"value", "cached", "failed", *self.reward.others}
        for i in range(min(len(batch), self.budget - len(self.rows))):
            info = {name: values[i] for name, values in result.info.items() if name in kept}
            self.rows.append(
                {
                    "evaluation": len(self.rows) + 1,
                    "reward": float(result.values[i]),
                    **info,
                    "formula": formulas[i],
                    "skeleton": self._names[keys[i][0]],
                    "key": "|".join(keys[i]),
                }
            )
        return result

    def energies(self) -> str:
        return self.reward.energies()


@checked
def benchmark(
    evaluator: Evaluator,
    target: float,
    *,
    algorithms: Sequence[str] = ("GRPO", *_TIANSHOU, "random"),
    seeds: Sequence[int] = (0,),
    evaluations: int = 12_000,
    also: Sequence[tuple[PropertyReward, float]] = (),
    skeletons: Any = "train",
    unseen: Any = "test",
    elements: Elements = "small",
    mode: str = "completion",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    n_unseen: int = 64,
    progress: bool = True,
) -> Comparison:
    """Train algorithms on the same episodes, each with a budget of evaluated fillings.

    GRPO is irlkit's trainer on `SiteFilling`, its groups share skeleton and order; the others are
    tianshou's and stable-baselines3's, all with one kind of network and at first one learning rate,
    which of GRPO alone decays. "random" fills sites at random: the control.

    Args:
        evaluator: tells the property; what one algorithm has evaluated, others find in its cache.
            Values of a potential depend on the batch by rounding, so trainings with a cache that
            was filled otherwise can differ.
        target: of the property.
        algorithms: "GRPO"; "PPO", "DQN", "Rainbow", "SAC" (tianshou); "PPO (sb3)", "DQN (sb3)"
            (stable-baselines3); "random".
        seeds: of the runs.
        evaluations: fillings judged per run, cached or not.
        also: rewards of other properties and their weights; see `PropertyReward`.
        skeletons: to train on.
        unseen: to try the trained policies on; None: none.
        elements: "small", "medium", "large", or symbols.
        mode: "completion" or "substitution".
        settings: algorithm -> settings: of `TrainerConfig`, or `entropy_share` (the entropy's
            weight over the range of rewards), for GRPO, which imitates by itself only with its
            own kind of advantages and without `replay`, and `learning_rate`, `alpha` (of SAC),
            `n_envs`, `batch_size`, `exploration` for the others.
        n_unseen: fillings of each unseen skeleton.
        progress: show a bar of runs.

    Raises:
        KeyboardInterrupt: interrupted; what was evaluated is in the cache.
        ValueError: an unknown algorithm, no seeds, or fewer than ten evaluations.
        ImportError: the library of an algorithm is missing.
    """
    _check(algorithms, seeds, evaluations, settings or {})
    process = SiteFilling(skeletons, elements, mode)
    others = None if unseen is None else SiteFilling(unseen, elements, mode)
    tables, scores = [], []
    runs = [(name, seed) for name in algorithms for seed in seeds]
    with progress_bar(total=len(runs), disable=not progress, unit="run") as bar:
        for name, seed in runs:
            bar.set_postfix_str(f"{name}, seed {seed}")
            reward = PropertyReward(evaluator, target, also)
            record = _Recording(reward, process.skeletons, evaluations)
            chosen = settings_of(name, (settings or {}).get(name, {}))
            network = _RUNS.get(name, _baseline)(name, process, record, seed, chosen)
            table = pd.DataFrame(record.rows)
            table.insert(0, "algorithm", name)
            table.insert(1, "seed", seed)
            tables.append(table)
            if others is not None:
                rows = _unseen(network, others, reward, n_unseen)
                scores += [{"algorithm": name, "seed": seed, **row} for row in rows]
            bar.update()
    return Comparison(pd.concat(tables, ignore_index=True), pd.DataFrame(scores), reward.energies())


def _check(
    algorithms: Sequence[str], seeds: Sequence[int], evaluations: int, settings: Mapping[str, Any]
) -> None:
    known = ("GRPO", *LIBRARIES, "random")
    for name, given in (("algorithms", algorithms), ("settings", settings)):
        unknown = sorted(set(given) - set(known))
        if unknown or (name == "algorithms" and not given):
            raise ValueError(
                f"{name} must be among {', '.join(known[:-1])} and random, got {unknown or 'none'}"
            )
    if not seeds or len(set(seeds)) < len(seeds) or evaluations < 10:
        raise ValueError(
            "seeds must name at least one, each once, and evaluations be at least 10, got "
            f"{list(seeds)} and {evaluations}"
        )
    for library in sorted({LIBRARIES[name] for name in algorithms if name in LIBRARIES}):
        try:
            importlib.import_module(library)
        except ImportError as error:
            raise ImportError(
                f"the algorithms of {library} need it; run: pip install 'irlkit[gym]'"
            ) from error


def _grpo(
    name: str, process: SiteFilling, record: _Recording, seed: int, settings: dict[str, Any]
) -> nn.Module:
    torch.manual_seed(seed)
    policy = SiteFillingPolicy(process)
    settings = dict(settings)
    if (share := settings.pop("entropy_share", None)) is not None:
        check_finite("entropy_share", share, least=0)
        settings["entropy_weight"] = share * (record.reward.highest - record.reward.lowest)
    chosen = {"n_groups": len(process.skeletons), "iterations": record.budget, **settings}
    chosen |= {"n_steps": process.n_steps, "shared_x_0": True}
    config = TrainerConfig.from_settings(chosen, seed)
    iterations = -(-record.budget // (config.n_groups * config.group_size))
    if "iterations" not in settings:  # Over which the learning rate decays.
        config = replace(config, iterations=iterations)
    requests = process.skeletons.requests(record.reward.target)
    train_until(GRPOTrainer(policy, record, requests, config), iterations)
    return _AtTemperature(policy.network, policy.noise_scale["element"])


def _random(
    name: str, process: SiteFilling, record: _Recording, seed: int, settings: dict[str, Any]
) -> nn.Module:
    policy = SiteFillingPolicy(process, _Uniform(len(process.numbers)))
    draws = torch.Generator().manual_seed(seed)
    requests = process.skeletons.requests()
    while len(record.rows) < record.budget:
        few = requests[torch.randint(len(requests), (256,), generator=draws)]
        made = generate(policy, few, process.n_steps, generator=draws)
        record(made[: record.budget - len(record.rows)])
    return policy.network


def _baseline(
    name: str, process: SiteFilling, record: _Recording, seed: int, settings: dict[str, Any]
) -> nn.Module:
    from irlkit.envs._baselines import Settings, Spent
    from irlkit.envs._crystal_gym import CrystalGym

    class Judging(PropertyReward):
        def __call__(self, batch: CrystalBatch) -> RewardResult:
            result = record(batch)
            if len(record.rows) >= record.budget:
                raise Spent
            return result

    reward = record.reward
    symbols = _symbols_of(process.numbers.numpy())

    def make() -> Any:
        options: dict[str, Any] = {"elements": symbols, "mode": process.mode}
        env = CrystalGym(reward.evaluator, reward.target, process.skeletons, **options)
        env._sites.reward = Judging(reward.evaluator, reward.target)
        return env

    def progress() -> float:
        return len(record.rows) / record.budget

    n, chosen = len(process.numbers), Settings(**settings)
    if LIBRARIES[name] == "stable_baselines3":
        from irlkit.envs import _sb3

        return _sb3.train(name, make, process.skeletons, n, progress, seed, chosen)
    from irlkit.envs import _tianshou

    values = reward.lowest, reward.highest
    return _tianshou.train(name, make, process.skeletons, n, values, progress, seed, chosen)


_RUNS = {"GRPO": _grpo, "random": _random}


class _AtTemperature(nn.Module):
    """A network whose logits are those of the policy at a temperature."""

    def __init__(self, network: Any, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def look_at(self, skeletons: Skeletons) -> None:
        self.network.look_at(skeletons)

    def forward(self, *inputs: Any) -> Any:
        return self.network(*inputs) / self.temperature


class _Uniform(nn.Module):
    def __init__(self, n_elements: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(n_elements))

    def look_at(self, skeletons: Skeletons) -> None:
        pass

    def forward(self, skeleton: Any, species: Any, focus: Any, target: Any) -> Any:
        return self.logits.expand(len(skeleton), -1)


def _unseen(
    network: Any, process: SiteFilling, reward: PropertyReward, n: int
) -> list[dict[str, Any]]:
    """Mean rewards of a trained network on other skeletons."""
    network.look_at(process.skeletons)
    policy = SiteFillingPolicy(process, network)
    draws = torch.Generator().manual_seed(0)
    requests = process.skeletons.requests(reward.target).repeat(n)
    values = reward(generate(policy, requests, process.n_steps, generator=draws)).values
    means = values.reshape(-1, n).mean(1).tolist()
    names = process.skeletons.names
    return [{"skeleton": s, "reward": m} for s, m in zip(names, means, strict=True)]
