"""Statistics of an iteration and verdicts on a run."""

import numpy as np
import pandas as pd
import pytest
import torch

from irlkit.lab.diagnostics import Finding, judge
from irlkit.rl._scoring import group_statistics
from tests.test_grpo import make_trainer
from tests.test_policies import kinds
from tests.toys import crystals, trainer_config


def history(n=20, **columns):
    """A healthy run, apart from the columns given (a number, or a pair to go from and to)."""
    healthy = {
        "reward": (0.1, 0.4),
        "flat_groups": 0.0,
        "clip_fraction": 0.1,
        "approx_kl": 0.02,
        "n_updates": 4,
        "valid": 0.95,
        "distinct": 0.8,
        "grad_norm": 0.3,
        "non_finite": 0,
        "pos_drift_ratio": 0.2,
    }
    table = {"iteration": np.arange(1, n + 1)}
    for name, value in {**healthy, **columns}.items():
        first, last = value if isinstance(value, tuple) else (value, value)
        table[name] = np.linspace(first, last, n)
    start = pd.DataFrame({"iteration": [0], "validation_reward": [0.1]})
    return pd.concat([start, pd.DataFrame(table)], ignore_index=True)


def test_nothing_is_wrong_with_a_healthy_run():
    (finding,) = judge(history())
    assert finding.severity == "good"
    assert "reward rose from 0.12" in finding.finding


@pytest.mark.parametrize(
    ("columns", "severity", "words", "advice"),
    [
        ({"flat_groups": 0.9}, "problem", "90% of the groups all rewards are equal", "noise"),
        ({"flat_groups": 0.5}, "warning", "50% of the groups", "group_size"),
        ({"clip_fraction": 0.9}, "problem", "90% of the probability ratios", "learning_rate"),
        ({"approx_kl": 5.0}, "problem", "KL divergence of 5", "max_kl"),
        ({"grad_norm": 0.0}, "problem", "gradient is zero", "spread"),
        ({"valid": (0.95, 0.6)}, "problem", "reward rises while the share of valid", "Penalise"),
        ({"valid": 0.3, "reward": 0.1}, "warning", "Only 30% of the structures", "noise"),
        ({"distinct": (0.8, 0.1)}, "problem", "15% are different", "kl_weight"),
        ({"reward": (0.4, 0.1)}, "problem", "reward fell from", "restore_best"),
        ({"pos_drift_ratio": 3.0, "reward": 0.1}, "warning", "velocity of pos", "kl_weight"),
        ({"reward": 4.59}, "warning", "not risen beyond its noise: from 4.59 to 4.59", "longer"),
        ({"non_finite": 2}, "warning", "2 structures per iteration", "out_dir"),
    ],
)
def test_what_is_wrong_is_said(columns, severity, words, advice):
    findings = judge(history(60, **columns))
    found = [finding for finding in findings if words in finding.finding]
    assert [finding.severity for finding in found] == [severity], findings
    assert advice in found[0].advice
    assert str(found[0]).startswith(f"{severity}: ")
    assert not any(finding.severity == "good" for finding in findings)


def test_falling_validity_alone_is_not_exploitation():
    findings = judge(history(60, valid=(0.95, 0.8), reward=0.1))
    assert not any("exploits" in finding.finding for finding in findings)


def test_verdict_on_validation_and_early_stops():
    table = history(40)
    table["validation_reward"] = np.concatenate(
        [np.linspace(0.1, 0.4, 21), np.linspace(0.4, 0.12, 20)]
    )
    assert any("validation has fallen from 0.4 to 0.12" in str(f) for f in judge(table))
    table = history(40, n_updates=1)
    config = trainer_config(max_kl=0.05, n_ppo_epochs=8)
    assert any("after 1.0 of 8 updates" in str(finding) for finding in judge(table, config))
    assert all("updates" not in str(finding) for finding in judge(table))


def test_worst_first_and_short_runs():
    findings = judge(history(60, clip_fraction=0.6, flat_groups=0.9))
    assert [finding.severity for finding in findings] == ["problem", "warning"]
    assert judge(history(2))[0].finding == "2 iterations are too few to tell."
    for n in (3, 5):  # The last three are among the first three.
        assert judge(history(n))[0].finding == f"{n} iterations are too few to tell."
    assert judge(history(5, clip_fraction=0.6))[0].severity == "warning"
    assert judge(pd.DataFrame()) == [Finding("good", "0 iterations are too few to tell.")]


def test_statistics_of_groups():
    start = crystals((2, 2, 1, 1))
    batch = start[[0, 0, 1, 0, 2, 2, 2, 2]]
    flat = batch.cell.clone()
    flat[7] = 0.0
    batch = batch.replace(cell=flat)
    row = group_statistics(batch, np.array([0.0, 1, 2, 3, 5, 5, 5, 5]), 4)
    assert row["flat_groups"] == 0.5
    assert row["group_std"] == pytest.approx(np.std([0, 1, 2, 3]) / 2)
    assert row["valid"] == 7 / 8
    assert row["distinct"] == pytest.approx((2 / 4 + 1 / 3) / 2)
    broken = batch.replace(cell=torch.full_like(flat, float("nan")))
    row = group_statistics(broken, np.zeros(8), 4)
    assert row["valid"] == 0 and np.isnan(row["distinct"])


@kinds
def test_a_trainer_diagnoses_itself(kind):
    trainer = make_trainer(kind=kind)
    table = trainer.run(4, progress=False)
    for column in ("valid", "distinct", "flat_groups", "non_finite", "approx_kl", "grad_norm"):
        assert table[column].iloc[1:].notna().all(), column
    ratios = table["cell_drift_ratio"].iloc[1:]
    if kind == "annealing":
        assert ratios.iloc[0] < 0.05 < 1  # which starts at s = 0
    else:
        # The toy's network starts at 1.3 times the frozen one.
        assert ratios.iloc[0] == pytest.approx(0.3, abs=0.05)
    assert all(isinstance(finding, Finding) for finding in judge(trainer.history, trainer.config))


def test_a_constant_reward_is_diagnosed():
    trainer = make_trainer(lambda structures: torch.zeros(len(structures)), validation=None)
    trainer.run(4, progress=False)
    findings = judge(trainer.history, trainer.config)
    assert findings[0].severity == "problem"
    assert any("all rewards are equal" in finding.finding for finding in findings)


def test_a_runaway_is_diagnosed():
    trainer = make_trainer(config={"learning_rate": 0.5, "n_ppo_epochs": 8}, validation=None)
    trainer.run(5, progress=False)
    assert any("max_kl" in finding.advice for finding in judge(trainer.history, trainer.config))
