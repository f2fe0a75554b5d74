"""What runs have left in their folders: ``irlkit runs list|show``.

A run is a folder written by ``GRPOTrainer``, ``pretrain``, a notebook or a sweep. Files are only
read, and only as data: checkpoints by torch's restricted loader, tables as parquet.

    irlkit runs list runs
    irlkit runs show runs/04/training/seed_0
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from irlkit.lab.diagnostics import Finding, judge
from irlkit.pretraining._loop import FORMAT as PRETRAINING
from irlkit.utils.foreign import load_plain

_CHECKPOINT, _HISTORY, _RESULTS = "checkpoint.pt", "history.parquet", "results.json"
_SWEEP = "sweep.jsonl"
_SKIPPED = {"trials", "figures", "non_finite_rewards"}
_UNITS = {"sweep": "trials", "notebook": "claims hold"}


@dataclass(frozen=True)
class Run:
    """What is known of a run.

    Attributes:
        path: its folder.
        kind: "grpo", "pretraining", "notebook" or "sweep".
        what: the policy, the model or the notebook's preset.
        done: iterations or trials that are done, or claims that hold.
        planned: how many there are to be; None where the run does not say.
        seconds: of work, None if unknown.
        written: time of its last file, seconds since 1970.
        settings: flat.
        history: a row per iteration or trial; empty if there is none.
        values: what says how good it is, by iteration or trial, where it was measured; a loss, or
            else something of which more is better.
        verdicts: what the diagnostics say of a GRPO run, the worst first.
        problems: what is wrong with its files.
    """

    path: Path
    kind: str
    what: str = ""
    done: int | None = None
    planned: int | None = None
    seconds: float | None = None
    written: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    values: pd.Series = field(default_factory=lambda: pd.Series(dtype=float, name=""))
    verdicts: Sequence[Finding] = ()
    problems: Sequence[str] = ()

    @property
    def state(self) -> str:
        """Return "finished", "unfinished" (it runs, or was stopped), "damaged" or "unknown"."""
        if self.problems:
            return "damaged"
        if self.kind == "notebook":
            return "finished"
        if self.planned is None:
            return "unknown"
        return "finished" if (self.done or 0) >= self.planned else "unfinished"

    @property
    def best(self) -> tuple[int, float] | None:
        """Return the iteration or the trial of the best value, and the value, if there is one."""
        if not len(self.values):
            return None
        loss = str(self.values.name).endswith("loss")
        place = int(self.values.argmin() if loss else self.values.argmax())
        return int(self.values.index[place]), float(self.values.iloc[place])


def find(root: str | Path) -> Iterator[Run]:
    """Read all runs in a folder and those below it, in the order of their paths.

    Raises:
        FileNotFoundError: no such folder.
    """
    if not Path(root).is_dir():
        raise FileNotFoundError(f"no folder {root}")
    for folder, names, files in os.walk(root):
        names[:] = sorted(n for n in names if not n.startswith(".") and n not in _SKIPPED)
        if {_CHECKPOINT, _HISTORY, _RESULTS, _SWEEP} & set(files):
            yield read(folder)


def read(path: str | Path) -> Run:
    """Read a run; what is wrong with its files is said in `problems`.

    Raises:
        FileNotFoundError: no such folder, or nothing of a run in it.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no folder {path}")
    kinds = {_SWEEP: ("sweep", _read_sweep), _RESULTS: ("notebook", _read_notebook)}
    kinds |= dict.fromkeys((_CHECKPOINT, _HISTORY), ("grpo", _read_training))
    there = [name for name in kinds if (path / name).is_file()]
    if not there:
        raise FileNotFoundError(
            f"{path} holds no run: there is no {_CHECKPOINT}, {_HISTORY}, {_RESULTS} or {_SWEEP}"
        )
    kind, reader = kinds[there[0]]
    problems: list[str] = []
    try:
        known = reader(path, problems)
    except Exception as error:  # a damaged file can hold nearly anything
        problems.append(f"{there[0]} lacks or has changed what it should hold ({error!r})")
        known = {}
    written = max((path / name).stat().st_mtime for name in there)
    return Run(path, **{"kind": kind, **known}, written=written, problems=problems)


# Readers return arguments of Run, and add to the problems.


def _load(path: Path, load: Callable[[Path], Any], empty: Any, problems: list[str]) -> Any:
    if not path.is_file():
        return empty
    try:
        return load(path)
    except Exception as error:  # a damaged file can make a reader raise nearly anything
        problems.append(f"{path.name} cannot be read ({type(error).__name__})")
        return empty


