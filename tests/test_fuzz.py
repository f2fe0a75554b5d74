"""Broken files: the fast part of `python -m tests.fuzz`, see tests/README.md."""

import os
import signal

import pytest

from tests import fuzz

N = int(os.environ.get("IRLKIT_FUZZ", "280"))
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs limits of processes")


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    reader = fuzz.Reader(tmp_path_factory.mktemp("fuzz").resolve())
    yield reader
    reader.stop()


def test_mutated_files_are_read_or_refused(reader):
    # Seeds that the full set does not begin with, so that both together see more.
    counts, findings, longest = fuzz.run(N, first=1_000_000, reader=reader)
    assert not findings, findings
    assert longest < fuzz.SECONDS
    results = sum(counts.values(), fuzz.collections.Counter())
    assert results.total() == N
    # Mutations that only ever broke files, or never did, would show nothing.
    assert results["read"] > N / 20 and results["ValueError"] > N / 20


def test_a_process_that_ends_is_a_crash_and_one_that_waits_a_hang(reader, monkeypatch):
    if reader.process is None:
        reader.start()
    reader.process.kill()
    assert reader.ask("txt", 1)["result"] == "crash"
    assert reader.ask("txt", 2)["result"] in ("read", "skipped", "refused")
    os.kill(reader.process.pid, signal.SIGSTOP)
    monkeypatch.setattr(fuzz, "SECONDS", 0.1)
    assert reader.ask("txt", 3)["result"] == "hang"
    assert reader.process is None
