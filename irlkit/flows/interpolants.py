"""Stochastic interpolants x_t = alpha(t) x_0 + beta(t) x_1 + gamma(t) z (Eq. 1).

A `Path` gives alpha and beta, another function gamma; an `Interpolant` combines them for one field
and knows whether the field lives on a torus. Derivatives come from forward-mode differentiation,
so a new path is one short function and an entry of `PATHS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from irlkit.flows._plain import by_name, from_plain, to_plain
from irlkit.utils.checks import checked

T_MIN = 1e-3
T_MAX = 1.0 - 1e-3


def time_derivative(function: Callable[[Tensor], Any], t: Tensor) -> Any:
    """Return d function / dt at t, elementwise, of the shape of `t`; of each of several results.

    >>> time_derivative(lambda t: t**2, torch.tensor([1.0, 3.0]))
    tensor([2., 6.])
    """
    return torch.func.jvp(function, (t,), (torch.ones_like(t),))[1]


def _encoder_decoder_phase(t: Tensor, switch_time: float, power: float) -> Tensor:
    a = (t - switch_time * t).clamp(min=0) ** power
    b = (switch_time - switch_time * t).clamp(min=0) ** power
    return a / (a + b)


class Path:
    """The weights of x_0 and x_1: times of any shape to alpha and beta of that shape."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


@dataclass(frozen=True)
class LinearPath(Path):
    """alpha = 1 - t, beta = t.

    >>> LinearPath()(torch.tensor(0.25))
    (tensor(0.7500), tensor(0.2500))
    """

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # A product, so that forward-mode differentiation sees a tangent.
        return 1 - t, 1.0 * t


