"""Claims about measured numbers, computed and not written."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

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


# --- For the claims of all notebooks ---


def _held_in_words(claims: Sequence[Claim]) -> str:
    """How many claims hold, and which do not, in Markdown."""
    required = [claim for claim in claims if claim.required]
    text = f"**{sum(claim.holds for claim in required)} of {len(required)} claims hold.**"
    failing = [
        f"{number} ({'claim' if claim.required else 'aim'})"
        for number, claim in enumerate(claims, start=1)
        if not claim.holds
    ]
    return f"{text} Those that do not: number {', '.join(failing)}." if failing else text


def _with_range(values: pd.Series) -> str:
    """The mean as text, with the range where there are several numbers."""
    values = values.dropna()
    if not len(values):
        return ""
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
