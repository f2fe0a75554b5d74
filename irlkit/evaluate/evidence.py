"""What a measured difference is worth: paired bootstrap, verdicts, and the spread of seeds.

A statistic is computed for all the data and for resamples of them, the same ones for whatever is
compared: differences, ratios and any other arithmetic of statistics are then paired, and have an
interval::

    draw = Bootstrap(compositions, generator)
    Estimate.of(draw.mean(ours) / draw.mean(theirs)).verdict("<= 0.9")
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from irlkit.utils.checks import check_count, checked

_SIGNS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_LEVEL = 0.95
_TRIMMED = 0.1
"""Share that is left out at either end."""
_CHUNK = 2**22
"""Weights that are held at a time."""
_CACHED = 2**15
"""Weights that are worked on at a time: few enough for a processor's cache."""


@checked
@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; all nan if it was not measured, equal ends without one.

    >>> Estimate(0.2, 0.1, 0.3).verdict("> 0"), Estimate(0.2, -0.1, 0.5).verdict("> 0")
    ('holds', 'undecided')

    It is written with three digits, with one from 10 on, or as a number's format says.

    >>> print(Estimate(0.2, 0.1, 0.3), f"{Estimate(0.2, 0.1, 0.3):+.1f}", sep=", ")
    0.200 (0.100 to 0.300), +0.2 (+0.1 to +0.3)
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: np.ndarray | float) -> Estimate:
        """Return the first of the samples, shape (m,), and the interval of the others.

        A number is a sample by itself.
        A resample in which the number does not exist counts as beyond both ends.
        """
        value, *others = np.atleast_1d(np.asarray(samples, dtype=float))
        if not others or not math.isfinite(value):
            value = value if math.isfinite(value) else math.nan
            return cls(float(value), float(value), float(value))
        found, tail = np.array(others), (1 - _LEVEL) / 2
        low = np.quantile(np.nan_to_num(found, nan=-np.inf), tail, method="lower")
        high = np.quantile(np.nan_to_num(found, nan=np.inf), 1 - tail, method="higher")
        return cls(float(value), float(low), float(high))

    def __format__(self, spec: str) -> str:
        if math.isnan(self.value):
            return ""
        spec = spec or (".3f" if abs(self.value) < 10 else ".1f")
        ends = f" ({self.low:{spec}} to {self.high:{spec}})" if self.low < self.high else ""
        return f"{self.value:{spec}}{ends}"

    def __str__(self) -> str:
        return format(self)

    def verdict(self, target: str) -> str:
        """Judge by the whole interval: "holds", "fails", or "undecided".

        Args:
            target: such as ">= 0.97"; what was not measured stays undecided.
        """
        sign, _, text = target.partition(" ")
        try:
            compare, bound = _SIGNS[sign], float(text)
            if not math.isfinite(bound):
                raise ValueError
        except (KeyError, ValueError):
            raise ValueError(f"target must be like '>= 0.97', got {target!r}") from None
        ends = {bool(compare(end, bound)) for end in (self.low, self.high)}
        if math.isnan(self.value) or len(ends) == 2:
            return "undecided"
        return "holds" if ends == {True} else "fails"


def _few_runs(n: int, generator: torch.Generator, n_samples: int) -> np.ndarray:
    """Return draws for ``_of_runs`` of n runs, such as seeds, shape (1 + n_samples, n)."""
    drawn = torch.randn(n_samples, 2 * n - 1, generator=generator, dtype=torch.float64).numpy()
    weights = drawn[:, :n] - drawn[:, :n].mean(1, keepdims=True)
    if n > 1:
        weights *= math.sqrt(n / (n - 1)) / np.sqrt(np.square(drawn[:, n:]).mean(1, keepdims=True))
    return np.concatenate([np.zeros((1, n)), weights])


