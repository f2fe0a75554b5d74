"""Noise and annealing schedules."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from irlkit.flows import schedules
from irlkit.flows._plain import from_plain, to_plain
from irlkit.flows.schedules import (
    ConstantNoise,
    ControlPointNoise,
    EndpointAnnealing,
    LearnedAnnealing,
    LearnedNoise,
    LinearAnnealing,
    NoAnnealing,
    ScaledNoise,
    SquareRootNoise,
    annealing_on_grid,
    load_annealing,
    read_annealing_metadata,
    save_annealing,
    time_grid,
)

ANNEALINGS = {
    "none": NoAnnealing(),
    "linear": LinearAnnealing(pos=10.2, cell=1.8),
    "endpoint": EndpointAnnealing(pos=4.0, cell=1.2),
    "shared": LearnedAnnealing(8, 1),
    "separate": LearnedAnnealing(8, 2, shared_trunk=False),
    "conditioned": LearnedAnnealing(8, 0, condition_on_dt=True),
    "double": LearnedAnnealing(8, 1).double(),
    "positive": LearnedAnnealing(8, 1, positive=True),
    "frequencies": LearnedAnnealing(8, 1, condition_on_dt=True, n_frequencies=3),
    "on a rule": LearnedAnnealing(8, 1, positive=True, rule=EndpointAnnealing(4.0, 1.2)),
}


def randomised(annealing, seed=0):
    """A learned schedule with no weight left at zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in annealing.parameters():
        with torch.no_grad():
            parameter.copy_(
                0.5 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            )
    return annealing


@pytest.mark.parametrize("positive", [False, True])
def test_a_learned_annealing_may_start_as_a_rule(positive):
    """Before training it is the rule, at every number of steps; then factors are multiplied."""
    rule = EndpointAnnealing(4.0, 0.9)
    annealing = LearnedAnnealing(8, 1, positive=positive, rule=rule)
    for n_steps in (3, 10):
        times = time_grid(n_steps)
        t, dt = times[:-1], times.diff()
        for field, s in annealing(t, dt).items():
            torch.testing.assert_close(s, rule(t, dt)[field].float(), rtol=0, atol=1e-6)
    randomised(annealing)
    alone = LearnedAnnealing(8, 1, positive=positive)
    alone.load_state_dict(annealing.state_dict())
    for field, s in annealing(t, dt).items():
        product = (1.0 + rule(t, dt)[field].float()) * (1.0 + alone(t, dt)[field])
        torch.testing.assert_close(1.0 + s, product)


def test_time_grid():
    times = time_grid(7)
    assert times.shape == (8,)
    assert times.dtype == torch.float64
    assert float(times[0]) == pytest.approx(1e-3)
    assert float(times[-1]) == pytest.approx(1 - 1e-3)
    torch.testing.assert_close(times.diff(), torch.full((7,), 0.998 / 7, dtype=torch.float64))
    assert torch.equal(time_grid(7, torch.float32), times.float())


@pytest.mark.parametrize("n_steps", [0, -3, 2.0, True, "5"])
def test_number_of_steps_is_checked(n_steps):
    with pytest.raises(ValueError, match=rf"n_steps must be an?\b.* integer.*got {n_steps!r}"):
        time_grid(n_steps)


def test_noise_schedules():
    t = time_grid(4)
    assert torch.equal(ConstantNoise(0.3)(t), torch.full_like(t, 0.3))
    torch.testing.assert_close(SquareRootNoise(0.3)(t) ** 2 * t, 0.09 * (1 - t))


@pytest.mark.parametrize("kind", [ConstantNoise, SquareRootNoise])
@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_noise_scale_is_checked(kind, scale):
    with pytest.raises(ValueError, match="scale must be a positive finite number"):
        kind(scale)


NOISES = {
    "constant": ConstantNoise(0.3),
    "sqrt": SquareRootNoise(0.3),
    "scaled": ScaledNoise(SquareRootNoise(0.3), 0.5),
    "points": ControlPointNoise((0.1, 0.3, 0.2)),
    "learned": LearnedNoise(SquareRootNoise(0.3), 4),
    "double": ScaledNoise(LearnedNoise(ConstantNoise(0.3), 4, 2).double(), 0.5),
}


@pytest.mark.parametrize("name", NOISES)
def test_noise_as_plain_data(name):
    noise = NOISES[name]
    if isinstance(noise, torch.nn.Module):
        randomised(noise)
    again = from_plain(json.loads(json.dumps(to_plain(noise, schedules.NOISES))), schedules.NOISES)
    t = time_grid(6)
    assert torch.equal(noise(t[:-1]), again(t[:-1]))


