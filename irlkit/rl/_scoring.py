"""Asking a reward, and what is done with what it answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch, validity
from irlkit.evaluate.diversity import count_distinct, fingerprints
from irlkit.rewards._parts import joined
from irlkit.rewards.base import Reward, RewardResult, ask
from irlkit.rl.process import Process, State
from irlkit.rl.trajectory import Trajectory
from irlkit.utils.system import write_atomically

RewardFunction = Reward | Callable[[CrystalBatch], Any]
"""A reward, or a function of structures as `FunctionReward` takes it."""


class NonFiniteRewardError(ValueError):
    """A reward was nan or infinite; nothing was learned from that iteration.

    Attributes:
        structures: the structures in question.
        paths: their files, empty where the trainer has no folder.
    """

    def __init__(self, message: str, structures: CrystalBatch, paths: list[Path]) -> None:
        super().__init__(message)
        self.structures = structures
        self.paths = paths


def check_groups(reward: Reward, group_size: int) -> None:
    """Raise a ValueError if a reward, or a part of it, is made for groups of another size."""
    if reward.group_size not in (None, group_size):
        raise ValueError(
            f"reward {type(reward).__name__} is made for groups of {reward.group_size} structures, "
            f"but group_size of the configuration is {group_size}; give both the same"
        )
    for part in reward.parts.values():
        check_groups(part, group_size)


def check_overlap(reward: Reward) -> None:
    """Raise a ValueError if a reward, or a part of it, cannot be asked in parts and in a thread."""
    if reward.compares_all:
        raise ValueError(
            f"overlap_rewards: {type(reward).__name__} compares all structures of an iteration, "
            "and would be asked about a part of them; set overlap_rewards to False"
        )
    if reward.limits_time_here:
        raise ValueError(
            f"overlap_rewards: the time limit of {type(reward).__name__} holds in the main thread "
            "only, and rewards would be asked in another one; give the reward worker processes "
            "(n_workers), or set overlap_rewards to False"
        )
    for part in reward.parts.values():
        check_overlap(part)


class RewardsInParts:
    """Rewards of the parts of a batch, computed in another thread while others are generated.

    Args:
        reward: judges structures.
        group_size: structures of a group, which are judged together; those that are added come in
            the order of their groups.
    """

    def __init__(self, reward: Reward, group_size: int) -> None:
        self._reward = reward
        self._group_size = group_size
        self._thread = ThreadPoolExecutor(1)
        self._asked: list[Future[RewardResult]] = []
        self._waiting: list[CrystalBatch] = []

    def add(self, structures: CrystalBatch) -> None:
        """Ask for the rewards of all groups that are complete with these structures."""
        batch = CrystalBatch.concatenate([*self._waiting, structures.to("cpu")])
        whole = len(batch) - len(batch) % self._group_size
        self._waiting = [batch[whole:]] if whole < len(batch) else []
        if whole:
            part = batch[:whole]
            self._asked.append(self._thread.submit(_ask, self._reward, part, self._group_size))

    def restart(self) -> None:
        """Forget all parts: they are generated anew."""
        for future in self._asked:
            future.cancel()
        self._asked, self._waiting = [], []

    def answer(self) -> RewardResult:
        """Return the rewards of all parts, in their order.

        Raises:
            Exception: whatever the reward raised.
        """
        results = [future.result() for future in self._asked]
        return joined(results, [len(result) for result in results])

    def close(self) -> None:
        """End the thread, after the part that it is at: a reward is asked by one at a time."""
        self._thread.shutdown(cancel_futures=True)


def _ask(reward: Reward, structures: CrystalBatch, group_size: int | None) -> RewardResult:
    if group_size is None:
        return ask(reward, structures)
    return ask(partial(reward.in_groups, group_size=group_size), structures)


def score(
    reward: Reward,
    structures: CrystalBatch,
    folder: Path | None,
    when: str,
    *,
    group_size: int | None = None,
    answer: RewardResult | None = None,
) -> RewardResult:
    """Return rewards that are finite, and the reward's information.

    Values that are not finite are an error, unless the reward has a number as its attribute
    ``on_non_finite``, which then takes their place.

    Args:
        reward: judges the structures.
        structures: B of them.
        folder: where structures are saved whose reward is not finite; None: nowhere.
        when: for messages and file names, such as "iteration 3".
        group_size: structures per group, groups adjacent; None: there are no groups.
        answer: what the reward said, if it was asked already.

    Raises:
        ValueError: not one value per structure.
        NonFiniteRewardError: a reward is nan or infinite.
    """
    result = _ask(reward, structures, group_size) if answer is None else answer
    finite = result.values.isfinite()
    if finite.all():
        return result
    if reward.on_non_finite is None:
        _raise_non_finite(structures, result.values, folder, when)
    values = torch.where(finite, result.values, reward.on_non_finite)
    return RewardResult(values, {**result.info, "non_finite": (~finite).numpy()})


def means(info: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean of every numeric array over its finite entries, under "info_{name}"."""
    found = {}
    for name, array in info.items():
        if array.dtype.kind in "biuf":
            finite = array[np.isfinite(array)]
            found[f"info_{name}"] = float(finite.mean()) if len(finite) else math.nan
    return found


