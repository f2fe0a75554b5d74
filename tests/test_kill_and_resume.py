"""Runs that are killed at random moments end with the bits of runs that are not.

`IRLKIT_KILLS=30 python -m pytest tests/test_kill_and_resume.py` makes thirty trials of each kind.
"""

import multiprocessing
import os
import random
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from irlkit.datasets import load
from irlkit.grpo import GRPOConfig
from irlkit.policies import AnnealingPolicy, VelocityPolicy
from irlkit.pretraining import PretrainingConfig, pretrain
from irlkit.rewards import CRMSEReward, EnergyReward
from irlkit.schedules import ConstantNoise, LearnedAnnealing
from irlkit.trainer import GRPOTrainer
from tests.toy_potentials import LennardJonesToy
from tests.toys import flow_model

TRIALS = int(os.environ.get("IRLKIT_KILLS", "1"))
ITERATIONS = 12
SECONDS = {"rollout_seconds", "reward_seconds", "update_seconds", "seconds"}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs cheap processes to kill")


def data():
    return load("prototypes", "train", max_atoms=4, progress=False).subset(8)


def train(kind, folder):
    """What is killed: begins or continues a run in a folder."""
    torch.set_num_threads(1)
    dataset = data()
    if kind == "pretraining":
        config = PretrainingConfig(
            kind="trig-sde-gamma", hidden_dim=16, n_layers=2, n_freqs=3, time_dim=8,
            iterations=ITERATIONS, batch_size=4, validate_every=1,
        )  # fmt: skip
        pretrain(dataset, config, validation=dataset, out_dir=folder, progress=False)
        return
    noise = {"pos": ConstantNoise(0.1), "cell": ConstantNoise(0.3)}
    if kind == "annealing":
        policy = AnnealingPolicy(flow_model(), LearnedAnnealing(8, 1), noise)
        reward = CRMSEReward(dataset, pool=0)
    else:
        policy = VelocityPolicy(flow_model(), noise)
        reward = EnergyReward(LennardJonesToy())
    config = GRPOConfig(
        n_groups=2, group_size=3, n_steps=3, n_ppo_epochs=2, validate_every=2, validation_size=2,
        average_decay=0.9, iterations=ITERATIONS,
    )  # fmt: skip

    def counted(structures):
        with open(folder / "calls", "ab") as file:
            file.write(b"x")
        return reward(structures)

    GRPOTrainer(
        policy, counted, dataset, config, validation=dataset, validation_reward=reward,
        out_dir=folder, resume=True,
    ).run(progress=False)  # fmt: skip


def contents(folder):
    """All that a run has left, without times of the clock."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".pt":
            found[path.name] = flat(torch.load(path, weights_only=True))
        elif path.suffix == ".parquet":
            table = pd.read_parquet(path)
            found[path.name] = table[[c for c in table if c not in SECONDS]].to_csv()
        elif path.name == "model.safetensors":
            # Its description says how many seconds training took.
            from irlkit.model import FlowModel

            found[path.name] = flat(dict(FlowModel.load(path).state_dict()))
        elif path.name != "calls":
            found[path.name] = path.read_bytes()
    return found


def flat(value, name=""):
    """Everything in a checkpoint as text and bytes that can be compared."""
    if isinstance(value, dict):
        return [x for k, v in value.items() if k not in SECONDS for x in flat(v, f"{name}.{k}")]
    if isinstance(value, list | tuple):
        return [x for i, v in enumerate(value) for x in flat(v, f"{name}.{i}")]
    if isinstance(value, torch.Tensor):
        return [(name, value.dtype, tuple(value.shape), value.numpy().tobytes())]
    return [(name, repr(value))]


def start(kind, folder):
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=train, args=(kind, folder))
    process.start()
    return process


@pytest.mark.parametrize("kind", ["pretraining", "annealing", "energy"])
def test_a_run_killed_at_random_moments_loses_nothing(kind, tmp_path):
    whole = tmp_path / "whole"
    process = start(kind, whole)
    begun = time.monotonic()
    process.join()
    seconds = time.monotonic() - begun
    assert process.exitcode == 0
    expected = contents(whole)
    assert "checkpoint.pt" in expected and "history.parquet" in expected
    draws = random.Random(kind)
    n_kills = 0
    for trial in range(TRIALS):
        folder = tmp_path / f"trial-{trial}"
        kills = 0
        while True:
            process = start(kind, folder)
            # Two kills in a trial at most, so that it ends.
            process.join(None if kills == 2 else draws.uniform(0.0, seconds))
            if process.exitcode is not None:
                assert process.exitcode == 0
                break
            process.kill()
            process.join()
            kills += 1
            # What a kill leaves is whole: every file can be read.
            contents(Path(folder)) if folder.exists() else None
        ours = contents(folder)
        ours = {k: v for k, v in ours.items() if not k.startswith(".")}
        assert ours.keys() == expected.keys()
        for name in expected:
            assert ours[name] == expected[name], (trial, name)
        if kind != "pretraining":
            assert ITERATIONS <= (folder / "calls").stat().st_size <= ITERATIONS + kills
        n_kills += kills
    assert n_kills or TRIALS < 3
