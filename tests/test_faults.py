"""What goes wrong on real machines, caused: full disks, closed folders, lost and hanging workers.

Functions that raise, return nan or hang are in test_rewards, values that are not finite in
test_grpo, calculators that fail in test_potentials, kills of a whole run in test_kill_and_resume.
"""

import os
import signal
import subprocess
import sys
import threading
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.core import Lattice, Structure

from irlkit import data as datasets
from irlkit.crystals import CrystalBatch
from irlkit.data import CrystalDataset
from irlkit.potentials import ASEPotential
from irlkit.pretraining import PretrainingConfig, pretrain
from irlkit.rewards import EnergyReward, FunctionReward
from irlkit.rl.trainer import CHECKPOINT
from irlkit.utils.system import write_atomically
from tests.test_grpo import assert_same_bits, make_trainer
from tests.test_sweeps import Parabola, make, run, same
from tests.toy_calculators import Troubled
from tests.toy_workers import np_volume, volume_but_killed_by_one_atom
from tests.toys import ToyModel, crystals, volume_reward

resource = pytest.importorskip("resource")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="causes faults in Linux's ways")

TINY = PretrainingConfig(
    hidden_dim=8, n_layers=1, n_freqs=2, time_dim=4, iterations=6, batch_size=4, validate_every=2
)


def pretrained(folder=None, evaluate=None):
    batch = crystals((2, 1, 3, 2, 1, 2), torch.float32)
    names = [f"t{i}" for i in range(len(batch))]
    table = pd.DataFrame(
        {"material_id": names, "formula": batch.reduced_formulas(), "n_atoms": batch.n_atoms}
    )
    data = CrystalDataset("toy", None, batch, table)
    return pretrain(data, TINY, out_dir=folder, evaluate=evaluate, progress=False).state_dict()


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- out of disk ---


class SmallDisk:
    """A file system in memory, which really is full once it is filled."""

    def __init__(self, path):
        self.path = path
        self.filler = path / "filler"

    def fill(self):
        with open(self.filler, "wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass

    def free(self):
        self.filler.unlink()


class FileLimit:
    """No file can become longer than a few bytes, as where a quota is used up.

    That holds for what the tests print as well: free it before a test ends.
    """

    def __init__(self, path):
        self.path = path
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, self.limits[1]))

    def free(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)


