"""Worker processes: what they inherit, how they end, and what is done where there can be none."""

import os
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from irlkit.utils import workers
from irlkit.utils.workers import WorkerPool, WorkersLostError
from tests.toy_workers import make_worker

ROOT = Path(__file__).parents[1]


def run(code, *options, **environment):
    return subprocess.run(
        [sys.executable, *options],
        input=code,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_each_item_has_its_own_outcome():
    items = ["fine", "raise", "hang", "exit", "crash", "leave", "strange", "fine"]
    with_limit = WorkerPool(make_worker, 2, timeout=1.0)
    outcomes = with_limit.map(items)
    with_limit.close()
    assert [outcome.value for outcome in outcomes] == ["FINE", *[None] * 6, "FINE"]
    errors = [outcome.error for outcome in outcomes[1:-1]]
    assert errors[:3] == [
        "ArithmeticError: no",
        "it took more than 1 s",
        "the worker process ended (exit status 3)",
    ]
    assert errors[3] == f"the worker process ended (exit status {-signal.SIGSEGV})"
    assert errors[4] == "SystemExit: 4" and "cannot pickle" in errors[5]
    assert [outcome.late for outcome in outcomes] == [False, False, True, *[False] * 5]


def test_order_is_that_of_the_items():
    pool = WorkerPool(make_worker, 2)
    assert [o.value for o in pool.map([f"sleep {i}" for i in range(20, 0, -1)])] == [
        f"SLEEP {i}" for i in range(20, 0, -1)
    ]
    pool.close()


def test_threads_share_a_pool_and_wait_for_one_another(monkeypatch):
    # The second thread's item starts when those of the first are done, later than a start may take.
    monkeypatch.setattr(workers, "_START_SECONDS", 1.0)
    pool = WorkerPool(make_worker, 1)
    assert pool.map(["fine"])[0].value == "FINE"
    with ThreadPoolExecutor(2) as threads:
        found = [*threads.map(pool.map, (["sleep 900"] * 3, ["sleep 1", "exit"]))]
    pool.close()
    assert [[outcome.value for outcome in part] for part in found] == [
        ["SLEEP 900"] * 3,
        ["SLEEP 1", None],
    ]
    assert not pool._in_flight


def test_workers_lost_again_and_again_end_the_call(monkeypatch):
    monkeypatch.setattr(workers, "_MAX_LOSSES", 3)
    pool = WorkerPool(make_worker, 1)
    with pytest.raises(WorkersLostError, match=r"lost 3 times in a row: .*exit status 3"):
        pool.map(["exit"] * 5)
    assert [o.value for o in pool.map(["fine"])] == ["FINE"]
    pool.close()


def test_items_that_take_too_long_are_no_lost_workers(monkeypatch):
    monkeypatch.setattr(workers, "_MAX_LOSSES", 2)
    pool = WorkerPool(make_worker, 1, timeout=0.2)
    assert [o.late for o in pool.map(["hang"] * 3 + ["fine"])] == [True] * 3 + [False]
    pool.close()


def test_a_factory_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(workers, "_START_SECONDS", 1.0)
    with pytest.raises(WorkersLostError, match="did not start within 1 s"):
        WorkerPool(lambda: __import__("time").sleep(60), 1).map(["fine"])


SCRIPT = """
import os, sys, pathlib
print("once", flush=True)
sys.path.append(pathlib.Path("nowhere"))
sys.path.append(type("Finder", (), {{"__repr__": lambda self: "<a finder>"}})())
from irlkit.utils.workers import WorkerPool
offset = 40
def seen():
    def look(item):
        strange = [type(p).__name__ for p in sys.path if not isinstance(p, str)]
        return offset + item, os.readlink("/proc/self/fd/0"), strange, sys.stdin.read()
    return look
pool = WorkerPool(seen, 2)
for outcome in pool.map([1, 2]):
    print(outcome.value, outcome.error)
{rest}
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc")
@pytest.mark.parametrize("how", ["file", "input"])
def test_scripts_without_a_main_guard(how, tmp_path):
    """Functions of the main module are sent; it is not run again, and nothing else is inherited."""
    code = SCRIPT.format(rest="")
    path = tmp_path / "script.py"
    path.write_text(code)
    done = run("what the user types", str(path)) if how == "file" else run(code, "-")
    assert done.stdout.splitlines() == [
        "once",
        "(41, '/dev/null', [], '') None",
        "(42, '/dev/null', [], '') None",
    ]
    assert done.returncode == 0 and not done.stderr


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


BUSY = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # Also where tests begin with it ignored.
def busy():
    os.write(1, f"worker {os.getpid()}\\n".encode())  # At once: both workers write to one pipe.
    def forever(item):  # Nothing is kept: a worker that is not ended takes no memory.
        while True:
            pass
    return forever
WorkerPool(busy, 2).map([1, 2])
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_parent(how, tmp_path):
    """Neither an interrupt, which reaches workers as well, nor a kill, while they are busy."""
    code = SCRIPT.format(rest=BUSY)
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        pids = []
        while len(pids) < 2:  # What workers print comes on standard error.
            word, _, pid = process.stderr.readline().partition(" ")
            assert word in ("worker", "once\n"), word
            pids.append(int(pid))
        time.sleep(0.5)
        assert all(map(alive, pids))
        if how == signal.SIGINT:
            os.killpg(process.pid, how)
        else:
            process.kill()
        process.wait(timeout=120)
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, pids))


def test_without_semaphores_all_is_done_here(monkeypatch):
    def missing(*arguments, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", missing)
    pool = WorkerPool(make_worker, 2, timeout=0.3)
    with pytest.warns(UserWarning, match=r"shared memory \(/dev/shm\).*Read-only file system"):
        outcomes = pool.map(["fine", "raise", "hang"])
    assert [o.value for o in outcomes] == ["FINE", None, None]
    assert isinstance(outcomes[1].exception, ArithmeticError) and outcomes[2].late
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pool.map(["fine"])[0].value == "FINE", "it warns once"


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="n_workers must be 0"):
        WorkerPool(make_worker, -1)
    with pytest.raises(ValueError, match="timeout must be positive, in seconds, got nan"):
        WorkerPool(make_worker, 1, float("nan"))
    assert WorkerPool(make_worker, 1).map([]) == []
