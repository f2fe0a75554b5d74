"""Callbacks of a run: what they are told and when, and where the adapters put it."""

import sys
import types

import pytest

from irlkit.lab import tracking
from tests.test_grpo import make_trainer
from tests.toys import volume_reward

SETTINGS = {"n_groups": 2, "group_size": 2, "n_steps": 2, "validate_every": 2}


def trainer(folder, **options):
    return make_trainer(volume_reward, config=SETTINGS, out_dir=folder, **options)


def test_callbacks_get_each_row_once_also_after_a_resume(tmp_path):
    rows = []
    trainer(tmp_path).run(1, False, [rows.append])
    history = trainer(tmp_path, resume=True).run(3, False, [rows.append])
    told = [row["iteration"] for row in rows]
    assert told == history["iteration"].tolist() == list(range(len(history)))
    assert [row.get("reward") for row in rows[1:]] == history["reward"].tolist()[1:]
    rows[0]["iteration"] = 99  # A copy: the history stays as it is.
    assert history["iteration"][0] == 0


def test_an_error_in_a_callback_ends_the_run_and_loses_nothing(tmp_path):
    def fail(row):
        if row["iteration"] == 2:
            raise RuntimeError("no connection")

    failing = trainer(tmp_path)
    with pytest.raises(RuntimeError, match="no connection"):
        failing.run(3, False, [fail])
    assert failing.iteration == 2
    resumed = trainer(tmp_path, resume=True)
    resumed.run(3, False)
    untouched = trainer(tmp_path / "other").run(3, False)
    columns = ["iteration", "reward", "validation_reward"]
    assert resumed.history[columns].equals(untouched[columns])


def test_one_line_per_iteration(tmp_path):
    path = tmp_path / "new" / "log.txt"
    trainer(None).run(2, False, [tracking.log_lines(path)])
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line.split("  ")[1] for line in lines] == [f"iteration {i}" for i in range(3)]
    assert "validation_reward" in lines[2] and "validation_reward" not in lines[1]
    assert "nan" not in "".join(lines)


def test_tensorboard_has_the_points_of_the_history(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = trainer(None).run(2, False, [tracking.tensorboard(tmp_path)])
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(history.columns) - {"iteration"} == set(events.Tags()["scalars"])
    for name in ("reward", "validation_reward"):
        points = {event.step: event.value for event in events.Scalars(name)}
        expected = history.set_index("iteration")[name].dropna()
        assert points == pytest.approx(expected.to_dict(), rel=1e-6)


def test_trackio_is_told_to_stay_on_this_machine(monkeypatch):
    logged, begun = [], {}
    module = types.ModuleType("trackio")
    run = types.SimpleNamespace(log=lambda points, step: logged.append((step, points)))
    module.init = lambda *names, **options: begun.update(options, names=names) or run
    monkeypatch.setitem(sys.modules, "trackio", module)
    history = trainer(None).run(1, False, [tracking.trackio("crystals", "a", config={"n": 1})])
    assert begun.pop("names") == ("crystals", "a")
    assert begun == {"resume": "allow", "embed": False, "config": {"n": 1}}
    assert [step for step, _ in logged] == [0, 1]
    assert logged[1][1]["reward"] == history["reward"][1] and "iteration" not in logged[1][1]


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio"])
def test_a_missing_tracker_says_what_to_install(monkeypatch, tmp_path, tracker):
    monkeypatch.setitem(sys.modules, tracker, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ImportError, match=r"irlkit\[tracking\]"):
        getattr(tracking, tracker)(str(tmp_path))
