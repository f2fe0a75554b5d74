"""The best episodes of earlier iterations, which are learned from again."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.rl.process import Request, Requests
from irlkit.rl.trajectory import Trajectory

_FIELDS = ("species", "pos", "cell", "n_atoms")


class Replay:
    """Keeps the episodes with the highest rewards, one of each formula (MatInvent's replay).

    An episode keeps the log-probabilities that it was drawn with and the advantage that it had in
    its group, so that an update treats it like any other of an older policy: the clipped ratio
    bounds what it can still change. Rewards are compared as they were given.

    Args:
        n: episodes that are learned from again in each iteration; 0 keeps none.
        size: episodes that are kept, at most.
    """

    def __init__(self, n: int, size: int) -> None:
        self.n, self.size = n, size
        self.kept: Trajectory | None = None
        self.rewards = torch.zeros(0, dtype=torch.float64)
        self.advantages = torch.zeros(0, dtype=torch.float64)

    def __call__(
        self,
        trajectory: Trajectory,
        advantages: Tensor,
        rewards: Tensor,
        generator: torch.Generator,
    ) -> tuple[Trajectory, Tensor]:
        """Return a trajectory with episodes added that were kept before, and all advantages.

        Then keep what is among the best so far.

        Args:
            trajectory: of B structures, with as many steps as those that are kept.
            advantages: shape (B,).
            rewards: shape (B,).
            generator: on the CPU; decides which ones.
        """
        if not self.n:
            return trajectory, advantages
        all_of_it, all_advantages = trajectory, advantages
        if self.kept is not None:
            chosen = torch.randperm(len(self.rewards), generator=generator)[: self.n]
            again = self.kept.select(chosen.to(trajectory.times.device))
            all_of_it = _joined(trajectory, again)
            all_advantages = torch.cat([advantages, self.advantages[chosen].to(advantages)])
        self._keep(trajectory, advantages, rewards)
        return all_of_it, all_advantages

    def _keep(self, trajectory: Trajectory, advantages: Tensor, rewards: Tensor) -> None:
        pool = trajectory if self.kept is None else _joined(self.kept, trajectory)
        rewards = torch.cat([self.rewards, rewards.cpu()])
        advantages = torch.cat([self.advantages, advantages.cpu().double()])
        best: dict[str, int] = {}
        formulas = pool.final.reduced_formulas()
        for i in rewards.argsort(descending=True, stable=True).tolist():
            best.setdefault(formulas[i], i)
        chosen = torch.tensor(list(best.values())[: self.size], dtype=torch.int64)
        self.kept = pool.select(chosen.to(pool.times.device))
        self.rewards, self.advantages = rewards[chosen], advantages[chosen]

    def state(self) -> dict[str, Any]:
        """Return what is kept, as tensors."""
        if self.kept is None:
            return {}
        kept, request = self.kept, self.kept.request
        crystals = request if isinstance(request, CrystalBatch) else request.crystals
        plain = {f.name: getattr(kept, f.name) for f in fields(kept) if f.compare}
        plain |= {name: dict(plain[name]) for name in ("action_scopes", "state_scopes")}
        return {
            **plain,
            "request": None if isinstance(request, CrystalBatch) else dict(request.targets),
            "n_atoms": request.n_atoms,
            "crystals": None if crystals is None else {k: getattr(crystals, k) for k in _FIELDS},
            "final": {name: getattr(kept.final, name) for name in _FIELDS},
            "rewards": self.rewards,
            "advantages": self.advantages,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Keep what a `state` holds, and nothing else."""
        self.__init__(self.n, self.size)  # type: ignore[misc]
        if not state:
            return
        state = dict(state)
        self.rewards, self.advantages = (state.pop(k).cpu() for k in ("rewards", "advantages"))
        crystals, targets = state.pop("crystals"), state.pop("request")
        request: Requests | None = None if crystals is None else CrystalBatch._unchecked(**crystals)
        n_atoms = state.pop("n_atoms")
        if targets is not None:
            assert not isinstance(request, Request)
            request = Request(n_atoms, request, targets)
        assert request is not None
        final = CrystalBatch._unchecked(**state.pop("final"))
        self.kept = Trajectory(**state, request=request, final=final)


def _joined(first: Trajectory, second: Trajectory) -> Trajectory:
    """Episodes of two trajectories with the same grid."""
    ours, theirs = first.request, second.request
    if isinstance(ours, CrystalBatch) and isinstance(theirs, CrystalBatch):
        return Trajectory.concatenate([first, second], CrystalBatch.concatenate([ours, theirs]))
    assert isinstance(ours, Request) and isinstance(theirs, Request)
    parts = [r.crystals for r in (ours, theirs) if r.crystals is not None]
    request = Request(
        torch.cat([ours.n_atoms, theirs.n_atoms]),
        CrystalBatch.concatenate(parts) if parts else None,
        {name: torch.cat([ours.targets[name], theirs.targets[name]]) for name in ours.targets},
    )
    return Trajectory.concatenate([first, second], request)
