"""Rewards and sweeps on a Ray cluster of two nodes of one core each, on this machine."""

import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from irlkit import data as datasets
from irlkit.lab import plots
from irlkit.lab.sweeps import importance, open_study, run_ray, trials_table
from irlkit.rewards import (
    CompositeReward,
    CRMSEReward,
    EnergyReward,
    FunctionReward,
    RayReward,
    RewardResult,
    SymmetryReward,
)
from irlkit.rewards._parts import cut, grouping, runs
from irlkit.utils.workers import WorkersLostError
from tests.test_grpo import make_trainer
from tests.test_sweeps import NAMES, PARAMETERS, Parabola, make, run
from tests.toy_potentials import LennardJonesToy
from tests.toys import crystals

ROOT = Path(__file__).parents[1]


def free_ports(*names):
    sockets = [socket.socket() for _ in names]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return {name: s.getsockname()[1] for name, s in zip(names, sockets, strict=True)}
    finally:
        for s in sockets:
            s.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A connection to a cluster; one for all tests, since it takes long to start."""
    pytest.importorskip("ray", reason="needs Ray, irlkit[ray]")
    folder = tmp_path_factory.mktemp("ray")
    # Ray's agents import jsonschema, which imports this one if it is there and parses a grammar
    # then. Under load that takes longer than the 15 seconds after which Ray gives its agents up.
    (folder / "rfc3987_syntax.py").write_text("raise ImportError('slow, and not needed')\n")
    import ray
    from ray.cluster_utils import Cluster

    names = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port")
    options = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80_000_000}
    nodes = None
    try:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))
            environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
            environment.setenv("RAY_CHDIR_TO_TRIAL_DIR", "0")
            environment.setenv("RAY_AUTH_MODE", "disabled")
            try:
                nodes = Cluster(
                    initialize_head=True, head_node_args={**options, **free_ports(*names)}
                )
                nodes.add_node(**options, **free_ports(*names))
                ray.init(address=nodes.address, log_to_driver=False)
            except Exception as error:
                if "timed out during startup" in str(error):
                    pytest.skip("Ray gave up starting: this machine is too busy for its limits")
                raise
            yield ray
    finally:
        ray.shutdown()
        if nodes is not None:
            nodes.shutdown()


def same(result, expected, rtol=0.0):
    torch.testing.assert_close(result.values, expected.values, rtol=rtol, atol=0.0)
    assert set(result.info) == set(expected.info)
    for name, array in expected.info.items():
        assert result.info[name].dtype == array.dtype
        if array.dtype.kind == "f":
            np.testing.assert_allclose(result.info[name], array, rtol=rtol)
        else:
            assert list(result.info[name]) == list(array)


# --- cutting, without a cluster ---


def test_parts_are_even_and_complete():
    batch = crystals([8] * 30)
    anywhere = np.ones(30, dtype=bool)
    parts = cut(batch, 4, anywhere)
    assert [part.stop - part.start for part in parts] in ([7, 8, 7, 8], [8, 7, 8, 7])
    assert [i for part in parts for i in range(30)[part]] == list(range(30))
    assert cut(batch[:2], 4, anywhere[:2]) == [slice(0, 1), slice(1, 2)]
    # Atoms count, not structures.
    assert cut(crystals([30, 1, 1, 1]), 2, anywhere[:4]) == [slice(0, 1), slice(1, 4)]


def test_groups_stay_whole():
    batch = crystals([3, 3, 3]).repeat(4)  # every composition four times
    assert runs(batch).nonzero()[0].tolist() == [0, 4, 8]
    assert cut(batch, 12, runs(batch)) == [slice(0, 4), slice(4, 8), slice(8, 12)]
    assert cut(batch, 12, np.arange(12) % 8 == 0) == [slice(0, 8), slice(8, 12)]
    assert cut(batch[:4], 2, runs(batch[:4])) == [slice(0, 4)]


def test_grouping_is_that_of_the_parts():
    energy, sized = EnergyReward(LennardJonesToy()), EnergyReward(LennardJonesToy(), 4)
    symmetry = SymmetryReward("not_triclinic")
    assert grouping(symmetry) == (None, False)
    assert grouping(energy) == (None, True)
    assert grouping(sized) == (4, False)
    assert grouping(CompositeReward({"a": sized, "b": symmetry})) == (4, False)
    assert grouping(CompositeReward({"a": sized, "b": energy})) == (4, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_workers": 0}, "n_workers must be at least 1, got 0"),
        ({"parts_per_worker": True}, "parts_per_worker must be an integer"),
        ({"cpus": -1.0}, "cpus must not be negative"),
        ({"factory": SymmetryReward("not_triclinic")}, "function that makes the reward"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    options = {"factory": partial(SymmetryReward, "not_triclinic"), **options}
    with pytest.raises(ValueError, match=message):
        RayReward(**options)


def test_missing_ray_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'irlkit\[ray\]'"):
        RayReward(partial(SymmetryReward, "not_triclinic"))


# --- rewards ---


def dying(folder, n_times):
    """A reward that ends its process, so many times, when it sees a structure of three atoms."""

    def judge(batch):
        if (batch.n_atoms == 3).any():
            for i in range(n_times):
                try:
                    (folder / f"died-{i}").touch(exist_ok=False)
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
        names = np.array([str(int(n)) for n in batch.n_atoms], dtype=object)
        return RewardResult(-batch.n_atoms.double(), {"size": batch.n_atoms.numpy(), "name": names})

    return judge


def everything(data):
    return CompositeReward(
        {
            "crmse": CRMSEReward(data, 0),
            "symmetry": SymmetryReward("not_triclinic"),
            "energy": EnergyReward(LennardJonesToy(), 2, clip=0.5),
        }
    )


@pytest.mark.slow
def test_rewards_are_those_of_one_process(cluster):
    data = datasets.load("prototypes", split="val", progress=False).subset(24)
    batch = data.batch.repeat(2)
    noise = torch.randn(batch.pos.shape, generator=torch.Generator().manual_seed(0))
    batch = batch.replace(pos=batch.pos + 0.03 * noise.to(batch.pos))
    with RayReward(partial(everything, data)) as reward, everything(data) as here:
        assert reward.group_size == 2
        # Sums over a batch are rounded otherwise than those over its parts.
        same(reward(batch), here(batch), rtol=1e-12)
        assert len(reward(batch[:0])) == 0
        with pytest.raises(ValueError, match="no reference structure"):
            reward.check(crystals([2]))


@pytest.mark.slow
def test_killed_worker_costs_nothing_once(cluster, tmp_path):
    batch = crystals([2, 1, 3, 4, 5, 2])
    with RayReward(partial(dying, tmp_path, 1)) as reward:
        result = reward(batch)
        assert (tmp_path / "died-0").exists()
        same(result, FunctionReward(dying(tmp_path, 0))(batch))
        same(reward(batch), result)


@pytest.mark.slow
def test_structures_that_kill_every_worker_have_no_result(cluster, tmp_path):
    batch = crystals([2, 1, 3, 4, 5, 2])
    with RayReward(partial(dying, tmp_path, 2), parts_per_worker=3) as reward:
        result = reward(batch)
    lost = result.info["lost"]
    assert lost.tolist() == (batch.n_atoms == 3).tolist()
    assert torch.equal(result.values.isnan(), torch.from_numpy(lost))
    assert result.info["size"].tolist() == [2, 1, -1, 4, 5, 2]
    assert result.info["name"].tolist() == ["2", "1", None, "4", "5", "2"]
    for file in tmp_path.iterdir():
        file.unlink()
    with RayReward(partial(dying, tmp_path, 2), 1, on_failure=-9.0) as reward:
        assert reward(batch).values[2] == -9.0
        for file in tmp_path.iterdir():
            file.unlink()
        with pytest.raises(WorkersLostError, match="lost 2 times"):
            reward(batch[2:3])


def broken(batch):
    raise ArithmeticError(f"{len(batch)} structures are too many")


def refuse():
    raise OSError("no such potential")


@pytest.mark.slow
def test_workers_that_ray_ends_for_memory_are_lost(cluster, tmp_path, monkeypatch):
    batch = crystals((2, 2, 2))
    with RayReward(partial(dying, tmp_path, 0), 1, parts_per_worker=3) as reward:
        get, asked = reward._get, []

        def out_of_memory(future):
            asked.append(future)
            if len(asked) == 2:
                raise reward._ray.exceptions.OutOfMemoryError("the node was low on memory")
            return get(future)

        monkeypatch.setattr(reward, "_get", out_of_memory)
        result = reward(batch)
    assert result.info["lost"].tolist() == [False, True, False]
    assert torch.equal(result.values.isnan(), torch.tensor([False, True, False]))


@pytest.mark.slow
def test_errors_arrive_as_they_were(cluster):
    with RayReward(lambda: broken) as reward:
        with pytest.raises(ArithmeticError, match="1 structures are too many"):
            reward(crystals([2]))
        with pytest.raises(ArithmeticError, match="are too many"):
            reward(crystals([2, 3]))
    with pytest.raises(OSError, match="no such potential"):
        RayReward(refuse)


@pytest.mark.slow
def test_trainer_takes_it_like_any_other(cluster, tmp_path):
    config = {"n_groups": 2, "group_size": 2, "n_steps": 2}
    with RayReward(lambda: lambda batch: -batch.volume.double()) as reward:
        ours = make_trainer(reward, config=config)
        ours.run(2, progress=False)
    theirs = make_trainer(lambda batch: -batch.volume.double(), config=config)
    theirs.run(2, progress=False)
    assert list(ours.history["reward"][1:]) == list(theirs.history["reward"][1:])


# --- sweeps ---


@pytest.mark.slow
def test_sweep_on_two_workers_continues_and_is_read_like_any_other(cluster, tmp_path):
    assert cluster.cluster_resources()["CPU"] == 2
    sweep = make(tmp_path / "sweep")
    # What a process on one machine has left when it died: one trial finished, one not.
    with pytest.raises(KeyboardInterrupt):
        run(sweep, Parabola(stop_after=1), 4)
    left = trials_table(sweep.study)
    assert list(left["state"]) == ["complete", "running"]
    trials = run_ray(sweep, Parabola(), 4, prune=True)
    assert list(trials["number"]) == [0, 1, 2, 3] and (trials["state"] == "complete").all()
    pd.testing.assert_frame_equal(trials[NAMES].iloc[:2], left[NAMES])
    assert trials["value"][0] == left["value"][0]
    study = open_study(tmp_path / "sweep")
    assert study.best_value == trials["value"].max()
    # What notebook 05 does with a sweep does not ask who ran it.
    assert set(PARAMETERS) <= set(trials.columns)
    assert plots.sweep_trials(trials, parameters=NAMES).data
    assert plots.parallel_coordinates(trials, NAMES).data
    assert set(importance(study).index) == set(NAMES)
    # All is done: nothing is trained, and one process may go on.
    pd.testing.assert_frame_equal(run_ray(sweep, Parabola(fail_below=1.0), 4), trials)
    assert len(run(sweep, Parabola(), 5)) == 5


@pytest.mark.slow
def test_sweep_whose_trials_all_fail_is_given_up(cluster, tmp_path):
    with pytest.raises(RuntimeError, match="trials failed, the last with RuntimeError: the grad"):
        run_ray(make(tmp_path), Parabola(fail_below=1.0), 8)