def test_annealing_as_plain_data():
    for annealing in ANNEALINGS.values():
        again = from_plain(
            json.loads(json.dumps(to_plain(annealing, schedules.ANNEALINGS))), schedules.ANNEALINGS
        )
        times = time_grid(6)
        for field, s in annealing_on_grid(annealing, times).items():
            assert torch.equal(s, annealing_on_grid(again, times)[field])


def test_wrong_plain_data():
    for data in ({}, {"name": "Loud"}, {"name": ["ConstantNoise"]}):
        with pytest.raises(ValueError, match="data of the unknown kind"):
            from_plain(data, schedules.NOISES)
        with pytest.raises(ValueError, match="data of the unknown kind"):
            from_plain(data, schedules.ANNEALINGS)
    with pytest.raises(ValueError, match="description of ConstantNoise is wrong"):
        from_plain({"name": "ConstantNoise"}, schedules.NOISES)
    with pytest.raises(ValueError, match="description of LearnedAnnealing is wrong"):
        from_plain({"name": "LearnedAnnealing"}, schedules.ANNEALINGS)
    data = to_plain(LearnedNoise(ConstantNoise(0.3), 4), schedules.NOISES)
    data["hidden_dim"] = 5
    with pytest.raises(ValueError, match=r"description of LearnedNoise is wrong: .*"):
        from_plain(data, schedules.NOISES)
    with pytest.raises(ValueError, match="function cannot be saved, it must be one of"):
        to_plain(lambda t: t, schedules.NOISES)


def test_learned_noise_starts_as_its_base_and_stays_positive():
    base = SquareRootNoise(0.17)
    noise = LearnedNoise(base, 8)
    t = time_grid(9, torch.float32)[:-1]
    torch.testing.assert_close(noise(t), base(t))
    for bias in (-1e30, -200.0, -1.0, 50.0):
        torch.nn.init.constant_(noise.layers[-1].bias, bias)
        assert bool((noise(t) >= 0.999e-3 * base(t)).all()) and bool((noise(t) > 0).all())
    for setting, message in (
        ({"hidden_dim": 0}, "hidden_dim must be at least 1"),
        ({"n_hidden_layers": -1}, "n_hidden_layers must be at least 0"),
        ({"floor": 0.0}, "floor must be above 0 and below 1"),
    ):
        with pytest.raises(ValueError, match=message):
            LearnedNoise(base, **setting)
    with pytest.raises(ValueError, match="factor must be a positive finite number"):
        ScaledNoise(base, 0.0)


@pytest.mark.parametrize("name", ANNEALINGS)
def test_annealing_has_the_shape_of_time(name):
    annealing = ANNEALINGS[name]
    for t in (torch.tensor(0.3), torch.rand(5), torch.rand(2, 3)):
        s = annealing(t, torch.tensor(0.1))
        assert set(s) == {"pos", "cell"}
        assert all(value.shape == t.shape for value in s.values())
    on_grid = annealing_on_grid(annealing, time_grid(6))
    assert all(value.shape == (6,) for value in on_grid.values())


def test_linear_annealing():
    t = torch.tensor([0.0, 0.5, 1.0])
    s = LinearAnnealing(pos=4.0, cell=-0.5)(t, torch.tensor(0.1))
    assert torch.equal(s["pos"], 4 * t)
    assert torch.equal(s["cell"], -0.5 * t)
    with pytest.raises(ValueError, match="cell must be a finite number"):
        LinearAnnealing(cell=float("nan"))


@pytest.mark.parametrize("name", ["none", "shared", "separate", "conditioned"])
def test_zero_before_training(name):
    s = ANNEALINGS[name](torch.rand(9), torch.rand(9))
    assert all(torch.equal(value, torch.zeros(9)) for value in s.values())


def test_step_size_matters_only_where_asked():
    t = torch.tensor([0.2, 0.7])
    fine, coarse = torch.tensor(0.01), torch.tensor(0.2)
    for condition_on_dt in (False, True):
        annealing = randomised(LearnedAnnealing(8, 1, condition_on_dt=condition_on_dt))
        same = torch.equal(annealing(t, fine)["pos"], annealing(t, coarse)["pos"])
        assert same is not condition_on_dt
    # The input is bounded, so no step size is far from those of training.
    tiny, none = annealing(t, torch.tensor(1e-5)), annealing(t, torch.tensor(0.0))
    assert torch.equal(tiny["pos"], none["pos"])


