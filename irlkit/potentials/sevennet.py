"""SevenNet-0 for whole batches (Park et al., 2024), with the weights of the package sevenn.

The same function of a structure as the package's own model, arranged so that a batch needs few
large operations: the radial weights of a pair serve both of its directions, and the sum over an
atom's neighbours of products of features and harmonics is a matrix product. The package itself is
not imported, whose e3nn no version of mace-torch accepts.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.potentials._neighbors import Neighbors, count_up
from irlkit.potentials.base import BatchedPotential, check_elements
from irlkit.utils.checks import checked

WEIGHTS = "pretrained_potentials/SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth"
"""File of the weights in the package's folder."""

_SHA256 = "7052cb42b7b3be42b40b97fa0d21077a48c54b5548948fc4dcf346629f813c36"

MAX_SLOTS = 1 << 16
"""Atoms of a structure times most neighbours of an atom, above which it counts as failed: far
denser than any crystal."""

_CHUNK = {"cpu": 1 << 11, "cuda": 1 << 17}
"""Slots for neighbours that go through the network together."""

_SILU_SCALE = 1.6791767923989418
"""Makes the second moment of silu(z) one, for z of a standard normal distribution."""


class SevenNetPotential(BatchedPotential):
    """SevenNet-0, a universal potential trained on the same relaxations as CHGNet.

    Its architecture and its training are others, so that it serves as a judge of what CHGNet or
    MACE rewarded. Structures far denser than any crystal count as failed.

    Args:
        model: "7net-0" (11 July 2024), the only one.
        device: Where to compute, such as "cpu" or "cuda".
        dtype: Of the network's numbers, torch.float32 or torch.float64.

    Raises:
        ValueError: another model or dtype, or a file of weights that is not the published one.
        ImportError: the package sevenn, which brings the weights, is missing.
    """

    @checked
    def __init__(
        self,
        model: str = "7net-0",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if model != "7net-0":
            raise ValueError(f"model must be '7net-0', got {model!r}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        self.name = model
        self.device = torch.device(device)
        self._network = _Network(_weights_file(), self.device, dtype)
        self._cutoff = self._network.cutoff
        self._max_cost = _CHUNK.get(self.device.type, _CHUNK["cpu"])

    def check(self, compositions: CrystalBatch) -> None:
        """Raise a ValueError that names elements that SevenNet-0 was not trained on."""
        check_elements(self.name, compositions, self._network.known)

    def _costs(
        self, batch: CrystalBatch, neighbors: Neighbors
    ) -> tuple[Tensor, Tensor, dict[int, str]]:
        ends = torch.cat([neighbors.first, neighbors.second])
        degree = torch.bincount(ends, minlength=len(batch.species))
        most = degree.new_ones(len(batch)).scatter_reduce(0, batch.batch, degree, "amax")
        slots = batch.n_atoms * most
        reasons = {
            i: f"too dense: an atom has {int(most[i])} neighbours within {self._cutoff:g} Å"
            for i in (slots > MAX_SLOTS).nonzero().flatten().tolist()
        }
        # Structures with similar numbers of neighbours go together: every atom gets as many slots.
        return slots, most, reasons


class _Network:
    """The network of SevenNet-0: five layers of equivariant messages.

    Features of degree l are stored as (atoms, 2 l + 1, channels). A path (l1, l2, l3) multiplies
    features of degree l1 by harmonics of degree l2 to messages of degree l3.

    Attributes:
        cutoff: Longest edges, Å.
        known: Atomic numbers that it knows, int64, on the CPU.
    """

    cutoff, cutoff_on = 5.0, 4.5
    n_layers = 5
    channels = (128, 64, 32)
    """Of the features of each degree; the first and the last layer have but scalars outside."""

    def __init__(self, path: Path, device: torch.device, dtype: torch.dtype) -> None:
        saved, columns = _load(path)
        self.known = torch.tensor(sorted(columns))
        column = torch.zeros(int(self.known[-1]) + 1, dtype=torch.int64)
        column[list(columns)] = torch.tensor(list(columns.values()))
        self.column = column.to(device)
        self.weights = w = {
            name: value.to(device=device, dtype=dtype) for name, value in saved.items()
        }
        self.dtype = dtype
        self.shift = saved["rescale_atomic_energy.shift"].to(device, torch.float64)
        self.scale = saved["rescale_atomic_energy.scale"].to(device, torch.float64)
        self.embedding = w["onehot_to_feature_x.linear.weight"].reshape(len(columns), -1)
        self.embedding = self.embedding / math.sqrt(len(columns))
        c0, c1, c2 = self.channels
        self.layers = []
        for k in range(self.n_layers):
            degrees = range(1 if k == 0 else 3)
            targets = range(1 if k == self.n_layers - 1 else 3)
            paths = [
                (a, b, c)
                for a in degrees
                for b in range(3)
                for c in range(abs(a - b), a + b + 1)
                if c in targets
            ]
            # In the last layer, there is nothing to gate.
            outputs = (c0 + c1 + c2, c1, c2) if len(targets) > 1 else (c0,)
            inputs = [self.channels[a] for a in degrees]
            sums = [sum(self.channels[a] for a, _, c in paths if c == t) for t in targets]
            name = f"{k}_self_interaction_2.linear.weight"
            gather = _linear(w[name] / w[f"{k}_convolution.denominator"], sums, outputs)
            keep = _linear(w[f"{k}_self_connection_intro.linear.weight"], inputs, outputs)
            mix = _linear(w[f"{k}_self_interaction_1.linear.weight"], inputs, inputs)
            self.layers.append((paths, mix, keep, gather))
        self.couplings = {
            path: self._coupling(*path).to(device=device, dtype=dtype)
            for path in self.layers[1][0]  # which has every path
        }

    def _coupling(self, a: int, b: int, c: int) -> Tensor:
        """Coefficients of a path, shape (2 a + 1, 2 b + 1, 2 c + 1)."""
        if a and b and c:
            name = f"1_convolution.convolution._compiled_main_left_right._w3j_{a}_{b}_{c}"
            return self.weights[name] * math.sqrt(2 * c + 1)
        shape = (2 * a + 1, 2 * b + 1, 2 * c + 1)
        return torch.eye(max(shape)).reshape(shape) / (1 if c else math.sqrt(2 * a + 1))

    def energies(self, batch: CrystalBatch, neighbors: Neighbors, vectors: Tensor) -> Tensor:
        """Return energies of structures, eV, float64, shape (B,).

        Args:
            batch: Structures, float64.
            neighbors: All P pairs below `cutoff`.
            vectors: Of the pairs, Å, shape (P, 3).
        """
        w = self.weights
        lengths = vectors.norm(dim=1, keepdim=True)
        radial = _with_zeros(self._radial(lengths).to(self.dtype))
        edge, sender = _slots(neighbors, len(batch.species))
        n_pairs = len(vectors)
        pair = torch.where(edge < 2 * n_pairs, edge % max(n_pairs, 1), n_pairs)
        factors = self._factors((vectors / lengths).to(self.dtype), edge)
        column = self.column[batch.species]
        x = [self.embedding[column].unsqueeze(1)]
        for k, (paths, mix, keep, gather) in enumerate(self.layers):
            kept = [f @ m for f, m in zip(x, keep, strict=False)]
            mixed = [(f @ m)[sender].flatten(1, 2) for f, m in zip(x, mix, strict=True)]
            hidden = radial
            for layer in range(3):
                matrix = w[f"{k}_convolution.weight_nn.layer{layer}.weight"]
                hidden = hidden @ (matrix / math.sqrt(len(matrix)))
                if layer < 2:
                    hidden = _silu(hidden)
            strengths = hidden.split([self.channels[a] for a, _, _ in paths], dim=1)
            messages: list[list[Tensor]] = [[] for _ in gather]
            for (a, b, c), strength in zip(paths, strengths, strict=True):
                scaled = mixed[a].unflatten(1, (-1, 2 * a + 1)) * strength[pair].unsqueeze(2)
                messages[c].append(factors[a, b, c] @ scaled.flatten(1, 2))
            x = [torch.cat(m, dim=2) @ g for m, g in zip(messages, gather, strict=True)]
            x = [f + kept[i] if i < len(kept) else f for i, f in enumerate(x)]
            x[0], *gates = _silu(x[0]).split(self.channels[: len(x)], dim=2)
            x[1:] = [f * gate for f, gate in zip(x[1:], gates, strict=True)]
        for name in ("reduce_input_to_hidden", "reduce_hidden_to_energy"):
            matrix = w[f"{name}.linear.weight"].reshape(x[0].shape[2], -1)
            x[0] = x[0] @ (matrix / math.sqrt(len(matrix)))
        site = x[0].flatten().double() * self.scale[column] + self.shift[column]
        return site.new_zeros(len(batch)).index_add(0, batch.batch, site)

    def _radial(self, lengths: Tensor) -> Tensor:
        """Bessel functions with a smooth cut-off, shape (P, 8)."""
        square, on, off = lengths**2, self.cutoff_on**2, self.cutoff**2
        smooth = (off - square) ** 2 * (off + 2 * square - 3 * on) / (off - on) ** 3
        envelope = torch.where(square < on, 1.0, smooth) * 2 / self.cutoff
        frequencies = self.weights["edge_embedding.basis_function.coeffs"]
        return torch.sin(frequencies * lengths) * envelope / lengths

    def _factors(self, direction: Tensor, edge: Tensor) -> dict[tuple[int, int, int], Tensor]:
        """What a path multiplies the neighbours' features by, zero for empty slots.

        Args:
            direction: Unit vectors of pairs, shape (P, 3).
            edge: Directed edge of each slot, 2 P where there is none, shape (n, slots).

        Returns:
            For each path, shape (n, 2 l3 + 1, slots · (2 l1 + 1)).
        """
        x, y, z = direction.unbind(1)
        one = torch.ones_like(x)
        first = math.sqrt(3) * direction
        second = math.sqrt(15) * torch.stack(
            [
                x * z,
                x * y,
                (y * y - (x * x + z * z) / 2) / math.sqrt(3),
                y * z,
                (z * z - x * x) / 2,
            ],
            dim=1,
        )
        harmonics = []
        for values, parity in ((one[:, None], 1), (first, -1), (second, 1)):
            harmonics.append(_with_zeros(torch.cat([values, parity * values]))[edge])
        return {
            (a, b, c): torch.einsum("nsj,ijk->nksi", harmonics[b], coupling).flatten(2)
            for (a, b, c), coupling in self.couplings.items()
        }


def _slots(neighbors: Neighbors, n: int) -> tuple[Tensor, Tensor]:
    """Directed edges and their far atoms by receiving atom, with equally many slots for each.

    Args:
        neighbors: P pairs.
        n: Number of atoms.

    Returns:
        Numbers of edges (p and p + P are the two directions of pair p; 2 P marks an empty slot)
        and of far atoms (0 for an empty slot), int64, shape (n, slots) each.
    """
    receiver = torch.cat([neighbors.first, neighbors.second])
    sender = torch.cat([neighbors.second, neighbors.first, receiver.new_zeros(1)])
    order = receiver.argsort(stable=True)
    degree = torch.bincount(receiver, minlength=n)
    edge = receiver.new_full((n, max(int(degree.max()), 1)), len(receiver))
    edge[receiver[order], count_up(degree)] = order
    return edge, sender[edge]


def _with_zeros(values: Tensor) -> Tensor:
    """The same with one more row, for empty slots."""
    return F.pad(values, (0, 0, 0, 1))


def _linear(
    weight: Tensor, inputs: list[int], outputs: tuple[int, ...] | list[int]
) -> list[Tensor]:
    """Matrices (inputs, outputs) by degree, from all their numbers in a row."""
    shapes = list(zip(inputs, outputs, strict=False))
    parts = weight.split([rows * columns for rows, columns in shapes])
    return [
        part.reshape(shape) / math.sqrt(shape[0]) for part, shape in zip(parts, shapes, strict=True)
    ]


def _silu(x: Tensor) -> Tensor:
    return _SILU_SCALE * F.silu(x)


def _load(path: Path) -> tuple[dict[str, Tensor], dict[int, int]]:
    """Weights by name, and the column of each atomic number, from the published file."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != _SHA256:
        raise ValueError(
            f"{path} is not the published file of SevenNet-0: its SHA-256 is {digest}, "
            f"expected {_SHA256}; install sevenn again"
        )
    # What the pickle holds beside tensors are arrays of NumPy.
    arrays: list[Any] = [
        (np.zeros(0).__reduce__()[0], "numpy.core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        type(np.dtype("float32")),
        type(np.dtype("float64")),
    ]
    with torch.serialization.safe_globals(arrays):
        saved = torch.load(path, map_location="cpu", weights_only=True)
    return saved["model_state_dict"], saved["config"]["_type_map"]


def _weights_file() -> Path:
    spec = importlib.util.find_spec("sevenn")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "SevenNet needs the package sevenn, which brings its weights; "
            "run: pip install 'irlkit[judge]'"
        )
    return Path(spec.submodule_search_locations[0]) / WEIGHTS