@dataclass(frozen=True)
class TrigonometricPath(Path):
    """alpha = cos(pi t / 2), beta = sin(pi t / 2)."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cos(0.5 * math.pi * t), torch.sin(0.5 * math.pi * t)


@checked
@dataclass(frozen=True)
class EncoderDecoderPath(Path):
    """x_0 fades out until `switch_time`, x_1 fades in after it: cos^2(pi u) on either side."""

    switch_time: float = 0.5
    power: float = 1.0

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        wave = torch.cos(math.pi * _encoder_decoder_phase(t, self.switch_time, self.power)) ** 2
        zero = torch.zeros_like(wave)
        before = t <= self.switch_time
        return torch.where(before, wave, zero), torch.where(before, zero, wave)


@checked
@dataclass(frozen=True)
class VariancePreservingPath(Path):
    """alpha = sqrt(1 - tau^2), beta = tau with tau(t) constant-rate, linear or cosine.

    Attributes:
        schedule: "constant" (tau = t), "linear" (of `beta_min`, `beta_max`) or "cosine" (of
            `offset`).
    """

    schedule: Literal["constant", "linear", "cosine"] = "constant"
    beta_min: float = 0.1
    beta_max: float = 20.0
    offset: float = 0.008

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        tau = self._tau(t)
        return torch.sqrt(1 - tau**2), tau

    def _tau(self, t: Tensor) -> Tensor:
        if self.schedule == "constant":
            return 1.0 * t
        log_t = torch.log(t)
        if self.schedule == "linear":
            slope = self.beta_max - self.beta_min
            return torch.exp(0.5 * self.beta_min * log_t - 0.25 * slope * log_t**2)
        c = math.pi / (2 + 2 * self.offset)
        wave = torch.sin(c * (1 + log_t)) / math.sin(c)
        return torch.where(t > math.exp(-1), wave, torch.zeros_like(wave))


@checked
@dataclass(frozen=True)
class VarianceExplodingPath(Path):
    """alpha = sqrt(s(1 - t)^2 - s(0)^2), beta = 1; s(u) = sigma_min (sigma_max / sigma_min)^u."""

    sigma_min: float = 0.005
    sigma_max: float = 0.5

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = self.sigma_min * torch.exp((1 - t) * math.log(self.sigma_max / self.sigma_min))
        return torch.sqrt(sigma**2 - self.sigma_min**2), 1.0 + 0.0 * t


@checked
@dataclass(frozen=True)
class SqrtGamma:
    """gamma = sqrt(a t (1 - t))."""

    a: float

    def __call__(self, t: Tensor) -> Tensor:
        return torch.sqrt(self.a * t * (1 - t))


@checked
@dataclass(frozen=True)
class EncoderDecoderGamma:
    """gamma = sqrt(a) sin^2(pi u), u as in `EncoderDecoderPath`."""

    a: float = 1.0
    switch_time: float = 0.5
    power: float = 1.0

    def __call__(self, t: Tensor) -> Tensor:
        phase = _encoder_decoder_phase(t, self.switch_time, self.power)
        return math.sqrt(self.a) * torch.sin(math.pi * phase) ** 2


@checked
@dataclass(frozen=True)
class ConstantEpsilon:
    """epsilon = c; the noise of the SDE is sqrt(2 epsilon)."""

    c: float

    def __call__(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.c)


@checked
@dataclass(frozen=True)
class VanishingEpsilon:
    """epsilon = c f(t - mu) f(1 - mu - t), f(y) = 1 / (1 + exp(-y / sigma)).

    The noise of the SDE is sqrt(2 epsilon).
    """

    c: float = 1.0
    mu: float = 0.075
    sigma: float = 0.01

    def __call__(self, t: Tensor) -> Tensor:
        rise = torch.sigmoid((t - self.mu) / self.sigma)
        return self.c * rise * torch.sigmoid((1 - self.mu - t) / self.sigma)


PATHS = by_name(
    *(LinearPath, TrigonometricPath, EncoderDecoderPath),
    *(VariancePreservingPath, VarianceExplodingPath),
)
GAMMAS = by_name(SqrtGamma, EncoderDecoderGamma)
EPSILONS = by_name(ConstantEpsilon, VanishingEpsilon)


class InterpolantSample(NamedTuple):
    """One draw of an interpolant.

    Attributes:
        x_t: state, wrapped to [0, 1) for periodic fields.
        target: velocity target d/dt x_t, never wrapped, shape of `x_t`.
    """

    x_t: Tensor
    target: Tensor


@checked
@dataclass(frozen=True)
class Interpolant:
    """The interpolant of one field.

    Attributes:
        path: alpha and beta.
        gamma: latent-noise coefficient or None.
        periodic: whether the field is a fractional coordinate.
        center_of_mass_free: subtract each structure's mean from the velocity target (per-atom
            fields only).
        one_sided: x_0 is Gaussian and also plays z, with alpha in the place of gamma.
        trained_heads: which of the network's outputs "velocity" and "denoiser" were trained. None:
            the velocity, and with latent noise the denoiser. Without the velocity it follows from
            the denoiser, for one-sided interpolants only.

    Raises:
        ValueError: latent noise besides a one-sided path, no or unknown heads, or no velocity for
            an interpolant that is not one-sided.
    """

    path: Path = field(default_factory=LinearPath)
    gamma: SqrtGamma | EncoderDecoderGamma | None = None
    periodic: bool = False
    center_of_mass_free: bool = False
    one_sided: bool = False
    trained_heads: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.trained_heads is not None:
            object.__setattr__(self, "trained_heads", tuple(self.trained_heads))
        if self.one_sided and self.gamma is not None:
            raise ValueError("gamma: with one_sided=True there is no latent noise besides x_0")
        if not self.heads or set(self.heads) - {"velocity", "denoiser"}:
            raise ValueError(
                f"trained_heads: expected 'velocity', 'denoiser' or both, got {self.trained_heads}"
            )
        if "velocity" not in self.heads and not self.one_sided:
            raise ValueError(
                "trained_heads: only a one-sided interpolant can do without the velocity, "
                f"got {self.trained_heads}"
            )

    @property
    def heads(self) -> tuple[str, ...]:
        """Return the trained outputs of the network."""
        if self.trained_heads is not None:
            return self.trained_heads
        return ("velocity",) if self.gamma is None else ("velocity", "denoiser")

    def velocity_from_denoiser(self, t: Tensor, x_t: Tensor, denoiser: Tensor) -> Tensor:
        """Return b = alpha' z + (beta' / beta) (x_t - alpha z), for one-sided interpolants.

        Args:
            t: times, broadcastable to `x_t`.
            x_t: state, wrapped if periodic.
            denoiser: z(t, x_t), shape of `x_t`.

        Returns:
            Shape and dtype of `x_t`.
        """
        # In double precision: beta spans many orders of magnitude, and only the ratio matters.
        alpha, beta = self.path(t.double())
        alpha_rate, beta_rate = time_derivative(self.path, t.double())
        ratio = torch.where(beta > 0, beta_rate / beta, torch.zeros_like(beta)).to(x_t.dtype)
        return alpha_rate.to(x_t.dtype) * denoiser + ratio * (x_t - alpha.to(x_t.dtype) * denoiser)

    def sample(
        self, t: Tensor, x_0: Tensor, x_1: Tensor, z: Tensor | None = None
    ) -> InterpolantSample:
        """Return x_t of Eq. 1 and its time derivative.

        Args:
            t: time of each row, broadcastable to `x_0`.
            x_0: base sample; wrapped to [0, 1) if periodic.
            x_1: data, same shape; of a periodic field, the image nearest to x_0 counts.
            z: standard normal, same shape; needed with latent noise.

        Raises:
            ValueError: latent noise without `z`.

        >>> x_0, x_1 = torch.tensor([[0.9]]), torch.tensor([[0.1]])
        >>> Interpolant(periodic=True).sample(torch.tensor([[0.75]]), x_0, x_1)
        InterpolantSample(x_t=tensor([[0.0500]]), target=tensor([[0.2000]]))
        """
        if self.periodic:
            x_0 = x_0 % 1.0
            difference = x_1 - x_0
            x_1 = x_0 + difference - difference.round()
        (alpha, beta), (alpha_rate, beta_rate) = self.path(t), time_derivative(self.path, t)
        x_t = alpha * x_0 + beta * x_1
        target = alpha_rate * x_0 + beta_rate * x_1
        if self.gamma is not None:
            if z is None:
                raise ValueError("z: this interpolant has latent noise and needs z, got None")
            x_t = x_t + self.gamma(t) * z
            target = target + time_derivative(self.gamma, t) * z
        return InterpolantSample(x_t % 1.0 if self.periodic else x_t, target)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data from which `from_dict` makes the same interpolant.

        >>> interpolant = Interpolant(EncoderDecoderPath(0.4), periodic=True)
        >>> Interpolant.from_dict(interpolant.to_dict()) == interpolant
        True
        """
        data = to_plain(self, {"Interpolant": type(self), **PATHS, **GAMMAS})
        return {name: value for name, value in data.items() if name != "name"}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Interpolant:
        """Undo `to_dict`.

        Raises:
            ValueError: the path or the latent noise has an unknown name, or an entry is missing.
        """
        if missing := sorted({"path", "gamma", "periodic", "center_of_mass_free"} - set(data)):
            raise ValueError(f"data: an interpolant needs {missing} as well, got {sorted(data)}")
        kinds = {"Interpolant": cls, **PATHS, **GAMMAS}
        return from_plain({**data, "name": "Interpolant"}, kinds)