def _raise_non_finite(
    structures: CrystalBatch, values: Tensor, folder: Path | None, when: str
) -> NoReturn:
    bad = (~values.isfinite()).nonzero().flatten()
    culprits = structures[bad.to(structures.device)]
    paths = [] if folder is None else save_cifs(culprits, folder, when.replace(" ", "_"))
    named = zip(bad[:8], culprits.formulas(), strict=False)
    shown = [f"structure {int(i)} ({formula}): {float(values[i])}" for i, formula in named]
    where = f"saved in {folder}" if paths else "give out_dir to have them saved"
    raise NonFiniteRewardError(
        f"reward is not finite for {len(bad)} of {len(values)} structures in {when}: "
        f"{'; '.join(shown)}{' ...' if len(bad) > 8 else ''} ({where})",
        culprits,
        paths,
    )


def group_statistics(
    structures: CrystalBatch, rewards: np.ndarray, group_size: int
) -> dict[str, float]:
    """Return the columns of the history about an iteration's structures.

    Args:
        structures: groups adjacent.
        rewards: theirs, shape (B,).
        group_size: structures per group.

    Returns:
        group_std (mean over groups of the rewards' standard deviation), flat_groups (share of
        groups whose rewards are all equal), valid (share of structures that meet the criteria of
        Appendix B), distinct (different structures over structures, of those that are valid;
        mean over groups that have any).
    """
    groups = rewards.reshape(-1, group_size)
    valid = validity.check(structures).valid
    prints = np.where(valid[:, None], fingerprints(structures), np.nan)
    n_valid = np.isfinite(prints).all(axis=1).reshape(-1, group_size).sum(axis=1)
    distinct = count_distinct(prints, group_size)[n_valid > 0] / n_valid[n_valid > 0]
    return {
        "group_std": float(groups.std(axis=1).mean()),
        "flat_groups": float((groups.max(axis=1) == groups.min(axis=1)).mean()),
        "valid": float(valid.mean()),
        "distinct": float(distinct.mean()) if len(distinct) else np.nan,
    }


def usable(
    trajectory: Trajectory, process: Process, x_0: State, folder: Path | None, iteration: int
) -> tuple[Tensor, int]:
    """Return which structures an update can use (B,), and how many are not finite.

    Args:
        trajectory: of an iteration.
        process: of the policy; tells which crystals a state stands for.
        x_0: where it began.
        folder: where structures are saved that are not finite; None: nowhere.
        iteration: for file names and messages.

    Raises:
        FloatingPointError: no structure can be used.
    """
    good = trajectory.is_finite()
    final = trajectory.final
    finite = final.cell.isfinite().flatten(1).all(1)
    finite[final.batch[~final.pos.isfinite().all(1)]] = False
    bad = ~(good & finite)
    n_bad = int(bad.sum())
    if n_bad and folder is not None:
        index = bad.nonzero().flatten()
        save_numbers(
            folder / "non_finite" / f"iteration_{iteration:05d}.json",
            {"x_0": process.decode(x_0.select(index)), "final": final[index]},
        )
    if not bool(good.any()):
        raise FloatingPointError(
            f"no structure of iteration {iteration} consists of finite numbers: the policy has "
            "diverged; restore_best returns to the best one, and a lower learning_rate or max_kl "
            "avoids it"
        )
    return good, n_bad


def save_cifs(batch: CrystalBatch, folder: Path, stem: str) -> list[Path]:
    """One CIF per structure; the plain numbers as JSON where no CIF can be written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, crystal in enumerate(batch):
        path = folder / f"{stem}_{i:03d}.cif"
        try:
            crystal.to_structures()[0].to(str(path), fmt="cif")
        except Exception:  # whatever a degenerate cell does to the CIF writer
            path.unlink(missing_ok=True)
            path = path.with_suffix(".json")
            save_numbers(path, {"structure": crystal})
        paths.append(path)
    return paths


def save_numbers(path: Path, batches: Mapping[str, CrystalBatch]) -> None:
    """Structures as JSON, also those that no other format can hold; nan as Python writes it."""
    fields = ("species", "pos", "cell", "n_atoms")
    data = {k: {f: getattr(batch, f).tolist() for f in fields} for k, batch in batches.items()}
    write_atomically(path, json.dumps(data).encode())
