"""Metrics of de novo generation for structures from anywhere, one row per structure.

irlkit evaluate structures.extxyz --training-set prototypes --relax --judge 7net-0 -o table.csv
"""

from __future__ import annotations

import argparse
import io
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from irlkit import potentials
from irlkit.data import load
from irlkit.evaluate.denovo import DeNovoMetrics, denovo
from irlkit.evaluate.evidence import Estimate
from irlkit.evaluate.hull import HULLS, Hull
from irlkit.evaluate.matching import MatchPool
from irlkit.evaluate.novelty import TOLERANCES
from irlkit.potentials import Potential
from irlkit.utils.system import check_writable, write_atomically

_TOLERANCES = {"mattergen": TOLERANCES, "match-rate": {}}
_ENDINGS = (".csv", ".parquet")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="irlkit evaluate", description=__doc__)
    parser.add_argument(
        "structures",
        help="file or folder that irlkit.data.load reads, such as .extxyz, .zip, .json",
    )
    parser.add_argument("--training-set", default="prototypes", help="name or path: what is known")
    parser.add_argument("--training-split", help="train, val or test; all without")
    parser.add_argument("--tolerances", choices=_TOLERANCES, default="mattergen", help="of a match")
    parser.add_argument("--potential", help="of energies, such as chgnet; without: none")
    parser.add_argument("--relax", action="store_true", help="relax (with chgnet unless told)")
    parser.add_argument("--hull", help="JSON of entries of the potential; chgnet needs none")
    parser.add_argument("--judge", help="another potential, such as 7net-0, and its hull")
    parser.add_argument("--judge-hull", help="JSON of entries of the judge; 7net-0 needs none")
    parser.add_argument("--max-steps", type=int, default=200, help="of a relaxation")
    parser.add_argument("--workers", type=int, help="processes that match; one per core without")
    parser.add_argument("-o", "--out", type=Path, help="table: .csv or .parquet")
    given = parser.parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(message, file=sys.stderr)
        try:
            metrics = _evaluate(given)
        except (ImportError, OSError, ValueError) as error:
            parser.error(str(error))
    print(_report(metrics, given))
    if given.out:
        _write(metrics, given.out)
        print(f"{len(metrics.table)} rows in {given.out}")


def _evaluate(given: argparse.Namespace) -> DeNovoMetrics:
    if given.out:
        if given.out.suffix.lower() not in _ENDINGS:
            raise ValueError(f"out must end with {' or '.join(_ENDINGS)}, got {given.out.name!r}")
        check_writable(given.out.parent)
    name = given.potential or ("chgnet" if given.relax else None)
    if given.judge and not name:
        raise ValueError("judge needs a potential to be compared with: give --potential")
    potential = potentials.get(name) if name else None
    judge = potentials.get(given.judge) if given.judge else None
    hull, judge_hull = _hull(given.hull, potential), _hull(given.judge_hull, judge)
    structures = load(given.structures, niggli=False)
    known = load(given.training_set, split=given.training_split)
    with MatchPool(given.workers, **_TOLERANCES[given.tolerances]) as pool:
        return denovo(
            structures,
            known,
            potential=potential,
            hull=hull,
            judge=judge,
            judge_hull=judge_hull,
            relax=given.relax,
            max_steps=given.max_steps,
            pool=pool,
            progress=True,
        )


def _hull(file: str | None, potential: Potential | None) -> Hull | None:
    """The hull of a potential, from a file or of the embedded data set."""
    if file is None:
        if potential is None or potential.name not in HULLS:
            return None
        return Hull.prototypes(potential=potential.name)
    if potential is None:
        raise ValueError(f"the hull {file} needs the potential of its energies: name it")
    return Hull.from_entries(file, potential.name)


def _report(metrics: DeNovoMetrics, given: argparse.Namespace) -> str:
    table = metrics.table
    unread = int(table["formula"].isna().sum())
    lines = [
        f"{len(table)} structures" + (f", {unread} of them could not be read" if unread else "")
    ]
    for name, of in (("energies", metrics.potential), ("judge", metrics.judge)):
        lines += [f"{name}: {of}"] if of else []
    for option, of in (("hull", metrics.potential), ("judge-hull", metrics.judge)):
        if of and of not in HULLS and not getattr(given, option.replace("-", "_")):
            lines.append(f"no hull is known for {of}, so nothing is said of stability: --{option}")
    lines.append(f"{'':28}{'value':>10}   95 % interval")
    lines += [_line(name, found) for name, found in metrics.summary().items()]
    if table["valid_composition"].isna().all():
        lines.append('valid_composition needs the package smact: pip install "irlkit[denovo]"')
    for name, of in (("covered", "hull"), ("judge_covered", "judge's hull")):
        if name in table and (missing := int((~table[name].astype(bool)).sum())):
            lines.append(
                f"{missing} structures are not covered by the {of}: they count as unstable"
            )
    return "\n".join(lines)


def _line(name: str, found: Estimate) -> str:
    if found.value != found.value:
        return f"{name:28}{'none':>10}"
    share = not name.startswith(("median", "wasserstein", "composition_diversity"))
    ends = [
        f"{100 * x:.1f} %" if share else f"{x:.3f}" for x in (found.value, found.low, found.high)
    ]
    return f"{name:28}{ends[0]:>10}   {ends[1]} to {ends[2]}"


def _write(metrics: DeNovoMetrics, path: Path) -> None:
    if path.suffix.lower() == ".csv":
        write_atomically(path, metrics.table.to_csv(index=False).encode())
    else:
        buffer = io.BytesIO()
        metrics.table.to_parquet(buffer, index=False)
        write_atomically(path, buffer.getvalue())


if __name__ == "__main__":
    main()
