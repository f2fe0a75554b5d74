"""The network against the textbook version, and its symmetries."""

import pytest
import torch

from irlkit.cspnet import CSPNet, PairFeatures, PairTopology
from tests.textbook import csp_forward

N_ATOMS = torch.tensor([1, 4, 2, 7, 1, 3])


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


def both_heads(network, state, topology):
    output = network(**state, topology=topology, heads=("velocity", "denoiser"))
    return {"velocity": output.velocity, "denoiser": output.denoiser}


def test_agrees_with_textbook(case):
    network, state, topology = case
    expected = csp_forward(
        dict(network.named_parameters()), **state, n_atoms=N_ATOMS, n_freqs=5, time_dim=16
    )
    for head, fields in both_heads(network, state, topology).items():
        for field, value in fields.items():
            torch.testing.assert_close(value, expected[head][field], rtol=1e-10, atol=1e-12)


def test_gradients_agree_with_textbook(case):
    network, state, topology = case
    parameters = dict(network.named_parameters())
    expected = csp_forward(parameters, **state, n_atoms=N_ATOMS, n_freqs=5, time_dim=16)
    ours = both_heads(network, state, topology)
    gradients = [
        torch.autograd.grad(
            sum(v.square().sum() for fields in out.values() for v in fields.values()),
            list(parameters.values()),
        )
        for out in (ours, expected)
    ]
    for name, mine, textbook in zip(parameters, *gradients, strict=True):
        torch.testing.assert_close(mine, textbook, rtol=1e-9, atol=1e-9, msg=name)


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
    with pytest.raises(ValueError, match="hidden_dim: expected a positive number, got 0"):
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
