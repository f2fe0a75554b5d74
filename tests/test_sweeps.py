"""Search spaces, sweeps with Optuna and Ray, their folders and the command line."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from irlkit.flows.schedules import LearnedAnnealing
from irlkit.lab import plots
from irlkit.lab.experiments import sweep_experiment
from irlkit.lab.sweeps import (
    POLICIES,
    SPACES,
    Choice,
    PolicyObjective,
    SearchSpace,
    SweepFolder,
    TrainingSettings,
    TrialRecord,
    Uniform,
    importance,
    run_optuna,
    run_ray,
)
from irlkit.lab.sweeps import __main__ as command_line
from irlkit.lab.sweeps import objective as objectives
from irlkit.lab.sweeps.optuna_backend import propose
from irlkit.lab.sweeps.trial import below_median, run_trial
from irlkit.rl.grpo import NORMALIZATIONS
from tests.toys import ToyModel, crystals, trainer_config, volume_reward

ROOT = Path(__file__).parents[1]
SPACE = SPACES["annealing"]
PARAMETERS = ["number", "state", "value", *SPACE.names, "best_iteration", "iterations", "error"]


class Parabola:
    """Best at a learning rate of 1e-3 and one PPO epoch; better with each of its three steps."""

    def __init__(self, sleep=0.0, fail_below=0.0, stop_after=None):
        self.sleep, self.fail_below, self.stop_after = sleep, fail_below, stop_after
        self.calls = 0

    def describe(self):
        return {"toy": "parabola"}

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
    objective = Parabola() if objective is None else objective
    return SweepFolder.create(path, SPACE, objective.describe(), **options)


def same(first, second):
    pd.testing.assert_frame_equal(first[PARAMETERS], second[PARAMETERS])


@pytest.fixture
def optuna():
    return pytest.importorskip("optuna")


# --- spaces ---


def test_spaces_are_those_of_appendix_f():
    """The table of the appendix, read from the data that sweeps use."""
    assert set(SPACES) == set(POLICIES)
    for space in SPACES.values():
        assert space["group_size"].values == (32, 64) and space.fixed == {"n_groups": 16}
        assert set(space["shared_x_0"].values) == {True, False}
    annealing, velocity, score = (SPACES[p] for p in ("annealing", "velocity", "score"))
    assert annealing["n_ppo_epochs"].values == (1, 2, 3, 4, 5)
    assert annealing["clip_eps"] == Uniform("clip_eps", 0.1, 0.5)
    assert annealing["pos_policy_weight"] == Uniform("pos_policy_weight", 0.01, 100.0, log=True)
    assert annealing["learning_rate"] == Uniform("learning_rate", 1e-5, 1e-2, log=True)
    assert annealing["hidden_dim"].values == (32, 64, 128)
    assert annealing["n_hidden_layers"].values == (1, 2, 3)
    assert "kl_weight" not in annealing.names and "normalization" not in annealing.names
    for space in (velocity, score):
        assert space["n_ppo_epochs"].values == (1, 2, 3, 4)
        assert space["clip_eps"] == Uniform("clip_eps", 0.05, 0.3)
        assert space["policy_weight"] == Uniform("policy_weight", 0.1, 10.0, log=True)
        assert space["kl_weight"].values == (0, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
        assert space["learning_rate"] == Uniform("learning_rate", 1e-5, 1e-3, log=True)
        assert space["normalization"].values == NORMALIZATIONS
    distillation = (0, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
    assert score["distillation_weight"].values == distillation
    assert set(score.names) - set(velocity.names) == {"distillation_weight"}


@pytest.mark.parametrize("policy", POLICIES)
def test_every_configuration_is_one_of_the_trainer(policy, optuna):
    space = SPACES[policy]
    assert space.start, "a sweep begins with what is known"
    for number in range(len(space.start), len(space.start) + 5):
        config = propose(space, 0, number, [])
        space.check(config)
        grpo, annealing = space.split(config)
        assert trainer_config(**grpo).n_groups == 16
        LearnedAnnealing(**annealing)


def test_weights_of_an_annealing_sum_to_one():
    config = {**SPACE.start[0], "pos_policy_weight": 3.0}
    weights = SPACE.split(config)[0]["policy_weight"]
    assert weights == {"pos": pytest.approx(0.75), "cell": pytest.approx(0.25)}


def test_space_is_the_same_after_json():
    for space in SPACES.values():
        again = SearchSpace.from_dict(json.loads(json.dumps(space.to_dict())))
        assert again.to_dict() == space.to_dict()
        assert again.parameters == space.parameters
    for damaged in ({}, {"policy": "annealing", "parameters": [{"kind": "?"}]}, []):
        with pytest.raises(ValueError, match=r"a mapping|not a search space|unknown kind"):
            SearchSpace.from_dict(damaged)


def test_narrowed_space_keeps_its_start_inside():
    space = SPACE.narrowed({"group_size": (8, 16), "clip_eps": (0.1, 0.2)}, n_ppo_epochs=2)
    assert space["group_size"].values == (8, 16) and "n_ppo_epochs" not in space.names
    assert space.start[0]["group_size"] == 16 and space.start[0]["clip_eps"] == 0.2
    assert space.split(space.start[0])[0]["n_ppo_epochs"] == 2
    with pytest.raises(ValueError, match=r"to narrow, got \['group'\]"):
        SPACE.narrowed({"group": (1, 2)})


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: Choice("a", ()), "at least one"),
        (lambda: Choice("a", (1, 1)), "must be different"),
        (lambda: Uniform("a", 1.0, 1.0), "needs low < high"),
        (lambda: Uniform("a", 0.0, 1.0, log=True), "both positive"),
        (lambda: SearchSpace("annealings", (Choice("n_ppo_epochs", (1,)),)), "policy must be one"),
        (lambda: SearchSpace("annealing", ()), "at least one parameter"),
        (
            lambda: SearchSpace("annealing", (Choice("seed", (1, 2)),)),
            r"\['seed'\] are no settings",
        ),
        (lambda: SearchSpace("velocity", (Choice("hidden_dim", (8,)),)), "no settings of a sweep"),
        (lambda: SPACE.check({"clip_eps": 0.2}), "config must name"),
        (lambda: SPACE.check({**SPACE.start[0], "clip_eps": 0.7}), "from 0.1 to 0.5, got 0.7"),
        (lambda: SPACE.check({**SPACE.start[0], "shared_x_0": 1}), "one of .True, False., got 1"),
        (lambda: TrainingSettings(reward="speed"), "reward must be one of"),
        (lambda: TrainingSettings(iterations=4), "at least the 5 between validations"),
    ],
)
def test_what_is_no_space_is_refused(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()


# --- Optuna ---


def test_sweep_finds_better_configurations_than_chance(optuna, tmp_path):
    sweep = make(tmp_path)
    trials = run_optuna(sweep, Parabola(), 25, store="journal", progress=False)
    assert list(trials["number"]) == list(range(25)) and (trials["state"] == "complete").all()
    assert dict(sweep.records()[0].config) == SPACE.start[0]
    assert trials["value"].iloc[-8:].mean() > trials["value"].iloc[1:9].mean()
    best = sweep.best()
    assert best.value == trials["value"].max() and best.best_iteration == 15
    assert sweep.planned() == 25
    SPACE.check(best.config)
    assert len(sweep.validations()) == 75


def test_sweeps_depend_on_their_seed_alone(optuna, tmp_path):
    runs = [
        run_optuna(make(tmp_path / name, seed=seed), Parabola(), 4, store=store, progress=False)
        for name, seed, store in (("a", 0, "sqlite"), ("b", 0, "journal"), ("c", 1, "sqlite"))
    ]
    same(runs[0], runs[1])
    assert (runs[0]["learning_rate"] != runs[2]["learning_rate"]).iloc[1:].all()


@pytest.mark.parametrize("store", ["sqlite", "journal"])
def test_interrupted_sweep_continues_as_if_it_had_not_been(store, optuna, tmp_path):
    whole = run_optuna(make(tmp_path / "whole"), Parabola(), 6, store=store, progress=False)
    sweep = make(tmp_path / "parts")
    for stop_after in (0, 2, 1):
        with pytest.raises(KeyboardInterrupt):
            run_optuna(sweep, Parabola(stop_after=stop_after), 6, store=store, progress=False)
    assert [trial.state for trial in sweep.records()] == ["complete"] * 3 + ["running"]
    same(run_optuna(sweep, Parabola(), 6, store=store, progress=False), whole)
    # What is finished is not run again, and the sweep can be made longer.
    objective = Parabola()
    assert len(run_optuna(sweep, objective, 7, progress=False)) == 7
    assert objective.calls == 1


_SCRIPT = """
import sys
from tests.test_sweeps import Parabola, make
from irlkit.lab.sweeps import run_optuna
run_optuna(make(sys.argv[1]), Parabola(sleep=0.03), 5, store=sys.argv[2], progress=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("store", ["sqlite", "journal"])
def test_killed_sweep_continues_as_if_it_had_not_been(store, optuna, tmp_path):
    """SIGKILL in a trial; ids, configurations and values at the end are those of one run."""
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(folder), store],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        while not list(folder.glob("trials/00002/trial.json")):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    sweep = make(folder)
    assert not all(trial.finished for trial in sweep.records())
    killed = run_optuna(sweep, Parabola(), 5, progress=False)
    same(killed, run_optuna(make(tmp_path / "whole"), Parabola(), 5, progress=False))


