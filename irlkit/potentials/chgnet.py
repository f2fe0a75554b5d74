"""CHGNet for whole batches (Deng et al., 2023), with the weights that the package chgnet brings.

The same function of a structure as the package's own model, arranged so that a batch needs few
large operations: neighbours of all structures are found together; the first layer of each gated
perceptron, which acts on a concatenation, is split into terms of atoms, bonds and angles, each
computed once per atom, bond and angle; what no energy depends on is left out.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.potentials._neighbors import Neighbors, count_up
from irlkit.potentials.base import BatchedPotential, check_elements
from irlkit.utils.checks import checked
from irlkit.utils.settings import torch_settings

MODELS = {
    "0.3.0": "0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar",
    "r2scan": "r2scan/chgnet_r2scan_transfer_learning_e15f36s161m23.pth.tar",
}
"""File of each model in the package's folder of weights."""

_UNTRAINED = {"0.3.0": range(84, 89), "r2scan": [70, *range(84, 89)]}
"""Po, At, Rn, Fr, Ra (and Yb): no training data has them, and their weights are still random."""

MAX_ANGLES = 1 << 19
"""Angles of a structure above which it counts as failed: far denser than any crystal."""

_CHUNK = {"cpu": 1 << 14, "cuda": 1 << 20}
"""Bonds and angles computed at once: few enough for caches and memory, enough to outweigh
overheads."""


