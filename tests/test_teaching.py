"""The plane's flow against its definition."""

import math

import numpy as np
import pytest
import torch

from irlkit.flows.interpolants import Interpolant, LinearPath, SqrtGamma, TrigonometricPath
from irlkit.flows.schedules import ConstantNoise
from irlkit.lab.teaching import (
    PlaneFlow,
    distance_to_modes,
    integrate,
    train_velocity,
    velocity_loss,
)

INTERPOLANTS = [
    Interpolant(LinearPath()),
    Interpolant(TrigonometricPath(), SqrtGamma(0.5)),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("interpolant", INTERPOLANTS)
@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_velocity_and_denoiser_are_means_of_their_targets(interpolant, t):
    """A conditional mean is the function whose error is uncorrelated with every other function."""
    flow = PlaneFlow(interpolant)
    time = torch.tensor(t, dtype=torch.float64)
    x, target, z = flow.sample_pairs(time, 60_000, generator())
    tests = [torch.ones(len(x)), x[:, 0], x[:, 1] ** 2, torch.sin(3 * x[:, 0])]
    for exact, drawn in ((flow.velocity(time, x), target), (flow.denoiser(time, x), z)):
        if interpolant.gamma is None and drawn is z:
            assert not exact.any()
            continue
        error = (exact - drawn) * torch.stack(tests)[..., None]
        limit = 5 * error.std(1) / math.sqrt(len(x))
        assert (error.mean(1).abs() < limit).all()


@pytest.mark.parametrize("interpolant", INTERPOLANTS)
def test_the_ode_ends_in_the_data(interpolant):
    flow = PlaneFlow(interpolant)
    x_0 = flow.sample_base(1000, generator())
    states, times = integrate(flow.velocity, x_0, 200)
    assert states.shape == (201, 1000, 2) and len(times) == 201
    assert distance_to_modes(flow, states[-1]) == pytest.approx(math.sqrt(2), rel=0.1)
    mode = torch.cdist(states[-1], flow.means).argmin(1)
    np.testing.assert_allclose(torch.bincount(mode, minlength=5) / 1000, 0.2, atol=0.05)


def test_the_score_keeps_the_distribution_and_noise_alone_does_not():
    flow = PlaneFlow(INTERPOLANTS[1])
    x_0 = flow.sample_base(1000, generator())
    options = {"noise": ConstantNoise(0.6), "generator": generator(1)}
    gamma = flow.interpolant.gamma
    sde, _ = integrate(flow.velocity, x_0, 300, denoiser=flow.denoiser, gamma=gamma, **options)
    perturbed, _ = integrate(flow.velocity, x_0, 300, **options)
    assert distance_to_modes(flow, sde[-1]) == pytest.approx(math.sqrt(2), rel=0.25)
    middle = [states[150].std() for states in (integrate(flow.velocity, x_0, 300)[0], sde)]
    assert middle[0] == pytest.approx(middle[1].item(), rel=0.05)
    assert distance_to_modes(flow, perturbed[-1]) > 1.1 * distance_to_modes(flow, sde[-1])


def test_a_network_learns_but_never_beats_the_mean():
    flow = PlaneFlow(INTERPOLANTS[0])
    network, history = train_velocity(flow, 150, generator())
    assert history["loss"].tail(20).mean() < 0.7 * history["loss"].head(3).mean()
    learned = velocity_loss(flow, network, generator(1)).mean()
    assert velocity_loss(flow, flow.velocity, generator(1)).mean() < learned
    again, _ = train_velocity(flow, 150, generator())
    assert all(
        torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True)
    )


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="must not be periodic"):
        PlaneFlow(Interpolant(periodic=True))
    with pytest.raises(ValueError, match="n_modes"):
        PlaneFlow(Interpolant(), n_modes=0)
    flow = PlaneFlow(Interpolant())
    x_0 = flow.sample_base(2, generator())
    with pytest.raises(ValueError, match="generator must be given"):
        integrate(flow.velocity, x_0, 2, noise=ConstantNoise(0.1))
    with pytest.raises(ValueError, match="gamma must be given"):
        integrate(flow.velocity, x_0, 2, denoiser=flow.denoiser)
    with pytest.raises(ValueError, match="iterations must be"):
        train_velocity(flow, 0, generator())