def test_trial_that_was_recorded_but_not_told_is_not_run_again(optuna, tmp_path):
    sweep = make(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_optuna(sweep, Parabola(stop_after=1), 3, progress=False)
    # As if the process had died between writing the record and telling Optuna.
    record = run_trial(sweep, Parabola(), 1, sweep.read(1).config)
    objective = Parabola()
    trials = run_optuna(sweep, objective, 3, progress=False)
    assert objective.calls == 1 and trials["value"][1] == record.value
    study = optuna.load_study(study_name="irlkit", storage=f"sqlite:///{tmp_path / 'optuna.db'}")
    assert [trial.value for trial in study.trials] == list(trials["value"])


def test_journal_that_was_cut_short_is_mended(optuna, tmp_path):
    sweep = make(tmp_path)
    run_optuna(sweep, Parabola(), 2, store="journal", progress=False)
    with open(tmp_path / "optuna.log", "ab") as file:
        file.write(b'{"op_code": 4, "work')
    (tmp_path / "optuna.log.lock").touch()
    assert len(run_optuna(sweep, Parabola(), 3, progress=False)) == 3


def test_two_processes_share_a_sweep(optuna, tmp_path):
    """A trial that another process works on is left alone."""
    sweep = make(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_optuna(sweep, Parabola(stop_after=0), 3, progress=False)
    with sweep.claim(0) as ours:
        assert ours
        with sweep.claim(0) as again:
            assert not again
        trials = run_optuna(sweep, Parabola(), 3, progress=False)
        assert list(trials["state"]) == ["running", "complete", "complete"]
    assert list(run_optuna(sweep, Parabola(), 3, progress=False)["state"]) == ["complete"] * 3


def test_failed_trials_are_recorded_and_passed_over(optuna, tmp_path):
    sweep = make(tmp_path)
    trials = run_optuna(sweep, Parabola(fail_below=3e-4), 8, store="journal", progress=False)
    failed = trials["learning_rate"] < 3e-4
    assert 0 < failed.sum() < 8
    assert list(trials["state"]) == ["failed" if f else "complete" for f in failed]
    assert trials["value"].isna().equals(failed)
    assert trials.loc[failed, "error"].str.contains("RuntimeError: the gradient is not").all()
    with pytest.raises(RuntimeError, match="all of the first 3 trials failed, the last with"):
        run_optuna(make(tmp_path / "all"), Parabola(fail_below=1.0), 8, progress=False)


def test_trials_below_the_median_are_pruned(optuna, tmp_path):
    trials = run_optuna(make(tmp_path), Parabola(), 16, store="journal", prune=True, progress=False)
    pruned = trials[trials["state"] == "pruned"]
    complete = trials[trials["state"] == "complete"]
    assert len(pruned) and (pruned["iterations"] == 5).all()
    assert (complete["iterations"] == 15).all()
    assert pruned["number"].min() >= 4, "without four complete trials there is no median"
    assert pruned["value"].max() < complete["value"].max()


def test_median_is_that_of_the_others_at_the_same_iteration():
    def trial(number, *values, state="complete"):
        validations = tuple((5 * i, v) for i, v in enumerate(values, start=1))
        return TrialRecord(number, {}, state, max(values), 5, validations)

    others = [trial(i, 0.1 * i, 9.0) for i in range(4)]
    assert below_median(trial(9, 0.14, state="running"), others)
    assert not below_median(trial(9, 0.16, state="running"), others)
    # The best so far counts, and neither trials that run nor one's own record.
    assert not below_median(trial(9, 9.5, 1.0, state="running"), others)
    assert not below_median(trial(9, 0.0, state="running"), others[:3])
    assert not below_median(
        trial(9, 0.0, state="running"), [*others[:3], trial(5, 1, state="running")]
    )


def test_objective_has_to_report_finite_numbers(optuna, tmp_path):
    def silent(config, folder, report):
        pass

    def wrong(config, folder, report):
        report(1, math.nan)

    sweep = make(tmp_path)
    with pytest.raises(ValueError, match="at least one validation"):
        run_trial(sweep, silent, 0, SPACE.start[0])
    assert not sweep.read(0).finished
    assert run_trial(sweep, wrong, 0, SPACE.start[0]).state == "failed"
    for wrong_count in (0, True, 2.0):
        with pytest.raises(ValueError, match=r"n_trials must be an?\b.* integer"):
            run_optuna(sweep, Parabola(), wrong_count)
    with pytest.raises(ValueError, match="store must be one of"):
        run_optuna(sweep, Parabola(), 1, store="redis")


# --- folders ---


def test_folder_holds_one_sweep(tmp_path):
    make(tmp_path)
    make(tmp_path)
    with pytest.raises(ValueError, match=r"holds another sweep \(other seed\)"):
        make(tmp_path, seed=1)
    with pytest.raises(ValueError, match="other space, backend"):
        SweepFolder.create(tmp_path, SPACES["velocity"], {"toy": "parabola"}, backend="ray")
    with pytest.raises(FileNotFoundError, match="no sweep in"):
        SweepFolder.open(tmp_path / "elsewhere")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"out_dir: the folder .* cannot be made"):
        make(tmp_path / "file" / "sweep")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "irlkit-sweep"}', "\x00"])
