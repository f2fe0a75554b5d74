"""The network against the textbook version, and its symmetries."""

import copy

import pytest
import torch

from irlkit.networks._pairs import (
    FourierFeatures,
    InterpolatedFeatures,
    PairFeatures,
    PairTopology,
    grid_values,
)
from irlkit.networks.cspnet import CSPNet
from tests.textbook import csp_forward

N_ATOMS = torch.tensor([1, 4, 2, 7, 1, 3])


def relative_difference(value, reference):
    return float((value - reference).norm() / reference.norm())


@pytest.fixture(scope="module")
def case():
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    network = CSPNet(24, 3, 5, 16, denoiser=True).double()
    n = int(N_ATOMS.sum())
    state = {
        "t": torch.rand(len(N_ATOMS), generator=generator, dtype=torch.float64),
        "species": torch.randint(1, 90, (n,), generator=generator),
        "pos": torch.rand(n, 3, generator=generator, dtype=torch.float64),
        "cell": 4 * torch.eye(3, dtype=torch.float64)
        + torch.rand(len(N_ATOMS), 3, 3, generator=generator, dtype=torch.float64),
    }
    return network, state, PairTopology.from_n_atoms(N_ATOMS)


def both_heads(network, state, topology, features=None):
    heads = ("velocity", "denoiser")
    output = network(**state, topology=topology, features=features, heads=heads)
    return {"velocity": output.velocity, "denoiser": output.denoiser}


@pytest.fixture(params=["interpolated", "Fourier"])
def features(request, case):
    network, state, topology = case
    interpolate = request.param == "interpolated"
    return PairFeatures.from_positions(state["pos"], topology, network.n_freqs, interpolate)


def squares(output):
    return sum(v.square().sum() for fields in output.values() for v in fields.values())


def textbook(network, state):
    weights = dict(network.named_parameters())
    return csp_forward(weights, **state, n_atoms=N_ATOMS, n_freqs=5, time_dim=16)


def test_agrees_with_textbook(case, features):
    network, state, topology = case
    expected = textbook(network, state)
    for head, fields in both_heads(network, state, topology, features).items():
        for field, value in fields.items():
            torch.testing.assert_close(value, expected[head][field], rtol=1e-10, atol=1e-12)


def test_gradients_agree_with_textbook(case, features):
    network, state, topology = case
    parameters = dict(network.named_parameters())
    # The features serve twice, as where two networks share them.
    outputs = [both_heads(network, state, topology, features) for _ in range(2)]
    mine = torch.autograd.grad(sum(map(squares, outputs)) / 2, list(parameters.values()))
    expected = torch.autograd.grad(squares(textbook(network, state)), list(parameters.values()))
    for name, ours, theirs in zip(parameters, mine, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=name)


def test_gradients_of_positions_agree_with_textbook(case):
    network, state, topology = case
    inputs = [state[field].clone().requires_grad_(True) for field in ("pos", "cell")]
    state = {**state, "pos": inputs[0], "cell": inputs[1]}
    mine = torch.autograd.grad(squares(both_heads(network, state, topology)), inputs)
    expected = torch.autograd.grad(squares(textbook(network, state)), inputs)
    for ours, theirs in zip(mine, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n_freqs", [1, 2, 5, 128])
@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float64, 1e-12), (torch.float32, 3e-6)])
def test_interpolation_reaches_rounding(n_freqs, dtype, accuracy):
    """All frequencies count the same here, the highest ones interpolate worst."""
    generator = torch.Generator().manual_seed(0)
    pos = torch.rand(12, 3, generator=generator, dtype=dtype)
    pos[3] = pos[2]
    coefficients = torch.randn(4, 6 * n_freqs, generator=generator, dtype=torch.float64)
    coefficients /= coefficients.norm(dim=1, keepdim=True)
    part = PairTopology.from_n_atoms(torch.tensor([12])).parts[0]
    receiver, sender = torch.randn(2, 12, 4, generator=generator, dtype=torch.float64)
    exact = FourierFeatures.from_positions(pos.double(), part, n_freqs)
    expected = exact.edges(coefficients, receiver, sender)
    grids = grid_values(coefficients.to(dtype), n_freqs)
    features = InterpolatedFeatures.from_positions(pos, part, n_freqs)
    value = features.edges(grids, receiver.to(dtype), sender.to(dtype))
    assert float((value - expected).abs().max()) < accuracy


def test_interpolation_is_transposed():
    generator = torch.Generator().manual_seed(0)
    part = PairTopology.from_n_atoms(torch.tensor([3, 1, 4])).parts[0]
    pos = torch.rand(8, 3, generator=generator, dtype=torch.float64)
    features = InterpolatedFeatures.from_positions(pos, part, 4)
    sizes = (features.n_rows - 16, 8, 8)
    inputs = [torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in sizes]
    output = features.edges(*inputs)
    other = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    transposed = features.edges_transposed(other)
    product = sum((x * y).sum() for x, y in zip(inputs, transposed, strict=True))
    torch.testing.assert_close(product, (output * other).sum())


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.mul_(1.1),
        # These leave no trace in the version of the tensor.
        lambda p: p.data.mul_(0.9),
        lambda p: setattr(p, "data", p.data + 0.01),
    ],
)
def test_frozen_weights_that_change_are_seen(case, change):
    network, state, topology = case
    network = copy.deepcopy(network).requires_grad_(False)
    both_heads(network, state, topology)
    for parameter in network.parameters():
        change(parameter)
    value = both_heads(network, state, topology)["velocity"]["pos"]
    expected = textbook(network, state)["velocity"]["pos"]
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)