def mount(folder, options):
    """A file system in memory on a folder; skips where this is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount file systems")


@pytest.fixture(params=["mounted", "limited"])
def disk(request, tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "limited":
        limit = FileLimit(folder)
        yield limit
        limit.free()
        return
    mount(folder, "size=8m")
    yield SmallDisk(folder)
    subprocess.run(["umount", "-l", str(folder)], check=True)


FULL = "No space left on device|File too large"


def test_a_full_disk_leaves_the_old_file(disk):
    path = disk.path / "a"
    write_atomically(path, b"old")
    disk.fill()
    with pytest.raises(OSError, match=FULL):
        write_atomically(path, b"new" * 5000)
    disk.free()  # before the report, which may go to a file
    assert path.read_bytes() == b"old"
    assert [p.name for p in disk.path.iterdir()] == ["a"]


def test_a_run_whose_disk_is_full_continues_to_the_same_bits(disk):
    whole = make_trainer()
    whole.run(4, progress=False)
    calls = []

    def reward(structures):
        calls.append(1)
        if len(calls) == 5:  # of the third iteration
            disk.fill()
        return volume_reward(structures)

    trainer = make_trainer(reward, out_dir=disk.path)
    with pytest.raises(OSError, match=FULL):
        trainer.run(4, progress=False)
    assert trainer.iteration == 2, "back at the last iteration that is on the disk"
    assert not list(disk.path.glob(".*"))
    with pytest.raises(OSError, match=rf"out_dir cannot be written to \(({FULL})"):
        trainer.run(4, progress=False)
    disk.free()
    resumed = make_trainer(out_dir=disk.path, resume=True)
    assert resumed.iteration == 2
    for continued in (trainer, resumed):
        continued.run(4, progress=False)
        assert_same_bits(whole, continued)
    assert make_trainer(out_dir=disk.path, resume=True).iteration == 4


def test_pretraining_whose_disk_is_full_continues_to_the_same_bits(disk):
    def fill(model):
        disk.fill()
        return {}

    with pytest.raises(OSError, match=FULL):
        pretrained(disk.path, fill)
    disk.free()
    assert_equal(pretrained(disk.path), pretrained())


def test_a_sweep_whose_disk_is_full_continues(disk):
    class Filling(Parabola):
        def __call__(self, config, folder, report):
            if self.calls == 1:
                disk.fill()
            super().__call__(config, folder, report)

    sweep = make(disk.path / "sweep")
    with pytest.raises(Exception, match=f"{FULL}|full|disk I/O error"):
        run(sweep, Filling(), 9)
    disk.free()
    same(
        run(make(disk.path / "sweep"), Parabola(), 9), run(make(disk.path / "whole"), Parabola(), 9)
    )


def test_a_full_cache_is_told_and_done_without(disk, tmp_path, monkeypatch):
    monkeypatch.setenv("IRLKIT_CACHE", str(disk.path / "cache"))
    structure = Structure(Lattice.cubic(4), ["Na"], [[0] * 3]).to(fmt="cif")
    frame = pd.DataFrame({"material_id": range(300), "cif": structure})
    frame.to_csv(tmp_path / "set.csv", index=False)
    disk.fill()
    with pytest.warns(UserWarning, match=f"cannot write the cache .*({FULL})"):
        assert len(datasets.load(tmp_path / "set.csv", progress=False)) == 300
    disk.free()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):  # by whom a missing folder is made, and who reads it
            assert len(datasets.load(tmp_path / "set.csv", progress=False)) == 300
    assert len(list((disk.path / "cache").iterdir())) == 1


# --- folders that cannot be written to ---


@pytest.fixture(params=["read-only", "a file"])
def closed(request, tmp_path):
    folder = tmp_path / "closed"
    if request.param == "a file":
        folder.write_text("not a folder")
        yield folder / "run"
        return
    folder.mkdir()
    if os.geteuid():
        folder.chmod(0o500)
        yield folder
        folder.chmod(0o700)
        return
    mount(folder, "ro")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def never(*arguments):
    raise AssertionError("work was done in vain")


def test_a_closed_folder_is_told_before_the_work(closed):
    for make_it in (
        lambda: make_trainer(never, out_dir=closed).run(1, progress=False),
        lambda: pretrained(closed, never),
    ):
        with pytest.raises(OSError, match="out_dir cannot be written to") as caught:
            make_it()
        assert str(closed) in str(caught.value)
    with pytest.raises((OSError, ValueError), match=str(closed)):
        make(closed)


# --- workers and calculators ---


def test_a_worker_killed_during_a_reward_costs_its_structure_only(tmp_path):
    batch = crystals()  # the second has one atom
    with FunctionReward(volume_but_killed_by_one_atom, on_failure=-1.0, n_workers=1) as reward:
        result = reward(batch)
        expected = batch.volume.double()
        expected[1] = -1
        torch.testing.assert_close(result.values, expected)
        assert "ended (exit status -9)" in result.info["error"][1]
        config = {"n_groups": 4, "group_size": 2}  # all four compositions, by new workers
        trainer = make_trainer(reward, config=config, validation=None, out_dir=tmp_path)
        assert trainer.run(2, progress=False)["info_failed"].tolist() == [0.25, 0.25]


def test_a_worker_killed_from_outside_is_replaced(tmp_path):
    """By whatever, while it works: the run ends, as documented, and continues."""
    function = FunctionReward(np_volume, n_workers=1)
    armed = []

    def reward(structures):
        if armed:
            (worker,) = function._pool._open[0]._pool_manager.worker_manager.workers
            threading.Timer(0.2, os.kill, (worker, signal.SIGKILL)).start()
        return function(structures)

    with function:
        trainer = make_trainer(reward, validation=None, out_dir=tmp_path)
        trainer.run(1, progress=False)
        armed.append(True)
        with pytest.raises(ValueError, match="not finite for 1 of 8 structures"):
            trainer.run(2, progress=False)
        armed.clear()
        trainer.run(2, progress=False)
        whole = make_trainer(lambda s: function(s), validation=None)
        whole.run(2, progress=False)
    assert_same_bits(whole, trainer)


def test_a_calculator_that_hangs_costs_its_structures_only(tmp_path):
    """Troubled sleeps for a minute on neon."""
    symbols = (["Na", "Na"], ["Ne"])
    data = CrystalBatch.from_structures(
        [Structure(Lattice.cubic(4), s, np.eye(3)[: len(s)] / 2) for s in symbols]
    )
    with ASEPotential(Troubled, n_workers=2, timeout=1.0) as potential:
        reward = EnergyReward(potential)
        trainer = make_trainer(reward, config={"group_size": 2}, validation=None, out_dir=tmp_path)
        trainer.requests = data
        history = trainer.run(2, progress=False)
    assert history["info_failed"].tolist() == [0.5, 0.5]
    assert np.isfinite(history["reward"]).all()


# --- memory ---


class SmallMemory(ToyModel):
    """A network whose device has room for so many structures at a time."""

    room = 100

    def velocity(self, t, pos, cell, conditioning, heads=("velocity",)):
        if len(cell) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().velocity(t, pos, cell, conditioning, heads)


def test_a_network_that_runs_out_of_memory_gets_less_at_once(monkeypatch, tmp_path):
    """The bounds are halved, it is said, kept in the checkpoint, and the result is theirs."""
    monkeypatch.setattr("tests.test_policies.ToyModel", SmallMemory)
    bounds = {"max_batch": 4, "max_minibatch": 3}
    expected = make_trainer(kind="velocity", config=bounds)
    expected.run(2, progress=False)
    monkeypatch.setattr(SmallMemory, "room", 5)
    trainer = make_trainer(kind="velocity", out_dir=tmp_path)
    with pytest.warns(RuntimeWarning) as caught:
        trainer.run(2, progress=False)
    said = [str(warning.message) for warning in caught]
    assert "out of memory with 8 structures at once: max_batch is 4 from now on" in said
    assert "out of memory with 6 (step, structure) pairs at once: max_minibatch is 3" in said[-1]
    assert (trainer.max_batch, trainer._update.max_minibatch) == (4, 3)
    assert_equal(trainer.policy.state_dict(), expected.policy.state_dict())
    resumed = make_trainer(kind="velocity", out_dir=tmp_path, resume=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.run(3, progress=False)


# --- Ctrl-C ---


class Interrupt:
    """Ctrl-C before one of the lines that are run of the trainer and what it calls."""

    files = tuple(
        os.path.join("irlkit", *name.split("/"))
        for name in (
            *("rl/trainer.py", "rl/update.py", "rl/_checkpoints.py", "rl/_averaging.py"),
            "utils/system.py",
        )
    )

    def __init__(self, line=None):
        self.lines, self.line = 0, line

    def __call__(self, frame, event, argument):
        return self.count if frame.f_code.co_filename.endswith(self.files) else None

    def count(self, frame, event, argument):
        if event == "line":
            self.lines += 1
            if self.lines == self.line:
                signal.raise_signal(signal.SIGINT)
        return self.count

    def during(self, function):
        before = sys.gettrace()
        sys.settrace(self)
        try:
            return function()
        finally:
            sys.settrace(before)


@pytest.fixture
def interruptible():
    """Ctrl-C raises, also where a process that ignores it has started the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupts_at_any_moment_lose_no_bit(tmp_path):
    def trainer(name, **options):
        return make_trainer(out_dir=tmp_path / name, config={"average_decay": 0.9}, **options)

    whole, all_lines = trainer("whole"), Interrupt()
    all_lines.during(lambda: whole.run(3, progress=False))
    draws = np.random.default_rng(0)
    stopped_at = []
    for trial in range(12):
        ours = trainer(str(trial))
        interrupt = Interrupt(draws.integers(1, all_lines.lines + 1))
        try:
            history = interrupt.during(lambda run=ours.run: run(3, progress=False))
            assert len(history) == (ours.iteration + 1 if len(history) else 0)
        except KeyboardInterrupt:  # outside of the iterations
            assert ours.iteration in (0, 3)
        stopped_at.append(ours.iteration)
        resumed = trainer(str(trial), resume=True)
        assert 0 <= resumed.iteration - ours.iteration <= 1
        for continued in (ours, resumed):
            continued.run(3, progress=False)
            assert_same_bits(whole, continued)
    assert {0, 1, 2} <= set(stopped_at)


@pytest.mark.usefixtures("interruptible")
def test_interrupted_pretraining_continues_to_the_same_bits(tmp_path):
    def interrupt(model):
        if not interrupts:
            interrupts.append(True)
            signal.raise_signal(signal.SIGINT)
        return {}

    interrupts = []
    with pytest.warns(UserWarning, match="stopped after .* the same call continues"):
        stopped = pretrained(tmp_path, interrupt)
    assert stopped.keys() == pretrained().keys()
    assert (tmp_path / CHECKPOINT).exists(), "of the first iteration"
    assert_equal(pretrained(tmp_path), pretrained())
