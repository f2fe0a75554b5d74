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
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from irlkit.lab.diagnostics import judge
from irlkit.pretraining import FORMAT as PRETRAINING

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
        metric: column of `history` that says how good it is.
        lower: whether a lower metric is better.
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
    done: int | None = None
    planned: int | None = None
    metric: str = ""
    lower: bool = False
    seconds: float | None = None
    written: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, float] = field(default_factory=dict)
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    problems: tuple[str, ...] = ()

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
    def values(self) -> pd.Series:
        """Return the metric by iteration or trial, where it was measured."""
        if not {"iteration", self.metric} <= set(self.history):
            return pd.Series(dtype=float)
        return self.history.set_index("iteration")[self.metric].dropna()

    @property
    def best_at(self) -> int | None:
        """Return the iteration or the trial of the best value; None if there is none."""
        values = self.values
        if not len(values):
            return None
        return int(values.index[int(values.argmin() if self.lower else values.argmax())])

    def verdicts(self) -> list[str]:
        """Return what the diagnostics say about the history of a GRPO run, in words."""
        if self.kind != "grpo" or not len(self.history):
            return []
        try:
            return [str(finding) for finding in judge(self.history)]
        except (ValueError, KeyError, TypeError) as error:
            return [f"the history cannot be judged: {error}"]


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
    readers = {_SWEEP: _read_sweep, _RESULTS: _read_notebook, _CHECKPOINT: _read_training}
    there = [name for name in (*readers, _HISTORY) if (path / name).is_file()]
    if not there:
        raise FileNotFoundError(
            f"{path} holds no run: there is no {_CHECKPOINT}, {_HISTORY}, {_RESULTS} or {_SWEEP}"
        )
    problems: list[str] = []
    known: dict[str, Any] = {}
    try:
        readers.get(there[0], _read_training)(path, problems, known)
    except Exception as error:  # a damaged file can hold nearly anything
        problems.append(f"{there[0]} lacks or has changed what it should hold ({error!r})")
    known.setdefault("kind", {_SWEEP: "sweep", _RESULTS: "notebook"}.get(there[0], "grpo"))
    written = max((path / name).stat().st_mtime for name in there)
    return Run(path=path, written=written, problems=tuple(problems), **known)


# Readers put what they find into arguments of Run, and say what they cannot read.


def _load(path: Path, load: Callable[[Path], Any], empty: Any, problems: list[str]) -> Any:
    if not path.is_file():
        return empty
    try:
        return load(path)
    except Exception as error:  # a damaged file can make a reader raise nearly anything
        problems.append(f"{path.name} cannot be read ({type(error).__name__})")
        return empty


def _load_checkpoint(path: Path) -> dict[str, Any]:
    data = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(data, dict) or "iteration" not in data:
        raise ValueError("not a checkpoint of this package")
    return data


def _read_training(path: Path, problems: list[str], known: dict[str, Any]) -> None:
    checkpoint = _load(path / _CHECKPOINT, _load_checkpoint, {}, problems)
    history = _load(path / _HISTORY, pd.read_parquet, pd.DataFrame(), problems)
    rows = checkpoint.get("history")
    if isinstance(rows, list) and len(rows) > len(history):
        # The file is written less often than the checkpoint.
        history = pd.DataFrame(rows)
    pretraining = checkpoint.get("format") == PRETRAINING
    if not checkpoint:
        pretraining = (path / "model.safetensors").exists() or "loss" in history
    known.update(kind="pretraining" if pretraining else "grpo", history=history)
    known["done"] = checkpoint.get("iteration")
    if known["done"] is None and "iteration" in history and len(history):
        known["done"] = int(history["iteration"].max())
    if pretraining:
        settings = dict(checkpoint.get("config", {}))
        known["what"] = str(settings.get("kind", ""))
        known["metric"] = "validation_loss" if "validation_loss" in history else "loss"
        known["lower"] = True
        known["seconds"] = checkpoint.get("seconds")
    else:
        identity = checkpoint.get("identity", {})
        settings = {name: identity.get(name) for name in ("policy", "noise")}
        settings |= json.loads(identity.get("config", "{}"))
        known["what"] = str(settings["policy"] or "")
        known["metric"] = "validation_reward"
        times = history[[name for name in history if str(name).endswith("_seconds")]]
        known["seconds"] = float(times.sum().sum()) if times.size else None
    known["planned"] = settings.get("iterations") or checkpoint.get("planned")
    known["settings"] = _flat({k: v for k, v in settings.items() if v is not None})
    known["results"] = {
        f"{name}, last": float(history[name].dropna().iloc[-1])
        for name in map(str, history)
        if name.startswith(("validation_", "reward", "loss")) and _has_numbers(history[name])
    }


