"""Files are written whole or not at all; time limits hold; cores are counted."""

import math
import os
import platform
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from irlkit.utils import system


def test_missing_folders_are_made(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    system.write_atomically(path, b"content")
    assert path.read_bytes() == b"content"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    system.write_atomically(path, b"old")

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(system.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        system.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_processes_of_one_number_may_write_one_file(tmp_path, monkeypatch):
    """As in two containers that share a folder."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    path, whole = tmp_path / "file", [bytes([k]) * 200_000 for k in b"AB"]

    def write(content):
        for _ in range(20):
            system.write_atomically(path, content)
            assert path.read_bytes() in whole

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(write, whole))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="Windows always has a home folder")
def test_without_a_home_there_is_one_for_the_time_being():
    program = """
import os, pwd
def unknown(number): raise KeyError(number)
pwd.getpwuid = unknown
import irlkit, pathlib
print(pathlib.Path.home())
import ase.config
from irlkit.utils.workers import WorkerPool
pool = WorkerPool(lambda: lambda item: str(pathlib.Path.home()), 1)
print(pool.map([0])[0].value)
"""
    environment = {k: v for k, v in os.environ.items() if k != "HOME"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    home, in_worker = done.stdout.split()
    assert home == in_worker and "irlkit-home-" in home and not Path(home).exists()


def test_file_writer_writes_in_order_and_tells_errors(tmp_path):
    with system.FileWriter() as writer:
        for content in (b"1", b"2", b"3"):
            writer.write(tmp_path / "file", content)
        writer.wait()
        assert (tmp_path / "file").read_bytes() == b"3"
        writer.write(tmp_path / "file", b"4")
    assert (tmp_path / "file").read_bytes() == b"4"
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError), system.FileWriter() as writer:
        writer.write(tmp_path / "folder", b"")
    with pytest.raises(IsADirectoryError), system.FileWriter() as writer:
        writer.write(tmp_path / "folder", b"")
        writer.write(tmp_path / "file", b"5")
    assert (tmp_path / "file").read_bytes() == b"4"
    with pytest.raises(KeyboardInterrupt), system.FileWriter() as writer:
        writer.write(tmp_path / "folder", b"")
        raise KeyboardInterrupt


def test_cores_are_those_of_the_process(monkeypatch):
    monkeypatch.setattr(system.os, "sched_getaffinity", lambda pid: {0, 3}, raising=False)
    assert system.available_cores() == 2
    monkeypatch.delattr(system.os, "sched_getaffinity")
    monkeypatch.setattr(system.os, "cpu_count", lambda: None)
    assert system.available_cores() == 1


def test_time_limit_ends_its_block_and_restores_the_handler():
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(system.TimeUp), system.time_limit(0.05):
        time.sleep(5)
    with system.time_limit(math.inf):
        pass
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_time_in_which_others_compute_does_not_count():
    with system.time_limit(0.05, busy=True):
        time.sleep(0.2)
    with pytest.raises(system.TimeUp), system.time_limit(0.05, busy=True):
        while True:
            pass


def test_time_limit_passes_through_handlers_of_exceptions():
    with pytest.raises(system.TimeUp), system.time_limit(0.05):
        try:
            time.sleep(5)
        except Exception:
            pass


@pytest.mark.skipif(not hasattr(os, "O_DIRECTORY"), reason="folders cannot be synced here")
@pytest.mark.parametrize(
    ("given", "after"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_idle_threads_soon_sleep_unless_the_environment_says_otherwise(given, after):
    ours = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {k: v for k, v in os.environ.items() if k not in ours} | given
    program = (
        "import sys, irlkit._waiting, os; assert 'torch' not in sys.modules; import irlkit.rl; "
        "assert list(sys.modules).index('irlkit._waiting') < list(sys.modules).index('torch'); "
        "print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == after


FAULTS = """
import irlkit, resource, torch

def work():
    arrays = [torch.empty(2**22).fill_(1.0) for _ in range(4)]

for _ in range(5):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.skipif(
    HUGE_PAGES.is_file() and "[always]" in HUGE_PAGES.read_text(), reason="pages are huge"
)
def test_memory_that_is_used_again_is_kept_unless_the_environment_says_otherwise():
    """Page faults of 20 arrays of 16 MB, which are 4,096 pages each."""
    names = ("GLIBC_TUNABLES", "LD_PRELOAD", "THP_MEM_ALLOC_ENABLE")
    clean = {k: v for k, v in os.environ.items() if k not in names and "MALLOC" not in k}
    faults = [
        int(
            subprocess.run(
                [sys.executable, "-c", FAULTS],
                env=clean | given,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for given in ({}, {"MALLOC_TRIM_THRESHOLD_": "131072"})
    ]
    assert faults[0] < faults[1] / 2, faults


def test_file_and_folder_are_synced(tmp_path, monkeypatch):
    """The file before it gets its name, the folder after."""
    path, synced = tmp_path / "file", []
    sync = os.fsync

    def record(descriptor):
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append(("folder" if is_folder else "file", path.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    system.write_atomically(path, b"data")
    assert synced == [("file", False), ("folder", True)]
