"""The experiment of notebook 08, tiny; and its claims with a policy that learned nothing."""

import importlib.util
import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from irlkit import envs
from irlkit.envs._backends import Computed
from irlkit.envs._benchmark import settings_of
from irlkit.lab.experiments import crystal_gym
from irlkit.lab.experiments._crystal_gym_claims import crystal_gym_claims
from irlkit.lab.experiments.crystal_gym import DENSITY, STABLE, SkeletonFilling
from irlkit.lab.plots._crystal_gym import episode
from tests.test_envs import Curve
from tests.test_null_policy import check

TINY = crystal_gym.CrystalGymSize(
    evaluations=24, tasks=(DENSITY,), hard=(STABLE,), seeds=(0, 1),
    skeletons=("AuSb3", "Li3Bi"), unseen=("AuSb3",), n_best=2, max_steps=1,
    settings={"GRPO": {"group_size": 4, "learning_rate": 3e-3}},
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("IRLKIT_RUN_NOTEBOOKS") != "1", reason="runs with IRLKIT_RUN_NOTEBOOKS=1"
)
def test_a_run_its_tables_figures_and_files(tmp_path):
    few = {"GRPO": {"group_size": 3, "n_ppo_epochs": 1}}
    size = replace(TINY, seeds=(0,), evaluations=10, settings=few)
    experiment = SkeletonFilling(size, tmp_path, progress=False)
    table = experiment.train(DENSITY, STABLE)
    assert [*table.index] == [(t, a) for t in (DENSITY, STABLE) for a in ("GRPO", "random")]
    assert experiment.unseen(DENSITY).shape == (2, 1)
    shares = experiment.relax_best(STABLE)
    assert set(shares["fillings"]) == {2}
    # Fillings that are rebuilt from their keys are those that were judged.
    best = experiment.best(STABLE, "GRPO", 2)
    rows = experiment.relaxed[STABLE, "GRPO"]
    found = experiment._evaluator("bulk_modulus")(best)
    assert found.values == pytest.approx(rows["value"].to_numpy()) and found.cached.all()
    checked = experiment.check_by(Curve(), best)
    assert list(checked["formula"]) == best.reduced_formulas()
    assert checked[experiment.backend.name].to_numpy() == pytest.approx(found.values)
    (name,) = set(experiment.comparisons[STABLE].episodes["skeleton"]) - {"AuSb3"}
    few = experiment.best(STABLE, "GRPO", 1, ["AuSb3"])
    assert experiment.best(STABLE, n=1, skeletons=[name]).cell[0].tolist() != few.cell[0].tolist()
    assert experiment.draw_learning(DENSITY, STABLE).data
    assert experiment.estimate(DENSITY) >= 0 and len(experiment.cost()) == 3
    claims = experiment.claims()
    assert len(claims) == 6
    # One seed decides nothing about returns.
    assert {claim.verdict for claim in claims[:3]} == {"undecided"}
    paths = experiment.write_results(claims, {}, {})
    assert all(path.exists() for path in paths)
    assert "fewer than three seeds" in experiment.conclusion(claims, "quick")


def test_runs_that_are_finished_are_read_again(tmp_path):
    first = SkeletonFilling(TINY, tmp_path, progress=False)
    table = first.train(DENSITY)
    again = SkeletonFilling(TINY, tmp_path, progress=False)
    assert again.train(DENSITY).equals(table)
    assert again._evaluator("density").report()["misses"] == 0
    longer = SkeletonFilling(replace(TINY, evaluations=30), tmp_path, progress=False)
    longer.train(DENSITY)
    assert len(longer.comparisons[DENSITY].episodes) == 4 * 30
    assert longer.unseen(DENSITY).shape == (2, 1)
    assert longer.draw_learning(DENSITY).data and longer.estimate(DENSITY) >= 0
    assert longer.cost().loc["density", "hits"] > 0
    paths = longer.write_results(longer.claims(), {}, {})
    assert all(path.exists() for path in paths)


def test_a_file_of_too_few_episodes_is_not_read(tmp_path):
    size = replace(TINY, seeds=(0,), hard=())
    SkeletonFilling(size, tmp_path, progress=False).train(DENSITY)
    paths = [p for p in (tmp_path / "runs").glob("*.parquet") if "unseen" not in p.name]
    for path in paths:
        pd.read_parquet(path).head(3).to_parquet(path)
    again = SkeletonFilling(size, tmp_path, progress=False)
    again.train(DENSITY)
    assert len(paths) == 2 and len(again.comparisons[DENSITY].episodes) == 2 * size.evaluations


def test_what_a_backend_cannot_tell_is_said_before_any_training(tmp_path):
    with pytest.raises(ValueError, match=r"hull holds energies of the potential chgnet.*curve"):
        SkeletonFilling(TINY, tmp_path, backend=Curve())
    size = replace(TINY, hard=(), seeds=(0,), evaluations=10)
    experiment = SkeletonFilling(size, tmp_path, backend=Curve(), progress=False)
    experiment.train(DENSITY)
    with pytest.raises(ValueError, match=r"hull holds energies of the potential chgnet.*curve"):
        experiment.relax_best(DENSITY)


