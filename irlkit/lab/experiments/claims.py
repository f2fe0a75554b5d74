"""Claims about measured numbers, computed and not written; those of notebook 04."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from irlkit.lab.experiments.presets import AnnealingPreset, Settings
from irlkit.utils.checks import checked

_SIGNS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


@checked
@dataclass(frozen=True)
class Claim:
    """A statement and what was measured.

    >>> Claim.check("METRe of ours relative to theirs", 0.98, ">= 0.97").holds
    True

    Attributes:
        claim: the statement.
        value: the measured number, None if there is none.
        target: what the number has to be, such as ">= 0.97".
        holds: whether it is.
        required: False for an aim beyond the claims.
    """

    claim: str
    value: float | None
    target: str
    holds: bool
    required: bool = True

    @classmethod
    @checked
    def check(cls, claim: str, value: float, target: str, required: bool = True) -> Claim:
        """Compare a value with a target; what is not finite does not hold."""
        sign, _, bound = target.partition(" ")
        try:
            holds = _SIGNS[sign](value, float(bound)) and math.isfinite(float(bound))
        except (KeyError, ValueError):
            raise ValueError(f"target must be like '>= 0.97', got {target!r}") from None
        if not math.isfinite(value):
            return cls(claim, None, target, False, required)
        return cls(claim, float(value), target, bool(holds), required)


@checked
def claims_table(claims: Sequence[Claim]) -> pd.DataFrame:
    """Return claims as a table for people, numbered from 1.

    Raises:
        ValueError: there is none.
    """
    if not len(claims):
        raise ValueError("claims must hold at least one claim, got none")
    table = pd.DataFrame([asdict(claim) for claim in claims], index=range(1, len(claims) + 1))
    table["target"] = [claim.target.replace(" ", "\u00a0") for claim in claims]  # On one line.
    table["value"] = [
        "not measured" if claim.value is None else f"{claim.value:.3f}" for claim in claims
    ]
    table["holds"] = np.where(table["holds"], "yes", "NO")
    table["kind"] = np.where(table["required"], "claim", "aim")
    return table.drop(columns="required")


def annealing_claims(
    evaluation: pd.DataFrame, preset: AnnealingPreset, smallest_factor: float
) -> list[Claim]:
    """Judge the paper's claims about learned annealing (section 4.3, Appendix H).

    Differences and ratios between numbers of steps use the seeds that both were evaluated with.

    Args:
        evaluation: columns schedule, tuned_at, n_steps, seed, metre, crmse.
        preset: says which steps are few and many.
        smallest_factor: smallest 1 + s(t) of the learned schedules.
    """
    few, many = preset.n_steps, preset.reference_steps
    learned = _rows(evaluation, schedule="learned", n_steps=few)
    best, tuned = (
        _rows(evaluation, schedule="handcrafted", n_steps=k, tuned_at=k) for k in (many, few)
    )
    ours, theirs = f"learned annealing at {few} steps", f"best handcrafted one at {many} steps"
    metre, crmse = (learned[metric] - tuned[metric] for metric in ("metre", "crmse"))
    at_few = f"minus that of the best handcrafted one at {few} steps"
    entries: list[tuple[str, float, str, bool]] = [
        (
            f"METRe of the {ours} relative to the {theirs}",
            _ratio(learned["metre"], best["metre"]),
            ">= 0.97",
            True,
        ),
        (
            f"cRMSE of the {ours} relative to the {theirs}",
            _ratio(learned["crmse"], best["crmse"]),
            "<= 1.05",
            True,
        ),
        (f"METRe of the {ours} {at_few}, smallest of the seeds", _min(metre), "> 0", True),
        (f"cRMSE of the {ours} {at_few}, largest of the seeds", -_min(-crmse), "< 0", True),
        ("smallest 1 + s(t) of the learned annealings", smallest_factor, "> 0", True),
    ]
    for n_steps in preset.evaluation_steps:
        if n_steps != few:
            there = _rows(evaluation, schedule="learned", n_steps=n_steps)["metre"]
            what = f"METRe of the learned annealing at {n_steps} steps relative to {few} steps"
            share = _ratio(there, learned["metre"].reindex(there.index))
            entries.append((what, share, ">= 0.95", n_steps > few))
    return [Claim.check(*entry) for entry in entries]


def annealing_conclusion(
    evaluation: pd.DataFrame, preset: AnnealingPreset, claims: Sequence[Claim]
) -> str:
    """Say in Markdown what the numbers say.

    Args:
        evaluation: columns schedule, tuned_at, n_steps, seed, n_structures, metre, crmse.
        preset: says which steps are few and many.
        claims: of ``annealing_claims``.
    """
    few, many = preset.n_steps, preset.reference_steps
    rows = {}
    for schedule, n_steps, tuned_at in (
        *(("learned", few, None), ("handcrafted", many, many), ("handcrafted", few, few)),
        *(("none", few, None), ("none", many, None)),
    ):
        tuned = {} if tuned_at is None else {"tuned_at": tuned_at}
        label = schedule if tuned_at is None else f"{schedule} for {tuned_at} steps"
        of_seeds = _rows(evaluation, schedule=schedule, n_steps=n_steps, **tuned)
        rows[f"{label}, {n_steps} steps"] = of_seeds
    size = int(evaluation["n_structures"].max())
    share = _rows(evaluation, schedule="learned", n_steps=few)["metre"].mean()
    error = math.sqrt(share * (1 - share) / size)
    text = (
        f" With {size} test structures, the standard error of a METRe of {share:.0%} is about "
        f"{100 * error:.1f} percentage points; smaller differences mean little unless every seed "
        "shows them."
    )
    table = _markdown("annealing", {"metre": "METRe", "crmse": "cRMSE"}, rows)
    return _conclude([*table, ""], claims, preset, text)


# --------------------------------------------------------------------------------------------------
# For the claims of all notebooks
# --------------------------------------------------------------------------------------------------


def held_in_words(claims: Sequence[Claim]) -> str:
    """Say in Markdown how many claims hold, and which do not."""
    required = [claim for claim in claims if claim.required]
    text = f"**{sum(claim.holds for claim in required)} of {len(required)} claims hold.**"
    failing = [
        f"{number} ({'claim' if claim.required else 'aim'})"
        for number, claim in enumerate(claims, start=1)
        if not claim.holds
    ]
    return f"{text} Those that do not: number {', '.join(failing)}." if failing else text


def _conclude(lines: Sequence[str], claims: Sequence[Claim], preset: Settings, text: str) -> str:
    """What the numbers say, in Markdown: lines, which claims hold, and a text."""
    if preset.name == "quick":
        text += (
            " The preset *quick* only shows that everything works: do not judge the method by it."
        )
    return "\n".join([*lines, held_in_words(claims) + text])


def _markdown(
    title: str, columns: Mapping[str, str], rows: Mapping[str, pd.DataFrame]
) -> list[str]:
    """A table of means over seeds, with the range where there are several."""
    lines = [f"| {' | '.join([title, *columns.values()])} |", f"|:--|{'--:|' * len(columns)}"]
    for label, of_seeds in rows.items():
        cells = [_with_range(of_seeds[column].dropna()) for column in columns]
        lines.append(f"| {' | '.join([label, *cells])} |")
    return lines


def _with_range(values: pd.Series) -> str:
    if not len(values):
        return "not measured"
    text = f"{values.mean():.3f}"
    return text if len(values) == 1 else f"{text} ({values.min():.3f} to {values.max():.3f})"


def _rows(evaluation: pd.DataFrame, **labels: Any) -> pd.DataFrame:
    """The rows with these labels, by seed; of what was measured again, the last."""
    for name, value in labels.items():
        evaluation = evaluation[evaluation[name] == value]
    return evaluation.drop_duplicates("seed", keep="last").set_index("seed")


def _ratio(values: pd.Series, others: pd.Series) -> float:
    """Ratio of the means, nan if there are none."""
    denominator = others.mean()
    return float(values.mean() / denominator) if denominator else math.nan


def _min(values: pd.Series) -> float:
    """The smallest, nan where one is missing."""
    return float(values.min(skipna=False))
