"""What processes that train one policy together say to each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from irlkit.rl.config import TrainerConfig
from irlkit.rl.process import State
from irlkit.utils.draws import SharedDraws

T = TypeVar("T")


class Communicator:
    """One process, which has all groups to itself; the interface of several.

    Attributes:
        rank: of this process; rank 0 validates and writes.
        size: number of processes.
    """

    rank = 0
    size = 1

    def check(self, config: TrainerConfig) -> None:
        """Raise a ValueError where a training cannot be shared like that."""

    def broadcast(self, value: Any) -> Any:
        """Return what rank 0 has; ranks are processes of one job, and trust each other."""
        return value

    def share(
        self, x_0: State, generator: torch.Generator
    ) -> tuple[State, torch.Generator | dict[str, SharedDraws]]:
        """Return the groups of this rank, and what draws their actions."""
        return x_0, generator

    def average_gradients(
        self, parameters: Sequence[nn.Parameter], terms: dict[str, float], n: int
    ) -> dict[str, float]:
        """Make gradients and terms of the loss those of all structures, n being this rank's."""
        return terms

    def average_row(self, row: dict[str, float]) -> dict[str, float]:
        """Return a row of the history for all ranks: means, and sums of counts."""
        return row

    def union(self, steps: Tensor) -> Tensor:
        """Return the time steps, sorted, that are among those of any rank."""
        return steps


class DistributedCommunicator(Communicator):
    """The ranks of ``torch.distributed``, whose process group has to be there.

    Each has a share of the groups, which stay whole, so that advantages need no other rank's
    rewards; gradients are averaged over all structures, so that every rank takes the same step.
    Every rank draws the numbers of the whole batch and uses its part: N ranks compute what one
    would, up to rounding.

    Args:
        device: of the tensors that are sent.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        import torch.distributed as dist

        self._dist = dist
        self._device = torch.device(device)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def check(self, config: TrainerConfig) -> None:
        if config.n_groups % self.size:
            raise ValueError(
                f"n_groups must be a multiple of the number of ranks, got {config.n_groups} "
                f"groups for {self.size} ranks"
            )
        if config.max_batch is not None:
            raise ValueError("max_batch must be None with several ranks, each of which has a part")
        for name in ("replay", "imitation_weight"):
            if getattr(config, name):
                raise ValueError(
                    f"{name} must be 0 with several ranks, whose episodes are their own"
                )

    def broadcast(self, value: Any) -> Any:
        holder = [value]
        self._dist.broadcast_object_list(holder, src=0, device=self._device)
        return holder[0]

    def share(
        self, x_0: State, generator: torch.Generator
    ) -> tuple[State, torch.Generator | dict[str, SharedDraws]]:
        size = len(x_0) // self.size
        first = self.rank * size
        ends = [0, *x_0.request.n_atoms.cumsum(0).tolist()]
        part = x_0.select(torch.arange(first, first + size, device=x_0.request.n_atoms.device))
        atoms = slice(ends[first], ends[first + size])
        return part, {
            "atom": SharedDraws(generator, ends[-1], atoms),
            "structure": SharedDraws(generator, len(x_0), slice(first, first + size)),
        }

    def average_gradients(
        self, parameters: Sequence[nn.Parameter], terms: dict[str, float], n: int
    ) -> dict[str, float]:
        weighted = self._sum([n, *(n * value for value in terms.values())])
        trained = [p for p in parameters if p.requires_grad]
        flat = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained]
        )
        flat *= n / weighted[0]
        self._dist.all_reduce(flat)
        for p, grad in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
            p.grad = grad.view_as(p).clone()
        return {k: v / weighted[0] for k, v in zip(terms, weighted[1:], strict=True)}

    def average_row(self, row: Mapping[str, float]) -> dict[str, float]:
        # What only some ranks have, such as their share of structures that failed, is 0 elsewhere.
        names: dict[str, None] = {}
        for of_rank in self._gathered(list(row)):
            names |= dict.fromkeys(of_rank)
        sums = self._sum(row.get(name, 0.0) for name in names)
        means = {name: value / self.size for name, value in zip(names, sums, strict=True)}
        means["non_finite"] *= self.size
        return {**means, "n_steps": row["n_steps"], "n_updates": row["n_updates"]}

    def union(self, steps: Tensor) -> Tensor:
        return torch.tensor(sorted({i for own in self._gathered(steps.tolist()) for i in own}))

    def _gathered(self, value: T) -> list[T]:
        """What every rank has, by rank."""
        values = [value] * self.size
        for rank in range(self.size):
            holder = [value]
            self._dist.broadcast_object_list(holder, src=rank, device=self._device)
            values[rank] = holder[0]
        return values

    def _sum(self, values: Iterable[float]) -> list[float]:
        """Sums over the ranks."""
        total = torch.tensor(list(values), dtype=torch.float64, device=self._device)
        self._dist.all_reduce(total)
        return total.tolist()
