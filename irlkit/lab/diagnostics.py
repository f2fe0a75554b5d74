"""What goes on in a training run, and in plain words what is wrong with it.

The numbers are columns of a trainer's history: those of the loss (`irlkit.rl.grpo`), and those of
the generated structures. `judge` reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from irlkit.rl.config import TrainerConfig
from irlkit.utils.checks import checked


@dataclass(frozen=True)
class Finding:
    """Something about a run.

    Attributes:
        severity: "problem" (it will not learn, or learns what is not wanted), "warning", or
            "good".
        finding: what is the case, with numbers.
        advice: what to change; empty if nothing.
    """

    severity: str
    finding: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.severity}: {self.finding}" + (f" {self.advice}" if self.advice else "")


@checked
def judge(history: pd.DataFrame, config: TrainerConfig | None = None) -> list[Finding]:
    """Judge a run: what is wrong and what to change, worst first.

    The last iterations (a fifth of all, 3 to 10) are judged by themselves and against as many of
    the first.

    Args:
        history: of a trainer.
        config: its settings; they make some advice more precise.

    Returns:
        One finding or more; a single one of severity "good" if nothing is wrong.
    """
    rows = history[history["iteration"] > 0] if "iteration" in history else history
    too_few = [Finding("good", f"{len(rows)} iterations are too few to tell.")]
    if len(rows) < 3:
        return too_few
    run = _Run(rows, history, config)
    found = [*_of_rewards(run), *_of_updates(run), *_of_structures(run)]
    if not found and len(rows) < 2 * run.window:
        return too_few
    if not found:
        reward, before = run.late("reward"), run.early("reward")
        change = f"from {before:.4g} to {reward:.4g}"
        if run.rises("reward"):
            return [Finding("good", f"Nothing is wrong; the reward rose {change}.")]
        advice = "Train for longer, or raise learning_rate or the exploration noise."
        return [Finding("warning", f"The reward has not risen beyond its noise: {change}.", advice)]
    return sorted(found, key=lambda entry: ("problem", "warning", "good").index(entry.severity))


_NONE = pd.Series(dtype=float)


class _Run:
    """A history and its early and late means."""

    def __init__(
        self, rows: pd.DataFrame, history: pd.DataFrame, config: TrainerConfig | None
    ) -> None:
        self.rows = rows
        self.history = history
        self.config = config
        self.window = int(np.clip(len(rows) // 5, 3, 10))

    def late(self, column: str) -> float:
        """Mean of the last iterations; nan without such a column."""
        return float(self.rows.get(column, _NONE).tail(self.window).mean())

    def early(self, column: str) -> float:
        """Mean of the first iterations."""
        return float(self.rows.get(column, _NONE).head(self.window).mean())

    def rises(self, column: str, share: float = 0.25, sign: int = 1) -> bool:
        """Whether the mean went up by more than a share of its spread between iterations.

        With a sign of -1: down.
        """
        if column not in self.rows or len(self.rows) < 2 * self.window:
            return False
        change = sign * (self.late(column) - self.early(column))
        return change > share * float(self.rows[column].std())


def _severity(value: float, problem: float) -> str:
    return "problem" if value > problem else "warning"


def _of_rewards(run: _Run) -> Iterator[Finding]:
    flat = run.late("flat_groups")
    if flat > 0.3:
        yield Finding(
            _severity(flat, 0.7),
            f"In {flat:.0%} of the groups all rewards are equal, so that nothing is learned from "
            "them.",
            "Raise the exploration noise or group_size, or take a reward that tells bad structures "
            "from worse ones.",
        )
    if run.rises("reward", 1.0, -1):
        yield Finding(
            "problem",
            f"The reward fell from {run.early('reward'):.3g} to {run.late('reward'):.3g}.",
            "Lower learning_rate, or raise n_groups and group_size, whose noise it may follow; "
            "restore_best returns to the best policy.",
        )
    validation = run.history.get("validation_reward", _NONE).dropna()
    if len(validation) >= 4 and run.rises("reward"):
        best, last, first = validation.max(), validation.iloc[-1], validation.iloc[0]
        if best != first and best - last > 0.5 * (best - first) + 1e-12:
            yield Finding(
                "warning",
                f"The reward of the validation has fallen from {best:.3g} to {last:.3g}, while "
                "that of the training rises.",
                "The best policy is kept (restore_best); train on more compositions, or raise "
                "kl_weight.",
            )


def _of_updates(run: _Run) -> Iterator[Finding]:
    if run.late("grad_norm") < 1e-9:
        yield Finding(
            "problem",
            "The gradient is zero.",
            "Look at the spread of the rewards within groups, and at policy_weight.",
        )
    clipped = run.late("clip_fraction")
    if clipped > 0.5:
        yield Finding(
            _severity(clipped, 0.8),
            f"{clipped:.0%} of the probability ratios are clipped: most actions teach nothing "
            "after the first steps of an iteration.",
            "Lower learning_rate or n_ppo_epochs, raise clip_eps, or set max_kl.",
        )
    kl = run.late("approx_kl")
    if kl > 0.5:
        yield Finding(
            _severity(kl, 2),
            f"An iteration moves the policy by a KL divergence of {kl:.2g} per action, far from "
            "the one that sampled: the ratios are no guide there.",
            "Set max_kl (0.05, for instance), or lower learning_rate or n_ppo_epochs.",
        )
    config = run.config
    if config is not None and config.max_kl is not None:
        planned, made = config.n_ppo_epochs * config.minibatch_updates, run.late("n_updates")
        if planned > 2 and made < 0.3 * planned:
            yield Finding(
                "warning",
                f"max_kl = {config.max_kl:g} ends an iteration after {made:.1f} of {planned} "
                "updates.",
                "Lower learning_rate; the updates that are left out are paid for in none of the "
                "rollouts.",
            )
    ratios = [name for name in run.rows.columns if name.endswith("_drift_ratio")]
    worst = max(ratios, key=run.late, default="")
    if worst and run.late(worst) > 1 and not run.rises("reward"):
        yield Finding(
            "warning",
            f"The velocity of {worst.removesuffix('_drift_ratio')} has changed by "
            f"{run.late(worst):.1f} times the pretrained one, and the reward has not risen.",
            "Raise kl_weight or lower learning_rate.",
        )


def _of_structures(run: _Run) -> Iterator[Finding]:
    before, valid = run.early("valid"), run.late("valid")
    if before - valid > 0.05 and run.rises("reward"):
        yield Finding(
            "problem",
            f"The reward rises while the share of valid structures falls from {before:.0%} to "
            f"{valid:.0%}: the policy exploits the reward.",
            "Penalise invalid structures more, or raise kl_weight.",
        )
    if valid < 0.5:
        yield Finding(
            "warning",
            f"Only {valid:.0%} of the structures are valid (volume, distances and shape of the "
            "cell).",
            "Lower the exploration noise, take more steps, or a weaker annealing.",
        )
    before, after = run.early("distinct"), run.late("distinct")
    if after < 0.5 * before or after < 0.05:
        yield Finding(
            "problem" if after < 0.25 * before else "warning",
            f"Of the structures of a group, {after:.0%} are different; at the beginning it was "
            f"{before:.0%}.",
            "Raise kl_weight, stop earlier (restore_best), or add a reward for diversity. Where a "
            "composition has one stable structure, this can be what is wanted.",
        )
    share = run.late("non_finite")
    if share > 0:
        yield Finding(
            "warning",
            f"{share:.3g} structures per iteration are not finite numbers.",
            "Lower the exploration noise or learning_rate; they are saved in out_dir.",
        )
