"""Kills runs at random moments, continues them, and compares what they end with.

    python -m tests.kills 30              thirty trials of each kind
    python -m tests.kills 30 energy       of one

A trial is a run that is killed by SIGKILL up to three times and started again until it is done. Of
the kills, every other one comes at a moment that is uniform over the length of a run, the others in
the middle of writing a file: half-way through it, before it is synced, or before it is renamed.
"""

import argparse
import io
import json
import multiprocessing
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch

KINDS = ("pretraining", "annealing", "energy", "sweep")
BEGUN_AGAIN = {"pretraining": 2}
"""Iterations that a kill may cost; else 1, the one that was killed. Pretraining writes a checkpoint
beside the next iteration: it may lose that one, and the finished one that was being written."""
SECONDS = {"rollout_seconds", "reward_seconds", "update_seconds", "seconds", "training_seconds"}


@dataclass
class Count:
    """What was seen.

    Attributes:
        trials: runs that were killed at least once, and ended like the one that was not.
        by_clock: kills at a moment by the clock.
        in_writes: kills in the middle of writing a file.
        repeated: iterations begun again after each trial's kills, over the number of kills.
    """

    trials: int = 0
    by_clock: int = 0
    in_writes: int = 0
    repeated: list[float] = field(default_factory=list)

    def __str__(self):
        return (
            f"{self.trials} trials with {self.by_clock} kills by the clock and {self.in_writes} in "
            f"writes, all equal; iterations repeated per kill: mean "
            f"{sum(self.repeated) / len(self.repeated):.2f}, most {max(self.repeated):.2f}"
        )


def try_kills(kind: str, n_trials: int, folder: Path) -> Count:
    """Make trials of a kind; a trial in which no kill came in time is made again.

    Raises:
        AssertionError: a run did not end like the one that was not killed.
    """
    draws = random.Random(kind)
    process, log = _start(kind, folder / "whole")
    begun = time.monotonic()
    process.join()
    seconds = time.monotonic() - begun
    assert process.exitcode == 0, "the run fails without being killed"
    expected = contents(folder / "whole")
    n_iterations, n_places = (log.read_bytes().count(letter) for letter in (b"i", b"w"))
    count = Count()
    attempt = 0
    while count.trials < n_trials:
        attempt += 1
        assert attempt <= 3 * n_trials + 3, "runs end before they can be killed"
        path = folder / f"trial-{attempt}"
        clock, writes = _one_trial(kind, path, draws, seconds, n_places)
        ours = contents(path)
        assert ours.keys() == expected.keys(), (kind, attempt, ours.keys() ^ expected.keys())
        different = [name for name in expected if ours[name] != expected[name]]
        assert not different, (kind, attempt, different)
        if clock + writes:
            begun_again = _log(path).read_bytes().count(b"i") - n_iterations
            assert begun_again >= 0, (kind, attempt)
            allowed = BEGUN_AGAIN.get(kind, 1) * (clock + writes)
            assert begun_again <= allowed, (kind, attempt, begun_again)
            count.trials += 1
            count.by_clock += clock
            count.in_writes += writes
            count.repeated.append(begun_again / (clock + writes))
            print(f"{kind}: {count}", file=sys.stderr, flush=True)
    return count


def _one_trial(kind, path, draws, seconds, n_places):
    """Run, kill and continue until it is done; returns the kills by the clock and in writes."""
    kills = [0, 0]
    planned = draws.choice([[0], [1], [0, 1], [1, 0], [0, 1, 0], [1, 0, 1]])
    while True:
        in_write = planned.pop(0) if planned else None
        place = draws.randrange(n_places) if in_write else None
        process, _ = _start(kind, path, place)
        process.join(draws.uniform(0.0, seconds) if in_write == 0 else None)
        if process.exitcode is None:
            process.kill()
            process.join()
        if process.exitcode == 0:
            return kills
        assert process.exitcode == -signal.SIGKILL, (kind, path, process.exitcode)
        assert in_write is not None
        kills[in_write] += 1
        contents(path)  # what is there is whole: everything can be read


def _log(folder):
    return folder.with_name(folder.name + ".log")


def _start(kind, folder, place=None):
    folder.mkdir(parents=True, exist_ok=True)
    _log(folder).touch()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.killed_runs"])
    process = context.Process(target=_child, args=(kind, folder, _log(folder), place))
    process.start()
    return process, _log(folder)


def _child(*arguments):
    from tests.killed_runs import run

    run(*arguments)


# --------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, object]:
    """All that a run has left, without times of the clock."""
    found: dict[str, object] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if path.name.endswith(".tmp"):
            # Left by a kill; gone once the run has been continued.
            found[name] = "half-written"
        elif path.suffix == ".pt":
            found[name] = flat(torch.load(path, weights_only=True))
        elif path.suffix == ".parquet":
            table = pd.read_parquet(io.BytesIO(path.read_bytes()))
            found[name] = table[[c for c in table if c not in SECONDS]].to_csv()
        elif path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}
                metadata = {k: json.loads(v) for k, v in (file.metadata() or {}).items()}
            found[name] = flat([tensors, metadata])
        elif path.suffix == ".json":
            found[name] = flat(json.loads(path.read_text()))
        elif path.name == "sweep.jsonl":
            found[name] = optuna_trials(folder)
        elif path.suffix != ".lock" and path.name != ".lock":
            found[name] = path.read_bytes()
    return found


def flat(value, name=""):
    """Everything in a nested value as text and bytes that can be compared."""
    if isinstance(value, dict):
        return [x for k, v in value.items() if k not in SECONDS for x in flat(v, f"{name}.{k}")]
    if isinstance(value, list | tuple):
        return [x for i, v in enumerate(value) for x in flat(v, f"{name}.{i}")]
    if isinstance(value, torch.Tensor):
        return [(name, value.dtype, tuple(value.shape), value.numpy().tobytes())]
    return [(name, repr(value))]


def optuna_trials(folder):
    """What Optuna's journal says, if it has begun; its times are those of the clock."""
    from irlkit.lab.sweeps import open_study

    try:
        trials = open_study(folder).trials
    except ValueError:
        trials = []
    return [
        (trial.number, trial.state.name, trial.value, trial.params, trial.intermediate_values)
        for trial in trials
    ]


def main(arguments=None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("n_trials", type=int, help="of each kind")
    parser.add_argument("kinds", nargs="*", default=KINDS, help=f"of {', '.join(KINDS)}")
    options = parser.parse_args(arguments)
    failed = False
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as folder:
            try:
                print(f"{kind}: {try_kills(kind, options.n_trials, Path(folder))}", flush=True)
            except AssertionError as error:
                failed = True
                print(f"{kind}: NOT EQUAL {error}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