def _has_numbers(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and bool(column.notna().any())


def _read_notebook(path: Path, problems: list[str], known: dict[str, Any]) -> None:
    data = json.loads((path / _RESULTS).read_text(encoding="utf-8"))
    claims = [dict(claim) for claim in data["claims"]]
    times = data.get("environment", {}).get("seconds", {})
    known.update(
        what=str(data["parameters"].get("preset", "")),
        done=sum(bool(claim["holds"]) for claim in claims),
        planned=len(claims),
        seconds=float(sum(times.values())) if times else None,
        settings=_flat(data["parameters"]),
        results={c["claim"]: float(c["value"]) for c in claims if c["value"] is not None},
        history=_load(path / _HISTORY, pd.read_parquet, pd.DataFrame(), problems),
    )


def _read_sweep(path: Path, problems: list[str], known: dict[str, Any]) -> None:
    # Optuna is no part of the smallest installation.
    from irlkit.lab.sweeps.study import open_study, trials_table

    study = open_study(path)
    trials = trials_table(study)
    complete = trials["value"].where(trials["state"] == "complete")
    settings = study.user_attrs["sweep"]
    known.update(
        what=str(settings["space"]["policy"]),
        done=int((trials["state"] != "running").sum()),
        planned=study.user_attrs.get("n_trials"),
        metric="validation_reward",
        seconds=float(trials["seconds"].sum()),
        settings=_flat({"space": settings["space"], **settings["objective"]}),
        results={
            f"{state} trials": float(n) for state, n in trials["state"].value_counts().items()
        },
        history=trials.assign(iteration=trials["number"], validation_reward=complete),
    )


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


def table(runs: Sequence[Run], root: str | Path = ".") -> pd.DataFrame:
    """Return one row per run, as text: what it is, how far it got, how good it is."""
    rows = []
    for run in runs:
        values, at = run.values, run.best_at
        rows.append(
            {
                "run": os.path.relpath(run.path, root),
                "kind": run.kind,
                "what": run.what,
                "state": run.state,
                "done": _progress(run),
                "metric": "" if at is None else run.metric,
                "last": "" if at is None else f"{values.iloc[-1]:.4f}",
                "best": "" if at is None else f"{values[at]:.4f}",
                "at": "" if at is None else str(at),
                "time": "" if run.seconds is None else _duration(run.seconds),
                "written": f"{_duration(time.time() - run.written)} ago",
            }
        )
    return pd.DataFrame(rows)


def compare(first: Run, second: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the settings that differ, and the results side by side.

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
    runs = {"first": first, "second": second}
    settings = pd.DataFrame({k: pd.Series(r.settings, dtype=object) for k, r in runs.items()})
    settings = settings.where(settings.notna(), "-")
    settings = settings[[a != b for a, b in settings.itertuples(index=False)]]
    common = first.values.index.intersection(second.values.index)
    columns = {}
    for name, run in runs.items():
        results: dict[str, Any] = dict(run.results)
        if run.best_at is not None:
            results[f"{run.metric}, best"] = run.values[run.best_at]
        if len(common) and first.metric == second.metric:
            results[f"{run.metric} at iteration {common.max()}"] = run.values[common.max()]
        results |= {"done": run.done, "seconds": run.seconds}
        columns[name] = pd.Series(results, dtype=float)
    side_by_side = pd.DataFrame(columns).dropna(how="all")
    return settings, side_by_side.assign(difference=side_by_side["second"] - side_by_side["first"])


def _progress(run: Run) -> str:
    if run.done is None:
        return ""
    return str(run.done) if run.planned is None else f"{run.done}/{run.planned}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{max(seconds, 0):.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} d"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (1: nothing there, or something damaged)."""
    parser = argparse.ArgumentParser(
        prog="python -m irlkit.lab.runs", description="List, show and compare what runs have left."
    )
    actions = parser.add_subparsers(required=True)
    lister = actions.add_parser("list", help="all runs in a folder and below it")
    lister.add_argument("root", nargs="?", type=Path, default=Path("runs"))
    lister.set_defaults(action=_list)
    shower = actions.add_parser("show", help="one run: state, results, settings, verdicts")
    shower.add_argument("path", type=Path)
    shower.set_defaults(action=_show)
    comparer = actions.add_parser("compare", help="settings that differ, results side by side")
    comparer.add_argument("first", type=Path)
    comparer.add_argument("second", type=Path)
    comparer.set_defaults(action=_compare)
    options = parser.parse_args(arguments)
    try:
        return options.action(options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _list(options: argparse.Namespace) -> int:
    runs = list(find(options.root))
    if not runs:
        print(f"no runs in {options.root}")
        return 1
    print(table(runs, options.root).to_string(index=False))
    _print_problems(*runs)
    return 0


def _show(options: argparse.Namespace) -> int:
    run = read(options.path)
    line = table([run]).iloc[0]
    print(f"{run.path}: {run.kind} ({run.what})" if run.what else f"{run.path}: {run.kind}")
    print(f"{run.state}, {line['done']} {_UNITS.get(run.kind, 'iterations')}")
    print(f"{line['time'] or '?'} of work, last written {line['written']}")
    if line["best"]:
        print(f"{run.metric}: best {line['best']} at {line['at']}, last {line['last']}")
    _print_problems(run)
    sections = {"results": run.results, "settings": run.settings}
    for title, entries in sections.items():
        print("\n".join([title, *(f"  {name}: {value}" for name, value in entries.items())]))
    print("\n".join(["verdicts", *(f"  {verdict}" for verdict in run.verdicts())]))
    return int(bool(run.problems))


def _compare(options: argparse.Namespace) -> int:
    first, second = read(options.first), read(options.second)
    settings, results = compare(first, second)
    print(f"first: {first.path} ({first.state})\nsecond: {second.path} ({second.state})\n")
    print(settings.to_string() if len(settings) else "no setting differs")
    print(f"\n{results.to_string(float_format='{:.4g}'.format)}")
    _print_problems(first, second)
    return int(bool(first.problems or second.problems))


def _print_problems(*runs: Run) -> None:
    for run in runs:
        for problem in run.problems:
            print(f"problem of {run.path}: {problem}")


if __name__ == "__main__":
    sys.exit(main())
