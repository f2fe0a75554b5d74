"""Several processes compute what one does; the command line runs with and without torchrun."""

import copy
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.distributed as dist

from irlkit.lab.train import main
from irlkit.networks.autoencoder import Autoencoder
from irlkit.networks.latent_diffusion import DiffusionTransformer, LatentDiffusion
from irlkit.rl import GRPOTrainer, Request, SpeciesPolicy
from irlkit.rl._communicator import DistributedCommunicator
from irlkit.utils.draws import SharedDraws, standard_normal
from tests.test_discrete import tiny_model
from tests.test_grpo import make_trainer
from tests.test_other_processes import share_of_oxygen
from tests.test_policies import generator
from tests.toys import trainer_config, volume_reward

gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()) or sys.platform != "linux",
    reason="needs torch.distributed with gloo",
)
RARE = 1000.0
SETTINGS = {"n_groups": 4, "group_size": 4, "n_steps": 3, "n_ppo_epochs": 2, "validate_every": 2}


class Recording:
    """Collects the gradients that an optimizer steps along."""

    def __init__(self, trainer):
        self.gradients = []
        step = trainer.optimizer.step

        def record():
            self.gradients.append([copy.deepcopy(p.grad) for p in trainer.policy.parameters()])
            step()

        trainer.optimizer.step = record


def volume_and_what_is_rare(structures):
    """Tells what is rare only where it is there, as rewards tell what has failed."""
    result = volume_reward(structures)
    rare = structures.volume > RARE
    if rare.any():
        result.info["rare"] = rare.double().numpy()
    return result


def run(kind, folder, iterations, resume=False):
    (folder / "out").mkdir(parents=True, exist_ok=True)
    options = {
        "out_dir": folder / "out",
        "resume": resume,
        "communicator": DistributedCommunicator() if dist.is_initialized() else None,
    }
    if kind == "species":
        # Half of the steps at which any structure changes, in three parts.
        some = {**SETTINGS, "n_steps": 8, "step_fraction": 0.5, "minibatch_updates": 3}
        policy, request = SpeciesPolicy(tiny_model("mask")), Request(torch.tensor([1, 2]))
        config = trainer_config(**some)
        trainer = GRPOTrainer(
            policy, share_of_oxygen, request, config, validation=request, **options
        )
    else:
        trainer = make_trainer(volume_and_what_is_rare, kind=kind, config=SETTINGS, **options)
    recording = Recording(trainer)
    trainer.run(iterations, progress=False)
    return trainer, recording.gradients


def work(rank, kind, folder, iterations, resume):
    """What one of two processes does."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = folder / f"store-{iterations}"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        trainer, gradients = run(kind, folder, iterations, resume)
        state = {"gradients": gradients, "parameters": list(trainer.policy.parameters())}
        state["wrote"] = trainer.out_dir is not None
        torch.save(state, folder / f"rank-{rank}.pt")
    finally:
        dist.destroy_process_group()


def two_processes(kind, folder, iterations, resume=False):
    context = multiprocessing.get_context("fork" if torch.get_num_threads() == 1 else "spawn")
    processes = [
        context.Process(target=work, args=(rank, kind, folder, iterations, resume))
        for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in (0, 1)]


@gloo
@pytest.mark.parametrize("kind", ["annealing", "velocity", "species"])
def test_two_processes_have_the_gradients_of_one(kind, tmp_path):
    one, expected = run(kind, tmp_path / "one", 2)
    first, second = two_processes(kind, tmp_path, 2)
    assert first["wrote"] and not second["wrote"]
    assert len(expected) == len(first["gradients"]) == (12 if kind == "species" else 4)
    for ranks in (first, second):
        for ours, theirs in zip(ranks["gradients"], expected, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                if b is not None:
                    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
        for a, b in zip(ranks["parameters"], one.policy.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    assert any(float(g.abs().max()) > 1e-6 for step in expected for g in step if g is not None)
    # The history of all groups, not of one rank's.
    history = pd.read_parquet(tmp_path / "out" / "history.parquet")
    field = "species" if kind == "species" else "cell"
    others = [] if kind == "species" else ["info_rare"]
    for column in ("reward", "validation_reward", f"{field}_policy_loss", "grad_norm", *others):
        torch.testing.assert_close(
            torch.tensor(history[column].to_numpy()),
            torch.tensor(one.history[column].to_numpy()),
            rtol=1e-6,
            atol=1e-9,
            equal_nan=True,
        )
    # A stopped run of two goes on as the one that was not stopped.
    run(kind, tmp_path / "one", 3, resume=True)
    resumed = two_processes(kind, tmp_path, 3, resume=True)
    whole, _ = run(kind, tmp_path / "whole", 3)
    for a, b in zip(resumed[1]["parameters"], whole.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@gloo
def test_the_group_of_ranks_ends_with_its_threads(tmp_path):
    code = f"""
