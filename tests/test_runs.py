"""What is listed and shown of runs, whole and damaged."""

import json
import os

import pandas as pd
import pytest
import torch

from irlkit.data import CrystalDataset
from irlkit.flows.schedules import ConstantNoise, LearnedAnnealing
from irlkit.lab import runs
from irlkit.lab.diagnostics import judge
from irlkit.lab.sweeps import SPACES, Sweep, run_optuna
from irlkit.pretraining import PretrainingConfig, pretrain
from irlkit.rl.policies import AnnealingPolicy
from irlkit.rl.trainer import GRPOTrainer
from tests.toys import ToyModel, crystals, trainer_config, volume_reward

SMALL = {"n_groups": 2, "group_size": 4, "n_steps": 3, "n_ppo_epochs": 2, "validate_every": 2}


def train(folder, n_iterations=4, **options):
    policy = AnnealingPolicy(
        ToyModel().requires_grad_(False),
        LearnedAnnealing(8, 1),
        {field: ConstantNoise(0.3) for field in ("pos", "cell")},
    )
    config = trainer_config(**{**SMALL, **options})
    trainer = GRPOTrainer(
        policy, volume_reward, crystals(), config, validation=crystals(), out_dir=folder
    )
    trainer.run(n_iterations, progress=False)
    return trainer


def write_notebook(folder):
    folder.mkdir(parents=True, exist_ok=True)
    claims = [
        {"claim": "better", "value": 0.5, "target": "> 0", "holds": True},
        {"claim": "best", "value": None, "target": "> 0", "holds": False},
    ]
    data = {
        "parameters": {"preset": "quick", "settings": {"n_steps": 10}},
        "environment": {"seconds": {"training": 2.0, "evaluation": 3.0}},
        "claims": claims,
    }
    (folder / "results.json").write_text(json.dumps(data))


def write_sweep(folder):
    def objective(config, trial_folder, report):
        if trial_folder.name == "00001":
            raise KeyboardInterrupt
        report(5, 0.2)
        report(10, 0.1)

    with pytest.raises(KeyboardInterrupt):
        sweep = Sweep(folder, SPACES["annealing"], {"iterations": 10})
        run_optuna(sweep, objective, 4, progress=False)


def shown(capsys, *arguments):
    status = runs.main([str(a) for a in arguments])
    output = capsys.readouterr()
    return status, output.out, output.err


def test_grpo_run(tmp_path):
    trainer = train(tmp_path / "run")
    run = runs.read(tmp_path / "run")
    assert (run.kind, run.what, run.state) == ("grpo", "AnnealingPolicy", "finished")
    assert (run.done, run.planned, run.values.name) == (4, 4, "validation_reward")
    assert run.best == (trainer.best["iteration"], trainer.best["validation_reward"])
    last = trainer.history["validation_reward"].dropna().iloc[-1]
    assert run.values.iloc[-1] == last
    times = ["rollout_seconds", "reward_seconds", "update_seconds"]
    assert run.seconds == pytest.approx(trainer.history[times].sum().sum())
    assert run.settings["n_groups"] == 2
    assert not run.problems


def test_stopped_run_says_how_far_it_was(tmp_path, monkeypatch):
    """The checkpoint is newer than the table, which is written less often."""
    iterate = GRPOTrainer._iterate

    def die(self):
        if self.iteration == 3:
            raise SystemExit
        return iterate(self)

    monkeypatch.setattr(GRPOTrainer, "_iterate", die)
    monkeypatch.setattr(GRPOTrainer, "_write_history", lambda self: None)
    with pytest.raises(SystemExit):
        train(tmp_path / "run", 10)
    run = runs.read(tmp_path / "run")
    assert (run.state, run.done, run.planned) == ("unfinished", 3, 10)
    assert list(run.history["iteration"]) == [0, 1, 2, 3]


def test_a_run_can_be_longer_than_its_settings_say(tmp_path, monkeypatch):
    iterate = GRPOTrainer._iterate

    def die(self):
        if self.iteration == 4:
            raise SystemExit
        return iterate(self)

    monkeypatch.setattr(GRPOTrainer, "_iterate", die)
    with pytest.raises(SystemExit):
        train(tmp_path / "longer", 6, iterations=3)
    run = runs.read(tmp_path / "longer")
    assert (run.state, run.done, run.planned) == ("unfinished", 4, 6)
    train(tmp_path / "shorter", 2, iterations=3)
    run = runs.read(tmp_path / "shorter")
    assert (run.state, run.done, run.planned) == ("unfinished", 2, 3)


def test_a_run_that_begins_anew_has_no_history_of_the_one_before(tmp_path, monkeypatch):
    train(tmp_path, 5, learning_rate=0.1)
    monkeypatch.setattr(GRPOTrainer, "_write_history", lambda self: None)
    train(tmp_path, 1, learning_rate=0.001)
    run = runs.read(tmp_path)
    assert list(run.history["iteration"]) == [0, 1]
    assert run.history["learning_rate"].dropna().unique().tolist() == [0.001]


def test_finished_trial_without_a_checkpoint_still_has_its_history(tmp_path):
    train(tmp_path)
    (tmp_path / "checkpoint.pt").unlink()
    run = runs.read(tmp_path)
    assert (run.kind, run.state, run.done) == ("grpo", "unknown", 4)
    assert run.best is not None and not run.problems


