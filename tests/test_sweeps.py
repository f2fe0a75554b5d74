"""Search spaces, sweeps with Optuna and Ray, their folders and the command line."""

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution

from irlkit.flows.schedules import LearnedAnnealing
from irlkit.lab import experiments, plots
from irlkit.lab.sweeps import (
    SPACES,
    PolicyObjective,
    SearchSpace,
    Sweep,
    importance,
    open_study,
    run_optuna,
    run_ray,
    trials_table,
)
from irlkit.lab.sweeps import __main__ as command_line
from irlkit.lab.sweeps import objective as objectives
from irlkit.lab.sweeps.run import _claim, _claim_next, _propose, _run_trial
from irlkit.rl.grpo import NORMALIZATIONS
from tests.toys import ToyModel, crystals, trainer_config, volume_reward

ROOT = Path(__file__).parents[1]
SPACE = SPACES["annealing"]
NAMES = list(SPACE.parameters)
PARAMETERS = ["number", "state", "value", *NAMES, "best_iteration", "iterations", "error"]


class Parabola:
    """Best at a learning rate of 1e-3 and one PPO epoch; better with each of its three steps."""

    def __init__(self, sleep=0.0, fail_below=0.0, stop_after=None):
        self.sleep, self.fail_below, self.stop_after = sleep, fail_below, stop_after
        self.calls = 0

    def __call__(self, config, folder, report):
        self.calls += 1
        if self.stop_after is not None and self.calls > self.stop_after:
            raise KeyboardInterrupt
        if config["learning_rate"] < self.fail_below:
            raise RuntimeError("the gradient is not finite")
        error = abs(math.log10(config["learning_rate"]) + 3) + 0.1 * config["n_ppo_epochs"]
        for iteration in (5, 10, 15):
            time.sleep(self.sleep)
            report(iteration, 0.01 * iteration - error)


def make(path, objective=None, **options):
    description = {"toy": "parabola"} if objective is None else objective.describe()
    return Sweep(path, SPACE, description, **options)


def run(sweep, objective, n_trials, **options):
    return run_optuna(sweep, objective, n_trials, progress=False, **options)


def same(first, second):
    pd.testing.assert_frame_equal(first[PARAMETERS], second[PARAMETERS])


# --- spaces ---