import gc, weakref
import irlkit.lab.train
import torch, torch.distributed as dist
dist.init_process_group("gloo", init_method="file://{tmp_path / "store"}", rank=0, world_size=1)
torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
group = weakref.ref(dist.group.WORLD)
dist.destroy_process_group()
gc.collect()
print("ended" if group() is None else "still there")
"""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "ended", done.stdout + done.stderr


def test_a_share_of_the_draws_is_that_of_the_whole():
    pos, cell = torch.zeros(1, 7, 3), torch.zeros(1, 3, 3, 3)
    whole, own = generator(3), generator(3)
    atoms, structures = SharedDraws(own, 7, slice(2, 6)), SharedDraws(own, 3, slice(1, 2))
    assert torch.equal(standard_normal(pos[:, 2:6], atoms), standard_normal(pos, whole)[:, 2:6])
    expected = standard_normal(cell, whole)[:, 1:2]
    assert torch.equal(standard_normal(cell[:, 1:2], structures), expected)
    assert torch.equal(own.get_state(), whole.get_state())
    expected = torch.randn(1, 7, 3, generator=generator(5))
    assert torch.equal(standard_normal(pos, generator(5)), expected)
    with pytest.raises(ValueError, match="share of the groups has to fit at once"):
        standard_normal(pos[:, :2], atoms)


ARGUMENTS = (
    "--iterations 1 --n-groups 2 --group-size 2 --n-steps 2 --validation-size 2 "
    "--reward not_triclinic --device cpu"
).split()


def test_the_command_line_in_one_process(tmp_path, capsys):
    main(["--out-dir", str(tmp_path), *ARGUMENTS])
    assert "2 rows, last validation reward" in capsys.readouterr().out
    assert (tmp_path / "checkpoint.pt").exists()
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2


def test_the_command_line_trains_latent_diffusion(tmp_path, capsys):
    network = DiffusionTransformer(8, 12, 16, 1, 2)
    torch.nn.init.normal_(network.out.weight, std=0.1)
    LatentDiffusion(Autoencoder.load("chemeleon-vae"), network).save(tmp_path / "model")
    given = ["--policy", "latent", "--model", str(tmp_path / "model"), *ARGUMENTS]
    out = ["--out-dir", str(tmp_path / "run")]
    with pytest.raises(ValueError, match="--policy latent generates compositions"):
        main([*given, *out, "--reward", "crmse"])
    main([*given, *out])
    assert "last validation reward" in capsys.readouterr().out


@gloo
@pytest.mark.slow
def test_the_command_line_with_torchrun(tmp_path):
    if not os.environ.get("IRLKIT_TORCHRUN"):
        pytest.skip("starts three processes; IRLKIT_TORCHRUN=1 asks for it")
    arguments = ["--out-dir", str(tmp_path), *ARGUMENTS]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node=2", "-m", "irlkit.lab.train", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 rows, last validation reward" in done.stdout
    assert (tmp_path / "history.parquet").exists()
