"""What goes on in a training run, and in plain words what is wrong with it.

The numbers are columns of a trainer's history: those of the loss (`irlkit.rl.grpo`), and those of
the generated structures. `judge` reads them.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """What is wrong with a run and what to change, worst first.

    The last iterations (a fifth of all, 3 to 10) are judged by themselves and against as many of
    the first.

    Args:
        history: of a trainer.
        config: its settings; they make some advice more precise.

    Returns:
        One finding or more; a single one of severity "good" if nothing is wrong.
    """
    rows = history[history["iteration"] > 0] if "iteration" in history else history
    if len(rows) < 3:
        return [Finding("good", f"{len(rows)} iterations are too few to tell.")]
    run = _Run(rows, history, config)
    found = [finding for rule in _RULES if (finding := rule(run)) is not None]
    if not found:
        reward, before = run.late("reward"), run.early("reward")
        found = [
            Finding("good", f"Nothing is wrong; the reward went from {before:.3g} to {reward:.3g}.")
        ]
    return sorted(found, key=lambda entry: ("problem", "warning", "good").index(entry.severity))


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
        return self._mean(column, self.rows.tail(self.window))

    def early(self, column: str) -> float:
        """Mean of the first iterations."""
        return self._mean(column, self.rows.head(self.window))

    def _mean(self, column: str, rows: pd.DataFrame) -> float:
        return float(rows[column].mean()) if column in rows else float("nan")

    def rises(self, column: str, share: float = 0.25) -> bool:
        """Whether the mean went up by more than a share of its spread between iterations."""
        if column not in self.rows or len(self.rows) < 2 * self.window:
            return False
        return self.late(column) - self.early(column) > share * float(self.rows[column].std())

    def falls(self, column: str, share: float = 0.25) -> bool:
        """Whether it went down by more than that."""
        if column not in self.rows or len(self.rows) < 2 * self.window:
            return False
        return self.early(column) - self.late(column) > share * float(self.rows[column].std())


def _no_spread(run: _Run) -> Finding | None:
    flat = run.late("flat_groups")
    if not flat > 0.3:
        return None
    return Finding(
        "problem" if flat > 0.7 else "warning",
        f"In {flat:.0%} of the groups all rewards are equal, so that nothing is learned from them.",
        "Raise the exploration noise or group_size, or take a reward that tells bad structures "
        "from worse ones.",
    )


def _all_clipped(run: _Run) -> Finding | None:
    clipped = run.late("clip_fraction")
    if not clipped > 0.5:
        return None
    return Finding(
        "problem" if clipped > 0.8 else "warning",
        f"{clipped:.0%} of the probability ratios are clipped: most actions teach nothing after "
        "the first steps of an iteration.",
        "Lower learning_rate or n_ppo_epochs, raise clip_eps, or set max_kl.",
    )


def _runaway(run: _Run) -> Finding | None:
    kl = run.late("approx_kl")
    if not kl > 0.5:
        return None
    return Finding(
        "problem" if kl > 2 else "warning",
        f"An iteration moves the policy by a KL divergence of {kl:.2g} per action, far from the "
        "one that sampled: the ratios are no guide there.",
        "Set max_kl (0.05, for instance), or lower learning_rate or n_ppo_epochs.",
    )


def _early_stops(run: _Run) -> Finding | None:
    config = run.config
    if config is None or config.max_kl is None:
        return None
    planned, made = config.n_ppo_epochs * config.minibatch_updates, run.late("n_updates")
    if not (planned > 2 and made < 0.3 * planned):
        return None
    return Finding(
        "warning",
        f"max_kl = {config.max_kl:g} ends an iteration after {made:.1f} of {planned} updates.",
        "Lower learning_rate; the updates that are left out are paid for in none of the rollouts.",
    )


def _hacking(run: _Run) -> Finding | None:
    lost = run.early("valid") - run.late("valid")
    if not (lost > 0.05 and run.rises("reward")):
        return None
    return Finding(
        "problem",
        f"The reward rises while the share of valid structures falls from {run.early('valid'):.0%} "
        f"to {run.late('valid'):.0%}: the policy exploits the reward.",
        "Penalise invalid structures more, or raise kl_weight.",
    )


def _invalid(run: _Run) -> Finding | None:
    valid = run.late("valid")
    if not valid < 0.5:
        return None
    return Finding(
        "warning",
        f"Only {valid:.0%} of the structures are valid (volume, distances and shape of the cell).",
        "Lower the exploration noise, take more steps, or a weaker annealing.",
    )


def _collapse(run: _Run) -> Finding | None:
    before, after = run.early("distinct"), run.late("distinct")
    if not (after < 0.5 * before or after < 0.05):
        return None
    return Finding(
        "problem" if after < 0.25 * before else "warning",
        f"Of the structures of a group, {after:.0%} are different; at the beginning it was "
        f"{before:.0%}.",
        "Raise kl_weight, stop earlier (restore_best), or add a reward for diversity. Where a "
        "composition has one stable structure, this can be what is wanted.",
    )


def _gets_worse(run: _Run) -> Finding | None:
    if not run.falls("reward", 1.0):
        return None
    return Finding(
        "problem",
        f"The reward fell from {run.early('reward'):.3g} to {run.late('reward'):.3g}.",
        "Lower learning_rate, or raise n_groups and group_size, whose noise it may follow; "
        "restore_best returns to the best policy.",
    )


def _drifted(run: _Run) -> Finding | None:
    ratios = [name for name in run.rows.columns if name.endswith("_drift_ratio")]
    fields = [name.removesuffix("_drift_ratio") for name in ratios if run.late(name) > 1]
    if not fields or run.rises("reward"):
        return None
    field = max(fields, key=lambda name: run.late(f"{name}_drift_ratio"))
    ratio = run.late(f"{field}_drift_ratio")
    return Finding(
        "warning",
        f"The velocity of {field} has changed by {ratio:.1f} times the pretrained one, and the "
        "reward has not risen.",
        "Raise kl_weight or lower learning_rate.",
    )


def _overfits(run: _Run) -> Finding | None:
    if "validation_reward" not in run.history:
        return None
    validation = run.history["validation_reward"].dropna()
    if len(validation) < 4 or not run.rises("reward"):
        return None
    best, last = validation.max(), validation.iloc[-1]
    if not best - last > 0.5 * (best - validation.iloc[0]) + 1e-12 or best == validation.iloc[0]:
        return None
    return Finding(
        "warning",
        f"The reward of the validation has fallen from {best:.3g} to {last:.3g}, while that of "
        "the training rises.",
        "The best policy is kept (restore_best); train on more compositions, or raise kl_weight.",
    )


def _no_gradient(run: _Run) -> Finding | None:
    if not run.late("grad_norm") < 1e-9:
        return None
    return Finding(
        "problem",
        "The gradient is zero.",
        "Look at the spread of the rewards within groups, and at policy_weight.",
    )


def _non_finite(run: _Run) -> Finding | None:
    share = run.late("non_finite")
    if not share > 0:
        return None
    return Finding(
        "warning",
        f"{share:.3g} structures per iteration are not finite numbers.",
        "Lower the exploration noise or learning_rate; they are saved in out_dir.",
    )


_RULES: tuple[Callable[[_Run], Finding | None], ...] = (
    _no_spread,
    _no_gradient,
    _all_clipped,
    _runaway,
    _early_stops,
    _hacking,
    _invalid,
    _collapse,
    _gets_worse,
    _drifted,
    _overfits,
    _non_finite,
)