def test_pretraining_run(tmp_path):
    batch = crystals((2, 3, 2, 4), dtype=torch.float32)
    config = PretrainingConfig(
        hidden_dim=8,
        n_layers=1,
        n_freqs=2,
        time_dim=8,
        iterations=4,
        batch_size=2,
        validate_every=2,
        warmup=1,
    )
    table = {"material_id": list("abcd"), "formula": batch.reduced_formulas()}
    table["n_atoms"] = batch.n_atoms.numpy()
    data = CrystalDataset("toy", None, batch, pd.DataFrame(table))
    pretrain(data, config, validation=data, out_dir=tmp_path, progress=False)
    run = runs.read(tmp_path)
    assert (run.kind, run.what, run.state) == ("pretraining", "linear-ode", "finished")
    assert (run.done, run.planned, run.values.name) == (4, 4, "validation_loss")
    assert run.best[1] == run.history["validation_loss"].min()
    assert run.settings["hidden_dim"] == 8 and run.seconds > 0


def test_notebook_and_sweep(tmp_path):
    write_notebook(tmp_path / "04")
    write_sweep(tmp_path / "sweep")
    notebook, sweep = runs.read(tmp_path / "04"), runs.read(tmp_path / "sweep")
    assert (notebook.kind, notebook.done, notebook.planned) == ("notebook", 1, 2)
    assert notebook.seconds == 5 and notebook.settings["settings.n_steps"] == 10
    assert (sweep.kind, sweep.done, sweep.planned) == ("sweep", 1, 4)
    assert (sweep.state, sweep.best) == ("unfinished", (0, 0.2))
    assert sweep.settings["iterations"] == 10


def test_list_finds_all_runs_and_no_trials(tmp_path, capsys):
    write_notebook(tmp_path / "04")
    train(tmp_path / "04" / "training" / "seed_0", 2)
    write_sweep(tmp_path / "sweep")
    train(tmp_path / "sweep" / "trials" / "00000", 2)
    found = list(runs.find(tmp_path))
    paths = [os.path.relpath(run.path, tmp_path) for run in found]
    assert paths == ["04", os.path.join("04", "training", "seed_0"), "sweep"]
    table = runs.table(found, tmp_path)
    assert list(table["run"]) == paths and list(table["done"]) == ["1/2", "2/2", "1/4"]
    assert list(table["verdict"]) == ["", judge(found[1].history)[0].severity, ""]
    status, out, _ = shown(capsys, "list", tmp_path)
    assert status == 0 and "AnnealingPolicy" in out and "00000" not in out


def test_nothing_there(tmp_path, capsys):
    assert shown(capsys, "list", tmp_path) == (1, f"no runs in {tmp_path}\n", "")
    status, _, error = shown(capsys, "show", tmp_path)
    assert status == 1 and "holds no run: there is no checkpoint.pt" in error
    status, _, error = shown(capsys, "list", tmp_path / "elsewhere")
    assert status == 1 and "no folder" in error


def test_show(tmp_path, capsys):
    train(tmp_path)
    status, out, _ = shown(capsys, "show", tmp_path)
    assert status == 0
    assert "finished, 4/4 iterations" in out and "group_size: 4" in out
    assert "validation_reward: best" in out
    findings = [str(finding) for finding in judge(runs.read(tmp_path).history)]
    assert findings and all(finding in out for finding in findings)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04" + bytes(200)])
@pytest.mark.parametrize("name", ["checkpoint.pt", "history.parquet"])
def test_damaged_training_run_is_named_and_the_rest_read(name, content, tmp_path, capsys):
    train(tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(content)
    run = runs.read(tmp_path / "run")
    assert (
        run.state == "damaged" and name in run.problems[0] and "cannot be read" in run.problems[0]
    )
    assert len(run.history) == 5 and run.best is not None, "the other file still says it"
    status, out, _ = shown(capsys, "show", tmp_path / "run")
    assert status == 1 and f"{tmp_path / 'run'}: {name} cannot be read" in out
    assert shown(capsys, "list", tmp_path)[0] == 0


def test_checkpoint_cut_short_at_any_place_is_named(tmp_path):
    train(tmp_path)
    data = (tmp_path / "checkpoint.pt").read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        (tmp_path / "checkpoint.pt").write_bytes(data[: int(share * len(data))])
        assert runs.read(tmp_path).state == "damaged"


@pytest.mark.parametrize(
    "content",
    [
        {"weights": torch.zeros(1)},
        {"iteration": 3, "identity": {"config": "{"}, "history": []},
        {"iteration": 3, "identity": 5},
        [1, 2],
    ],
)
def test_checkpoint_of_something_else_is_named(content, tmp_path):
    torch.save(content, tmp_path / "checkpoint.pt")
    run = runs.read(tmp_path)
    assert run.state == "damaged" and "checkpoint.pt" in run.problems[0]


def test_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "evil"),))

    torch.save({"iteration": 1, "evil": Evil()}, tmp_path / "checkpoint.pt")
    assert "cannot be read" in runs.read(tmp_path).problems[0]
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"parameters": 1, "claims": []}', "\x00"])
def test_damaged_notebook_and_sweep_are_named(content, tmp_path):
    for name in ("results.json", "sweep.jsonl"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(content)
        run = runs.read(folder)
        assert run.state == "damaged" and name in run.problems[0]


def test_history_without_validation_has_no_best(tmp_path):
    pd.DataFrame({"iteration": [1, 2], "reward": [0.1, 0.2]}).to_parquet(
        tmp_path / "history.parquet"
    )
    run = runs.read(tmp_path)
    assert run.best is None and run.done == 2 and not run.problems
    assert runs.table([run])["best"].iloc[0] == ""
