"""Site filling as a process of irlkit's loop: one categorical action per step and structure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from irlkit.crystals import CrystalBatch
from irlkit.envs._graphs import SiteNetwork
from irlkit.envs.skeletons import Elements, Skeletons, atomic_numbers
from irlkit.rl import Categorical, Field, FieldStep, Policy, Process, Request, State, StepInputs
from irlkit.rl.process import Requests
from irlkit.utils.checks import checked

MODES = ("completion", "substitution")


class SiteFilling(Process):
    """Fills the sites of skeletons with elements, one after the other, in a random order.

    A request is a `Request` of `Skeletons.requests`. The order is drawn with the state before the
    first step, so that a trainer with `shared_x_0` compares fillings of one skeleton in one order.
    A run has as many steps as the largest skeleton has sites; smaller ones wait when they are full.

    Args:
        skeletons: as for `Skeletons.get`.
        elements: "small", "medium", "large", or symbols.
        mode: "completion" of empty sites, or "substitution" of random elements.

    Raises:
        ValueError: unknown skeletons, elements or another mode.
    """

    fields = (
        Field("element", "structure", "categorical"),
        Field("species", "atom", "categorical"),
        Field("order", "atom", "categorical"),
    )

    @checked
    def __init__(
        self, skeletons: Any = "all", elements: Elements = "small", mode: str = "completion"
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
        self.skeletons = Skeletons.get(skeletons)
        self.numbers = torch.from_numpy(atomic_numbers(elements))
        self.mode = mode

    @property
    def n_steps(self) -> int:
        """Steps that fill the largest skeleton."""
        return int(self.skeletons.n_atoms.max())

    def initial(self, request: Requests, generator: torch.Generator) -> State:
        """Draw the order of the sites and, for a substitution, the elements to begin with."""
        if not isinstance(request, Request) or "skeleton" not in request.targets:
            raise ValueError("request must be a Request of Skeletons.requests()")
        batch = request.batch
        n = len(batch)
        # Structures one after the other, the atoms of each by a random number.
        drawn = torch.rand(n, generator=generator, dtype=torch.float64).to(batch.device)
        ranks = torch.argsort(torch.argsort(batch + drawn))
        starts = request.n_atoms.cumsum(0) - request.n_atoms
        species = torch.zeros(n, dtype=torch.int64, device=batch.device)
        if self.mode == "substitution":
            species = torch.randint(1, len(self.numbers) + 1, (n,), generator=generator)
        values = {
            "element": torch.zeros_like(request.n_atoms),
            "species": species.to(batch.device),
            "order": ranks - starts[batch],
        }
        return State(request, self.fields, values)

    def advance(self, state: State, moves: Mapping[str, Tensor], step: int) -> State:
        """Fill the site whose turn it is, in structures that have one left.

        The move "element", shape (B,), counts the elements from 0: hydrogen.
        """
        placed = moves["element"][state.request.batch] + 1
        species = torch.where(state["order"] == step, placed, state["species"])
        return state.moved_to({**state.values, "species": species, "element": moves["element"]})

    def moves_to(
        self, state: State, final: Mapping[str, Tensor], n_steps: int
    ) -> dict[str, Tensor]:
        """Return the elements that fill the sites, in the state's order, as they are at the end."""
        moves = final["species"].new_zeros(n_steps, len(state))
        moves[state["order"], state.request.batch] = final["species"] - 1
        return {"element": moves}

    def decode(self, state: State) -> CrystalBatch:
        """Return the filled skeletons.

        Raises:
            ValueError: there were too few steps to fill all sites.
        """
        if bool((state["species"] == 0).any()):
            most = int(state.request.n_atoms.max())
            raise ValueError(f"n_steps must be at least {most} to fill all sites")
        request = state.request
        assert isinstance(request, Request) and request.crystals is not None
        numbers = self.numbers.to(state["species"].device)
        empty = request.crystals
        return CrystalBatch(numbers[state["species"] - 1], empty.pos, empty.cell, empty.n_atoms)


class SiteFillingPolicy(Policy):
    """Probabilities of the elements at the site in turn, from the graph of what is there.

    Its reference is uniform, so that `kl_weight` and `entropy_weight` keep fillings apart alike.
    The noise scale is the temperature of the logits.

    Args:
        process: with the skeletons that it is trained on.
        network: gives one logit per element; None for a new one of the width.
        width: of a new network.

    >>> import irlkit.rl as rl
    >>> policy = SiteFillingPolicy(SiteFilling(["AuSb3", "RbVF3"], ["Na", "Cl"]))
    >>> requests = policy.process.skeletons.requests(target=3.0)
    >>> generator = torch.Generator().manual_seed(0)
    >>> rl.generate(policy, requests, 5, generator=generator).n_atoms
    tensor([4, 5])
    """

    process: SiteFilling

    @checked
    def __init__(
        self, process: SiteFilling, network: nn.Module | None = None, width: int = 64
    ) -> None:
        super().__init__(process, ("element",))
        n = len(process.numbers)
        self.network = network or SiteNetwork(process.skeletons, n, width=width)

    def prepare(self, request: Requests) -> Any:
        """Return where the sites stand in padded rows, with skeletons and targets."""
        assert isinstance(request, Request)
        n = request.n_atoms
        sites = torch.arange(self.process.n_steps, device=n.device)
        atom = ((n.cumsum(0) - n)[:, None] + sites).clamp(max=int(n.sum()) - 1)
        target = request.targets.get("target", torch.zeros(len(n), device=n.device))
        # Of the order of 1, whatever the unit.
        return atom, sites < n[:, None], request.targets["skeleton"], torch.log1p(target) / 3, n

    def steps(self, inputs: StepInputs) -> dict[str, FieldStep]:
        """Return the distribution of the element of every structure's site in turn."""
        atom, real, skeleton, target, n = inputs.conditioning
        k = len(inputs.index)
        species = inputs.states["species"].flatten()[atom] * real
        step = inputs.index.repeat_interleave(len(n) // k)
        turn = (inputs.states["order"].flatten()[atom] == step[:, None]) & real
        logits = self.network(skeleton, species, turn.int().argmax(1), target)
        logits = logits / self.noise_scale["element"]
        # Full structures wait, without a choice.
        waiting = torch.full_like(logits, -torch.inf)
        waiting[:, 0] = 0.0
        full = ~turn.any(1)[:, None]
        logits = torch.where(full, waiting, logits).unflatten(0, (k, -1))
        uniform = torch.where(full, waiting, torch.zeros_like(waiting)).unflatten(0, (k, -1))
        return {"element": FieldStep(Categorical(logits), Categorical(uniform), "structure")}

    def identity(self) -> dict[str, str]:
        """Return what tells runs apart: skeletons, elements and mode."""
        process = self.process
        sites = process.skeletons.crystals
        content = b"".join(x.numpy().tobytes() for x in (sites.pos, sites.cell, process.numbers))
        digest = hashlib.sha256(content).hexdigest()[:12]
        return {"policy": type(self).__name__, "sites": f"{process.mode}-{digest}"}