def _read_training(path: Path, problems: list[str]) -> dict[str, Any]:
    checkpoint = _load(path / _CHECKPOINT, load_plain, {}, problems)
    if checkpoint and not (isinstance(checkpoint, dict) and "iteration" in checkpoint):
        problems.append(f"{_CHECKPOINT} cannot be read (no checkpoint of this package)")
        checkpoint = {}
    history = _load(path / _HISTORY, pd.read_parquet, pd.DataFrame(), problems)
    if "history" in checkpoint:  # The table is written less often, and can be an earlier run's.
        history = pd.DataFrame(checkpoint["history"])
    by_iteration = history.set_index("iteration") if len(history) else history
    if checkpoint.get("format") == PRETRAINING or "loss" in history:
        kind, metric = "pretraining", "validation_loss"
        settings = dict(checkpoint.get("config", {}))
        what, seconds = settings.get("kind"), checkpoint.get("seconds")
    else:
        kind, metric = "grpo", "validation_reward"
        identity = checkpoint.get("identity", {})
        settings = {name: identity[name] for name in ("policy", "noise") if name in identity}
        settings |= json.loads(identity.get("config", "{}"))
        times = history.filter(regex="_seconds$")
        what, seconds = settings.get("policy"), float(times.sum().sum()) if times.size else None
    return {
        "kind": kind,
        "what": what or "",
        "done": checkpoint.get("iteration", max(by_iteration.index, default=None)),
        # A run may be longer than its settings say, and shorter so far.
        "planned": max(
            filter(None, (checkpoint.get("planned"), settings.get("iterations"))), default=None
        ),
        "seconds": seconds,
        "settings": _flat({k: v for k, v in settings.items() if v is not None}),
        "history": history,
        "values": by_iteration.get(metric, pd.Series(dtype=float)).dropna(),
        "verdicts": judge(history) if kind == "grpo" and len(history) else (),
    }


def _read_notebook(path: Path, problems: list[str]) -> dict[str, Any]:
    data = json.loads((path / _RESULTS).read_text(encoding="utf-8"))
    claims = [dict(claim) for claim in data["claims"]]
    times = data.get("environment", {}).get("seconds", {})
    return {
        "what": str(data["parameters"].get("preset", "")),
        "done": sum(bool(claim["holds"]) for claim in claims),
        "planned": len(claims),
        "seconds": float(sum(times.values())) if times else None,
        "settings": _flat(data["parameters"]),
        "history": _load(path / _HISTORY, pd.read_parquet, pd.DataFrame(), problems),
    }


def _read_sweep(path: Path, problems: list[str]) -> dict[str, Any]:
    # Optuna is no part of the smallest installation.
    from irlkit.lab.sweeps.study import open_study, trials_table

    study = open_study(path)
    trials = trials_table(study)
    complete = trials[trials["state"] == "complete"].set_index("number")
    about = study.user_attrs["sweep"]
    return {
        "what": about["space"]["policy"],
        "done": int((trials["state"] != "running").sum()),
        "planned": study.user_attrs.get("n_trials"),
        "seconds": float(trials["seconds"].sum()),
        "settings": _flat({"space": about["space"], **about["objective"]}),
        "history": trials,
        "values": complete["value"].rename("validation_reward"),
    }


def _flat(settings: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


# --- For people ---


def table(runs: Sequence[Run], root: str | Path = ".") -> pd.DataFrame:
    """Return one row per run, as text: what it is, how far it got, how good it is."""
    rows = []
    for run in runs:
        done = "" if run.done is None else str(run.done)
        at, best = ("", "") if run.best is None else (str(run.best[0]), f"{run.best[1]:.4f}")
        rows.append(
            {
                "run": os.path.relpath(run.path, root),
                "kind": run.kind,
                "what": run.what,
                "state": run.state,
                "verdict": run.verdicts[0].severity if run.verdicts else "",
                "done": done if run.planned is None else f"{done}/{run.planned}",
                "metric": run.values.name if best else "",
                "last": f"{run.values.iloc[-1]:.4f}" if best else "",
                "best": best,
                "at": at,
                "time": "" if run.seconds is None else _duration(run.seconds),
                "written": f"{_duration(time.time() - run.written)} ago",
            }
        )
    return pd.DataFrame(rows)


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (1: nothing there, or something damaged)."""
    parser = argparse.ArgumentParser(
        prog="irlkit runs", description="List and show what runs have left."
    )
    actions = parser.add_subparsers(dest="action", required=True)
    lister = actions.add_parser("list", help="all runs in a folder and below it")
    lister.add_argument("path", nargs="?", type=Path, default=Path("runs"))
    shower = actions.add_parser("show", help="one run: state, verdicts, settings")
    shower.add_argument("path", type=Path)
    options = parser.parse_args(arguments)
    try:
        runs = list(find(options.path)) if options.action == "list" else [read(options.path)]
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not runs:
        print(f"no runs in {options.path}")
        return 1
    if options.action == "list":
        print(table(runs, options.path).to_string(index=False))
    else:
        _show(runs[0])
    for run in runs:
        for problem in run.problems:
            print(f"problem of {run.path}: {problem}")
    return int(options.action == "show" and bool(runs[0].problems))


def _show(run: Run) -> None:
    line = table([run]).iloc[0]
    print(f"{run.path}: {run.kind} ({run.what})" if run.what else f"{run.path}: {run.kind}")
    print(f"{run.state}, {line['done']} {_UNITS.get(run.kind, 'iterations')}")
    print(f"{line['time'] or '?'} of work, last written {line['written']}")
    if line["best"]:
        print(f"{line['metric']}: best {line['best']} at {line['at']}, last {line['last']}")
    settings = [f"{name}: {value}" for name, value in run.settings.items()]
    for title, entries in (("verdicts", run.verdicts), ("settings", settings)):
        print("\n  ".join([title, *map(str, entries)]))


if __name__ == "__main__":
    sys.exit(main())
