"""MACE's symmetric contraction as polynomials: the same numbers from far fewer operations.

MACE (Batatia et al., 2022, eq. 10 and 11) forms, for each atom and channel, products of up to ν of
the components A_i of its message, and sums them with tabulated coupling coefficients U and learned
weights w of the atom's element,

    B_m = Σ_ν Σ_k w_νk Σ_{i₁…i_ν} U_{m i₁…i_ν k} A_{i₁} … A_{i_ν} .

Its own code sums over all tuples (i₁ … i_ν), 4,096 for ν = 3 and 16 components. Products do not
depend on the order, and most coefficients are zero: a component m of the result contains some 100
different monomials. They are multiplied out, and their coefficients, which no element or channel
changes, are one small matrix product. The weights come last.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Relative to the largest coefficient: what rounding leaves of terms that cancel.
_NOTHING = 1e-12


class PolynomialContraction(nn.Module):
    """One irreducible representation of the result, from a `Contraction` of mace.

    Args:
        contraction: mace's module with its coefficients (buffers `U_matrix_1` to `U_matrix_ν`,
            shape (m, i, …, k), without m if the result is a scalar) and weights (element, k,
            channel).
    """

    weights: Tensor

    def __init__(self, contraction: Any) -> None:
        super().__init__()
        order = int(contraction.correlation)
        weights = [contraction.weights_max, *contraction.weights]  # of order ν, ν - 1, …, 1
        coefficients = [contraction.U_tensors(nu) for nu in range(order, 0, -1)]
        # A scalar has no axis m.
        scalar = coefficients[-1].dim() == 2
        terms = [
            _monomials(part[None] if scalar else part, order)
            for part in (u.detach().double().cpu() for u in coefficients)
        ]
        dtype, device = weights[0].dtype, weights[0].device
        # (k, element, channel): k counts the weights of all orders.
        stacked = torch.cat([w.detach() for w in weights], dim=1).transpose(0, 1)
        self.register_buffer("weights", stacked.contiguous())
        self.n_components = len(terms[0])
        for m in range(self.n_components):
            factors, matrix = _stack([part[m] for part in terms])
            self.register_buffer(f"factors_{m}", factors.to(device))
            self.register_buffer(f"matrix_{m}", matrix.to(device=device, dtype=dtype))

    def forward(self, components: Tensor, element: Tensor) -> Tensor:
        """The result, shape (atoms, channels, m), scalars as well.

        Args:
            components: A with a one as the last of its first axis, shape (components + 1, atoms,
                channels).
            element: Column of each atom's element, shape (atoms,).
        """
        weights = self.weights[:, element]
        result = []
        for m in range(self.n_components):
            first, *others = getattr(self, f"factors_{m}")
            monomials = components[first]
            for factor in others:
                monomials = monomials * components[factor]
            sums = getattr(self, f"matrix_{m}") @ monomials.flatten(1)
            result.append((sums.view_as(weights) * weights).sum(0))
        return torch.stack(result, dim=-1)


class PolynomialContractions(nn.Module):
    """In place of a `SymmetricContraction` of mace: all representations of the result.

    Args:
        contractions: mace's modules, one for each representation.
    """

    def __init__(self, contractions: Iterable[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(PolynomialContraction(part) for part in contractions)

    def forward(self, components: Tensor, element: Tensor) -> Tensor:
        """As mace's module.

        Args:
            components: A, shape (atoms, channels, components).
            element: One-hot elements, shape (atoms, elements).

        Returns:
            Shape (atoms, representations × channels × m).
        """
        rows = components.permute(2, 0, 1)
        rows = torch.cat([rows, torch.ones_like(rows[:1])])
        which = element.argmax(1)
        return torch.cat([part(rows, which).flatten(1) for part in self.parts], dim=-1)


def use_polynomials(model: nn.Module) -> int:
    """Replace the symmetric contractions of a MACE model; returns how many.

    Those of other libraries (cuEquivariance, OpenEquivariance), which models can be converted to,
    are left as they are.
    """
    from mace.modules.symmetric_contraction import SymmetricContraction

    found = [
        (module, name, child)
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, SymmetricContraction)
    ]
    for module, name, child in found:
        setattr(module, name, PolynomialContractions(child.contractions))
    return len(found)


def _monomials(coefficients: Tensor, order: int) -> list[tuple[Tensor, Tensor]]:
    """Monomials and their coefficients for each component of the result.

    Args:
        coefficients: shape (m, i₁, …, i_ν, k).
        order: the highest ν.

    Returns:
        For each m: indices of the factors, shape (monomials, order), filled up with the index of
        the one; and coefficients, shape (monomials, k).
    """
    n = coefficients.shape[1]
    found = []
    for part in coefficients:
        tuples = part.abs().amax(-1).nonzero()
        values = part[tuple(tuples.T)]
        unique, inverse = tuples.sort(dim=1).values.unique(dim=0, return_inverse=True)
        sums = values.new_zeros(len(unique), part.shape[-1]).index_add_(0, inverse, values)
        largest = float(sums.abs().max()) if sums.numel() else 0.0
        kept = sums.abs().amax(1) > _NOTHING * largest if len(sums) else sums.new_zeros(0).bool()
        factors = torch.full((int(kept.sum()), order), n)
        factors[:, : unique.shape[1]] = unique[kept]
        found.append((factors, sums[kept]))
    return found


def _stack(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """All orders together: factors (order, monomials), and the block matrix (k, monomials)."""
    factors = torch.cat([factors for factors, _ in parts]).T.contiguous()
    return factors, torch.block_diag(*(sums.T for _, sums in parts))