def center(values: Tensor, batch: Tensor, n_atoms: Tensor) -> Tensor:
    """Return `values` (n, d) minus the mean of each structure; `batch` (n,), `n_atoms` (B,).

    >>> center(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]), torch.tensor([2, 1]))
    tensor([[-1.],
            [ 1.],
            [ 0.]])
    """
    total = values.new_zeros(len(n_atoms), values.shape[1]).index_add_(0, batch, values)
    return values - (total / n_atoms[:, None].to(values.dtype))[batch]


def align_translation(x_0: Tensor, x_1: Tensor, batch: Tensor, n_atoms: Tensor) -> Tensor:
    """Shift each structure's base positions as a whole to a least total squared periodic distance.

    A network that sees only coordinate differences cannot tell a shifted base sample from the
    original, so the shift is free. Without it the displacements of two atoms can wind around the
    cell in different directions, and the velocity of one relative position becomes an average.

    Args:
        x_0: base fractional positions, shape (n, 3).
        x_1: data fractional positions, shape (n, 3).
        batch: structure of each atom, shape (n,).
        n_atoms: atoms per structure, shape (B,).

    Returns:
        Shifted `x_0`, shape (n, 3), not wrapped; the mean displacement to the nearest images of
        `x_1` is zero to rounding.
    """
    difference = x_1 - x_0
    angle = 2 * math.pi * difference
    sums = difference.new_zeros(2, len(n_atoms), x_0.shape[1])
    sums[0].index_add_(0, batch, angle.sin())
    sums[1].index_add_(0, batch, angle.cos())
    shift = torch.atan2(sums[0], sums[1]) / (2 * math.pi)
    last = n_atoms.cumsum(0) - 1
    for _ in range(4):  # the circular mean is close; the nearest images settle in a few rounds
        rest = difference - shift[batch]
        rest = rest - rest.round()
        # What centring takes away is the mean of each structure, here read at its last atom.
        shift = shift + (rest - center(rest, batch, n_atoms))[last]
    return x_0 + shift[batch]