def test_spaces_are_those_of_appendix_f():
    """The table of the appendix, read from the data that sweeps use."""
    for name, space in SPACES.items():
        assert space.policy == name and space.fixed == {"n_groups": 16}
        assert space.parameters["group_size"].choices == (32, 64)
        assert set(space.parameters["shared_x_0"].choices) == {True, False}
    annealing, velocity, score = (SPACES[p].parameters for p in ("annealing", "velocity", "score"))
    assert annealing["n_ppo_epochs"].choices == (1, 2, 3, 4, 5)
    assert annealing["clip_eps"] == FloatDistribution(0.1, 0.5)
    assert annealing["pos_policy_weight"] == FloatDistribution(0.01, 100.0, log=True)
    assert annealing["learning_rate"] == FloatDistribution(1e-5, 1e-2, log=True)
    assert annealing["hidden_dim"].choices == (32, 64, 128)
    assert annealing["n_hidden_layers"].choices == (1, 2, 3)
    assert "kl_weight" not in annealing and "normalization" not in annealing
    for space in (velocity, score):
        assert space["n_ppo_epochs"].choices == (1, 2, 3, 4)
        assert space["clip_eps"] == FloatDistribution(0.05, 0.3)
        assert space["policy_weight"] == FloatDistribution(0.1, 10.0, log=True)
        assert space["kl_weight"].choices == (0, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
        assert space["learning_rate"] == FloatDistribution(1e-5, 1e-3, log=True)
        assert space["normalization"].choices == NORMALIZATIONS
    distillation = (0, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
    assert score["distillation_weight"].choices == distillation
    assert set(score) - set(velocity) == {"distillation_weight"}


@pytest.mark.parametrize("policy", SPACES)
def test_every_configuration_is_one_of_the_trainer(policy, tmp_path):
    space = SPACES[policy]
    assert space.start, "a sweep begins with what is known"
    sweep = Sweep(tmp_path, space, {})
    for number in range(len(space.start) + 5):
        grpo, annealing = space.split(_propose(sweep, number))
        assert trainer_config(**grpo).n_groups == 16
        LearnedAnnealing(**annealing)


def test_weights_of_an_annealing_sum_to_one():
    config = {**SPACE.start[0], "pos_policy_weight": 3.0}
    weights = SPACE.split(config)[0]["policy_weight"]
    assert weights == {"pos": pytest.approx(0.75), "cell": pytest.approx(0.25)}


def test_narrowed_space_keeps_its_start_inside():
    space = SPACE.narrowed({"group_size": (8, 16), "clip_eps": (0.1, 0.2)}, n_ppo_epochs=2)
    assert space.parameters["group_size"].choices == (8, 16)
    assert "n_ppo_epochs" not in space.parameters
    assert space.start[0]["group_size"] == 16 and space.start[0]["clip_eps"] == 0.2
    assert space.split(space.start[0])[0]["n_ppo_epochs"] == 2
    with pytest.raises(ValueError, match=r"to narrow, got \['group'\]"):
        SPACE.narrowed({"group": (1, 2)})


SEED = {"seed": CategoricalDistribution((1, 2))}


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: SPACE.narrowed({"clip_eps": (0.1, 0.2, 0.3)}), r"must be \(low, high\)"),
        (lambda: PolicyObjective(SearchSpace("annealings", SEED)), "policy must be one of"),
        (lambda: PolicyObjective(SearchSpace("velocity", SEED, start=({"seed": 1},))), "a seed"),
        (lambda: PolicyObjective(SPACE, grpo={"hidden_dim": 8}), r"got \['hidden_dim'\]"),
        (lambda: PolicyObjective(SPACE, reward="speed"), "reward must be one of"),
        (lambda: PolicyObjective(SPACE, iterations=4), "at least the 5 between validations"),
    ],
)
def test_what_is_no_search_is_refused(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()


# --- running ---


def test_sweep_finds_better_configurations_than_chance(tmp_path):
    sweep = make(tmp_path)
    trials = run(sweep, Parabola(), 25)
    assert list(trials["number"]) == list(range(25)) and (trials["state"] == "complete").all()
    assert trials.loc[0, NAMES].to_dict() == SPACE.start[0]
    assert trials["value"].iloc[-8:].mean() > trials["value"].iloc[1:9].mean()
    best = sweep.study.best_trial
    assert best.value == trials["value"].max() and trials["best_iteration"][best.number] == 15
    assert sweep.study.user_attrs["n_trials"] == 25
    assert [list(trial.intermediate_values) for trial in sweep.study.trials] == [[5, 10, 15]] * 25


def test_sweeps_depend_on_their_seed_alone(tmp_path):
    runs = [
        run(make(tmp_path / name, seed=seed), Parabola(), 4)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    same(runs[0], runs[1])
    assert (runs[0]["learning_rate"] != runs[2]["learning_rate"]).iloc[1:].all()


@pytest.mark.parametrize("prune", [False, True])
def test_interrupted_sweep_continues_as_if_it_had_not_been(prune, tmp_path):
    whole = run(make(tmp_path / "whole"), Parabola(), 6, prune=prune)
    for stop_after in (0, 2, 1):
        with pytest.raises(KeyboardInterrupt):
            run(make(tmp_path / "parts"), Parabola(stop_after=stop_after), 6, prune=prune)
    sweep = make(tmp_path / "parts")
    assert list(trials_table(sweep.study)["state"]) == ["complete"] * 3 + ["running"]
    same(run(sweep, Parabola(), 6, prune=prune), whole)
    # What is finished is not run again, and the sweep can be made longer.
    objective = Parabola()
    assert len(run(sweep, objective, 7)) == 7
    assert objective.calls == 1


_SCRIPT = """
import sys
from tests.test_sweeps import Parabola, make, run
run(make(sys.argv[1]), Parabola(sleep=0.03), 5)
"""


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_killed_sweep_continues_as_if_it_had_not_been(tmp_path):
    """SIGKILL in a trial; configurations and values at the end are those of one run."""
    process = start(tmp_path / "killed")
    try:
        while not (tmp_path / "killed" / "trials" / "00002").is_dir():
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    sweep = make(tmp_path / "killed")
    # The third may have been killed between its folder and its line in the journal.
    states = list(trials_table(sweep.study)["state"])
    assert states[:2] == ["complete", "complete"] and states[2:] in ([], ["running"])
    same(run(sweep, Parabola(), 5), run(make(tmp_path / "whole"), Parabola(), 5))


@pytest.mark.slow
def test_two_processes_share_a_sweep(tmp_path):
    """They end with one set of trials, none of which was run twice."""
    processes = [start(tmp_path) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    study = open_study(tmp_path)
    assert [trial.number for trial in study.trials] == list(range(5))
    assert (trials_table(study)["state"] == "complete").all()
    lines = [json.loads(line) for line in (tmp_path / "sweep.jsonl").read_text().splitlines()]
    told = [line["trial_id"] for line in lines if "values" in line and "study_id" not in line]
    assert sorted(told) == list(range(5))


def test_line_that_was_cut_short_is_removed(tmp_path):
    """By the process that wrote it, or by another one that is still running."""
    sweep = make(tmp_path)
    run(sweep, Parabola(), 2)
    for again in (sweep, make(tmp_path)):
        with open(tmp_path / "sweep.jsonl", "ab") as file:
            file.write(b'{"op_code": 4, "work')
        assert len(trials_table(open_study(tmp_path))) >= 2, "reading does not mind"
        trials = run(again, Parabola(), 3)
    same(trials, run(make(tmp_path / "whole"), Parabola(), 3))


def test_trial_that_another_process_works_on_is_left_alone(tmp_path):
    sweep = make(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(sweep, Parabola(stop_after=0), 3)
    ours = _claim(sweep, 0)
    assert ours is not None and _claim(sweep, 0) is None
    trials = run(sweep, Parabola(), 3)
    assert list(trials["state"]) == ["running", "complete", "complete"]
    ours.release()
    assert list(run(sweep, Parabola(), 3)["state"]) == ["complete"] * 3


def test_start_outside_of_the_space_is_refused(tmp_path):
    for wrong in ({"clip_eps": 0.7}, {"clip_eps": 0.2, "seed": 1}):
        space = SearchSpace("annealing", {"clip_eps": FloatDistribution(0.1, 0.5)}, start=(wrong,))
        with pytest.raises(ValueError, match="clip_eps"):
            run(Sweep(tmp_path / str(len(wrong)), space, {}), Parabola(), 1)


def test_failed_trials_are_recorded_and_passed_over(tmp_path):
    trials = run(make(tmp_path), Parabola(fail_below=3e-4), 8)
    failed = trials["learning_rate"] < 3e-4
    assert 0 < failed.sum() < 8
    assert list(trials["state"]) == ["failed" if f else "complete" for f in failed]
    assert trials["value"].isna().equals(failed)
    assert trials.loc[failed, "error"].str.contains("RuntimeError: the gradient is not").all()
    with pytest.raises(RuntimeError, match="all of the first 3 trials failed, the last with"):
        run(make(tmp_path / "all"), Parabola(fail_below=1.0), 8)


def test_trials_below_the_median_are_pruned(tmp_path):
    trials = run(make(tmp_path), Parabola(), 16, prune=True)
    pruned = trials[trials["state"] == "pruned"]
    complete = trials[trials["state"] == "complete"]
    assert len(pruned) and (pruned["iterations"] == 5).all()
    assert (complete["iterations"] == 15).all()
    assert pruned["number"].min() >= 4, "without four complete trials there is no median"
    assert pruned["value"].max() < complete["value"].max()


def test_objective_has_to_report_finite_numbers(tmp_path):
    def silent(config, folder, report):
        pass

    def wrong(config, folder, report):
        report(1, math.nan)

    sweep = make(tmp_path)
    with pytest.raises(ValueError, match="at least one validation"):
        run(sweep, silent, 1)
    assert list(trials_table(sweep.study)["state"]) == ["running"]
    trials = run(sweep, wrong, 1)
    assert trials["state"][0] == "failed" and "validation reward nan" in trials["error"][0]
    for wrong_count in (0, True, 2.0):
        with pytest.raises(ValueError, match=r"n_trials must be (at least 1|an?\b.* integer)"):
            run_optuna(sweep, Parabola(), wrong_count)


# --- folders ---


def test_folder_holds_one_sweep(tmp_path):
    make(tmp_path)
    make(tmp_path)
    with pytest.raises(ValueError, match=r"holds another sweep \(other seed\)"):
        make(tmp_path, seed=1)
    with pytest.raises(ValueError, match="other space, objective"):
        Sweep(tmp_path, SPACES["velocity"], {"toy": "other"})
    with pytest.raises(ValueError, match="described by what JSON holds"):
        Sweep(tmp_path / "new", SPACE, {"toy": math.nan})
    with pytest.raises(FileNotFoundError, match="no sweep in"):
        open_study(tmp_path / "elsewhere")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"out_dir: the folder .* cannot be made"):
        make(tmp_path / "file" / "sweep")


@pytest.mark.parametrize("content", ["", "[]\n", "{}\n", '{"op_code": 77}\n', "\x00", "a\nb\n"])
def test_damaged_journal_is_named(content, tmp_path):
    (tmp_path / "sweep.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"sweep\.jsonl is not the journal of a sweep"):
        open_study(tmp_path)


def test_empty_sweep_has_a_table(tmp_path):
    sweep = make(tmp_path)
    trials = trials_table(sweep.study)
    assert not len(trials) and set(NAMES) <= set(trials)
    assert importance(sweep.study).isna().all()


# --- the objective ---


@pytest.fixture
def toy_parts(monkeypatch):
    """Trains on the toy model, without files."""
    model = ToyModel().requires_grad_(False)
    data = crystals()
    parts = objectives._Parts(model, data, data, volume_reward, volume_reward, ExitStack())
    monkeypatch.setattr(objectives, "_load_parts", lambda objective: parts)


SMALL = SPACE.narrowed({"group_size": (4, 8)}, n_groups=2)


def small(space=SMALL, **options):
    grpo = {"n_steps": 3, "validate_every": 2, "max_batch": 64}
    return PolicyObjective(space, **{"iterations": 6, "grpo": grpo, **options})


@pytest.mark.usefixtures("toy_parts")
def test_objective_reports_the_validations_of_the_trainer(tmp_path):
    objective = small()
    reported = {}
    objective(SMALL.start[0], tmp_path, reported.__setitem__)
    trainer = objective.trainer(SMALL.start[0], None)
    history = trainer.run(6, progress=False).dropna(subset=["validation_reward"])
    expected = history[["iteration", "validation_reward"]].iloc[1:]
    assert list(reported.items()) == [(int(i), v) for i, v in expected.itertuples(index=False)]
    assert trainer.config.group_size == 8 and trainer.config.n_groups == 2
    assert (tmp_path / "best.safetensors").exists()
    sweep = Sweep(tmp_path / "sweep", SMALL, objective.describe())
    run(sweep, objective, 1)
    assert sweep.study.trials[0].intermediate_values == reported
    assert not (sweep.folder(0) / "checkpoint.pt").exists(), "a finished trial needs none"


@pytest.mark.usefixtures("toy_parts")
def test_interrupted_trial_continues_from_its_checkpoint(tmp_path):
    objective = small()
    whole, parts = [], []
    objective(SMALL.start[0], tmp_path / "whole", lambda i, v: whole.append((i, v)))

    def stop(iteration, value):
        if iteration == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        objective(SMALL.start[0], tmp_path / "parts", stop)
    state = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)
    assert state["iteration"] == 4
    objective(SMALL.start[0], tmp_path / "parts", lambda i, v: parts.append((i, v)))
    assert parts == whole


@pytest.mark.parametrize("policy", ["velocity", "score"])
@pytest.mark.usefixtures("toy_parts")
def test_policies_of_networks_are_trained_as_well(policy, tmp_path):
    space = SPACES[policy].narrowed({"group_size": (4,)}, n_groups=2)
    objective = small(space, iterations=2)
    assert (objective.reward, objective.checkpoint) == ("energy", "trig-sde-gamma")
    reported = []
    objective(space.start[0], tmp_path, lambda i, v: reported.append(i))
    assert reported == [2]
    assert (
        objective.trainer(space.start[0], None).config.grpo.kl_weight == space.start[0]["kl_weight"]
    )


@pytest.mark.usefixtures("toy_parts")
def test_objective_travels_without_what_it_has_loaded(tmp_path):
    objective = small()
    objective.trainer(SMALL.start[0], None)
    again = pickle.loads(pickle.dumps(objective))
    assert "_parts" in vars(objective) and "_parts" not in vars(again)
    assert again.describe() == objective.describe()
    objective.close()
    assert "_parts" not in vars(objective)


@pytest.mark.usefixtures("toy_parts")
def test_sweep_of_the_toy_is_read_by_everything(tmp_path, capsys):
    objective = small(iterations=4)
    sweep = Sweep(tmp_path, SMALL, objective.describe())
    trials = run(sweep, objective, 5)
    study = open_study(tmp_path)
    pd.testing.assert_frame_equal(trials_table(study), trials)
    shares = importance(study)
    assert shares.sum() == pytest.approx(1) and (shares >= 0).all()
    figure = plots.parallel_coordinates(trials, NAMES, logarithmic=SMALL.logarithmic)
    assert len(figure.data[0].dimensions) == len(NAMES) + 1
    assert command_line.main(["show", str(tmp_path)]) == 0
    assert f"best: trial {study.best_trial.number}" in capsys.readouterr().out
    assert command_line.main(["show", "--json", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == study.best_trial.params


# --- importance ---


def test_importance_finds_what_matters(tmp_path):
    sweep = make(tmp_path)
    for _ in range(60):
        distributions = dict(SPACE.parameters)
        sweep.study.ask(distributions)  # at random
        trial, lock = _claim_next(sweep, 60)
        _run_trial(sweep, Parabola(), trial, prune=False)
        lock.release()
    shares = importance(sweep.study)
    assert shares.index[0] == "learning_rate" and shares.iloc[0] > 0.5


def test_importance_of_few_or_equal_trials_is_unknown(tmp_path):
    def flat(config, folder, report):
        report(5, 0.5)

    few, equal = make(tmp_path / "few"), make(tmp_path / "equal")
    run(few, Parabola(), 3)
    run(equal, flat, 9)
    assert importance(few.study).isna().all() and importance(equal.study).isna().all()


# --- command line ---


def test_spaces_are_shown(capsys):
    assert command_line.main(["spaces"]) == 0
    shown = capsys.readouterr().out
    assert "distillation_weight" in shown and "log-uniform, 1e-05 to 0.01" in shown


def test_command_line_says_what_is_wrong(tmp_path, capsys):
    assert command_line.main(["show", str(tmp_path)]) == 1
    assert "no sweep in" in capsys.readouterr().err
    arguments = ["run", "--out-dir", str(tmp_path / "sweep"), "--iterations", "2"]
    assert command_line.main(arguments) == 1
    assert "iterations must be at least" in capsys.readouterr().err
    make(tmp_path)
    assert command_line.main(["show", "--json", str(tmp_path)]) == 1
    assert "No trials are completed yet" in capsys.readouterr().err


@pytest.mark.usefixtures("toy_parts")
def test_command_line_runs_and_continues(tmp_path, capsys):
    arguments = ["run", "--out-dir", str(tmp_path), "--iterations", "4", "--validate-every", "2"]
    arguments += ["--n-steps", "3", "--n-groups", "2", "--group-size", "4", "8"]
    assert command_line.main([*arguments, "--trials", "2"]) == 0
    assert command_line.main([*arguments, "--trials", "3", "--prune"]) == 0
    assert "3 complete" in capsys.readouterr().out
    assert command_line.main([*arguments, "--trials", "3", "--seed", "1"]) == 1
    assert "holds another sweep" in capsys.readouterr().err


def test_missing_ray_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'irlkit\[ray\]'"):
        run_ray(make(tmp_path), Parabola(), 1)


def test_missing_optuna_is_named():
    """In a process of its own: without Optuna the package is not even imported."""
    code = "import sys; sys.modules['optuna.distributions'] = None; import irlkit.lab.sweeps"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "pip install 'irlkit[notebooks]'" in done.stderr


# --- notebook 05 ---


def test_presets_of_the_notebook_resolve():
    known = experiments.presets("sweep")
    for name, preset in known.items():
        assert experiments.resolve("sweep", name) == preset
        json.dumps(preset.to_dict())
    changed = experiments.resolve("sweep", "quick", n_trials=3, seeds="4,5", n_steps=7)
    assert changed == replace(known["quick"], n_trials=3, seeds=(4, 5), n_steps=7)
    with pytest.raises(ValueError, match="preset must be one of"):
        experiments.resolve("sweep", "huge")
    with pytest.raises(ValueError, match="seeds must be different"):
        experiments.resolve("sweep", "quick", seeds=(1, 1))
