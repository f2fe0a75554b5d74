"""Algorithms compared at equal evaluations."""

import importlib.util
import sys

import pytest

from irlkit.envs import Evaluator, benchmark
from irlkit.envs._benchmark import LIBRARIES, settings_of
from irlkit.lab.experiments import crystal_gym
from tests.test_envs import Curve

pytest.importorskip("gymnasium", reason="gymnasium is not installed (extra gym)")
HAS = {library: importlib.util.find_spec(library) is not None for library in LIBRARIES.values()}
SMALL = {"skeletons": ["AuSb3", "RbVF3"], "unseen": ["SnI4"], "elements": ["Li", "F", "Sr", "Br"]}


def of(name):
    """An algorithm as a parameter, skipped where its library is missing."""
    missing = not HAS[LIBRARIES[name]]
    reason = f"{LIBRARIES[name]} is not installed (extra gym)"
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason=reason))


each_of_tianshou = pytest.mark.parametrize("name", [of(a) for a in LIBRARIES if "sb3" not in a])
each_of_sb3 = pytest.mark.parametrize("name", [of(a) for a in LIBRARIES if "sb3" in a])


def test_grpo_beats_the_random_control_at_equal_evaluations():
    found = benchmark(
        Evaluator("density", Curve()),
        2.0,
        algorithms=["GRPO", "random"],
        seeds=[0, 1, 2, 3],
        evaluations=640,
        settings={"GRPO": {"learning_rate": 3e-3}},
        progress=False,
        **SMALL,
    )
    assert len(found.episodes) == 8 * 640 and found.judge == "density"
    assert (found.episodes.groupby(["algorithm", "seed"]).evaluation.max() == 640).all()
    table = found.summary().set_index("algorithm")
    assert table.loc["GRPO", "low"] > table.loc["random", "high"]
    assert table.loc["GRPO", "distinct"] < table.loc["random", "distinct"]
    assert set(found.unseen.skeleton) == {"SnI4"} and len(found.unseen) == 8
    best = found.best(3)
    assert best.reward.is_monotonic_decreasing and len(best) == 3


class Interrupted(Curve):
    """Is interrupted at the third call."""

    calls = 0

    def energies(self, batch, like):
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        return super().energies(batch, like)


def test_an_interrupted_run_is_no_result():
    with pytest.raises(KeyboardInterrupt):
        benchmark(
            Evaluator("bulk_modulus", Interrupted()),
            100.0,
            algorithms=["GRPO"],
            evaluations=64,
            settings={"GRPO": {"group_size": 4}},
            progress=False,
            **SMALL,
        )


def density(*algorithms, **options):
    return benchmark(
        Evaluator("density", Curve()),
        2.0,
        algorithms=algorithms,
        n_unseen=4,
        progress=False,
        **SMALL,
        **options,
    )


@each_of_tianshou
def test_algorithms_of_tianshou_spend_their_budget(name):
    found = density(name, evaluations=400)
    assert len(found.episodes) == 400
    assert found.episodes.skeleton.nunique() == 2 and len(found.unseen) == 1


@pytest.mark.parametrize("name", ["DQN", "DQN (sb3)"])
def test_runs_of_neighbouring_seeds_meet_environments_of_their_own(name, monkeypatch):
    """Counted on from the run's, seven of eight environments would be the same in both."""
    pytest.importorskip(LIBRARIES[name], reason=f"{LIBRARIES[name]} is not installed (extra gym)")
    from irlkit.envs._baselines import Settings
    from irlkit.envs._crystal_gym import CrystalGym

    seeds = []
    reset = CrystalGym.reset

    def seen(self, *, seed=None, options=None):
        seeds.append(seed)
        return reset(self, seed=seed, options=options)

    monkeypatch.setattr(CrystalGym, "reset", seen)
    of_run = []
    for seed in (0, 1):
        seeds.clear()
        density(name, evaluations=10, seeds=[seed])
        of_run.append({given for given in seeds if given is not None})
    assert len(of_run[0]) == len(of_run[1]) == Settings().n_envs and not of_run[0] & of_run[1]


@each_of_sb3
def test_algorithms_of_sb3_spend_their_budget_learn_and_print_nothing(name, capsys):
    found = density(name, "random", evaluations=500)
    assert capsys.readouterr().out == ""
    assert (found.episodes.algorithm.value_counts() == 500).all() and len(found.unseen) == 2
    last = found.summary().set_index("algorithm")["last"]
    assert last[name] > last["random"] + 0.1


@each_of_sb3
def test_algorithms_of_sb3_repeat_themselves(name):
    # Enough for an update of each.
    first, again = (density(name, evaluations=150) for _ in range(2))
    assert first.episodes.equals(again.episodes) and first.unseen.equals(again.unseen)
    other = density(name, evaluations=20, seeds=[1])
    assert list(other.episodes.key) != list(first.episodes.key[:20])


@pytest.mark.parametrize("library", sorted(set(LIBRARIES.values())))
def test_a_missing_library_is_named_and_its_algorithms_are_left_out(library, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, library, None)
    names = [name for name, of_library in LIBRARIES.items() if of_library == library]
    for name in names:
        with pytest.raises(ImportError, match=rf"{library}.*pip install 'irlkit\[gym\]'"):
            benchmark(Evaluator("density"), 3.0, algorithms=["GRPO", name])
    size = crystal_gym.CrystalGymSize(
        10, algorithms=("GRPO", *LIBRARIES), skeletons=["AuSb3"], hard=()
    )
    experiment = crystal_gym.SkeletonFilling(size, tmp_path, backend=Curve())
    absent = [name for name in LIBRARIES if name in names or not HAS[LIBRARIES[name]]]
    assert list(experiment.left_out) == absent


def test_settings_out_of_their_range_are_named():
    for settings, message in (({"exploration": 0}, "exploration must"), ({"n_envs": 0}, "n_envs")):
        with pytest.raises(ValueError, match=message):
            settings_of("DQN", settings)


def test_what_cannot_be_compared_is_refused():
    for options, message in (
        ({"algorithms": ["A3C"]}, "algorithms must be among GRPO, PPO.*A3C"),
        ({"seeds": []}, "seeds must name at least one"),
        ({"seeds": [0, 1, 0]}, "each once"),
        ({"evaluations": 3}, "evaluations be at least 10"),
        ({"settings": {"Grpo": {}}}, "settings must be among GRPO, PPO.*Grpo"),
        (
            {"algorithms": ["GRPO"], "settings": {"GRPO": {"n_steps": 3}}},
            "settings of GRPO must not hold.*n_steps",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            benchmark(Evaluator("density"), 3.0, **options)