def test_damaged_files_are_named(content, tmp_path):
    sweep = make(tmp_path)
    sweep.write(TrialRecord(0, SPACE.start[0]))
    (sweep.folder(0) / "trial.json").write_text(content)
    with pytest.raises(ValueError, match=r"trial\.json is not the record of a trial"):
        sweep.records()
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(ValueError, match=r"sweep\.json is not the description of a sweep"):
        SweepFolder.open(tmp_path)


def test_empty_sweep_has_a_table(tmp_path):
    sweep = make(tmp_path)
    assert not len(sweep.trials()) and set(SPACE.names) <= set(sweep.trials())
    with pytest.raises(ValueError, match="no trial of the sweep"):
        sweep.best()


# --- the objective ---


@pytest.fixture
def toy_parts(monkeypatch):
    """Trains on the toy model, without files."""
    model = ToyModel().requires_grad_(False)
    data = crystals()
    parts = objectives._Parts(model, data, data, volume_reward, volume_reward, None)
    monkeypatch.setattr(objectives, "_parts", lambda settings: parts)


def settings(**options):
    grpo = {"n_steps": 3, "validate_every": 2, "max_batch": 64}
    return TrainingSettings(**{"iterations": 6, "grpo": grpo, **options})


SMALL = SPACE.narrowed({"group_size": (4, 8)}, n_groups=2)


