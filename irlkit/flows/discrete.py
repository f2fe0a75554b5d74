"""Discrete flow matching of species: kernels of the steps, their probabilities, training states.

With pi = softmax(logits / tau) the network's distribution of an atom's final species, a step goes
from t to t + dt; eta >= 0 is the noise. For the *mask* base (species 0: masked), with
u = min(1, dt (1 + eta t) / (1 - t)) and m = eta dt,

    P(0 -> j) = u pi_j,  P(0 -> 0) = 1 - u,  P(i -> 0) = m,  P(i -> i) = 1 - m;

u = 1 and m = 0 in the last step. For the *uniform* base of S species,

    P(i -> j) = dt [pi_j (1 + eta + eta (S - 1) t) / (1 - t) + eta pi_i]  (j other than i),

P(i -> i) what is left; in the last step P(i -> j) = pi_j. Which atoms are unmasked or masked again
does not depend on pi: of the mask base, log-ratios of two policies are those of pi at the atoms
that were unmasked, and the KL divergence of a step is u times that of pi at masked atoms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from irlkit.crystals.formulas import MAX_ATOMIC_NUMBER
from irlkit.flows._plain import by_name
from irlkit.flows._species import JumpStep, SpeciesRules, UnmaskingStep
from irlkit.flows.constraints import Constraints
from irlkit.utils.checks import check_finite, checked


@checked
@dataclass(frozen=True)
class DiscreteFlow:
    """Flow of species from a base to crystals.

    Attributes:
        base: "mask": all atoms start masked; "uniform": as any species.
        noise: eta, not negative.
        temperature: tau, positive, by which logits are divided.
        elements: atomic numbers of the species that the model has seen; None: all of its network.
        final_window: steps that end closer than this to the last time unmask all (mask base).

    Raises:
        ValueError: another base, or a number out of its range.

    >>> DiscreteFlow(noise=0.5).rates(torch.tensor([0.0, 0.5, 1.0]))
    (tensor([0.5000, 1.0000]), tensor([0.2500, 0.0000]))
    """

    base: Literal["mask", "uniform"] = "mask"
    noise: float = 0.0
    temperature: float = 1.0
    elements: tuple[int, ...] | None = None
    final_window: float = 0.0

    def __post_init__(self) -> None:
        check_finite("noise", self.noise, least=0)
        check_finite("temperature", self.temperature, above=0)
        check_finite("final_window", self.final_window, least=0)
        if self.elements is not None:
            if not self.elements or not all(1 <= z <= MAX_ATOMIC_NUMBER for z in self.elements):
                raise ValueError(
                    f"elements must be atomic numbers from 1 to {MAX_ATOMIC_NUMBER}, at least one, "
                    f"got {self.elements}"
                )
            object.__setattr__(self, "elements", tuple(int(z) for z in self.elements))

    def last(self, times: Tensor) -> Tensor:
        """Return which steps of a grid (n_steps + 1,) end the flow, bool, shape (n_steps,)."""
        last = times[-1] - times[1:] < self.final_window
        last[-1] = True
        return last

    def rates(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Return u and m of the mask base for all steps of a grid, shape (n_steps,) each."""
        t, dt, last = times[:-1], times.diff(), self.last(times)
        unmask = (dt * (1 + self.noise * t) / (1 - t)).clamp(max=1.0)
        return unmask.masked_fill(last, 1.0), (self.noise * dt).clamp(max=1).masked_fill(last, 0.0)

    def expected_events(self, times: Tensor) -> float:
        """Return how often an atom is unmasked on a grid (n_steps + 1,), about 1 + eta / 2."""
        masked, events = 1.0, 0.0
        for u, m in zip(*(x.tolist() for x in self.rates(times)), strict=True):
            events += masked * u
            masked = masked * (1 - u) + (1 - masked) * m
        return events

    def rules(
        self, n_atoms: Tensor, n_species: int, constraints: Constraints | None = None
    ) -> SpeciesRules:
        """Return what species of structures with so many atoms may become.

        Args:
            n_atoms: int64, shape (B,).
            n_species: classes of the network.
            constraints: beyond what the model has seen.

        Raises:
            ValueError: constraints that cannot be met, or that the uniform base cannot keep.
        """
        allowed = torch.ones(n_species, dtype=torch.bool, device=n_atoms.device)
        if self.elements is not None:
            allowed[:] = False
            allowed[torch.tensor(self.elements, device=n_atoms.device) - 1] = True
        if constraints is None:
            return SpeciesRules.free(n_atoms, allowed)
        rules = constraints.rules(n_atoms, allowed)
        if rules.counted and self.base == "uniform":
            raise ValueError(
                "constraints: a chemical system, a formula or fractions need a flow with the mask "
                "base, in which an atom keeps its species; with the uniform base, give elements"
            )
        return rules

    def initial(self, rules: SpeciesRules, draws: torch.Generator) -> Tensor:
        """Draw species before the first step, int64, shape (n,)."""
        species = torch.zeros_like(rules.given)
        if self.base == "uniform":
            classes = rules.allowed.nonzero().flatten()
            species = self._uniform(len(species), classes, draws) + 1
        return torch.where(rules.given > 0, rules.given, species)

    def _uniform(self, n: int, classes: Tensor, draws: torch.Generator) -> Tensor:
        which = torch.randint(len(classes), (n,), generator=draws, device=draws.device)
        return classes[which.to(classes.device)]

    def interpolate(self, t: Tensor, x_1: Tensor, n_species: int, draws: torch.Generator) -> Tensor:
        """Draw the species at times t (n,) on the way to x_1 (n,): x_1 with probability t."""
        arrived = torch.rand(t.shape, generator=draws, device=draws.device).to(t) < t
        if self.base == "mask":
            return x_1 * arrived
        known = range(1, n_species + 1) if self.elements is None else self.elements
        classes = torch.tensor(list(known), device=x_1.device)
        return torch.where(arrived, x_1, self._uniform(len(x_1), classes, draws))

    def cross_entropy(self, logits: Tensor, x_1: Tensor) -> Tensor:
        """Return the training loss, the mean over all atoms: logits (n, S) of species x_1 (n,)."""
        return torch.nn.functional.cross_entropy(logits, x_1 - 1)

    def step(
        self,
        logits: Tensor,
        species: Tensor,
        times: Tensor,
        index: Tensor | int,
        rules: SpeciesRules,
    ) -> UnmaskingStep | JumpStep:
        """Return the distribution of the species after k steps.

        Args:
            logits: of the network before the steps, shape (k, n, S).
            species: before the steps, shape (k, n).
            times: the whole grid.
            index: which steps, shape (k,), or which one.
            rules: of the n atoms.
        """
        index = torch.as_tensor(index, device=times.device).reshape(-1)
        logits = (logits / self.temperature).masked_fill(~rules.allowed, -torch.inf)
        if self.base == "mask":
            unmask, remask = (rate[index][:, None] for rate in self.rates(times))
            return UnmaskingStep(logits, species, unmask, remask, rules)
        return JumpStep(self._kernel(logits.log_softmax(-1), species, times, index, rules))

    def _kernel(
        self, log_pi: Tensor, species: Tensor, times: Tensor, index: Tensor, rules: SpeciesRules
    ) -> Tensor:
        """Log-probabilities of the uniform base's steps (k, n, S), clamped and renormalised."""
        t, dt = times[index][:, None, None], times.diff()[index][:, None, None]
        own = torch.nn.functional.one_hot(species - 1, log_pi.shape[-1]).bool()
        pi, eta, n = log_pi.exp(), self.noise, int(rules.allowed.sum())
        of_own = (pi * own).sum(-1, keepdim=True)
        jumps = dt * (pi * (1 + eta + eta * (n - 1) * t) / (1 - t) + eta * of_own)
        jumps = jumps.masked_fill(own | ~rules.allowed, 0.0)
        leaving = jumps.sum(-1, keepdim=True)
        kernel = torch.where(own, (1 - leaving).clamp(min=0.0), jumps / leaving.clamp(min=1.0))
        tiny = torch.finfo(kernel.dtype).tiny
        logs = kernel.clamp(min=tiny).log().masked_fill(~rules.allowed & ~own, -torch.inf)
        logs = torch.where(self.last(times)[index][:, None, None], log_pi, logs)
        if not bool((rules.given > 0).any()):
            return logs
        kept = torch.zeros_like(logs).masked_fill(~own, -torch.inf)
        return torch.where((rules.given > 0)[:, None], kept, logs)


SPECIES_FLOWS = by_name(DiscreteFlow)
