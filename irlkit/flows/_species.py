"""Species within a step of a discrete flow: what they are bound to, and how they are drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from irlkit.flows._categorical import Categorical
from irlkit.utils.draws import Draws, uniform

MASKED = 0


@dataclass(frozen=True, eq=False)
class SpeciesRules:
    """What species of B structures with n atoms may become; class j is atomic number j + 1.

    Attributes:
        allowed: classes that may occur, bool, shape (S,).
        batch: structure of each atom, shape (n,).
        n_atoms: atoms per structure, shape (B,).
        given: atomic numbers of atoms that are given, 0 for the free ones, shape (n,).
        pos: fractional coordinates of the given atoms, float64, shape (n, 3); None: they move.
        counts: atoms of each class that a structure has in the end, shape (B, S), or None.
        required: classes that must occur, bool, shape (S,), or None.
    """

    allowed: Tensor
    batch: Tensor
    n_atoms: Tensor
    given: Tensor
    pos: Tensor | None = None
    counts: Tensor | None = None
    required: Tensor | None = None

    @classmethod
    def free(cls, n_atoms: Tensor, allowed: Tensor, given: Tensor | None = None) -> SpeciesRules:
        """Return rules without constraints; ``given`` species (n,) stay as they are."""
        structures = torch.arange(len(n_atoms), device=n_atoms.device)
        batch = structures.repeat_interleave(n_atoms)
        given = torch.zeros_like(batch) if given is None else given
        return cls(allowed, batch, n_atoms, given)

    @property
    def counted(self) -> bool:
        """Whether what an atom may become depends on the others of its structure."""
        return self.counts is not None or self.required is not None

    def first(self, n_structures: int) -> SpeciesRules:
        """Return the rules of the first structures, for rules of copies side by side."""
        if n_structures == len(self.n_atoms):
            return self
        n = int(self.n_atoms[:n_structures].sum())
        return SpeciesRules(
            self.allowed,
            self.batch[:n],
            self.n_atoms[:n_structures],
            self.given[:n],
            None if self.pos is None else self.pos[:n],
            None if self.counts is None else self.counts[:n_structures],
            self.required,
        )

    def possible(self, placed: Tensor, left: Tensor) -> Tensor:
        """Return which classes an atom may become, bool, shape (..., n, S).

        Args:
            placed: atoms of each class in the atom's structure so far, shape (..., n, S).
            left: atoms of the structure without a species, this one among them, shape (..., n).
        """
        possible = self.allowed.expand(placed.shape)
        if self.counts is not None:
            possible = possible & (placed < self.counts[self.batch])
        if self.required is not None:
            missing = self.required & (placed == 0)
            all_needed = (missing.sum(-1) >= left)[..., None]
            possible = possible & (missing | ~all_needed)
        return possible

    def hold(self, pos: Tensor) -> Tensor:
        """Return positions (n, 3) with those of fixed sites in their places."""
        if self.pos is None:
            return pos
        return torch.where((self.given > 0)[:, None], self.pos.to(pos), pos)


@dataclass(frozen=True, eq=False)
class UnmaskingStep:
    """The distribution of the species after k steps of the mask base.

    Where what an atom may become depends on the others (exact fractions, systems), the atoms that
    are unmasked in one step draw one after the other, in their order in the structure. Divergence
    and entropy of an atom are then those after the draws before it, which ``given`` tells; their
    mean over what is drawn is that of the step.

    Attributes:
        logits: divided by the temperature, minus infinity where forbidden, shape (k, n, S).
        species: before the step, shape (k, n).
        unmask: u, shape (k, 1).
        remask: m, shape (k, 1).
        rules: of the n atoms.
        action: species after the step, shape (k, n), where it is known.
    """

    logits: Tensor
    species: Tensor
    unmask: Tensor
    remask: Tensor
    rules: SpeciesRules
    action: Tensor | None = None

    @cached_property
    def _masked(self) -> Tensor:
        return self.species == MASKED

    @cached_property
    def _becomes(self) -> Categorical:
        """What masked atoms become, after the draws before them where these are known."""
        if not self.rules.counted:
            return Categorical(self.logits)
        nothing = torch.zeros_like(self.species)
        return self._restricted(nothing if self.action is None else self.action)

    def given(self, action: Tensor) -> UnmaskingStep:
        """Return the step with divergences and entropies as they are when an action is taken.

        Args:
            action: species after the step, shape (k, n).
        """
        return replace(self, action=action) if self.rules.counted else self

    def _restricted(self, action: Tensor) -> Categorical:
        """What each atom becomes, after those before it in its structure became ``action``."""
        rules, n_classes = self.rules, self.logits.shape[-1]
        placed = torch.nn.functional.one_hot(self.species, n_classes + 1)[..., 1:]
        new = torch.nn.functional.one_hot(action * self._masked, n_classes + 1)[..., 1:]
        earlier = self._before(new)
        left = self._total(self._masked.long()[..., None])[..., 0] - earlier.sum(-1)
        possible = rules.possible(self._total(placed) + earlier, left)
        # Atoms with a species draw nothing; they must not give rows without a class.
        possible = possible | ~self._masked[..., None]
        return Categorical(self.logits.masked_fill(~possible, -torch.inf))

    def _total(self, values: Tensor) -> Tensor:
        """Sums over structures (k, n, ...), at each of their atoms."""
        sums = values.new_zeros(len(values), len(self.rules.n_atoms), values.shape[-1])
        return sums.index_add(1, self.rules.batch, values)[:, self.rules.batch]

    def _before(self, values: Tensor) -> Tensor:
        """Sums over the atoms before each in its structure (k, n, ...)."""
        running = values.cumsum(1) - values
        starts = self.rules.n_atoms.cumsum(0) - self.rules.n_atoms
        return running - running[:, starts][:, self.rules.batch]

    def sample(self, draws: Draws) -> Tensor:
        """Draw the species after the step, int64, shape (k, n)."""
        like = self.logits[..., 0]
        if not self.rules.counted:
            candidates = self._becomes.sample(draws) + 1
            return self.taken(candidates, uniform(like, draws), uniform(like, draws))
        # As many numbers as atoms, whatever is drawn, so that ranks stay together.
        quantile, *u = (uniform(like, draws) for _ in range(3))
        chosen = self._masked & (u[0] < self.unmask)
        turn = self._before(chosen.long()[..., None])[..., 0]
        candidates = torch.zeros_like(self.species)
        for k in range(int(turn[chosen].max()) + 1 if bool(chosen.any()) else 0):
            drawn = self._restricted(candidates).at_quantile(quantile) + 1
            candidates = torch.where(chosen & (turn == k), drawn, candidates)
        return self.taken(candidates, *u)

    def taken(self, candidates: Tensor, u_unmask: Tensor, u_mask: Tensor) -> Tensor:
        """Return the species after the step from its draws, all of shape (k, n).

        Args:
            candidates: what masked atoms become if they are unmasked.
            u_unmask: in [0, 1); below u, an atom is unmasked.
            u_mask: in [0, 1); below m, an atom is masked again.
        """
        unmasked = self._masked & (u_unmask < self.unmask)
        masked = ~self._masked & (u_mask < self.remask) & (self.rules.given == 0)
        species = torch.where(unmasked, candidates, self.species)
        return species.masked_fill(masked, MASKED)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-probability of each atom's species after the step, shape (k, n)."""
        dist = self.given(action)._becomes
        became = dist.log_prob((action - 1).clamp(min=0)) + self.unmask.log()
        waits = action == MASKED
        of_masked = torch.where(waits, (-self.unmask).log1p(), became)
        of_others = torch.where(waits, self.remask.log(), (-self.remask).log1p())
        of_others = of_others.masked_fill(~waits & (action != self.species), -torch.inf)
        of_others = of_others.masked_fill((self.rules.given > 0) & (action == self.species), 0.0)
        return torch.where(self._masked, of_masked, of_others)

    def kl(self, other: UnmaskingStep) -> Tensor:
        """Return the KL divergence of each atom's step from ``other``, shape (k, n)."""
        return self._masked * self.unmask * self._becomes.kl(other._becomes)

    def entropy(self) -> Tensor:
        """Return the entropy of each atom's species after the step in nats, shape (k, n)."""
        share = torch.where(self._masked, self.unmask, self.remask)
        share = share.masked_fill(self.rules.given > 0, 0.0)
        waiting = torch.special.entr(share) + torch.special.entr(1 - share)
        return waiting + self._masked * self.unmask * self._becomes.entropy()


@dataclass(frozen=True, eq=False)
class JumpStep:
    """The distribution of the species after k steps of the uniform base.

    Attributes:
        kernel: log-probabilities of all classes, shape (k, n, S).
    """

    kernel: Tensor

    def sample(self, draws: Draws) -> Tensor:
        """Draw the species after the step, int64, shape (k, n)."""
        return Categorical(self.kernel).sample(draws) + 1

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-probability of each atom's species after the step, shape (k, n)."""
        return Categorical(self.kernel).log_prob(action - 1)

    def kl(self, other: JumpStep) -> Tensor:
        """Return the KL divergence of each atom's step from ``other``, shape (k, n)."""
        return Categorical(self.kernel).kl(Categorical(other.kernel))

    def entropy(self) -> Tensor:
        """Return the entropy of each atom's species after the step in nats, shape (k, n)."""
        return Categorical(self.kernel).entropy()

    def given(self, action: Tensor) -> JumpStep:
        """Return itself, whatever action is taken."""
        return self
