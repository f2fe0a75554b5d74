"""Runs that are killed at random moments end with the bits of runs that are not."""

import sys

import pytest

from tests.kills import KINDS, try_kills


@pytest.mark.skipif(sys.platform != "linux", reason="needs cheap processes to kill")
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_at_random_moments_loses_nothing(kind, tmp_path):
    n_trials = 2 if kind in ("pretraining", "annealing", "energy") else 1
    count = try_kills(kind, n_trials, tmp_path)
    assert count.trials == n_trials <= count.by_clock + count.in_writes
