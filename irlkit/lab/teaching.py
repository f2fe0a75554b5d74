"""A flow in the plane whose velocity and denoiser are known, for teaching (notebook 01).

Data are a mixture of K equal Gaussians with means m_k and standard deviation s, the base is a
standard normal. Given the component, x_t of an interpolant (Eq. 1) is Gaussian,

    x_t | k ~ N(beta m_k, v),   v(t) = alpha^2 + beta^2 s^2 + gamma^2,

and what a network learns, the mean of a target over all pairs (x_0, x_1) that pass through a point,
follows without one:

    b(t, x) = sum_k p(k | x) [beta' m_k + (v' / 2v) (x - beta m_k)],
    z(t, x) = sum_k p(k | x) (gamma / v) (x - beta m_k).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd
import torch
from torch import Tensor, nn

from irlkit.flows.dynamics import score_factor
from irlkit.flows.interpolants import Interpolant, time_derivative
from irlkit.flows.schedules import NoiseSchedule, check_n_steps, time_grid
from irlkit.utils.checks import check_count, checked

Field = Callable[[Tensor, Tensor], Tensor]
"""b(t, x) or z(t, x): a time and points (n, 2) to vectors (n, 2)."""


@checked
@dataclass(frozen=True)
class PlaneFlow:
    """Base, data and interpolant in the plane.

    Args:
        interpolant: not periodic.
        n_modes: Gaussians on a circle of radius 2.
        spread: standard deviation of each.

    Raises:
        ValueError: a periodic interpolant, no mode, or a spread that is not positive.
    """

    interpolant: Interpolant
    n_modes: int = 5
    spread: float = 0.12

    def __post_init__(self) -> None:
        if self.interpolant.periodic:
            raise ValueError("interpolant must not be periodic: the plane is not")
        if self.n_modes < 1 or not self.spread > 0:
            raise ValueError(
                f"n_modes must be at least 1 and spread positive, got {self.n_modes!r} and "
                f"{self.spread!r}"
            )

    @property
    def means(self) -> Tensor:
        """Return the means of the Gaussians, float64, shape (n_modes, 2)."""
        angle = 2 * math.pi * torch.arange(self.n_modes, dtype=torch.float64) / self.n_modes
        return 2.0 * torch.stack([angle.sin(), angle.cos()], 1)

    @checked
    def sample_base(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw x_0, float64, shape (n, 2)."""
        check_count("n", n, least=0)
        return torch.randn(n, 2, generator=generator, dtype=torch.float64)

    @checked
    def sample_data(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw x_1, float64, shape (n, 2)."""
        check_count("n", n, least=0)
        mode = torch.randint(self.n_modes, (n,), generator=generator)
        noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        return self.means[mode] + self.spread * noise

    def sample_pairs(
        self, t: Tensor, n: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw points x_t, velocity targets and latent noise z of random pairs, (n, 2) each.

        Args:
            t: of all points, or one for each, shape (n, 1).
            n: number of pairs.
            generator: draws x_0, x_1 and z.
        """
        x_0, x_1 = self.sample_base(n, generator), self.sample_data(n, generator)
        z = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        sample = self.interpolant.sample(t, x_0, x_1, z)
        return sample.x_t, sample.target, z

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        """Return the exact b(t, x), shape (n, 2)."""
        share, centers, variance = self._posterior(t, x)
        _, beta_rate = time_derivative(self.interpolant.path, t)
        half_rate = 0.5 * time_derivative(self._variance, t) / variance
        towards = beta_rate * self.means + half_rate * (x[:, None] - centers)
        return (share[..., None] * towards).sum(1)

    def denoiser(self, t: Tensor, x: Tensor) -> Tensor:
        """Return the exact z(t, x), shape (n, 2); zero without latent noise."""
        gamma = self._gamma(t)
        share, centers, variance = self._posterior(t, x)
        return (share[..., None] * (gamma / variance) * (x[:, None] - centers)).sum(1)

    def _gamma(self, t: Tensor) -> Tensor:
        gamma = self.interpolant.gamma
        return torch.zeros_like(t) if gamma is None else gamma(t)

    def _variance(self, t: Tensor) -> Tensor:
        alpha, beta = self.interpolant.path(t)
        return alpha**2 + (beta * self.spread) ** 2 + self._gamma(t) ** 2

    def _posterior(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return p(k | x) of shape (n, n_modes), centres beta m_k, and v(t)."""
        variance = self._variance(t)
        centers = self.interpolant.path(t)[1] * self.means
        square = (x[:, None] - centers).square().sum(-1)
        return torch.softmax(-0.5 * square / variance, dim=1), centers, variance


@checked
def integrate(
    velocity: Field,
    x_0: Tensor,
    n_steps: int,
    *,
    denoiser: Field | None = None,
    gamma: Callable[[Tensor], Tensor] | None = None,
    noise: NoiseSchedule | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Take Euler steps of the ODE (Eq. 4), or Euler-Maruyama steps of the SDE (Eq. 7).

    Args:
        velocity: b(t, x).
        x_0: where to start, shape (n, 2).
        n_steps: of the grid from 1e-3 to 1 - 1e-3.
        denoiser: z(t, x); with `noise`, its score term keeps the distribution of the ODE. None
            leaves that out: a perturbed ODE.
        gamma: latent-noise coefficient; needed with `denoiser`.
        noise: sigma(t); None integrates the ODE.
        generator: needed with `noise`.

    Returns:
        States, shape (n_steps + 1, n, 2), and times, shape (n_steps + 1,).

    Raises:
        ValueError: `noise` without `generator`, or `denoiser` without `gamma`.

    >>> states, times = integrate(lambda t, x: -x, torch.ones(3, 2), n_steps=4)
    >>> states.shape, len(times)
    (torch.Size([5, 3, 2]), 5)
    """
    _check_points("x_0", x_0)
    check_n_steps(n_steps)
    if noise is not None and generator is None:
        raise ValueError("generator must be given with noise")
    if denoiser is not None and gamma is None:
        raise ValueError("gamma must be given with denoiser")
    times = time_grid(n_steps)
    states = [x_0]
    with torch.no_grad():
        for t, dt in zip(times[:-1], times.diff(), strict=True):
            x = states[-1]
            step = velocity(t, x) * dt
            if noise is not None:
                sigma = noise(t)
                if denoiser is not None and gamma is not None:
                    step = step - score_factor(sigma, gamma(t)) * denoiser(t, x) * dt
                xi = torch.randn(x.shape, generator=generator, dtype=x.dtype)
                step = step + sigma * dt.sqrt() * xi
            states.append(x + step)
    return torch.stack(states), times


class PlaneNetwork(nn.Module):
    """A small perceptron for b(t, x).

    Args:
        generator: draws the weights.
        width: of the two hidden layers.
    """

    @checked
    def __init__(self, generator: torch.Generator, width: int = 128) -> None:
        check_count("width", width)
        super().__init__()
        sizes = [3, width, width, 2]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            layers += [nn.utils.skip_init(nn.Linear, n_in, n_out, dtype=torch.float64), nn.SiLU()]
        self.layers = nn.Sequential(*layers[:-1])
        for parameter in self.parameters():
            bound = 1 / math.sqrt(parameter.shape[-1])
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Return b(t, x), shape (n, 2); `t` is one time or of shape (n, 1)."""
        return self.layers(torch.cat([x, torch.as_tensor(t).expand(len(x), 1)], dim=1))


@checked
def train_velocity(
    flow: PlaneFlow, iterations: int, generator: torch.Generator, batch: int = 512
) -> tuple[PlaneNetwork, pd.DataFrame]:
    """Fit a network to velocity targets of random pairs (Eq. 2).

    Args:
        flow: what to learn.
        iterations: steps of Adam.
        generator: draws weights and pairs.
        batch: pairs per iteration.

    Returns:
        The network, and a history with columns iteration and loss (mean over pairs and axes).

    Raises:
        ValueError: `iterations` is not positive.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations!r}")
    check_count("batch", batch)
    network = PlaneNetwork(generator)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    losses = []
    for _ in range(iterations):
        t = 0.001 + 0.998 * torch.rand(batch, 1, generator=generator, dtype=torch.float64)
        x_t, target, _ = flow.sample_pairs(t, batch, generator)
        loss = (network(t, x_t) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    history = pd.DataFrame({"iteration": range(1, iterations + 1), "loss": losses})
    return network, history


@checked
def velocity_loss(
    flow: PlaneFlow, velocity: Field, generator: torch.Generator, n: int = 64, n_times: int = 400
) -> Tensor:
    """Return mean squared distances from velocity targets of new pairs, over times and axes.

    Args:
        flow: draws the pairs.
        velocity: to judge; the exact one has the smallest loss there is, which is not zero.
        generator: draws the pairs.
        n: pairs per time.
        n_times: the middles of so many equal parts of [0.001, 0.999]. The targets of latent noise
            grow without bound at both ends, so that few would say another mean than training's.

    Returns:
        Shape (n,), of one pair per time each, all independent; their mean is the loss.
    """
    check_count("n", n)
    check_count("n_times", n_times)
    losses = []
    with torch.no_grad():
        for t in 0.001 + 0.998 * (torch.arange(n_times, dtype=torch.float64) + 0.5) / n_times:
            x_t, target, _ = flow.sample_pairs(t, n, generator)
            losses.append((velocity(t, x_t) - target).square().mean(1))
    return torch.stack(losses).mean(0)


@checked
def distance_to_modes(flow: PlaneFlow, points: Tensor) -> float:
    """Return the root-mean-square distance to the nearest mean, in spreads of the data.

    Args:
        flow: of the data, whose own distance is sqrt(2).
        points: shape (n, 2).

    >>> from irlkit.flows.interpolants import Interpolant
    >>> flow = PlaneFlow(Interpolant(), n_modes=1, spread=0.5)
    >>> distance_to_modes(flow, torch.tensor([[0.0, 2.5], [0.0, 1.5]]))
    1.0
    """
    return float(_squares(flow, points).mean().sqrt())


def _squares(flow: PlaneFlow, points: Tensor) -> Tensor:
    """Squared distances to the nearest mean, in spreads of the data, shape (n,)."""
    _check_points("points", points)
    return (torch.cdist(points.double(), flow.means).min(1).values / flow.spread).square()


def _check_points(name: str, points: Tensor) -> None:
    if points.shape[1:] != (2,) or not points.is_floating_point():
        raise ValueError(
            f"{name} must be floating-point of shape (n, 2), got {points.dtype} of shape "
            f"{tuple(points.shape)}"
        )