def test_results_are_written_where_every_filling_failed(tmp_path, monkeypatch):
    size = replace(TINY, tasks=(crystal_gym.BULK,), hard=(), seeds=(0,), evaluations=10)
    experiment = SkeletonFilling(size, tmp_path, backend=Curve(v0=900.0), progress=False)
    experiment.train(crystal_gym.BULK)
    assert experiment.comparisons[crystal_gym.BULK].episodes["failed"].all()
    paths = experiment.write_results(experiment.claims(), {}, {})
    assert paths and all(path.exists() for path in paths)
    monkeypatch.setattr(experiment, "_potential", lambda: None)
    monkeypatch.setattr("irlkit.envs._stability.EnergyAboveHull.check", lambda *_: None)
    assert not len(experiment.relax_best(crystal_gym.BULK)) and not experiment.relaxed


def test_fillings_are_judged_by_dft_only_where_it_is_installed(tmp_path, monkeypatch):
    size = replace(TINY, n_dft=3, hard=())
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == "gpaw" else find(name, *a)
    )
    assert SkeletonFilling(size, tmp_path, backend=Curve()).n_dft == 0
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: find("json"))
    assert SkeletonFilling(size, tmp_path, backend=Curve()).n_dft == 3


def test_the_preset_dft_ends_with_a_claim_about_gaps(tmp_path):
    class Gaps(Curve):
        has_gap = True

        def gaps(self, batch):
            return Computed(np.ones(len(batch)))

    size = replace(crystal_gym.SIZES["dft"], evaluations=12)
    assert size.backend_options == {"k_density": 2.0}
    experiment = SkeletonFilling(size, tmp_path, backend=Gaps(), progress=False)
    assert experiment.estimate(size.tasks[0]) >= 0
    experiment.train(*size.tasks)
    (claim,) = experiment.claims()
    assert claim.value == 0 and claim.verdict == "undecided" and "band gap" in claim.claim
    assert all(path.exists() for path in experiment.write_results([claim], {}, {}))


def test_claims_of_a_policy_that_learned_nothing(tmp_path):
    experiment = SkeletonFilling(replace(TINY, evaluations=200), tmp_path, progress=False)
    experiment.train(DENSITY)
    found = experiment.comparisons[DENSITY]
    episodes, unseen = (
        pd.concat(
            [rows[rows["algorithm"] == "random"].assign(algorithm=n) for n in ("GRPO", "random")],
            ignore_index=True,
        )
        for rows in (found.episodes, found.unseen)
    )
    experiment.comparisons[DENSITY] = envs.Comparison(episodes, unseen, found.judge)
    experiment._samples.clear()
    check(experiment.claims(), 4)


def test_an_episode_is_drawn_and_bad_sizes_are_refused():
    pytest.importorskip("gymnasium", reason="gymnasium is not installed (extra gym)")
    import gymnasium

    env = gymnasium.make("irlkit/CrystalGym-v0", skeletons="AuSb3", render_mode="crystal")
    env.reset(seed=0)
    steps = [env.render()]
    for action in range(4):
        env.step(action)
        steps.append(env.render())
    figure = episode(steps)
    names = [trace.name for trace in figure.data if trace.mode == "markers"]
    assert names.count("empty") == 4 and len(set(names)) == 5
    with pytest.raises(ValueError, match="steps must hold at least one"):
        episode([])
    for changes, message in (
        ({"evaluations": 3}, "at least 10 evaluations"),
        ({"tasks": ("gold",)}, "tasks must be of"),
        ({"algorithms": ("PPO",)}, "hold GRPO"),
        ({"seeds": (0, 1, 0)}, "no seed twice"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(TINY, **changes)


def test_grpo_is_compared_with_others_whatever_the_order():
    values = {"GRPO": 0.96, "DQN": 0.9, "PPO": 0.8, "random": 0.5}

    def samples(metric, task, who):
        return np.full(9, np.nan if metric == "unseen" else values[who])

    gains = []
    for names in (("GRPO", "PPO", "DQN"), ("DQN", "GRPO", "PPO")):
        claims = crystal_gym_claims(samples, {DENSITY: names}, lambda *_: None, 3)
        gains += [
            claim.value for claim in claims if "GRPO minus the best of the others" in claim.claim
        ]
    assert gains == pytest.approx([0.06, 0.06])


def test_settings_of_an_algorithm_have_its_defaults():
    pytest.importorskip("gymnasium", reason="gymnasium is not installed (extra gym)")
    assert settings_of("PPO", {}) == settings_of("PPO", {"learning_rate": 1e-3})
    assert settings_of("SAC", {"alpha": 0.1})["alpha"] == 0.1
    assert settings_of("GRPO", {"group_size": 3}) == {**settings_of("GRPO", {}), "group_size": 3}
    slower = settings_of("GRPO", {"learning_rate": 1e-3})
    assert slower["final_learning_rate"] == pytest.approx(1e-4)
    assert settings_of("GRPO", {"learning_rate": "fast"})["final_learning_rate"] == 2e-4
    assert settings_of("GRPO", {})["entropy_share"] > 0
    assert "entropy_share" not in settings_of("GRPO", {"entropy_weight": 0.01})
    for other in ({"advantages": "standard"}, {"replay": 4}):
        assert settings_of("GRPO", other)["imitation_weight"] == 0
    asked = {"advantages": "standard", "imitation_weight": 1.0}
    assert settings_of("GRPO", asked)["imitation_weight"] == 1
    assert settings_of("random", {"alpha": 0.1}) == {}
