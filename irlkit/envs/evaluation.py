"""Evaluating fillings: each once, in batches, kept on the disk; and the reward of GRPO from it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from irlkit.crystals import CrystalBatch
from irlkit.envs._backends import Backend
from irlkit.envs._cache import EvaluationCache, Key, Row
from irlkit.envs._choice import get_backend
from irlkit.envs._properties import Property
from irlkit.envs._stability import get_property
from irlkit.envs._symmetry import canonical_keys
from irlkit.potentials import Potential
from irlkit.rewards import Reward, RewardResult
from irlkit.utils.checks import check_finite, checked


@dataclass(frozen=True)
class Evaluations:
    """What is known of B fillings.

    Attributes:
        values: of the property, float64, nan where it could not be told, shape (B,).
        reasons: why not, in words, or "", shape (B,).
        cached: True where nothing was computed in this call, shape (B,).
        seconds: that the value took when it was computed, shape (B,).
        details: one dictionary for each, such as the points and the fit of a curve.
    """

    values: np.ndarray
    reasons: np.ndarray
    cached: np.ndarray
    seconds: np.ndarray
    details: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.values)


@dataclass
class _Counts:
    hits: int = 0
    misses: int = 0
    failures: int = 0
    seconds: float = 0.0
    why: dict[str, int] = field(default_factory=dict)

    def add(self, rows: list[Row], seconds: float) -> None:
        """Count what was computed."""
        self.seconds += seconds
        for _, reason, *_ in rows:
            if reason is not None:
                self.failures += 1
                self.why[reason] = self.why.get(reason, 0) + 1


class Evaluator:
    """Evaluates a property of fillings, each crystal once.

    Fillings that the symmetry of the skeleton turns into one another are one crystal. What was
    computed is kept at once, so that a run that is killed loses at most what is being computed.
    A context manager, which closes the backend if it was given by name, and the cache unless it was
    given as an object.

    Args:
        property: name or property, see `irlkit.envs.PROPERTIES`.
        backend: name or backend, see `irlkit.envs.get_backend`.
        cache: file of the cache; None remembers for as long as this object lives.

    Raises:
        ValueError: an unknown property, one that the backend cannot tell, or a given cache for a
            backend without a name of its own.

    >>> from irlkit.envs import Skeletons
    >>> evaluator = Evaluator("density")
    >>> evaluator(Skeletons.get("NaCl").crystals).values.round(2)
    array([2.16])
    """

    @checked
    def __init__(
        self,
        property: str | Property,
        backend: str | Potential | Backend = "chgnet",
        cache: str | Path | EvaluationCache | None = None,
    ) -> None:
        self.property = get_property(property)
        self._owns_backend = not isinstance(backend, Backend)
        self.backend = get_backend(backend)
        self.property.check(self.backend)
        self._owns_cache = not isinstance(cache, EvaluationCache)
        if cache is not None and "<" in self.backend.name:
            raise ValueError(
                f"backend {self.backend.name!r} shares its name with other functions without one, "
                "so that a cache would mix up their values; give it a name, such as "
                "ASEPotential(..., name='lj-2024')"
            )
        self.cache = cache if isinstance(cache, EvaluationCache) else EvaluationCache(cache)
        self.judge = self.property.settings(self.backend)
        self._counts = _Counts()
        self._lock = threading.Lock()
        self._thread: ThreadPoolExecutor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Evaluator:
        """Return the same: a copy, as Gymnasium makes of arguments, would share its cache."""
        return self

    @checked
    def __call__(self, batch: CrystalBatch) -> Evaluations:
        """Evaluate crystals: those that are not known yet, in parts, as the backend takes them."""
        batch = batch.to("cpu", torch.float64)
        keys = canonical_keys(batch)
        with self._lock:
            known = dict(self.cache.find(self.judge, keys))
            missing: dict[Key, int] = {}
            for i, key in enumerate(keys):
                if key not in known:
                    missing.setdefault(key, i)
            for part, rows, seconds in self._computed(batch, list(missing.items())):
                found = {key: row for (key, _), row in zip(part, rows, strict=True)}
                self.cache.store(self.judge, found.items())
                self._counts.add(rows, seconds)
                known |= found
            computed = set(missing.values())
            self._counts.misses += len(computed)
            self._counts.hits += len(batch) - len(computed)
        rows = [known[key] for key in keys]
        return Evaluations(
            np.array([math.nan if row[0] is None else row[0] for row in rows], dtype=np.float64),
            np.array([row[1] or "" for row in rows], dtype=object),
            np.array([i not in computed for i in range(len(batch))]),
            np.array([row[2] for row in rows], dtype=np.float64),
            [row[3] for row in rows],
        )

    def _computed(
        self, batch: CrystalBatch, todo: list[tuple[Key, int]]
    ) -> Iterator[tuple[list[tuple[Key, int]], list[Row], float]]:
        """Give parts of what is to do with their rows and seconds, in the order of their end."""
        size, together = self.backend.at_once, self.backend.in_parallel
        parts = [todo[i : i + size] for i in range(0, len(todo), size)]
        if together == 1:
            yield from ((part, *self._compute(batch[[i for _, i in part]])) for part in parts)
            return
        threads = ThreadPoolExecutor(together, thread_name_prefix="irlkit-evaluator-part")
        left = {threads.submit(self._compute, batch[[i for _, i in part]]): part for part in parts}
        try:
            while left:
                # With a timeout, so that Ctrl-C gets through on every system.
                for done in wait(left, timeout=0.5, return_when=FIRST_COMPLETED).done:
                    yield (left.pop(done), *done.result())
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            self.backend.close()
            raise
        threads.shutdown()

    def _compute(self, batch: CrystalBatch) -> tuple[list[Row], float]:
        began = time.perf_counter()
        found = self.property.values(batch, self.backend)
        seconds = time.perf_counter() - began
        rows: list[Row] = []
        for i, value in enumerate(found.values.tolist()):
            good = math.isfinite(value)
            reason = None if good else found.reasons.get(i, "the value is not finite")
            rows.append((value if good else None, reason, seconds / len(batch), found.details[i]))
        return rows, seconds

    def submit(self, batch: CrystalBatch) -> Future[Evaluations]:
        """Evaluate crystals in another thread, after what was submitted before.

        Returns:
            A future of what a call would return.
        """
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="irlkit-evaluator")
        return self._thread.submit(self, batch)

    def report(self) -> dict[str, Any]:
        """Return hits, misses, failures with their reasons, and seconds (of all workers)."""
        counts = self._counts
        return {
            "hits": counts.hits,
            "misses": counts.misses,
            "failures": counts.failures,
            "seconds": counts.seconds,
            "reasons": dict(sorted(counts.why.items(), key=lambda entry: -entry[1])),
        }

    def close(self) -> None:
        """End the thread and, if they were made here, the backend and the cache."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None
        if self._owns_backend:
            self.backend.close()
        if self._owns_cache:
            self.cache.close()

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class PropertyReward(Reward):
    """CrystalGym's reward for a property near a target, as GRPO asks it.

    The result's `info` holds `value`, `failed`, `error` (why), `cached` and `seconds`, and what
    others say of the same fillings under their properties' names.

    Args:
        evaluator: tells the property.
        target: of its value, positive.
        also: rewards of other properties, such as the energy above the hull, and the weights with
            which they are added.

    Raises:
        ValueError: a number out of its range, or a property twice.

    >>> from irlkit.envs import Skeletons
    >>> reward = PropertyReward(Evaluator("density"), target=3.0)
    >>> reward(Skeletons.get("NaCl").crystals).values
    tensor([0.7920], dtype=torch.float64)
    """

    @checked
    def __init__(
        self,
        evaluator: Evaluator,
        target: float,
        also: Sequence[tuple[PropertyReward, float]] = (),
    ) -> None:
        check_finite("target", target, above=0)
        self.evaluator = evaluator
        self.target = float(target)
        self.also = tuple(also)
        for i, (_, weight) in enumerate(self.also):
            check_finite(f"also[{i}]'s weight", weight, above=0)
        names = [evaluator.property.name, *self.others]
        if len(set(names)) < len(names):
            raise ValueError(f"also must hold other properties, each once, got {names}")

    @property
    def others(self) -> tuple[str, ...]:
        """Names of the other properties."""
        return tuple(reward.evaluator.property.name for reward, _ in self.also)

    @property
    def lowest(self) -> float:
        """The reward of a filling of which nothing can be told."""
        return self.evaluator.property.failure + sum(r.lowest * w for r, w in self.also)

    @property
    def highest(self) -> float:
        """The reward that no filling exceeds."""
        return self.evaluator.property.highest + sum(r.highest * w for r, w in self.also)

    @checked
    def __call__(self, batch: CrystalBatch) -> RewardResult:
        """Judge all structures."""
        found = self.evaluator(batch)
        values = torch.from_numpy(self.evaluator.property.reward(found.values, self.target))
        info: dict[str, np.ndarray] = {
            "value": found.values,
            "failed": ~np.isfinite(found.values),
            "error": found.reasons,
            "cached": found.cached,
            "seconds": found.seconds,
        }
        for name, (reward, weight) in zip(self.others, self.also, strict=True):
            other = reward(batch)
            values = values + weight * other.values
            info[name] = other.info["value"]
        return RewardResult(values, info)

    def energies(self) -> str:
        """Return property, backend and settings, of all."""
        return " + ".join([self.evaluator.judge, *(r.energies() for r, _ in self.also)])

    def close(self) -> None:
        """Close the evaluator, and those of the other properties."""
        self.evaluator.close()
        for reward, _ in self.also:
            reward.close()
