"""What is generated, in which steps: fields, requests, states and the process that moves them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.data import CrystalDataset

Scope = Literal["atom", "structure"]
"""What an event belongs to: one row per atom, or one per structure."""


@dataclass(frozen=True)
class Field:
    """A part of the state that a process moves.

    Attributes:
        name: such as "pos", "cell", "species", "latent".
        scope: whether there is one entry per atom or per structure.
        space: "real"; "torus", wrapped to [0, 1) by the process; or "categorical", of integers.
        event_dims: trailing dimensions of one entry: 1 for coordinates, 2 for a cell.

    >>> Field("cell", "structure", "real", 2).scope
    'structure'
    """

    name: str
    scope: Scope
    space: Literal["real", "torus", "categorical"]
    event_dims: int = 0


@dataclass(frozen=True, eq=False)
class Request:
    """Numbers of atoms, with or without crystals and targets that go with them.

    Attributes:
        n_atoms: atoms per structure, int64, shape (B,).
        crystals: compositions or skeletons of so many atoms; None leaves them to the process.
        targets: name -> values per structure, shape (B, ...), for what a process or a reward
            conditions on.

    Raises:
        ValueError: numbers of atoms below 1, or crystals or targets of other sizes.

    >>> request = Request(torch.tensor([2, 4]), targets={"gap": torch.tensor([3.0, 1.0])})
    >>> request.repeat(2).n_atoms.tolist()
    [2, 2, 4, 4]
    """

    n_atoms: Tensor
    crystals: CrystalBatch | None = None
    targets: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = self.n_atoms
        if n.ndim != 1 or n.dtype != torch.int64 or (len(n) and int(n.min()) < 1):
            raise ValueError(
                "n_atoms must be a one-dimensional int64 tensor of numbers of at least 1, "
                f"got {n.dtype} of shape {tuple(n.shape)}"
            )
        if self.crystals is not None and not torch.equal(self.crystals.n_atoms, n):
            raise ValueError("crystals must have n_atoms atoms each, got other numbers")
        for name, values in self.targets.items():
            if values.shape[:1] != n.shape:
                raise ValueError(
                    f"targets[{name!r}] must have one entry for each of {len(n)} structures, "
                    f"got shape {tuple(values.shape)}"
                )

    def __len__(self) -> int:
        return len(self.n_atoms)

    @property
    def batch(self) -> Tensor:
        """Index of each atom's structure, shape (n,)."""
        structures = torch.arange(len(self), device=self.n_atoms.device)
        return structures.repeat_interleave(self.n_atoms)

    def __getitem__(self, index: Any) -> Request:
        """Return the entries of a slice or of indices (m,)."""
        chosen = torch.arange(len(self), device=self.n_atoms.device)[index]
        crystals = None if self.crystals is None else self.crystals[chosen]
        targets = {name: values[chosen] for name, values in self.targets.items()}
        return Request(self.n_atoms[chosen], crystals, targets)

    def repeat(self, k: int) -> Request:
        """Return each entry k times, its copies next to each other."""
        return self[torch.arange(len(self), device=self.n_atoms.device).repeat_interleave(k)]

    def to(self, device: Any = None, dtype: Any = None) -> Request:
        """Return the request on a device; crystals and targets with a floating dtype."""
        crystals = None if self.crystals is None else self.crystals.to(device, dtype)
        targets = {
            name: values.to(device, dtype if values.is_floating_point() else None)
            for name, values in self.targets.items()
        }
        return Request(self.n_atoms.to(device), crystals, targets)

    def atom_indices(self, structures: Tensor) -> Tensor:
        """Return the numbers of the atoms of some structures (m,), one structure after another."""
        n_atoms = self.n_atoms[structures]
        starts = (self.n_atoms.cumsum(0) - self.n_atoms)[structures]
        within = torch.arange(int(n_atoms.sum()), device=n_atoms.device)
        return within + (starts - (n_atoms.cumsum(0) - n_atoms)).repeat_interleave(n_atoms)


Requests = CrystalBatch | Request
"""What is asked for, one entry per structure; the structures of one entry form a group.

A ``CrystalBatch`` is a request for its compositions, or its sites where a process takes skeletons.
"""