class CHGNetPotential(BatchedPotential):
    """CHGNet, a universal potential trained on Materials Project relaxations.

    Structures with an atom that has no neighbour within 6 Å count as failed, as the package
    refuses them too, and so do structures with more than `MAX_ANGLES` angles.

    Args:
        model: Which of the package's models: "0.3.0" (PBE and PBE+U) or "r2scan".
        device: Where to compute, such as "cpu" or "cuda".
        dtype: Of the network's numbers, torch.float32 or torch.float64.

    Raises:
        ValueError: no such model, or another dtype.
        ImportError: the package chgnet, which brings the weights, is missing.
    """

    @checked
    @torch_settings(plain=True)
    def __init__(
        self,
        model: str = "0.3.0",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if model not in MODELS:
            raise ValueError(f"model must be one of {sorted(MODELS)}, got {model!r}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        self.name = f"chgnet-{model}"
        self.device = torch.device(device)
        self._network = _Network(_weights_file(model), self.device, dtype)
        self._cutoff = self._network.cutoff
        self._max_cost = _CHUNK.get(self.device.type, _CHUNK["cpu"])

    def check(self, compositions: CrystalBatch) -> None:
        """Raise a ValueError that names elements that CHGNet was not trained on."""
        untrained = _UNTRAINED[self.name.removeprefix("chgnet-")]
        known = torch.tensor([z for z in range(1, 95) if z not in untrained])
        check_elements(self.name, compositions, known)

    def _costs(
        self, batch: CrystalBatch, neighbors: Neighbors
    ) -> tuple[Tensor, Tensor, dict[int, str]]:
        near = self._network.near_cutoff
        n_bonds, n_angles, isolated = _sizes(batch, neighbors, near)
        reasons = {
            i: f"an atom has no neighbour within {self._cutoff:g} Å"
            for i in isolated.nonzero().flatten().tolist()
        }
        reasons |= {
            i: f"too dense: {int(n_angles[i])} angles between bonds below {near:g} Å, more than "
            f"{MAX_ANGLES}"
            for i in (n_angles > MAX_ANGLES).nonzero().flatten().tolist()
        }
        return n_bonds + n_angles, torch.zeros_like(n_bonds), reasons


class _Network:
    """The network of CHGNet: atoms, bonds and angles exchange messages.

    Bond p of m joins the atoms `first[p]` and `second[p]`; its two directions are numbered p and
    p + m. Angles are ordered pairs of directed bonds that start at one atom and are both shorter
    than the smaller cut-off.

    Attributes:
        cutoff: Longest bonds, Å.
        near_cutoff: Longest bonds that form angles, Å.
    """

    def __init__(self, path: Path, device: torch.device, dtype: torch.dtype) -> None:
        saved = torch.load(path, map_location="cpu", weights_only=True)["model"]
        arguments = saved["model_args"]
        self.dtype = dtype
        self.cutoff = float(arguments["atom_graph_cutoff"])
        self.near_cutoff = float(arguments["bond_graph_cutoff"])
        self.cutoff_power = int(arguments["cutoff_coeff"])
        self.n_layers = int(arguments["n_conv"])
        self.weights = {
            name: value.to(device=device, dtype=dtype)
            for name, value in saved["state_dict"].items()
        }
        weights = self.weights
        self.blocks = [
            _GatedMLP(weights, f"atom_conv_layers.{k}.twoBody_atom") for k in range(self.n_layers)
        ]
        self.bond_blocks = [
            _GatedMLP(weights, f"bond_conv_layers.{k}.twoBody_bond")
            for k in range(self.n_layers - 1)
        ]
        # The last update of the angles would change no energy.
        self.angle_blocks = [
            _GatedMLP(weights, f"angle_layers.{k}.twoBody_bond") for k in range(self.n_layers - 2)
        ]

    def energies(self, batch: CrystalBatch, neighbors: Neighbors, vectors: Tensor) -> Tensor:
        """Return energies of structures, eV, float64, shape (B,).

        Args:
            batch: structures, float64.
            neighbors: all P pairs below `cutoff`.
            vectors: of the pairs, Å, shape (P, 3).
        """
        w = self.weights
        first, second = neighbors.first, neighbors.second
        lengths = vectors.norm(dim=1)
        basis = self._radial(lengths, "rbf_expansion_ag", self.cutoff)
        atom_weight = F.linear(basis, w["bond_weights_ag.weight"])
        bond = F.linear(basis, w["bond_embedding.weight"])
        atom = w["atom_embedding.embedding.weight"][batch.species - 1]

        near = (lengths < self.near_cutoff).nonzero().flatten()
        center, left, right, cosine = _angles(
            first[near], second[near], _rows(vectors, near), _rows(lengths, near), len(atom)
        )
        has_angles = len(center) > 0
        if has_angles:
            near_basis = self._radial(_rows(lengths, near), "rbf_expansion_bg", self.near_cutoff)
            near_weight = F.linear(near_basis, w["bond_weights_bg.weight"])
            angle = F.linear(self._angular(cosine), w["angle_embedding.weight"])
            parts_of_angles = _numbered((left, len(near)), (right, len(near)), (center, len(atom)))

        start, end = torch.cat([first, second]), torch.cat([second, first])
        both = count_up(first.new_tensor([len(first), len(first)]))
        parts_of_bonds = _numbered((start, len(atom)), (both, len(bond)), (end, len(atom)))
        atom_weight = torch.cat([atom_weight, atom_weight])
        for k in range(self.n_layers):
            block = self.blocks[k]
            hidden = _added(block.split(atom, bond, atom), parts_of_bonds)
            message = block.finish(hidden) * atom_weight
            gathered = torch.zeros_like(atom).index_add(0, start, message)
            atom = atom + F.linear(gathered, w[f"atom_conv_layers.{k}.mlp_out.layers.1.weight"])
            if k == self.n_layers - 1 or not has_angles:
                continue
            block = self.bond_blocks[k]
            near_bond = _rows(bond, near)
            hidden = block.per_angle(near_bond, angle, atom, parts_of_angles)
            message = block.finish(hidden) * _rows(near_weight, left) * _rows(near_weight, right)
            gathered = torch.zeros_like(near_bond).index_add(0, left, message)
            update = F.linear(gathered, w[f"bond_conv_layers.{k}.mlp_out.layers.1.weight"])
            bond = bond.index_add(0, near, update)
            if k < len(self.angle_blocks):
                block = self.angle_blocks[k]
                near_bond = _rows(bond, near)
                hidden = block.per_angle(near_bond, angle, atom, parts_of_angles)
                angle = angle + block.finish(hidden)

        site = F.layer_norm(atom, atom.shape[1:], w["readout_norm.weight"], w["readout_norm.bias"])
        for layer in (0, 2, 4):
            site = F.silu(
                F.linear(site, w[f"mlp.layers.{layer}.weight"], w[f"mlp.layers.{layer}.bias"])
            )
        site = F.linear(site, w["mlp.layers.7.weight"], w["mlp.layers.7.bias"]).double().flatten()
        site = site + w["composition_model.fc.weight"].double().flatten()[batch.species - 1]
        return site.new_zeros(len(batch)).index_add(0, batch.batch, site)

    def _radial(self, lengths: Tensor, name: str, cutoff: float) -> Tensor:
        """Spherical Bessel functions with a smooth cut-off, shape (m, n_radial)."""
        scaled = (lengths / cutoff)[:, None]
        p = self.cutoff_power
        envelope = 1 - scaled**p * (
            (p + 1) * (p + 2) / 2 - p * (p + 2) * scaled + p * (p + 1) / 2 * scaled**2
        )
        frequencies = self.weights[f"bond_basis_expansion.{name}.frequencies"]
        waves = torch.sin(frequencies * scaled.to(self.dtype))
        return waves * (math.sqrt(2 / cutoff) * envelope / lengths[:, None]).to(self.dtype)

    def _angular(self, cosine: Tensor) -> Tensor:
        """Fourier series of the angles, shape (n_angles, 2 order + 1)."""
        # Shrunk as the network was trained: at 0 and 180 degrees the angle has no derivative.
        angle = torch.acos(cosine * (1 - 1e-6)).to(self.dtype)
        frequencies = self.weights["angle_basis_expansion.fourier_expansion.frequencies"]
        phases = torch.outer(angle, frequencies)
        constant = torch.full_like(phases[:, :1], math.sqrt(0.5))
        return torch.cat([constant, phases.sin(), phases.cos()], dim=1) / math.sqrt(math.pi)


class _GatedMLP:
    """silu(norm(core(x))) · sigmoid(norm(gate(x))), its first layer split by parts of x."""

    def __init__(self, weights: dict[str, Tensor], prefix: str) -> None:
        def both(layer: int, kind: str) -> list[Tensor]:
            return [
                weights[f"{prefix}.mlp_{part}.layers.{layer}.{kind}"] for part in ("core", "gate")
            ]

        self.deep = f"{prefix}.mlp_core.layers.3.weight" in weights
        first = 0 if self.deep else 1
        # Columns by part of x, 64 each; rows: core, then gate.
        self.first = torch.cat(both(first, "weight")).split(64, dim=1)
        self.first_bias = torch.cat(both(first, "bias"))
        if self.deep:
            self.second = list(zip(both(3, "weight"), both(3, "bias"), strict=True))
        self.norms = [
            (weights[f"{prefix}.{norm}.weight"], weights[f"{prefix}.{norm}.bias"])
            for norm in ("bn1", "bn2")
        ]

    def split(self, *parts: Tensor) -> list[Tensor]:
        """What each part of x contributes to the first layer, the bias with the first."""
        contributions = [
            F.linear(part, weight) for part, weight in zip(parts, self.first, strict=True)
        ]
        contributions[0] = contributions[0] + self.first_bias
        return contributions

    def per_angle(self, bond: Tensor, angle: Tensor, atom: Tensor, rows: Tensor) -> Tensor:
        """The first layer for angles: of both bonds, the angle and its atom."""
        left, right, of_angle, of_atom = self.first
        tables = [F.linear(bond, left, self.first_bias), F.linear(bond, right)]
        others = _added([*tables, F.linear(atom, of_atom)], rows)
        return others.addmm_(angle, of_angle.T)

    def finish(self, hidden: Tensor) -> Tensor:
        """What follows the first layer."""
        core, gate = hidden.chunk(2, dim=1)
        if self.deep:
            (core_weight, core_bias), (gate_weight, gate_bias) = self.second
            core = F.linear(F.silu(core), core_weight, core_bias)
            gate = F.linear(F.silu(gate), gate_weight, gate_bias)
        core = F.layer_norm(core, core.shape[1:], *self.norms[0])
        gate = F.layer_norm(gate, gate.shape[1:], *self.norms[1])
        return F.silu(core) * torch.sigmoid(gate)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of a tensor, shape (m, d) or (m,).

    With several threads the gradient of ``x[index]`` is summed in any order, so that the last bits
    of forces change from call to call; that of an embedding is not, and is faster.
    """
    return F.embedding(index, x) if x.ndim == 2 else F.embedding(index, x[:, None]).squeeze(1)


def _numbered(*parts: tuple[Tensor, int]) -> Tensor:
    """Rows of several tables, given with their lengths, as rows of all, shape (m, parts)."""
    begin = 0
    rows = []
    for index, length in parts:
        rows.append(index + begin)
        begin += length
    return torch.stack(rows, dim=1)


def _added(tables: list[Tensor], rows: Tensor) -> Tensor:
    """Sums of one row of each table, in one pass; the gradient is summed in a fixed order."""
    return F.embedding_bag(rows, torch.cat(tables), mode="sum")


def _directed(first: Tensor, second: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Directed bonds by the atom they start from, and how many start from each of n atoms."""
    start = torch.cat([first, second])
    return torch.argsort(start, stable=True), torch.bincount(start, minlength=n)


def _angles(
    first: Tensor, second: Tensor, vectors: Tensor, lengths: Tensor, n: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All ordered pairs of two directed bonds from one atom.

    Args:
        first: Atom that each bond leads from, shape (m,).
        second: Atom that it leads to, shape (m,).
        vectors: Bond vectors, shape (m, 3).
        lengths: Their lengths, shape (m,).
        n: Number of atoms.

    Returns:
        Atom, number of the first bond, number of the second, and cosine, each of shape (n_angles,).
    """
    m = len(first)
    order, degree = _directed(first, second, n)
    atom = torch.repeat_interleave(torch.arange(n, device=first.device), degree)
    n_partners = degree[atom]
    one = torch.repeat_interleave(torch.arange(2 * m, device=first.device), n_partners)
    other = (degree.cumsum(0) - degree)[atom[one]] + count_up(n_partners)
    different = one != other
    one, other = one[different], other[different]
    directions = vectors / lengths[:, None]
    directions = _rows(torch.cat([directions, -directions]), order)
    cosine = (_rows(directions, one) * _rows(directions, other)).sum(dim=1)
    bond = order % max(m, 1)
    return atom[one], bond[one], bond[other], cosine


def _sizes(
    batch: CrystalBatch, neighbors: Neighbors, near_cutoff: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Directed bonds and angles of each structure, and whether it has an atom without bonds."""
    first, second = neighbors.first, neighbors.second
    difference = batch.pos[second] - batch.pos[first] + neighbors.shift
    vectors = torch.einsum("pi,pij->pj", difference, batch.cell[batch.batch[first]])
    near = vectors.norm(dim=1) < near_cutoff
    n = len(batch.species)
    bonds = _directed(first, second, n)[1]
    near_bonds = _directed(first[near], second[near], n)[1]

    def total(per_atom: Tensor) -> Tensor:
        return per_atom.new_zeros(len(batch)).index_add(0, batch.batch, per_atom)

    return total(bonds), total(near_bonds * (near_bonds - 1)), total((bonds == 0).long()) > 0


def _weights_file(model: str) -> Path:
    """Where the package chgnet keeps the weights; does not import it."""
    found = importlib.util.find_spec("chgnet")
    if found is None or found.origin is None:
        raise ImportError(
            "CHGNet's weights come with the package chgnet, which is not installed; "
            "run: pip install 'chgnet==0.4.*'"
        )
    return Path(found.origin).parent / "pretrained" / MODELS[model]
