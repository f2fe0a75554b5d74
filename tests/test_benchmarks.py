"""The benchmarks' smoke runs: that they measure, agree with themselves and report."""

import importlib
import json

import pytest
import torch

from benchmarks import common
from benchmarks.cost_model import Case, all_reduce, traffic
from benchmarks.edge_list import EdgeListNetwork, fully_connected
from irlkit.networks.cspnet import PairTopology
from tests.textbook import csp_forward


@pytest.fixture(autouse=True)
def threads():
    """A benchmark sets the threads of its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(name, capsys, *options):
    module = importlib.import_module(f"benchmarks.{name}")
    module.main(["--quick", "--threads", "1", *options])
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert result["benchmark"] == name
    assert result["machine"]["threads"] == 1
    return {row["case"]: row for row in result["results"]}


def test_network(capsys):
    rows = run("network", capsys)
    ratios = [row["ratio"] for row in rows.values() if row["ratio"] is not None]
    assert len(ratios) == 3
    assert all(ratio > 0 for ratio in ratios)


def test_scaling(capsys):
    rows = run("scaling", capsys, "--clock", "cpu")
    assert [len(row["seconds"]) for row in rows.values()] == [2, 2, 2]


def test_rl_iteration(capsys):
    rows = run("rl_iteration", capsys, "--policies", "velocity", "--no-memory")
    assert len(rows) == 4
    assert all(row["seconds"] > 0 for row in rows.values())


def test_iteration_profile(capsys):
    rows = run("iteration_profile", capsys, "--policies", "few steps", "site filling, density")
    for row in rows.values():
        assert min(row[f"{part}_share"] for part in ("network", "reward", "rest")) > 0
    assert "timed" not in torch.nn.Module.__call__.__qualname__, "everything is as it was"


@pytest.mark.slow
def test_relaxation(capsys):
    rows = run("relaxation", capsys)
    assert all(row["ratio"] > 0 for row in rows.values())


@pytest.mark.slow
def test_peak_memory(capsys):
    rows = run("rl_iteration", capsys, "--policies", "annealing")
    assert any("peak memory" in case and "edge_list_mb" in row for case, row in rows.items())


@pytest.mark.slow
def test_files(capsys):
    pytest.importorskip("yaml")
    rows = run("files", capsys)
    assert len(rows) == 4
    assert any(row.get("peak_mb", 0) > 50 for row in rows.values())


@pytest.mark.slow
def test_rewards(capsys):
    rows = run("rewards", capsys)
    assert any("CHGNet" in case for case in rows)
    assert all(row["per_second"] > 0 for row in rows.values())


@pytest.mark.slow
def test_time_to_reward(capsys):
    rows = run("time_to_reward", capsys, "--policies", "annealing")
    assert len(rows) == 2
    assert all(row["seconds_per_iteration"] > 0 for row in rows.values())


def test_cost_model(capsys):
    rows = run("cost_model", capsys, "--no-memory", "--no-ranks", "--ranks", "1", "64")
    assert rows["largest relative error, not in the fit"]["ratio"] < 10
    for device in ("measured", "assumed GPU"):
        one, many = (
            next(row for case, row in rows.items() if f"{n} x {device}" in case) for n in (1, 64)
        )
        assert many["million_per_day"] <= 64 * one["million_per_day"] * (1 + 1e-9)
        assert one["mb_sent"] == 0 < many["mb_sent"]


@pytest.mark.slow
def test_cost_model_with_two_ranks_and_memory(capsys):
    rows = run("cost_model", capsys)
    assert sum(case.startswith("memory") for case in rows) == 3
    # The loopback interface carries the gradients, and what else there is.
    sent = next(row for case, row in rows.items() if "bytes sent" in case)
    assert sent["ratio"] is None or 0 < sent["ratio"] < 1.1


def test_traffic_is_that_of_a_ring():
    case = Case(8, 4, width=16, n_layers=2, n_epochs=3)
    assert case.n_weights == 2 * (16 * 6 * 16 + 16 * 768)
    # Two ranks send half of the gradients and half of the sums.
    assert traffic(case, 2) == 3 * 4 * case.n_weights
    assert traffic(case, 1) == 0 and all_reduce(1e6, 1, 1.0, 1.0) == 0
    assert all_reduce(100.0, 4, 2.0, 0.5) == pytest.approx(6 * (2.0 + 0.5 * 25))


def test_baseline_is_the_textbook_network():
    torch.manual_seed(0)
    network = EdgeListNetwork(16, 2, 4, 8, denoiser=True).double()
    batch = common.random_crystals(5).to(dtype=torch.float64)
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    heads = ("velocity", "denoiser")
    output = network(
        t,
        batch.species,
        batch.pos,
        batch.cell,
        PairTopology.from_n_atoms(batch.n_atoms),
        heads=heads,
    )
    expected = csp_forward(
        dict(network.named_parameters()),
        t,
        batch.species,
        batch.pos,
        batch.cell,
        batch.n_atoms,
        n_freqs=4,
        time_dim=8,
    )
    for head in heads:
        for field, value in getattr(output, head).items():
            torch.testing.assert_close(value, expected[head][field], rtol=1e-10, atol=1e-12)


def test_pairs_of_the_baseline():
    receiver, sender = fully_connected(torch.tensor([1, 3, 2]))
    expected = [(0, 0)]
    expected += [(i, j) for i in (1, 2, 3) for j in (1, 2, 3)]
    expected += [(i, j) for i in (4, 5) for j in (4, 5)]
    assert list(zip(receiver.tolist(), sender.tolist(), strict=True)) == expected


def test_slope():
    assert common.slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2)


def test_turns_are_taken():
    order = []
    seconds = common.in_turns(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")},
        torch.device("cpu"),
        repeats=2,
        seconds=10,
    )
    assert order == ["a", "b"] * 3
    assert set(seconds) == {"a", "b"}


def test_denovo(capsys):
    rows = run("denovo", capsys, "--clock", "cpu")
    assert [row["mark"] for row in rows.values()] == [1.15, 1.2]
    assert all(row["ratio"] > 0 for row in rows.values())


def test_crystal_gym(capsys):
    pytest.importorskip("gymnasium", reason="gymnasium is not installed (extra gym)")
    rows = run("crystal_gym", capsys, "--clock", "cpu")
    assert [row["mark"] for row in rows.values()] == [1000, 70]
    # Four environments end one episode each in nine steps, of 4 to 8 sites and one of rest.
    assert all(
        4 <= row["episodes"] <= 8 and row["episodes_per_second"] > 0 for row in rows.values()
    )