def pair_by_permutation(x_0: Tensor, x_1: Tensor, species: Tensor, n_atoms: Tensor) -> Tensor:
    """Reorder base positions of equal atoms to the smallest total squared periodic distance.

    Only atoms of one species in one structure are exchangeable: reordering across species would
    train on a part of the base distribution alone.

    Args:
        x_0: base fractional positions, shape (n, 3).
        x_1: data fractional positions, shape (n, 3).
        species: atomic numbers, shape (n,).
        n_atoms: atoms per structure, shape (B,).

    Returns:
        Permuted `x_0`, shape (n, 3).
    """
    from scipy.optimize import linear_sum_assignment

    if species.shape != x_0.shape[:1]:
        raise ValueError(
            "x_0 and species must have one entry per atom, got shapes "
            f"{tuple(x_0.shape)} and {tuple(species.shape)}"
        )
    order = np.arange(len(x_0))
    base, data = x_0.detach().cpu().numpy(), x_1.detach().cpu().numpy()
    kinds = species.cpu().numpy()
    start = 0
    for n in n_atoms.tolist():  # an assignment problem per structure has no batched form
        atoms = slice(start, start + n)
        kind = kinds[atoms]
        if len(np.unique(kind)) < n:
            difference = base[None, atoms] - data[atoms, None]
            difference -= difference.round()
            cost = (difference**2).sum(-1) + 1e3 * (kind[:, None] != kind)
            order[atoms] = linear_sum_assignment(cost)[1] + start
        start += n
    return x_0[torch.from_numpy(order).to(x_0.device)]


def pair_with_data(
    x_0: Tensor, x_1: Tensor, species: Tensor, batch: Tensor, n_atoms: Tensor
) -> Tensor:
    """Shift and reorder base positions (n, 3) towards the data, by what the network cannot see.

    Alternates `align_translation` and `pair_by_permutation`; arguments as there.
    """
    for _ in range(2):
        x_0 = align_translation(x_0, x_1, batch, n_atoms)
        x_0 = pair_by_permutation(x_0, x_1, species, n_atoms)
    return align_translation(x_0, x_1, batch, n_atoms)