def _requests_of(name: str, data: CrystalDataset | Requests, parameter: Tensor) -> Requests:
    """Return the requests of an argument, as a parameter of a policy is (device, dtype).

    Raises:
        ValueError: there are none; the message has the name of the argument.
    """
    requests = data.batch if isinstance(data, CrystalDataset) else data
    if not len(requests):
        raise ValueError(f"{name} must hold at least one composition, got none")
    return requests.to(parameter.device, parameter.dtype)


@dataclass(frozen=True, eq=False)
class State:
    """The fields of B structures at one time.

    Attributes:
        request: what is being generated.
        fields: their declarations.
        values: name -> (events, ...), events being atoms or structures by the field's scope.

    >>> species = Field("species", "atom", "categorical")
    >>> state = State(Request(torch.tensor([2, 1])), (species,), {"species": torch.arange(3)})
    >>> state.repeat(2)["species"]
    tensor([0, 1, 0, 1, 2, 2])
    """

    request: Requests
    fields: tuple[Field, ...]
    values: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.request)

    def __getitem__(self, name: str) -> Tensor:
        """Return the values of a field."""
        return self.values[name]

    def select(self, structures: Tensor) -> State:
        """Return the states of some structures, given by index (m,)."""
        index = {"atom": self.request.atom_indices(structures), "structure": structures}
        values = {f.name: self.values[f.name][index[f.scope]] for f in self.fields}
        return State(self.request[structures], self.fields, values)

    def repeat(self, k: int) -> State:
        """Return each structure k times, its copies next to each other (the groups of GRPO)."""
        return self.select(self._structures().repeat_interleave(k))

    def split(self, size: int | None) -> list[State]:
        """Cut into consecutive parts of at most ``size`` structures; None: one part.

        Raises:
            ValueError: ``size`` is not positive.
        """
        if size is None or len(self) == 0:
            return [self]
        if size < 1:
            raise ValueError(f"max_batch must be a positive number of structures, got {size}")
        return [self.select(part) for part in self._structures().split(size)]

    def _structures(self) -> Tensor:
        device = self.request.n_atoms.device
        return torch.arange(len(self), device=device)

    def moved_to(self, values: Mapping[str, Tensor]) -> State:
        """Return the state of the same request with other values, of the same shapes."""
        return replace(self, values=dict(values))


class Process(ABC):
    """Moves the fields of a request from a base sample to crystals, in steps.

    Attributes:
        fields: what it moves, in the order in which actions are drawn.
    """

    fields: ClassVar[tuple[Field, ...]]

    @property
    def field_names(self) -> tuple[str, ...]:
        """Names of the fields."""
        return tuple(entry.name for entry in self.fields)

    @property
    def scopes(self) -> dict[str, Scope]:
        """Field -> what its entries belong to."""
        return {entry.name: entry.scope for entry in self.fields}

    def grid(self, n_steps: int, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> Tensor:
        """Return the times of so many steps, shape (n_steps + 1,); by default 0, 1, 2, ..."""
        return torch.arange(n_steps + 1, dtype=dtype, device=device)

    @abstractmethod
    def initial(self, request: Requests, generator: torch.Generator) -> State:
        """Draw the state before the first step."""

    @abstractmethod
    def advance(self, state: State, moves: Mapping[str, Tensor], step: int) -> State:
        """Return the state after a step.

        Args:
            state: before it.
            moves: name of each field -> what a policy makes of its actions, of the values' shape:
                the increment of a real field, the new class of a categorical one.
            step: from 0.
        """

    @abstractmethod
    def decode(self, state: State) -> CrystalBatch:
        """Return the crystals that a final state stands for."""

    def moves_to(
        self, state: State, final: Mapping[str, Tensor], n_steps: int
    ) -> dict[str, Tensor]:
        """Return the moves of so many steps that lead from a state to another, if they can be told.

        Args:
            state: before the first step.
            final: field -> values after the last.
            n_steps: number of steps.

        Returns:
            Field -> (n_steps, ...), for `advance`.

        Raises:
            NotImplementedError: this process cannot tell them.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot tell the moves to a state")

    def encode(self, crystals: CrystalBatch) -> State:
        """Return the state of crystals, where one can be told.

        Raises:
            ValueError: crystals do not determine a state of this process.
        """
        raise ValueError(
            f"x_0 must be a State of {type(self).__name__}.initial, got crystals, which do not "
            "determine one"
        )