def test_training_after_inference_mode(case):
    network, state, topology = case
    network = copy.deepcopy(network)
    with torch.inference_mode():
        both_heads(network, state, topology)
    network.csp_layer_0.edge_mlp[0].requires_grad_(False)
    both_heads(network, state, topology)["velocity"]["pos"].sum().backward()
    assert network.csp_layer_0.edge_mlp[2].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("interpolate", [True, False])
def test_bfloat16_is_close_and_trains(interpolate):
    torch.manual_seed(0)
    network = CSPNet(32, 2, 8, 16)
    generator = torch.Generator().manual_seed(0)
    n = int(N_ATOMS.sum())
    state = {
        "t": torch.tensor(0.3),
        "species": torch.randint(1, 90, (n,), generator=generator),
        "pos": torch.rand(n, 3, generator=generator),
        "cell": 4 * torch.eye(3) + torch.rand(len(N_ATOMS), 3, 3, generator=generator),
    }
    topology = PairTopology.from_n_atoms(N_ATOMS)
    features = PairFeatures.from_positions(state["pos"], topology, 8, interpolate)
    results = []
    for mixed in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            output = network(**state, topology=topology, features=features).velocity
        assert output["pos"].dtype == output["cell"].dtype == torch.float32
        output["pos"].square().mean().backward()
        gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        results.append((output["pos"].detach(), gradient))
    for exact, rounded in zip(*results, strict=True):
        assert 0 < relative_difference(rounded, exact) < 0.03


def test_lost_structures_stay_alone(case):
    network, state, topology = case
    pos = state["pos"].clone()
    pos[2] = torch.nan
    pos[6, 0] = torch.inf
    with torch.no_grad():
        velocity = network(**{**state, "pos": pos}, topology=topology).velocity["pos"]
        expected = network(**state, topology=topology).velocity["pos"]
    lost = torch.zeros(len(pos), dtype=torch.bool)
    lost[1:7] = True
    assert velocity[lost].isnan().all()
    torch.testing.assert_close(velocity[~lost], expected[~lost])


@pytest.mark.parametrize("max_edges", [1, 20])
def test_parts_change_nothing(case, max_edges):
    network, state, topology = case
    parts = PairTopology.from_n_atoms(N_ATOMS, max_edges)
    assert len(parts.parts) > len(topology.parts)
    whole = both_heads(network, state, topology)
    for head, fields in both_heads(network, state, parts).items():
        for field, value in fields.items():
            torch.testing.assert_close(value, whole[head][field])


def test_symmetries(case):
    network, state, topology = case
    before = both_heads(network, state, topology)
    order = torch.cat(
        [torch.randperm(n) + s for n, s in zip(N_ATOMS, N_ATOMS.cumsum(0) - N_ATOMS, strict=True)]
    )
    shift = torch.rand(len(N_ATOMS), 3, dtype=torch.float64)[topology.batch]
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    moved = dict(
        state,
        species=state["species"][order],
        pos=(state["pos"][order] + shift) % 1,
        cell=state["cell"] @ rotation,
    )
    after = both_heads(network, moved, topology)
    for head in before:
        torch.testing.assert_close(after[head]["pos"], before[head]["pos"][order])
        torch.testing.assert_close(after[head]["cell"], before[head]["cell"] @ rotation)


def test_batch_composition_does_not_matter(case):
    network, state, topology = case
    together = both_heads(network, state, topology)["velocity"]
    start = 0
    for s, n in enumerate(N_ATOMS.tolist()):
        atoms = slice(start, start + n)
        alone = network(
            state["t"][s : s + 1],
            state["species"][atoms],
            state["pos"][atoms],
            state["cell"][s : s + 1],
            PairTopology.from_n_atoms(N_ATOMS[s : s + 1]),
        ).velocity
        torch.testing.assert_close(alone["pos"], together["pos"][atoms])
        torch.testing.assert_close(alone["cell"], together["cell"][s : s + 1])
        start += n


def test_shared_features_and_scalar_time_change_nothing(case):
    network, state, topology = case
    features = PairFeatures.from_positions(state["pos"], topology, network.n_freqs)
    one_time = dict(state, t=torch.tensor(0.3))
    many_times = dict(state, t=torch.full((len(N_ATOMS),), 0.3))
    first = network(**one_time, topology=topology, features=features).velocity
    second = network(**many_times, topology=topology).velocity
    torch.testing.assert_close(first["pos"], second["pos"])
    torch.testing.assert_close(first["cell"], second["cell"])


@pytest.mark.parametrize("max_edges", [1, 20, 10_000])
def test_topology_lists_every_pair_once(max_edges):
    topology = PairTopology.from_n_atoms(N_ATOMS, max_edges)
    edges = [
        (i + part.atoms.start, j + part.atoms.start)
        for part in topology.parts
        for i, j in zip(part.receiver.tolist(), part.sender.tolist(), strict=True)
    ]
    expected = set()
    start = 0
    for n in N_ATOMS.tolist():
        expected |= {(start + i, start + j) for i in range(n) for j in range(n)}
        start += n
    assert set(edges) == expected
    assert len(edges) == len(expected)
    assert len(topology.parts) == {1: len(N_ATOMS), 20: 3, 10_000: 1}[max_edges]


def test_errors():
    with pytest.raises(ValueError, match="n_atoms: expected a one-dimensional tensor of positive"):
        PairTopology.from_n_atoms(torch.tensor([2, 0]))
    with pytest.raises(ValueError, match="hidden_dim must be at least 1, got 0"):
        CSPNet(hidden_dim=0)
    network = CSPNet(8, 1, 2, 8)
    topology = PairTopology.from_n_atoms(torch.tensor([1]))
    with pytest.raises(ValueError, match=r"heads: this network has .*denoiser"):
        network(
            torch.tensor(0.5),
            torch.tensor([1]),
            torch.zeros(1, 3),
            torch.eye(3)[None],
            topology,
            heads=("denoiser",),
        )