@pytest.mark.usefixtures("toy_parts")
def test_objective_reports_the_validations_of_the_trainer(tmp_path):
    objective = PolicyObjective(SMALL, settings())
    reported = []
    objective(SMALL.start[0], tmp_path, lambda i, v: reported.append((i, v)))
    trainer = objective.trainer(SMALL.start[0], None)
    history = trainer.run(6, progress=False).dropna(subset=["validation_reward"])
    expected = history[["iteration", "validation_reward"]].iloc[1:]
    assert reported == [(int(i), v) for i, v in expected.itertuples(index=False)]
    assert trainer.config.group_size == 8 and trainer.config.n_groups == 2
    assert (tmp_path / "best.safetensors").exists()
    sweep = make(tmp_path / "sweep", objective)
    record = run_trial(sweep, objective, 0, SMALL.start[0])
    assert record.validations == tuple(reported)
    assert not (sweep.folder(0) / "checkpoint.pt").exists(), "a finished trial needs none"


@pytest.mark.usefixtures("toy_parts")
def test_interrupted_trial_continues_from_its_checkpoint(tmp_path):
    objective = PolicyObjective(SMALL, settings())
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
    objective = PolicyObjective(space, settings(iterations=2, reward="energy"))
    reported = []
    objective(space.start[0], tmp_path, lambda i, v: reported.append(i))
    assert reported == [2]
    assert (
        objective.trainer(space.start[0], None).config.grpo.kl_weight == space.start[0]["kl_weight"]
    )


