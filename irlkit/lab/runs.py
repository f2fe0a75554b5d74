"""What runs have left in their folders: ``python -m irlkit.lab.runs list|show|compare``.

A run is a folder written by ``GRPOTrainer``, ``pretrain``, a notebook or a sweep. Files are only
read, and only as data: checkpoints by torch's restricted loader, tables as parquet.

    python -m irlkit.lab.runs list runs
    python -m irlkit.lab.runs show runs/04/training/seed_0
    python -m irlkit.lab.runs compare runs/04/training/seed_0 runs/04/training/seed_1
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from irlkit.lab.diagnostics import judge
from irlkit.lab.sweeps.store import SweepFolder
from irlkit.pretraining import FORMAT as PRETRAINING
from irlkit.utils.checks import checked

_CHECKPOINT, _HISTORY, _RESULTS, _SWEEP = (
    "checkpoint.pt",
    "history.parquet",
    "results.json",
    "sweep.json",
)
_SKIPPED = {"trials", "figures", "non_finite_rewards"}


@dataclass(frozen=True)
class Run:
    """What is known of a run.

    Attributes:
        path: its folder.
        kind: "grpo", "pretraining", "notebook" or "sweep".
        what: the policy, the model or the notebook's preset.
        state: "finished", "unfinished" (it runs, or was stopped), "unknown" (its files do not say
            how long it is to be), or "damaged".
        done: iterations or trials that are done.
        planned: how many there are to be; None where the run does not say.
        metric: name of the quantity of `last` and `best`.
        last: its last validated value.
        best: its best.
        best_at: iteration or trial of the best.
        seconds: of work, None if unknown.
        written: time of its last file, seconds since 1970.
        settings: flat.
        results: numbers to compare.
        history: a row per iteration or trial; empty if there is none.
        problems: what is wrong with its files.
    """

    path: Path
    kind: str
    what: str = ""
    state: str = "unfinished"
    done: int | None = None
    planned: int | None = None
    metric: str = ""
    last: float | None = None
    best: float | None = None
    best_at: int | None = None
    seconds: float | None = None
    written: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, float] = field(default_factory=dict)
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    problems: tuple[str, ...] = ()

    def verdicts(self) -> list[str]:
        """What the diagnostics say about the history of a GRPO run, in words."""
        if self.kind != "grpo" or not len(self.history):
            return []
        try:
            return [str(finding) for finding in judge(self.history)]
        except (ValueError, KeyError, TypeError) as error:
            return [f"the history cannot be judged: {error}"]


@checked
def find(root: str | Path) -> Iterator[Run]:
    """All runs in a folder and those below it, in the order of their paths.

    Raises:
        FileNotFoundError: no such folder.
    """
    if not Path(root).is_dir():
        raise FileNotFoundError(f"no folder {root}")
    for folder, names, files in os.walk(root):
        names[:] = sorted(n for n in names if not n.startswith(".") and n not in _SKIPPED)
        if {_CHECKPOINT, _HISTORY, _RESULTS, _SWEEP} & set(files):
            yield read(folder)


@checked
def read(path: str | Path) -> Run:
    """A run.

    What is wrong with its files is said in `problems`, and its state is then "damaged".

    Raises:
        FileNotFoundError: no such folder, or nothing of a run in it.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no folder {path}")
    there = [name for name in (_SWEEP, _RESULTS, _CHECKPOINT, _HISTORY) if (path / name).is_file()]
    if not there:
        raise FileNotFoundError(
            f"{path} holds no run: there is no {_CHECKPOINT}, {_HISTORY}, {_RESULTS} or {_SWEEP}"
        )
    reader = {_SWEEP: _read_sweep, _RESULTS: _read_notebook}.get(there[0], _read_training)
    problems: list[str] = []
    values = reader(path, problems)
    files = [*(path / name for name in there), *path.glob("trials/*/trial.json")]
    written = max(file.stat().st_mtime for file in files)
    state = values.pop("state", "unfinished")
    return Run(
        path=path,
        written=written,
        state="damaged" if problems else state,
        problems=tuple(problems),
        **values,
    )


# --------------------------------------------------------------------------------------------------
# Readers: each returns arguments of Run and adds to the problems
# --------------------------------------------------------------------------------------------------


