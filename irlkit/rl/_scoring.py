"""Asking a reward, and what is done with what it answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch, validity
from irlkit.evaluate.diversity import count_distinct, fingerprints
from irlkit.rewards.base import RewardResult
from irlkit.rewards.parts import grouping, joined, parts_of, starts
from irlkit.rl.process import Process, State
from irlkit.rl.trajectory import Trajectory
from irlkit.utils.checks import checked
from irlkit.utils.system import write_atomically

RewardFunction = Callable[[CrystalBatch], Any]
"""Structures -> a ``RewardResult``, or one number per structure (tensor, array or list)."""


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


def check_groups(reward: Any, group_size: int) -> None:
    """Raise a ValueError if a reward, or a part of it, counts on groups of another size.

    Args:
        reward: with an attribute ``group_size``, unless it does not care; the rewards in a mapping
            ``parts`` are asked as well.
        group_size: structures per group.
    """
    expected = getattr(reward, "group_size", None)
    if expected is not None and expected != group_size:
        raise ValueError(
            f"reward {type(reward).__name__} is made for groups of {expected} structures, but "
            f"group_size of the configuration is {group_size}; give both the same"
        )
    for part in parts_of(reward):
        check_groups(part, group_size)


def check_threads(reward: Any) -> None:
    """Raise a ValueError if a time limit of a reward, or of a part of it, needs the main thread.

    Args:
        reward: with ``limits_time_here``, unless it has no time limit in this process; the rewards
            in a mapping ``parts`` are asked as well.
    """
    if getattr(reward, "limits_time_here", False):
        raise ValueError(
            f"overlap_rewards: the time limit of {type(reward).__name__} holds in the main thread "
            "only, and rewards would be asked in another one; give the reward worker processes "
            "(n_workers), or set overlap_rewards to False"
        )
    for part in parts_of(reward):
        check_threads(part)


Answer = tuple[Tensor, dict[str, np.ndarray]]
"""Rewards, float64 on the CPU, shape (B,); and name -> array, of whatever shape."""


class RewardsInParts:
    """Rewards of the parts of a batch, computed in another thread while others are generated.

    Args:
        reward: judges structures each on its own, or within groups.
        group_size: structures that have to be judged together; those that are added come in the
            order of their groups.
    """

    def __init__(self, reward: RewardFunction, group_size: int) -> None:
        self._reward = reward
        self._group_size = group_size
        # Groups of the same composition, side by side, may be one to a reward.
        self._whole_runs = grouping(reward)[1]
        self._thread = ThreadPoolExecutor(1)
        self._asked: list[tuple[Future[Answer], int]] = []
        self._waiting: list[CrystalBatch] = []

    def add(self, structures: CrystalBatch) -> None:
        """Ask for the rewards of all groups that are complete with these structures."""
        batch = CrystalBatch.concatenate([*self._waiting, structures.to("cpu")])
        whole = len(batch) - len(batch) % self._group_size
        if self._whole_runs:  # The last one may go on.
            whole = int(starts(batch, self._group_size, True)[-1])
        self._waiting = [batch[whole:]] if whole < len(batch) else []
        if whole:
            self._ask(batch[:whole])

    def _ask(self, part: CrystalBatch) -> None:
        self._asked.append((self._thread.submit(_ask, self._reward, part), len(part)))

    def restart(self) -> None:
        """Forget all parts: they are generated anew."""
        for future, _ in self._asked:
            future.cancel()
        self._asked, self._waiting = [], []

    def answer(self) -> Answer:
        """The rewards of all parts, in their order.

        Raises:
            Exception: whatever the reward raised.
        """
        for part in self._waiting:
            self._ask(part)
        self._waiting = []
        results = []
        for future, n in self._asked:
            values, info = future.result()
            # What is one for the whole part is each structure's.
            info = {k: np.full(n, v.item()) if v.size == 1 else v for k, v in info.items()}
            results.append(RewardResult(values, info))
        result = joined(results, [n for _, n in self._asked])
        return result.values, result.info

    def close(self) -> None:
        """Ends the thread, after the part that it is at: a reward is asked by one at a time."""
        self._thread.shutdown(cancel_futures=True)


def _ask(reward: RewardFunction, structures: CrystalBatch) -> Answer:
    result = reward(structures)
    plain = isinstance(result, Tensor | np.ndarray | list | tuple)
    values = torch.as_tensor(result if plain else result.values).detach()
    values = values.to(device="cpu", dtype=torch.float64)
    if values.shape != (len(structures),):
        raise ValueError(
            f"reward must return one value per structure, shape ({len(structures)},), "
            f"got {tuple(values.shape)}"
        )
    return values, {} if plain else {k: np.asarray(v) for k, v in (result.info or {}).items()}


@checked
def score(
    reward: RewardFunction,
    structures: CrystalBatch,
    folder: Path | None,
    when: str,
    answer: tuple[Tensor, dict[str, np.ndarray]] | None = None,
) -> tuple[Tensor, dict[str, np.ndarray]]:
    """Checked rewards and the reward's information.

    Values that are not finite are an error, unless the reward has a number as its attribute
    ``on_non_finite``, which then takes their place.

    Args:
        reward: judges the structures.
        structures: B of them.
        folder: where structures are saved whose reward is not finite; None: nowhere.
        when: for messages and file names, such as "iteration 3".
        answer: what the reward said, if it was asked already.

    Returns:
        Rewards, float64 on the CPU, shape (B,); and name -> array, of whatever shape.

    Raises:
        ValueError: not one value per structure.
        NonFiniteRewardError: a reward is nan or infinite.
    """
    values, info = _ask(reward, structures) if answer is None else answer
    finite = values.isfinite()
    if not finite.all():
        substitute = getattr(reward, "on_non_finite", None)
        if substitute is None:
            _raise_non_finite(structures, values, folder, when)
        values = torch.where(finite, values, float(substitute))
        info["non_finite"] = (~finite).numpy()
    return values, info


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
    shown = [
        f"structure {int(i)} ({formula}): {float(values[i])}"
        for i, formula in zip(bad[:8], culprits.formulas(), strict=False)
    ]
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
