"""Algorithms compared at equal evaluations."""

import importlib.util

import pytest

from irlkit.envs import Evaluator, benchmark
from tests.test_envs import Curve

pytest.importorskip("gymnasium", reason="gymnasium is not installed (extra gym)")
HAS_TIANSHOU = importlib.util.find_spec("tianshou") is not None
SMALL = {"skeletons": ["AuSb3", "RbVF3"], "unseen": ["SnI4"], "elements": ["Li", "F", "Sr", "Br"]}


def test_grpo_beats_the_random_control_at_equal_evaluations():
    found = benchmark(
        Evaluator("density", Curve()),
        2.0,
        algorithms=["GRPO", "random"],
        seeds=[0, 1],
        evaluations=640,
        settings={"GRPO": {"learning_rate": 3e-3}},
        progress=False,
        **SMALL,
    )
    assert len(found.episodes) == 4 * 640 and found.judge == "density"
    assert (found.episodes.groupby(["algorithm", "seed"]).evaluation.max() == 640).all()
    table = found.summary().set_index("algorithm")
    assert table.loc["GRPO", "low"] > table.loc["random", "high"]
    assert table.loc["GRPO", "distinct"] < table.loc["random", "distinct"]
    assert set(found.unseen.skeleton) == {"SnI4"} and len(found.unseen) == 4
    best = found.best(3)
    assert best.reward.is_monotonic_decreasing and len(best) == 3


@pytest.mark.skipif(not HAS_TIANSHOU, reason="tianshou is not installed (extra gym)")
@pytest.mark.parametrize("name", ["PPO", "DQN", "Rainbow", "SAC"])
def test_algorithms_of_tianshou_spend_their_budget(name):
    found = benchmark(
        Evaluator("density", Curve()),
        2.0,
        algorithms=[name],
        evaluations=400,
        n_unseen=4,
        progress=False,
        **SMALL,
    )
    assert len(found.episodes) == 400
    assert found.episodes.skeleton.nunique() == 2 and len(found.unseen) == 1


@pytest.mark.skipif(HAS_TIANSHOU, reason="tianshou is installed")
def test_without_tianshou_its_algorithms_say_how_to_install_it():
    with pytest.raises(ImportError, match=r"pip install 'irlkit\[gym\]'"):
        benchmark(Evaluator("density"), 3.0, algorithms=["PPO"])


def test_what_cannot_be_compared_is_refused():
    for options, message in (
        ({"algorithms": ["A3C"]}, "algorithms must be among GRPO, PPO.*A3C"),
        ({"seeds": []}, "seeds must name at least one"),
        ({"evaluations": 3}, "evaluations be at least 10"),
    ):
        with pytest.raises(ValueError, match=message):
            benchmark(Evaluator("density"), 3.0, **options)