def _read_training(path: Path, problems: list[str]) -> dict[str, Any]:
    checkpoint = _load_checkpoint(path / _CHECKPOINT, problems)
    history = _read_history(path / _HISTORY, problems)
    rows = checkpoint.get("history")
    if isinstance(rows, list) and len(rows) > len(history):
        # The file is written less often than the checkpoint.
        history = pd.DataFrame(rows)
    pretraining = checkpoint.get("format") == PRETRAINING
    if not checkpoint:
        pretraining = (path / "model.safetensors").exists() or "loss" in history
    try:
        summarise = _pretraining if pretraining else _grpo
        return summarise(checkpoint, history)
    except (KeyError, RecursionError, TypeError, ValueError, AttributeError) as error:
        problems.append(f"{_CHECKPOINT} lacks or has changed what it should hold ({error!r})")
        return {"kind": "pretraining" if pretraining else "grpo", "history": history}


def _load_checkpoint(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make torch.load raise nearly anything
        problems.append(f"{path.name} cannot be read ({type(error).__name__})")
        return {}
    if not isinstance(data, dict) or "iteration" not in data:
        problems.append(f"{path.name} is not a checkpoint of this package")
        return {}
    return data


def _read_history(path: Path, problems: list[str]) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame()
    try:
        return pd.read_parquet(path)
    except Exception as error:  # so can a damaged table
        problems.append(f"{path.name} cannot be read ({type(error).__name__})")
        return pd.DataFrame()


def _grpo(checkpoint: Mapping[str, Any], history: pd.DataFrame) -> dict[str, Any]:
    identity = checkpoint.get("identity", {})
    config = json.loads(identity.get("config", "{}"))
    settings = {"policy": identity.get("policy"), "noise": identity.get("noise"), **config}
    planned = config.get("iterations") or checkpoint.get("planned")
    done = checkpoint.get("iteration")
    if done is None and "iteration" in history and len(history):
        done = int(history["iteration"].max())
    times = [name for name in history if str(name).endswith("_seconds")]
    values = _best_and_last(history, "validation_reward", highest=True)
    results = dict(values.pop("results"))
    if "reward" in history and history["reward"].notna().any():
        results["training reward, mean of the last 10"] = float(
            history["reward"].dropna().tail(10).mean()
        )
    return {
        "kind": "grpo",
        "what": str(identity.get("policy", "")),
        "done": done,
        "planned": planned,
        "state": _state(done, planned),
        "seconds": float(history[times].sum().sum()) if times else None,
        "settings": _flat({k: v for k, v in settings.items() if v is not None}),
        "results": results,
        "history": history,
        **values,
    }


def _pretraining(checkpoint: Mapping[str, Any], history: pd.DataFrame) -> dict[str, Any]:
    config = dict(checkpoint.get("config", {}))
    done = checkpoint.get("iteration")
    if done is None and "iteration" in history and len(history):
        done = int(history["iteration"].max())
    planned = config.get("iterations")
    metric = "validation_loss" if "validation_loss" in history else "loss"
    values = _best_and_last(history, metric, highest=False)
    results = dict(values.pop("results"))
    for name in ("validation_metre", "validation_crmse"):
        if name in history and history[name].notna().any():
            results[f"{name}, last"] = float(history[name].dropna().iloc[-1])
    seconds = checkpoint.get("seconds")
    if seconds is None and "seconds" in history and len(history):
        seconds = float(history["seconds"].iloc[-1])
    return {
        "kind": "pretraining",
        "what": str(config.get("kind", "")),
        "done": done,
        "planned": planned,
        "state": _state(done, planned),
        "seconds": seconds,
        "settings": _flat(config),
        "results": results,
        "history": history,
        **values,
    }


def _state(done: int | None, planned: int | None) -> str:
    if planned is None:
        return "unknown"
    return "finished" if (done or 0) >= planned else "unfinished"


def _best_and_last(history: pd.DataFrame, metric: str, highest: bool) -> dict[str, Any]:
    if metric not in history or not history[metric].notna().any():
        return {"results": {}}
    rows = history.dropna(subset=[metric])
    order = rows[metric] if highest else -rows[metric]
    best = rows.iloc[int(order.to_numpy().argmax())]
    return {
        "metric": metric,
        "last": float(rows[metric].iloc[-1]),
        "best": float(best[metric]),
        "best_at": int(best["iteration"]),
        "results": {
            f"{metric}, first": float(rows[metric].iloc[0]),
            f"{metric}, best": float(best[metric]),
            f"{metric}, last": float(rows[metric].iloc[-1]),
            "iteration of the best": float(best["iteration"]),
        },
    }


def _read_notebook(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        data = json.loads((path / _RESULTS).read_text(encoding="utf-8"))
        parameters = dict(data["parameters"])
        claims = [dict(claim) for claim in data["claims"]]
        held = sum(bool(claim["holds"]) for claim in claims)
        times = data.get("environment", {}).get("seconds", {})
        return {
            "kind": "notebook",
            "what": str(parameters.get("preset", "")),
            "state": "finished",
            "done": held,
            "planned": len(claims),
            "metric": "claims that hold",
            "seconds": float(sum(times.values())) if times else None,
            "settings": _flat(parameters),
            "results": {c["claim"]: c["value"] for c in claims if c["value"] is not None},
            "history": _read_history(path / _HISTORY, problems),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problems.append(f"{_RESULTS} cannot be read ({type(error).__name__}: {error})")
        return {"kind": "notebook"}


def _read_sweep(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        sweep = SweepFolder.open(path)
        trials = sweep.trials()
    except (OSError, ValueError) as error:
        problems.append(str(error))
        return {"kind": "sweep"}
    done = int((trials["state"] != "running").sum())
    planned = sweep.planned()
    complete = trials[trials["state"] == "complete"]
    best = complete.iloc[int(complete["value"].to_numpy().argmax())] if len(complete) else None
    counts = {f"{state} trials": float(n) for state, n in trials["state"].value_counts().items()}
    settings = {"backend": sweep.backend, "seed": sweep.seed, "policy": sweep.space.policy}
    space = {name: row["values"] for name, row in sweep.space.table().iterrows()}
    return {
        "kind": "sweep",
        "what": f"{sweep.space.policy}, {sweep.backend}",
        "done": done,
        "planned": planned,
        "state": "unfinished" if planned is None or done < planned else "finished",
        "metric": "validation_reward",
        "last": None if best is None else float(complete["value"].iloc[-1]),
        "best": None if best is None else float(best["value"]),
        "best_at": None if best is None else int(best["number"]),
        "seconds": float(trials["seconds"].sum()),
        "settings": _flat({**settings, **sweep.objective, "space": space}),
        "results": counts
        if best is None
        else {**counts, "best value": float(best["value"]), "trial": float(best["number"])},
        "history": trials,
    }


def _flat(settings: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


# --------------------------------------------------------------------------------------------------
# For people
# --------------------------------------------------------------------------------------------------


@checked
def table(runs: Sequence[Run], root: str | Path = ".") -> pd.DataFrame:
    """One row per run: path, kind, what, state, done, last, best, at, time and written."""
    rows = [
        {
            "run": os.path.relpath(run.path, root),
            "kind": run.kind,
            "what": run.what,
            "state": run.state,
            "done": _progress(run),
            "metric": run.metric,
            "last": _number(run.last),
            "best": _number(run.best),
            "at": "" if run.best_at is None else str(run.best_at),
            "time": "" if run.seconds is None else _duration(run.seconds),
            "written": f"{_duration(time.time() - run.written)} ago",
        }
        for run in runs
    ]
    return pd.DataFrame(rows)


@checked
def compare(first: Run, second: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Settings that differ, and results side by side.

    Runs of one metric are also compared at the last iteration that both have validated.

    Returns:
        Two tables with columns "first" and "second"; that of results also "difference".

    Raises:
        ValueError: the runs are of different kinds.
    """
    if first.kind != second.kind:
        raise ValueError(
            f"a {first.kind} run and a {second.kind} run have nothing to compare: "
            f"{first.path}, {second.path}"
        )
    names = [*first.settings, *(name for name in second.settings if name not in first.settings)]
    settings = pd.DataFrame(
        [
            (name, first.settings.get(name, "-"), second.settings.get(name, "-"))
            for name in names
            if first.settings.get(name, "-") != second.settings.get(name, "-")
        ],
        columns=["setting", "first", "second"],
    ).set_index("setting")
    values = [dict(first.results), dict(second.results)]
    common = _last_common(first, second)
    for run, results in zip((first, second), values, strict=True):
        if common is not None:
            rows = run.history[run.history["iteration"] == common]
            results[f"{run.metric} at iteration {common}"] = float(rows[run.metric].iloc[-1])
        if run.done is not None and run.kind in ("grpo", "pretraining"):
            results["iterations"] = float(run.done)
        if run.seconds is not None:
            results["seconds"] = run.seconds
    names = [*values[0], *(name for name in values[1] if name not in values[0])]
    side_by_side = pd.DataFrame(
        [(name, values[0].get(name, math.nan), values[1].get(name, math.nan)) for name in names],
        columns=["result", "first", "second"],
    ).set_index("result")
    difference = side_by_side["second"] - side_by_side["first"]
    return settings, side_by_side.assign(difference=difference)


def _last_common(first: Run, second: Run) -> int | None:
    """The last iteration at which both were validated."""
    if not first.metric or first.metric != second.metric:
        return None
    validated = []
    for run in (first, second):
        if not {"iteration", run.metric} <= set(run.history):
            return None
        validated.append(set(run.history.dropna(subset=[run.metric])["iteration"]))
    common = validated[0] & validated[1]
    return int(max(common)) if common else None


def _progress(run: Run) -> str:
    if run.done is None:
        return ""
    return str(run.done) if run.planned is None else f"{run.done}/{run.planned}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{max(seconds, 0):.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} d"


def _print_run(run: Run) -> None:
    print(f"{run.path}: {run.kind} ({run.what})" if run.what else f"{run.path}: {run.kind}")
    unit = {"sweep": "trials", "notebook": "claims hold"}.get(run.kind, "iterations")
    line = run.state
    if run.done is not None:
        line += f", {_progress(run)} {unit}"
    if run.seconds is not None:
        line += f", {_duration(run.seconds)} of work"
    print(f"{line}, last written {_duration(time.time() - run.written)} ago")
    for problem in run.problems:
        print(f"problem: {problem}")
    if run.best is not None:
        print(f"{run.metric}: best {_number(run.best)} at {run.best_at}, last {_number(run.last)}")
    if run.results:
        print("results")
    for name, value in run.results.items():
        print(f"  {name}: {value:.4g}")
    if run.settings:
        print("settings")
        for name, value in run.settings.items():
            print(f"  {name}: {value}")
    verdicts = run.verdicts()
    if verdicts:
        print("verdicts")
    for verdict in verdicts:
        print(f"  {verdict}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (1: nothing there, or something damaged)."""
    parser = argparse.ArgumentParser(
        prog="python -m irlkit.lab.runs", description="List, show and compare what runs have left."
    )
    actions = parser.add_subparsers(dest="action", required=True)
    lister = actions.add_parser("list", help="all runs in a folder and below it")
    lister.add_argument("root", nargs="?", type=Path, default=Path("runs"))
    shower = actions.add_parser("show", help="one run: state, results, settings, verdicts")
    shower.add_argument("path", type=Path)
    comparer = actions.add_parser("compare", help="settings that differ, results side by side")
    comparer.add_argument("first", type=Path)
    comparer.add_argument("second", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.action == "list":
            return _list(options.root)
        if options.action == "show":
            run = read(options.path)
            _print_run(run)
            return int(bool(run.problems))
        first, second = read(options.first), read(options.second)
        settings, results = compare(first, second)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"first: {first.path} ({first.state})\nsecond: {second.path} ({second.state})\n")
    print(settings.to_string() if len(settings) else "no setting differs")
    print(
        "\n" + (results.to_string(float_format="{:.4g}".format) if len(results) else "no results")
    )
    for run in (first, second):
        for problem in run.problems:
            print(f"problem of {run.path}: {problem}")
    return int(bool(first.problems or second.problems))


def _list(root: Path) -> int:
    runs = list(find(root))
    if not runs:
        print(f"no runs in {root}")
        return 1
    print(table(runs, root).to_string(index=False))
    for run in runs:
        for problem in run.problems:
            print(f"{os.path.relpath(run.path, root)}: {problem}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
