"""Claims about measured numbers, computed and not written; their targets stand here before a run.

Every claim is a comparison with an interval, and beside it stands what the same comparison gives
for a control that learned nothing. What the control satisfies is no evidence of learning: a guard.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from irlkit.evaluate.evidence import Bootstrap, Estimate
from irlkit.utils.checks import checked

Kind = Literal["claim", "aim", "guard"]


@checked
@dataclass(frozen=True)
class Claim:
    """A statement and what was measured.

    >>> Claim.check("cRMSE of ours minus theirs", -0.02, "< 0", control=0.0).verdict
    'holds'
    >>> Claim.check("METRe of ours relative to theirs", 0.98, ">= 0.97", control=0.99).kind
    'guard'

    Attributes:
        claim: the statement.
        target: what the number has to be, such as ">= 0.97", decided before it was measured.
        value: the measured number, None if there is none.
        low, high: its 95 % interval, None where there is none (or no end).
        control: the number of what learned nothing; None where there is no such thing.
        verdict: "holds" or "fails", if all of the interval does, or "undecided".
        kind: "claim"; "aim", beyond the claims; or "guard": what the control satisfies as well.
    """

    claim: str
    target: str
    value: float | None
    low: float | None
    high: float | None
    control: float | None
    verdict: str
    kind: str = "claim"

    @classmethod
    @checked
    def check(
        cls,
        claim: str,
        value: float | Estimate,
        target: str,
        kind: Kind = "claim",
        control: float | Estimate | None = None,
    ) -> Claim:
        """Judge a number by a target; a number without an interval is judged as it is."""
        found = value if isinstance(value, Estimate) else Estimate.of(value)
        beside = control
        if not isinstance(beside, Estimate):
            beside = Estimate.of(math.nan if beside is None else float(beside))
        if beside.verdict(target) == "holds":
            kind = "guard"
        has_ends = isinstance(value, Estimate)
        return cls(
            claim,
            target,
            _finite(found.value),
            _finite(found.low) if has_ends else None,
            _finite(found.high) if has_ends else None,
            _finite(beside.value),
            found.verdict(target),
            kind,
        )

    @property
    def holds(self) -> bool:
        """Whether the whole interval is on the right side."""
        return self.verdict == "holds"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


class _WideTable(pd.DataFrame):
    """Whose texts are never cut when a notebook shows it."""

    def _repr_html_(self) -> str | None:
        with pd.option_context("display.max_colwidth", None):
            return super()._repr_html_()  # type: ignore[misc]


@checked
def claims_table(claims: Sequence[Claim]) -> pd.DataFrame:
    """Return claims as a table for people, numbered from 1; see ``Claim`` for the columns.

    Raises:
        ValueError: there is none.
    """
    if not len(claims):
        raise ValueError("claims must hold at least one claim, got none")
    rows = [
        {
            "claim": claim.claim,
            "kind": claim.kind,
            "value": _text(claim.value) or "not measured",
            "95 % interval": _interval(claim),
            "control": _text(claim.control),
            "target": claim.target.replace(" ", "\u00a0"),  # On one line.
            "verdict": claim.verdict,
        }
        for claim in claims
    ]
    return _WideTable(rows, index=range(1, len(claims) + 1))


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _interval(claim: Claim) -> str:
    if claim.low is None and claim.high is None:
        return ""
    text = f"{_text(claim.low) or 'no end'} to {_text(claim.high) or 'no end'}"
    return text.replace(" ", "\u00a0")


# --- For the claims of all notebooks ---


def _verdicts_in_words(claims: Sequence[Claim]) -> str:
    """Which claims, aims and guards hold, fail or are undecided, in Markdown."""
    words = {"holds": ("holds", "hold"), "fails": ("fails", "fail")}
    words["undecided"] = ("is undecided", "are undecided")
    parts = []
    for kind, title in (("claim", "Claims"), ("aim", "Aims"), ("guard", "Guards")):
        found = []
        for verdict, (one, several) in words.items():
            judged = [(claim.kind, claim.verdict) for claim in claims]
            numbers = [str(i) for i, of in enumerate(judged, start=1) if of == (kind, verdict)]
            if numbers:
                verb = one if len(numbers) == 1 else several
                found.append(f"{len(numbers)} {verb} (number {', '.join(numbers)})")
        if found:
            parts.append(f"**{title}:** {'; '.join(found)}.")
    return " ".join(parts)


def _paired_change(before: np.ndarray, after: np.ndarray) -> Estimate:
    """The mean change of a number where it is there before and after; of two structures or more.

    Its interval is from a bootstrap over structures, each of which begins with the same noise.
    """
    change = (after - before)[np.isfinite(before) & np.isfinite(after)]
    if len(change) < 2:
        return Estimate.of(math.nan)
    return Estimate.of(Bootstrap([str(i) for i in range(len(change))]).mean(change))


def _with_range(values: pd.Series) -> str:
    """The mean as text, with the range where there are several numbers."""
    values = values.dropna()
    if not len(values):
        return ""
    text = f"{values.mean():.3f}"
    return text if len(values) == 1 else f"{text} ({values.min():.3f} to {values.max():.3f})"


@dataclass(frozen=True)
class _Group:
    """Evaluations with some labels.

    Attributes:
        name: for people.
        labels: column -> value; None: missing.
        control: the same of what learned nothing; None: it is what it is without learning.
    """

    name: str
    labels: Mapping[str, Any]
    control: _Group | None = None


_VALUES: Mapping[str, Callable[[pd.DataFrame, float], pd.Series]] = {
    "metre": lambda table, stol: table["best_rmsd"].notna(),
    "crmse": lambda table, stol: table["best_rmsd"].fillna(stol),
    "match_rate": lambda table, stol: table["rmsd"].notna(),
    "rmse": lambda table, stol: table["rmsd"],
    "polymorph_match_rate": lambda table, stol: table["polymorph_rmsd"].notna(),
    "invalid_rate": lambda table, stol: table["energy_above_reference"].isna(),
    "energy_above_reference": lambda table, stol: table["energy_above_reference"],
}
"""Metric -> its value for each structure, whose mean it is; nan where it does not exist."""


class _Evidence:
    """Compares groups of evaluations, structure by structure.

    Args:
        evaluated: labels and a row per structure of each evaluation, all of the same structures;
            labels have seed (of base samples) and training_seed, nan where nothing was trained.
        metrics: names for people.
        stol: the displacement of references without a match.
    """

    def __init__(
        self,
        evaluated: Iterable[tuple[Mapping[str, Any], pd.DataFrame]],
        metrics: Mapping[str, str],
        stol: float = 0.5,
    ) -> None:
        self._evaluated, self._metrics, self._stol = list(evaluated), metrics, stol
        if not self._evaluated:
            raise ValueError("nothing was evaluated yet, so that nothing can be claimed")
        self.draw = Bootstrap(self._evaluated[0][1]["formula"].to_numpy())

    def values(self, metric: str, *groups: _Group) -> list[np.ndarray]:
        """Values of each group, shape (n_training, n_base, n_structures), for seeds of all."""
        found = [self._select(group.labels) for group in groups]
        seeds = sorted(set.intersection(*({seed for _, seed in tables} for tables in found)))
        if not seeds:
            return [np.full((1, 1, len(self._evaluated[0][1])), np.nan)] * len(groups)
        arrays = []
        for tables in found:
            trained = sorted({training for training, _ in tables})
            values = np.full((len(trained), len(seeds), len(self._evaluated[0][1])), np.nan)
            for (training, seed), table in tables.items():
                if seed in seeds:
                    of = _VALUES[metric](table, self._stol).to_numpy(dtype=float)
                    values[trained.index(training), seeds.index(seed)] = of
            arrays.append(values)
        # Where not every pair of seeds was evaluated, only those that all have are compared.
        shape = max(array.shape[:2] for array in arrays)
        missing = np.zeros(shape, bool)
        for array in arrays:
            if array.shape[:2] == shape:
                missing |= np.isnan(array).all(2)
        return [
            np.where(missing[..., None], np.nan, a) if a.shape[:2] == shape else a for a in arrays
        ]

    def _select(self, labels: Mapping[str, Any]) -> dict[tuple[int, int], pd.DataFrame]:
        """(training seed, seed) -> rows; -1 where nothing was trained."""
        return {
            (int(-1 if pd.isna(t := row["training_seed"]) else t), int(row["seed"])): table
            for row, table in self._evaluated
            if all(
                pd.isna(row[name]) if value is None else row[name] == value
                for name, value in labels.items()
            )
        }

    def check(
        self,
        metric: str,
        ours: _Group,
        theirs: _Group,
        target: str,
        kind: Kind = "claim",
        *,
        relative: bool = False,
        statistic: str = "mean",
    ) -> Claim:
        """Claim what a metric of ours minus (relative to) that of theirs is."""
        compared = self._compare(metric, ours, theirs, relative, statistic)
        before = ours.control or ours, theirs.control or theirs
        control = None
        if before != (ours, theirs):
            control = self._compare(metric, *before, relative=relative, statistic=statistic)
        name = self._metrics[metric].split(",")[0]
        name = name if statistic == "mean" else f"{name} ({statistic.replace('_', ' ')})"
        how = "relative to" if relative else "minus that of"
        claim = f"{name} of {ours.name} {how} {theirs.name}"
        return Claim.check(claim, compared, target, kind, control)

    def _compare(
        self, metric: str, ours: _Group, theirs: _Group, relative: bool, statistic: str
    ) -> Estimate:
        """A difference, or a share of what is positive."""
        first, second = self.values(metric, ours, theirs)
        if relative:
            return Estimate.of(self.draw._ratio(first, second, statistic))
        of = getattr(self.draw, statistic)
        return Estimate.of(of(first) - of(second))
