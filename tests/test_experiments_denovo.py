"""The experiment of notebook 07, tiny; and its claims with a policy that learned nothing."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import irlkit
from irlkit.evaluate.hull import Hull
from irlkit.lab.experiments import denovo
from irlkit.lab.experiments.denovo import DeNovoReinforcement, DeNovoSize
from irlkit.rewards import Reward, RewardResult
from irlkit.rl.policies.species import SpeciesPolicy
from tests.test_null_policy import check

TINY = DeNovoSize(
    8, 2, 1, 1, ("without diversity",), (0, 1),
    n_groups=1, group_size=4, n_steps=4, relax_steps=1, max_steps=2,
    temperatures=(0.5, 1.0),
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return irlkit.load_pretrained("denovo-mask")


class Interrupting(Reward):
    """Is interrupted in the second iteration."""

    calls = 0

    def __call__(self, batch):
        self.calls += 1
        if self.calls == 2:
            raise KeyboardInterrupt
        return RewardResult(batch.volume.double())


def make(model, folder, **changes):
    return DeNovoReinforcement(replace(TINY, **changes), model, folder, n_workers=0, progress=False)


def test_a_run_its_tables_figures_and_files(model, tmp_path):
    experiment = make(model, tmp_path, seeds=(0,))
    experiment.evaluate(denovo.START)
    tuned = experiment.tune_temperature()
    history = experiment.train(denovo.REINFORCED, "without diversity", denovo.OPEN, denovo.GAP)
    assert set(history["variant"]) == {"reinforced", "without diversity", "open hull", denovo.GAP}
    table = experiment.evaluate(
        denovo.RULE, denovo.REINFORCED, "without diversity", denovo.OPEN, denovo.GAP
    )
    assert len(table) == 6 and "mSUN" in table
    # The rule is the better of the two temperatures; 1 is the start's own.
    rule = experiment.policies[denovo.RULE, 0].model.species.temperature
    assert rule == tuned.loc[tuned["msun"][::-1].idxmax(), "temperature"]
    cheated = experiment.cheated(Hull.prototypes(completed=False, strict=False))
    by_open, by_ours, between = (cheated[column] for column in cheated)
    assert (by_open >= by_ours - 1e-9).all() and (between >= 0).all()
    assert experiment.draw_training().data and experiment.draw_pareto().data
    claims = experiment.claims()
    paths = experiment.write_results(claims, {}, {})
    assert all(path.exists() for path in paths)
    assert "start_seed_0.parquet" in {path.name for path in paths}
    assert all(re.fullmatch(r"[\w./-]+", str(path.relative_to(tmp_path))) for path in paths)
    assert "Pb" in experiment.elements()


def test_an_interrupted_training_goes_on_with_the_same_numbers(model, tmp_path):
    as_made = {"seeds": (0,)}
    whole = make(model, tmp_path / "whole", **as_made)
    whole.train(denovo.REINFORCED)
    first = make(model, tmp_path / "parts", **as_made, iterations=1)
    first.train(denovo.REINFORCED)
    second = make(model, tmp_path / "parts", **as_made)
    second.train(denovo.REINFORCED)
    ours, theirs = (e.policies[denovo.REINFORCED, 0].parameters() for e in (whole, second))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    # A cell that runs again adds nothing, and what is there is not passed off as less.
    history = second.history
    pd.testing.assert_frame_equal(second.train(denovo.REINFORCED), history)
    with pytest.raises(ValueError, match="must be at least 2, got 1: reinforced, seed 0"):
        make(model, tmp_path / "parts", **as_made, iterations=1).train(denovo.REINFORCED)


def test_an_interruption_ends_the_training(model, tmp_path, monkeypatch):
    experiment = make(model, tmp_path, seeds=(0,))
    monkeypatch.setattr(experiment, "reward", lambda variant: Interrupting())
    with pytest.raises(KeyboardInterrupt, match="stopped at iteration 1 of 2"):
        experiment.train(denovo.REINFORCED)
    assert experiment.trainer(denovo.REINFORCED, 0).iteration == 1


def test_claims_of_a_policy_that_learned_nothing(model, tmp_path):
    experiment = make(model, tmp_path)
    for name in (denovo.REINFORCED, "without diversity", denovo.GAP, denovo.RULE):
        for seed in TINY.seeds:
            experiment.policies[name, seed] = SpeciesPolicy(model)
    variants = (denovo.START, denovo.REINFORCED, "without diversity", denovo.GAP, denovo.RULE)
    experiment.evaluate(*variants)
    claims = experiment.claims()
    assert not np.isnan(claims[0].value)
    measured = [claim for claim in claims if claim.value is not None]
    check(measured, 4)


def test_bad_sizes_and_judges():
    assert set(denovo.SIZES) == {"quick", "laptop", "long", "paper"}
    with pytest.raises(ValueError, match="ablations must be of"):
        DeNovoSize(10, 1, 1, 1, ("without reason",))
    with pytest.raises(ValueError, match="judge must be"):
        denovo.find_judge("me")
    assert denovo.find_judge("none") is None