@pytest.mark.usefixtures("toy_parts")
def test_sweep_of_the_toy_is_read_by_everything(optuna, tmp_path, capsys):
    objective = PolicyObjective(SMALL, settings(iterations=4))
    sweep = SweepFolder.create(tmp_path, SMALL, objective.describe())
    trials = run_optuna(sweep, objective, 5, progress=False)
    again = SweepFolder.open(tmp_path)
    assert again.space.to_dict() == SMALL.to_dict()
    pd.testing.assert_frame_equal(again.trials(), trials)
    shares = importance(trials, again.space)
    assert shares.sum() == pytest.approx(1) and (shares >= 0).all()
    figure = plots.parallel_coordinates(trials, SMALL.names, logarithmic=["learning_rate"])
    assert len(figure.data[0].dimensions) == len(SMALL.names) + 1
    assert command_line.main(["show", str(tmp_path)]) == 0
    assert f"best: trial {sweep.best().number}" in capsys.readouterr().out
    assert command_line.main(["show", "--json", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == dict(sweep.best().config)


# --- importance ---


def test_importance_finds_what_matters(optuna, tmp_path):
    sweep = make(tmp_path)
    for number in range(60):
        config = propose(SPACE, 3, max(number, 1), [])
        run_trial(sweep, Parabola(), number, config)
    shares = importance(sweep.trials(), SPACE)
    assert shares.index[0] == "learning_rate" and shares.iloc[0] > 0.5


def test_importance_of_few_or_equal_trials_is_unknown(optuna, tmp_path):
    sweep = make(tmp_path)
    trials = run_optuna(sweep, Parabola(), 3, progress=False)
    assert importance(trials, SPACE).isna().all()
    equal = pd.concat([trials] * 3).assign(value=0.5)
    assert importance(equal, SPACE).isna().all()


# --- command line ---


def test_spaces_are_shown(capsys):
    assert command_line.main(["spaces"]) == 0
    shown = capsys.readouterr().out
    assert "distillation_weight" in shown and "log-uniform, 1e-05 to 0.01" in shown


def test_command_line_says_what_is_wrong(tmp_path, capsys):
    assert command_line.main(["show", str(tmp_path)]) == 1
    assert "no sweep in" in capsys.readouterr().err
    run = ["run", "--out-dir", str(tmp_path / "sweep"), "--iterations", "2"]
    assert command_line.main(run) == 1
    assert "iterations must be at least" in capsys.readouterr().err


@pytest.mark.usefixtures("toy_parts")
def test_command_line_runs_and_continues(optuna, tmp_path, capsys):
    run = ["run", "--out-dir", str(tmp_path), "--iterations", "4", "--validate-every", "2"]
    run += ["--n-steps", "3", "--n-groups", "2", "--group-size", "4", "8"]
    assert command_line.main([*run, "--trials", "2"]) == 0
    assert command_line.main([*run, "--trials", "3", "--prune"]) == 0
    assert "3 complete" in capsys.readouterr().out
    assert command_line.main([*run, "--trials", "3", "--seed", "1"]) == 1
    assert "holds another sweep" in capsys.readouterr().err


@pytest.mark.parametrize(("module", "extra"), [("optuna", "sweeps"), ("ray", "ray")])
def test_missing_extra_is_named(module, extra, tmp_path, monkeypatch):
    if module == "ray":
        pytest.importorskip("optuna")
    monkeypatch.setitem(sys.modules, module, None)
    run = run_ray if module == "ray" else run_optuna
    with pytest.raises(ImportError, match=rf"pip install 'irlkit\[{extra}\]'"):
        run(make(tmp_path), Parabola(), 1)


# --- notebook 05 ---


def test_presets_of_the_notebook_resolve():
    for name, preset in sweep_experiment.SWEEP_PRESETS.items():
        assert sweep_experiment.resolve_sweep(name) == preset
        json.dumps(preset.to_dict())
    changed = sweep_experiment.resolve_sweep("quick", n_trials=3, seeds="4,5", n_steps=7)
    assert changed == replace(
        sweep_experiment.SWEEP_PRESETS["quick"],
        n_trials=3,
        seeds=(4, 5),
        n_steps=7,
        n_network_steps=7,
    )
    with pytest.raises(ValueError, match="preset must be one of"):
        sweep_experiment.resolve_sweep("huge")
    with pytest.raises(ValueError, match="iterations must be at least validate_every, 2"):
        sweep_experiment.resolve_sweep("quick", iterations=1)