def test_initial_weights_come_from_the_generator_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = LearnedAnnealing(8, generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), state)
    second = LearnedAnnealing(8, generator=torch.Generator().manual_seed(3))
    other = LearnedAnnealing(8, generator=torch.Generator().manual_seed(4))
    assert torch.equal(first.trunk[0].weight, second.trunk[0].weight)
    assert not torch.equal(first.trunk[0].weight, other.trunk[0].weight)


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="hidden_dim must be at least 1"):
        LearnedAnnealing(0)
    with pytest.raises(ValueError, match="n_hidden_layers must be at least 0"):
        LearnedAnnealing(8, -1)


@pytest.mark.parametrize("name", ANNEALINGS)
def test_save_and_load(name, tmp_path):
    annealing = ANNEALINGS[name]
    if isinstance(annealing, LearnedAnnealing):
        randomised(annealing)
    path = tmp_path / "new folder" / "annealing.safetensors"
    save_annealing(annealing, path, {"n_steps": [5, 10]})
    loaded = load_annealing(path)
    assert type(loaded) is type(annealing)
    times = time_grid(5)
    for field, s in annealing_on_grid(annealing, times).items():
        assert torch.equal(annealing_on_grid(loaded, times)[field], s)
    assert read_annealing_metadata(path) == {"n_steps": [5, 10]}
    assert [p.name for p in path.parent.iterdir()] == ["annealing.safetensors"]


@pytest.mark.parametrize("kind", [LinearAnnealing, EndpointAnnealing])
def test_numbers_of_numpy_are_saved(kind, tmp_path):
    annealing = kind(np.float32(2.5), np.int64(1))
    save_annealing(annealing, tmp_path / "annealing.safetensors")
    assert load_annealing(tmp_path / "annealing.safetensors") == annealing == kind(2.5, 1.0)


def test_wrong_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no annealing file at"):
        load_annealing(tmp_path / "missing.safetensors")
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"not safetensors at all")
    with pytest.raises(ValueError, match="is not an annealing written by save_annealing"):
        load_annealing(garbage)
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, other)
    with pytest.raises(ValueError, match="carries no 'irlkit-annealing-2' header"):
        load_annealing(other)
    for data, message in (
        ({"name": "Unknown"}, "data of the unknown kind 'Unknown'"),
        ({"name": "LearnedAnnealing", "hidden_dim": 8, "dtype": "float32"}, "Missing key"),
    ):
        header = {"format": "irlkit-annealing-2", "annealing": data}
        save_file({"weight": torch.zeros(2)}, other, {"irlkit": json.dumps(header)})
        with pytest.raises(ValueError, match=message):
            load_annealing(other)
    with pytest.raises(ValueError, match="function cannot be saved, it must be one of"):
        save_annealing(lambda t, dt: {}, other)


def test_positive_annealing_never_reverses_the_velocity():
    t = torch.linspace(0, 1, 50)
    lowest = {}
    for positive in (False, True):
        annealing = LearnedAnnealing(8, 1, positive=positive)
        assert float(annealing(t, torch.full_like(t, 0.1))["pos"].abs().max()) == 0.0
        for head in annealing.heads.values():
            torch.nn.init.constant_(head[-1].bias, -3.0)
        lowest[positive] = float(annealing(t, torch.full_like(t, 0.1))["pos"].min())
    assert lowest[False] == pytest.approx(-3.0)
    assert lowest[True] == pytest.approx(torch.expm1(torch.tensor(-3.0)).item())
    assert lowest[True] > -1.0


@pytest.mark.parametrize("n_steps", [1, 3, 10])
def test_a_velocity_that_points_at_the_end_is_followed_to_it(n_steps):
    """Without a bound, the first step already goes there, and later ones stay."""
    times = time_grid(n_steps)
    factors = 1 + annealing_on_grid(EndpointAnnealing(pos=1e6, cell=2.0), times)["pos"]
    x, end = 0.3, 0.8
    for t, dt, factor in zip(times, times.diff(), factors, strict=False):
        x = x + factor * (end - x) / (1 - t) * dt
        assert float(x) == pytest.approx(end)
    bounded = 1 + annealing_on_grid(EndpointAnnealing(pos=1e6, cell=2.0), times)["cell"]
    assert float(bounded.max()) <= 2


def test_square_root_noise_without_its_pole():
    t = torch.tensor([1e-3, 0.5])
    assert torch.equal(SquareRootNoise(0.5)(t), 0.5 * torch.sqrt((1 - t) / t))
    bounded = SquareRootNoise(0.5, offset=0.04)(t)
    assert float(bounded[0]) < 0.5 / 0.2 and bounded[1] == pytest.approx(0.5 / 1.08**0.5)
    with pytest.raises(ValueError, match="offset must be a finite number of at least 0"):
        SquareRootNoise(0.5, offset=-1.0)