def _of_runs(draws: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return what the spread of runs adds to the mean of their values, shape (1 + n_samples,).

    A bootstrap of 2, 3 or 5 runs covers their mean in 50, 73 and 83 % of cases, not in 95 %: it
    takes their spread for the true one. This is the standard error of the values times Student's t
    with n - 1 degrees of freedom. It is nothing at first, and for runs that do not differ.
    """
    return draws @ (values - values[0]) / len(values)


def _mean_of_runs(
    values: np.ndarray, generator: torch.Generator | None = None, n_samples: int = 2000
) -> np.ndarray:
    """Return the mean of few runs and draws of what it could have been (Student's t).

    Args:
        values: a value per run, shape (n,); nan is left out.
        generator: of the draws; None: seed 0.
        n_samples: how many.

    Returns:
        Shape (1 + n_samples,), the mean first, as ``Estimate.of`` takes it; all equal for one run,
        nan for none.

    >>> Estimate.of(_mean_of_runs(np.array([1.0, 2.0, 3.0]))).value
    2.0
    """
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        return np.full(1 + n_samples, np.nan)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    return values.mean() + _of_runs(_few_runs(len(values), generator, n_samples), values)


class Bootstrap:
    """Statistics of all structures, and of resamples of their compositions.

    Values have a row per training seed and base seed, shape (n_training, n_base, n_structures), or
    fewer axes in front; nan is what does not exist (a displacement without a match) or was not
    measured, and is left out. Compositions are drawn with replacement, the structures and base
    seeds of one stay together. Where there are several training seeds, the standard error of their
    statistics times Student's t is added, the same draws for whatever is compared: as few as three
    drawn with replacement would give too narrow an interval. Base samples are drawn anew for each
    structure, so that their spread is among the structures already.

    Args:
        compositions: of each structure, shape (n_structures,).
        generator: of the draws; None: seed 0.
        n_samples: how many.

    Raises:
        ValueError: there is no structure.

    >>> draw = Bootstrap(["NaCl", "NaCl", "MgO"], n_samples=100)
    >>> gain = draw.mean(np.array([0.1, 0.2, 0.1])) - draw.mean(np.array([0.3, 0.4, 0.3]))
    >>> gain.shape, [round(end, 2) for end in vars(Estimate.of(gain)).values()]
    ((101,), [-0.2, -0.2, -0.2])
    """

    @checked
    def __init__(
        self,
        compositions: Sequence[str] | np.ndarray,
        generator: torch.Generator | None = None,
        n_samples: int = 2000,
    ) -> None:
        if not len(compositions):
            raise ValueError("compositions must name those of at least one structure, got none")
        check_count("n_samples", n_samples)
        self._generator = torch.Generator().manual_seed(0) if generator is None else generator
        self._n_samples = n_samples
        _, groups = np.unique(np.asarray(compositions), return_inverse=True)
        self._weights = self._draw(int(groups.max()) + 1)[:, groups]
        self._of_training: dict[int, np.ndarray] = {}

    def _draw(self, n: int) -> np.ndarray:
        """How often each of n is drawn, shape (1 + n_samples, n); once each at first."""
        shape = (self._n_samples, n)
        drawn = torch.randint(n, shape, generator=self._generator)
        counts = torch.zeros(1 + self._n_samples, n, dtype=torch.float64)
        counts[0] = 1.0
        counts[1:].scatter_add_(1, drawn, counts.new_ones(()).expand(shape))
        return counts.numpy()

    def _shaped(self, values: np.ndarray) -> np.ndarray:
        """The values with all three axes."""
        values = np.asarray(values, dtype=float)
        values = values.reshape((1,) * (3 - values.ndim) + values.shape)
        if values.ndim != 3 or values.shape[-1] != self._weights.shape[1]:
            raise ValueError(
                f"values must have shape (n_training, n_base, {self._weights.shape[1]}), a value "
                f"per structure, or fewer axes in front, got {values.shape}"
            )
        return values

    def _resampled(
        self, statistic: Callable[..., np.ndarray], *values: np.ndarray, held: int = 1
    ) -> np.ndarray:
        """A statistic of all the data and of what is drawn, shape (1 + n_samples,).

        `statistic` is of weights of structures, shape (m, n_structures), and of the values, with
        three axes; it holds m times `held` numbers.
        """
        parts = -(-len(self._weights) * held // _CHUNK)
        found = [statistic(part, *values) for part in np.array_split(self._weights, parts)]
        n = len(values[0])
        if n == 1:
            return np.concatenate(found)
        if n not in self._of_training:
            self._of_training[n] = _few_runs(n, self._generator, self._n_samples)
        once = self._weights[:1]
        each = np.concatenate([statistic(once, *(v[i : i + 1] for v in values)) for i in range(n)])
        if np.isfinite(each).all():
            return np.concatenate(found) + _of_runs(self._of_training[n], each)
        # A seed without the statistic, such as one without any match, says nothing of the spread.
        generator = torch.Generator().manual_seed(0)
        spread = _mean_of_runs(each, generator, self._n_samples)
        return np.concatenate(found) + np.nan_to_num(spread - spread[0])

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Return the mean, shape (1 + n_samples,); the first is that of all the data.

        Args:
            values: shape (n_training, n_base, n_structures), or fewer axes in front.
        """
        return self._resampled(_mean, self._shaped(values))

    def trimmed_mean(self, values: np.ndarray, share: float = _TRIMMED) -> np.ndarray:
        """Return the mean without a share of the values at either end; see ``mean``.

        Args:
            values: shape (n_training, n_base, n_structures), or fewer axes in front.
            share: from 0 to 0.5, which gives the median.
        """
        if not 0 <= share <= 0.5:
            raise ValueError(f"share must be from 0 to 0.5, got {share!r}")
        values = self._shaped(values)
        return self._resampled(partial(_trimmed_mean, share=share), values, held=values.size)

    def median(self, values: np.ndarray) -> np.ndarray:
        """Return the median, which few outliers cannot move; see ``mean``."""
        return self.trimmed_mean(values, 0.5)

    def rank_correlation(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return Spearman's rank correlation of two values of the same structures; see ``mean``.

        Args:
            first: shape (n_training, n_base, n_structures), or fewer axes in front.
            second: of the same shape.

        >>> draw = Bootstrap(["NaCl", "NaCl", "MgO"], n_samples=100)
        >>> draw.rank_correlation(np.array([0.1, 0.2, 9.0]), np.array([1.0, 2.0, 3.0]))[0].round(6)
        np.float64(1.0)
        """
        pair = self._shaped(first), self._shaped(second)
        if pair[0].shape != pair[1].shape:
            raise ValueError(
                f"second must have the shape of first, {pair[0].shape}, got {pair[1].shape}"
            )
        return self._resampled(_rank_correlation, *pair, held=pair[0].size).clip(-1, 1)

    def _ratio(self, first: np.ndarray, second: np.ndarray, statistic: str = "mean") -> np.ndarray:
        """Return a ratio of statistics; nan where the second is not positive. See ``mean``.

        Of as many training seeds on both sides, the ratios of each seed have the spread: the
        second statistic alone could not be told from 0 with two of them, whatever the ratios are.
        """
        pair = self._shaped(first), self._shaped(second)
        if len(pair[0]) != len(pair[1]):
            of = getattr(self, statistic)
            return _quotient(of(first), of(second))
        of = _STATISTICS[statistic]

        def ratio(weights: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
            return _quotient(of(weights, ours), of(weights, theirs))

        return self._resampled(ratio, *pair, held=max(v.size for v in pair))

    def centred(self, statistic: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Return a statistic that resampling shifts, shape (1 + n_samples,).

        Resamples repeat structures, so that distances grow and diversities shrink: the resamples
        are moved so that their mean is the value of all the data. Their interval is then that of
        other data of the same size.

        Args:
            statistic: of weights of the structures, shape (m, n_structures) to (m,), nan where it
                has none.
        """
        chunks = np.array_split(self._weights, -(-self._weights.size // _CHUNK))
        values = np.concatenate([statistic(weights) for weights in chunks])
        there = values[1:][np.isfinite(values[1:])]
        shift = values[0] - there.mean() if len(there) else 0.0
        return np.concatenate([values[:1], values[1:] + shift])


def _quotient(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The first over the second, nan where that is not positive."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(second > 0, first / second, np.nan)


def _mean(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Means with weights of structures, shape (m, n_structures), of values with three axes."""
    there = np.isfinite(values)
    sums, counts = (
        weights @ part.sum((0, 1)) for part in (np.where(there, values, 0.0), there.astype(float))
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums / counts


def _trimmed_mean(weights: np.ndarray, values: np.ndarray, share: float) -> np.ndarray:
    """Means without a share at either end; see ``_mean``."""
    place = np.flatnonzero(np.isfinite(values))
    if not len(place):
        return np.full(len(weights), np.nan)
    place = place[np.argsort(values.flat[place], kind="stable")]
    of = np.unravel_index(place, values.shape)[-1]
    kept = np.empty((len(weights), len(place)), order="F")
    rows = max(1, _CACHED // len(place))
    for begin in range(0, len(weights), rows):
        ends = weights[begin : begin + rows].take(of, axis=1).cumsum(1)
        total = ends[:, -1:]
        # Of an even number, the median takes half of each of the two in the middle.
        half = np.maximum((0.5 - share) * total, 0.5)
        low, high = 0.5 * total - half, 0.5 * total + half
        np.clip(ends, low, high, out=ends)
        # Weights are whole numbers: where one begins is exactly where the one before it ends.
        part = kept[begin : begin + rows]
        part[:, :1] = ends[:, :1] - np.maximum(low, 0.0)
        np.subtract(ends[:, 1:], ends[:, :-1], out=part[:, 1:])
    with np.errstate(invalid="ignore", divide="ignore"):
        return kept @ values.flat[place] / kept.sum(1)


_STATISTICS: Mapping[str, Callable[..., np.ndarray]] = {
    "mean": _mean,
    "trimmed_mean": partial(_trimmed_mean, share=_TRIMMED),
    "median": partial(_trimmed_mean, share=0.5),
}
"""Name of a method of `Bootstrap` -> what it computes."""


def _rank_correlation(weights: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's rank correlations; see ``_mean``."""
    place = np.flatnonzero(np.isfinite(first) & np.isfinite(second))
    if not len(place):
        return np.full(len(weights), np.nan)
    weights = weights[:, np.unravel_index(place, first.shape)[-1]]
    total = weights.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = (_ranks(values.flat[place], weights) for values in (first, second))
        x, y = (r - (weights * r).sum(1, keepdims=True) / total for r in (x, y))
        spread = np.sqrt((weights * x**2).sum(1) * (weights * y**2).sum(1))
        return (weights * x * y).sum(1) / spread


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean ranks of n values, each with its weight in m resamples, shape (m, n)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ordered = weights[:, np.argsort(inverse, kind="stable")]
    sums = np.add.reduceat(ordered, np.cumsum(counts) - counts, axis=1)
    return (sums.cumsum(1) - sums / 2)[:, inverse]


@checked
def spread_of_seeds(values: np.ndarray) -> dict[str, float]:
    """Return the standard deviations that training seeds and base seeds cause, each by itself.

    Those of a crossed table with random effects: the variance of the means of rows (columns), less
    what the rest explains of it; nan where there are fewer than two.

    Args:
        values: a number for each training seed and base seed, shape (n_training, n_base).

    >>> spread_of_seeds(np.array([[1.0, 1.0], [3.0, 3.0]]))
    {'training': 1.4142135623730951, 'base': 0.0, 'rest': 0.0}
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"values must have shape (n_training, n_base), got {values.shape}")
    n_training, n_base = values.shape
    rows, columns = values.mean(1), values.mean(0)
    if min(n_training, n_base) < 2:
        with np.errstate(invalid="ignore"):
            of = [m.std(ddof=1) if len(m) > 1 else math.nan for m in (rows, columns)]
        return {"training": float(of[0]), "base": float(of[1]), "rest": math.nan}
    rest = values - rows[:, None] - columns + values.mean()
    residual = (rest**2).sum() / ((n_training - 1) * (n_base - 1))
    of = [
        math.sqrt(max(means.var(ddof=1) - residual / n, 0.0))
        for means, n in ((rows, n_base), (columns, n_training))
    ]
    return {"training": of[0], "base": of[1], "rest": math.sqrt(residual)}
