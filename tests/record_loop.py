"""Record what the loop of reinforcement learning computes, to the bit.

    python -m tests.record_loop [FILE]

writes ``tests/goldens/loop.safetensors``, with which ``test_loop_goldens.py`` compares. A case
builds everything from fixed seeds and returns name -> tensor. Only here is the kit's interface
called: when names change, this file follows and the recorded numbers stay.

Bits depend on the processor's kernels. The file therefore holds the fingerprint of the machine it
was recorded on; elsewhere, record with the code before a change to compare bits with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import irlkit  # noqa: F401  # before torch, whose idle threads then soon sleep

# isort: split
import numpy as np
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.flows.base_distribution import BaseDistribution
from irlkit.flows.dynamics import Dynamics
from irlkit.flows.interpolants import (
    Interpolant,
    LinearPath,
    SqrtGamma,
    TrigonometricPath,
    VarianceExplodingPath,
)
from irlkit.flows.schedules import (
    ConstantNoise,
    ControlPointAnnealing,
    LearnedAnnealing,
    LearnedNoise,
    LinearAnnealing,
    SquareRootNoise,
)
from irlkit.networks.cspnet import CSPNet
from irlkit.networks.flow_model import FlowModel
from irlkit.rl.config import TrainerConfig
from irlkit.rl.grpo import GRPOConfig, group_advantages, grpo_loss
from irlkit.rl.policies import AnnealingPolicy, ScorePolicy, VelocityPolicy
from irlkit.rl.rollout import rollout
from irlkit.rl.trainer import GRPOTrainer

FILE = Path(__file__).parent / "goldens" / "loop.safetensors"
LARGE = 250
"""A tensor of more numbers is kept as a digest and a summary."""
Tensors = dict[str, Tensor]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- what is recorded ---


def compositions(dtype: torch.dtype) -> CrystalBatch:
    """Of 1 to 6 atoms; two formulas occur twice."""
    return CrystalBatch.from_formulas(
        ["Na1 Cl1", "Fe1", "Ca1 Ti1 O3", "Na1 Cl1", "Si2 O4", "Fe1"], dtype
    )


def kinds() -> dict[str, dict[str, Interpolant]]:
    pos = {"periodic": True, "center_of_mass_free": True}
    gamma = SqrtGamma(0.049242906)
    one_sided = Interpolant(
        VarianceExplodingPath(), one_sided=True, trained_heads=("denoiser",), **pos
    )
    trigonometric = Interpolant(TrigonometricPath(), gamma, **pos)
    return {
        "linear": {"pos": Interpolant(LinearPath(), **pos), "cell": Interpolant(LinearPath())},
        "trig": {"pos": trigonometric, "cell": Interpolant(TrigonometricPath())},
        "trig-both": {"pos": trigonometric, "cell": Interpolant(TrigonometricPath(), gamma)},
        "one-sided": {"pos": one_sided, "cell": Interpolant(LinearPath())},
    }


def drawn(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """A module with new weights, in double precision: all kernels have the same normal numbers."""
    draws = generator(seed)
    with torch.no_grad():
        for weight in module.double().parameters():
            noise = torch.randn(weight.shape, generator=draws, dtype=torch.float64)
            weight.copy_(noise / weight.shape[-1] ** 0.5 if weight.ndim > 1 else 0.2 * noise)
    return module


def moved(module: torch.nn.Module, scale: float, seed: int) -> torch.nn.Module:
    """A module with its parameters changed at random."""
    draws = generator(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=draws, dtype=torch.float64)
            parameter += (scale * noise).to(parameter)
    return module


def make_model(kind: str, dtype: torch.dtype) -> FlowModel:
    network = drawn(CSPNet(16, 2, 3, 8, denoiser=kind != "linear"), 0)
    base = BaseDistribution((1.5, 1.6, 1.7), (0.2, 0.2, 0.3))
    return FlowModel(network, kinds()[kind], base).to(dtype).eval()


BOTH = {"pos": ConstantNoise(0.3), "cell": SquareRootNoise(0.4)}
REFERENCE = {"pos": ConstantNoise(0.25), "cell": ConstantNoise(0.5)}


def learned_annealing(**options: object) -> LearnedAnnealing:
    return drawn(LearnedAnnealing(**options), 1)


def make_policy(name: str, dtype: torch.dtype) -> AnnealingPolicy | VelocityPolicy | ScorePolicy:
    linear = partial(make_model, "linear", dtype)
    trained_noise = {
        "pos": drawn(LearnedNoise(ConstantNoise(0.3), 8), 2),
        "cell": SquareRootNoise(0.4),
    }
    schedules = {
        "annealing": {"hidden_dim": 8},
        "annealing-presets": {"hidden_dim": 16, "positive": True, "n_frequencies": 3},
        "annealing-dt": {
            "hidden_dim": 8,
            "n_hidden_layers": 1,
            "shared_trunk": False,
            "condition_on_dt": True,
            "positive": True,
            "n_frequencies": 2,
        },
        "annealing-learned-noise": {"hidden_dim": 8},
    }
    noises = {
        "annealing": (BOTH, REFERENCE),
        "annealing-presets": (BOTH,),
        "annealing-dt": ({"cell": ConstantNoise(0.2)},),
        "annealing-learned-noise": (trained_noise,),
    }
    if name in schedules:
        return AnnealingPolicy(linear(), learned_annealing(**schedules[name]), *noises[name])
    makers = {
        "velocity-pos": lambda: VelocityPolicy(linear()),
        "velocity-both": lambda: VelocityPolicy(
            linear(), BOTH, REFERENCE, LinearAnnealing(2.0, 1.0)
        ),
        "velocity-learned-noise": lambda: VelocityPolicy(linear(), trained_noise),
        "score-pos": lambda: ScorePolicy(
            make_model("trig", dtype),
            {"pos": ConstantNoise(0.2)},
            annealing=LinearAnnealing(2.0, 1.0),
        ),
        "score-without-denoiser": lambda: ScorePolicy(make_model("trig", dtype), BOTH, REFERENCE),
        "score-both": lambda: ScorePolicy(
            make_model("trig-both", dtype), {"pos": ConstantNoise(0.2), "cell": ConstantNoise(0.05)}
        ),
    }
    return moved(makers[name](), 0.02, 2)


POLICIES = (
    "annealing annealing-presets annealing-dt annealing-learned-noise velocity-pos velocity-both "
    "velocity-learned-noise score-pos score-without-denoiser score-both"
).split()


def structures(prefix: str, batch: CrystalBatch) -> Tensors:
    return {
        f"{prefix}/pos": batch.pos,
        f"{prefix}/cell": batch.cell,
        f"{prefix}/species": batch.species,
        f"{prefix}/n_atoms": batch.n_atoms,
    }


def parameters(prefix: str, named: Tensors) -> Tensors:
    """All as one, and the norm of each."""
    values = [value.detach() for value in named.values()]
    return {
        prefix: torch.cat([value.flatten() for value in values]),
        f"{prefix}_norms": torch.stack([value.double().norm() for value in values]),
    }


def reward(batch: CrystalBatch) -> SimpleNamespace:
    """Minus the squared logarithm of the volume per atom over 12 Å^3, and a part of the positions.

    Cells of no volume count as 1e-3 Å^3.
    """
    volume = torch.linalg.det(batch.cell).abs().clamp(min=1e-3) / batch.n_atoms
    height = torch.zeros_like(volume).index_add(0, batch.batch, batch.pos[:, 2]) / batch.n_atoms
    values = -(volume / 12).log().square() + height
    return SimpleNamespace(values=values.double(), info={"volume": volume.numpy()})


# --- cases ---


def episode(policy_name: str, dtype: torch.dtype) -> Tensors:
    """A rollout, at once and in parts, and what the policy generates when it is deployed."""
    policy = make_policy(policy_name, dtype)
    batch = compositions(dtype).repeat(2)
    x_0 = policy.model.sample_base(batch, generator(3))
    result = structures("x_0", x_0)
    parts: list[int] = []
    options = {
        "whole": {"record_states": True},
        "parts": {"max_batch": 5, "on_part": lambda part: parts.append(len(part))},
    }
    for name, more in options.items():
        draws = generator(4)
        trajectory = rollout(policy, x_0, 5, draws, **more)
        result |= structures(f"{name}/final", trajectory.final)
        result[f"{name}/times"] = trajectory.times
        for kind in ("actions", "log_probs", "states"):
            values = getattr(trajectory, kind)
            result |= {f"{name}/{kind}/{field}": x for field, x in values.items()}
        for head, of in trajectory.frozen.items():
            result |= {f"{name}/frozen/{head}/{field}": x for field, x in of.items()}
        result[f"{name}/finite"] = trajectory.is_finite()
        result[f"{name}/generator"] = draws.get_state()
    result["parts/sizes"] = torch.tensor(parts)
    draws = generator(5)
    states: list[CrystalBatch] = []
    final = policy.deploy().generate(batch, 6, generator=draws, record=states, max_batch=7)
    result |= structures("deployed/final", final)
    result["deployed/pos"] = torch.stack([state.pos for state in states])
    result["deployed/cell"] = torch.stack([state.cell for state in states])
    result["deployed/generator"] = draws.get_state()
    return result


def loss(policy_name: str, dtype: torch.dtype) -> Tensors:
    """Loss and gradients with each normalisation, of all steps and of some, and of a selection."""
    policy = make_policy(policy_name, dtype)
    batch = compositions(dtype).repeat(2)
    x_0 = policy.model.sample_base(batch, generator(3))
    trajectory = rollout(policy, x_0, 5, generator(4))
    rewards = torch.randn(len(batch), generator=generator(6), dtype=torch.float64)
    advantages = group_advantages(rewards, 2)
    moved(policy, 0.03 if policy_name.startswith("annealing") else 0.001, 7)
    policy.noise_scale = {"pos": 0.9, "cell": 0.8}
    chosen = torch.tensor([7, 2, 3, 10])
    samples = {
        "whole": (trajectory, advantages, None),
        "part": (trajectory.select(chosen), advantages[chosen], torch.tensor([3, 0])),
    }
    result = {"advantages": advantages}
    for normalization in ("per_atom_surrogate", "per_structure_weight", "none"):
        config = GRPOConfig(
            clip_eps=0.1,
            kl_weight={"pos": 0.1, "cell": 0.2},
            distillation_weight=0.3,
            entropy_weight=0.05,
            normalization=normalization,
        )
        for name, (sample, weights, index) in samples.items():
            prefix = f"{normalization}/{name}"
            found = grpo_loss(policy, sample, weights, config, index)
            result[f"{prefix}/total"] = found.total.detach()
            if index is None:
                result |= {f"{prefix}/{term}": value for term, value in found.terms.items()}
            policy.zero_grad()
            found.total.backward()
            gradients = {
                key: torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for key, p in policy.named_parameters()
            }
            result |= parameters(f"{prefix}/gradient", gradients)
    return result


COMMON = {"n_groups": 4, "group_size": 3, "n_steps": 5, "n_ppo_epochs": 2, "validate_every": 2}
SETTINGS = {
    # Much that is done in parts, and much that decays.
    "decaying": {
        "shared_x_0": True,
        "max_minibatch": 7,
        "step_fraction": 0.6,
        "learning_rate": 5e-3,
        "final_learning_rate": 1e-3,
        "iterations": 3,
        "noise_decay": {"pos": 0.5, "cell": 0.25},
        "average_decay": 0.9,
        "kl_weight": 0.1,
        "distillation_weight": 0.2,
        "entropy_weight": 0.01,
        "max_batch": 5,
    },
    "several-steps": {
        "n_steps": (3, 5),
        "validation_n_steps": (4, 6),
        "validation_size": 3,
        "minibatch_updates": 2,
        "max_kl": 0.005,
        "learning_rate": 2e-3,
        "max_grad_norm": 0.1,
        "normalization": "per_structure_weight",
        "validation_seed": 3,
    },
    "overlapped": {
        "overlap_rewards": True,
        "max_batch": 5,
        "learning_rate": 2e-3,
        "n_groups": 8,
        "normalization": "none",
    },
    "mixed-precision": {
        "mixed_precision": True,
        "shared_x_0": True,
        "learning_rate": 2e-3,
        "max_minibatch": 20,
    },
}


def training(policy_name: str, setting: str, dtype: torch.dtype) -> Tensors:
    """Three iterations with validation, the third after a resume."""
    settings = {**COMMON, **SETTINGS[setting]}
    if not policy_name.startswith(
        "annealing"
    ):  # A network's actions change a lot with its weights.
        settings = {k: v / 20 if "learning_rate" in k else v for k, v in settings.items()}
    config = TrainerConfig.from_settings(settings, 5)
    batch = compositions(dtype)
    with tempfile.TemporaryDirectory() as folder:
        for iterations in (2, 3):
            trainer = GRPOTrainer(
                make_policy(policy_name, dtype),
                reward,
                batch,
                config,
                validation=batch[[2, 0, 4, 1]],
                out_dir=folder,
                resume=True,
            )
            trainer.run(iterations, progress=False)
    return trained(trainer)


def trained(trainer: GRPOTrainer) -> Tensors:
    """All that a training leaves behind, apart from times of the clock."""
    history = trainer.history
    result = {
        f"history/{name}": torch.tensor(history[name].to_numpy(dtype=np.float64))
        for name in history
        if not name.endswith("_seconds")
    }
    result |= parameters("policy", dict(trainer.policy.named_parameters()))
    result["generator"] = trainer._generator.get_state()
    if trainer.average is not None:
        result |= parameters("average", trainer.average)
    assert trainer.best is not None
    result |= parameters("best/policy", trainer.best["policy"])
    for name in ("iteration", "validation_reward"):
        result[f"best/{name}"] = torch.tensor(float(trainer.best[name]), dtype=torch.float64)
    result["best/noise_scale"] = torch.tensor(
        [trainer.best["noise_scale"][field] for field in trainer.policy.fields],
        dtype=torch.float64,
    )
    return result


def integration(kind: str, dtype: torch.dtype) -> Tensors:
    """`Dynamics` alone: ODE with annealing, ODE with noise, SDE, at once and in parts."""
    model = make_model(kind, dtype)
    batch = compositions(dtype)
    x_0 = model.sample_base(batch, generator(3))
    noisy = {"pos": ConstantNoise(0.2), "cell": SquareRootNoise(0.3)}
    learned = learned_annealing(hidden_dim=8, condition_on_dt=True).to(dtype)
    options = {
        "plain": {"x_0": x_0},
        "linear": {"annealing": LinearAnnealing(3.0, 1.0)},
        "points": {"annealing": ControlPointAnnealing((1.0, 0.0, 2.0), (0.5, 0.0))},
        "learned": {"annealing": learned},
        "noise": {"noise": noisy},
        "noise-of-cell": {"noise": {"cell": noisy["cell"]}, "x_0": x_0},
        "both": {"annealing": learned, "noise": noisy},
    }
    if denoised := model.has_denoiser:
        of_denoised = {field: noisy[field] for field in denoised}
        options["sde"] = {"noise": of_denoised, "kind": "sde"}
        options["sde-annealed"] = {"noise": of_denoised, "kind": "sde", "annealing": learned}
    result = structures("x_0", x_0)
    for name, more in options.items():
        for limit in (None, 4):
            draws = generator(9)
            chosen = {name: more[name] for name in ("annealing", "noise", "kind") if name in more}
            final = Dynamics(model, **chosen).generate(
                batch, 5, generator=draws, max_batch=limit, x_0=more.get("x_0")
            )
            prefix = f"{name}/{'whole' if limit is None else 'parts'}"
            result |= {f"{prefix}/pos": final.pos, f"{prefix}/cell": final.cell}
            result[f"{prefix}/generator"] = draws.get_state()
    return result


def two_ranks(policy_name: str, dtype: torch.dtype) -> Tensors:
    """Two iterations, shared by two processes; what either of them ends with."""
    # A process whose threads wait for work cannot be forked.
    method = "fork" if THREADS_AT_START == 1 else "spawn"
    context = multiprocessing.get_context(method)
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_one_of_two, args=(rank, policy_name, dtype, Path(folder)))
            for rank in (0, 1)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            if process.is_alive():
                process.kill()
        if codes := [p.exitcode for p in processes if p.exitcode != 0]:
            raise RuntimeError(f"processes ended with {codes}")
        ranks = [torch.load(Path(folder) / f"{rank}.pt") for rank in (0, 1)]
    return {f"{rank}/{name}": x for rank in (0, 1) for name, x in ranks[rank].items()}


def _one_of_two(rank: int, policy_name: str, dtype: torch.dtype, folder: Path) -> None:
    from irlkit.rl._communicator import DistributedCommunicator

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    try:
        more = {"shared_x_0": False, "average_decay": 0.9, "learning_rate": 2e-4}
        config = TrainerConfig.from_settings({**COMMON, **more, "step_fraction": 0.6}, 5)
        batch = compositions(dtype)
        trainer = GRPOTrainer(
            make_policy(policy_name, dtype),
            reward,
            batch,
            config,
            validation=batch,
            communicator=DistributedCommunicator(),
        )
        trainer.run(2, progress=False)
        torch.save(trained(trainer), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def _cases() -> dict[str, Callable[[], Tensors]]:
    dtypes = {"float64": torch.float64, "float32": torch.float32}
    trainings = [(policy, "decaying") for policy in POLICIES if policy != "annealing"]
    trainings += [
        ("annealing", "several-steps"),
        ("annealing-dt", "several-steps"),
        ("velocity-learned-noise", "several-steps"),
        ("score-without-denoiser", "several-steps"),
        ("annealing", "overlapped"),
        ("velocity-pos", "overlapped"),
        ("velocity-both", "mixed-precision"),
    ]
    cases: dict[str, Callable[[], Tensors]] = {}
    for suffix, dtype in dtypes.items():
        for policy in POLICIES:
            cases[f"episode-{policy}-{suffix}"] = partial(episode, policy, dtype)
            cases[f"loss-{policy}-{suffix}"] = partial(loss, policy, dtype)
        for policy, setting in trainings:
            cases[f"training-{policy}-{setting}-{suffix}"] = partial(
                training, policy, setting, dtype
            )
        for kind in kinds():
            cases[f"integration-{kind}-{suffix}"] = partial(integration, kind, dtype)
    for policy in ("annealing-learned-noise", "velocity-both"):
        cases[f"two-ranks-{policy}"] = partial(two_ranks, policy, torch.float64)
    return cases


THREADS_AT_START = torch.get_num_threads()
CASES = _cases()


# --- bits, digests and the file ---


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sums are then made in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def digest(x: Tensor) -> Tensor:
    """SHA-256 of the bytes, as 32 of them."""
    data = x.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return torch.frombuffer(bytearray(hashlib.sha256(data).digest()), dtype=torch.uint8)


def summary(x: Tensor) -> Tensor:
    """Norm, and eight of the numbers."""
    values = x.detach().double().flatten()
    chosen = torch.linspace(0, len(values) - 1, 8, dtype=torch.float64).long()
    return torch.cat([values.norm()[None], values[chosen]])


def record(case: str) -> Tensors:
    """The tensors of a case; large ones as digest and summary, random states as digest."""
    with one_thread():
        tensors = CASES[case]()
    recorded: Tensors = {}
    for name, x in tensors.items():
        x = x.detach().clone().contiguous()
        if x.dtype == torch.uint8:
            recorded[f"{name}@state"] = digest(x)
        elif x.numel() > LARGE:
            recorded[f"{name}@digest"] = digest(x)
            recorded[f"{name}@summary"] = summary(x)
        else:
            recorded[name] = x
    return recorded


def fingerprint() -> dict[str, str]:
    """What bits depend on: versions, the processor's kernels, and what these compute."""
    sums = io.BytesIO()
    with one_thread():
        for dtype in (torch.float32, torch.float64):
            draws = generator(0)
            x = torch.randn(120, 48, generator=draws, dtype=dtype)
            for rows in (1, 3, 8, 17, 24, 120):
                for inner, columns in ((1, 8), (8, 16), (16, 16), (33, 16), (48, 16), (16, 3)):
                    weight = torch.randn(inner, columns, generator=draws, dtype=dtype)
                    y = x[:rows, :inner].contiguous() @ weight
                    z = torch.nn.functional.silu(y + torch.sin(y) * torch.cos(y))
                    parts = [y, z, y.T @ z, z.exp(), y.abs().log(), y.square().sum(0), z.mean()]
                    parts += [torch.nn.functional.softplus(y), (y * 1.7 / (z + 3)).norm()]
                    for part in parts:
                        sums.write(part.contiguous().numpy().tobytes())
            sums.write(torch.linalg.det(x[:9, :9].reshape(9, 3, 3)).numpy().tobytes())
            sums.write(np.mean(x.numpy(), axis=0).tobytes() + np.std(x.numpy()).tobytes())
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "sums": hashlib.sha256(sums.getvalue()).hexdigest(),
    }


def load(path: Path = FILE) -> tuple[dict[str, Tensors], dict[str, str]]:
    """Case -> name -> tensor, and the fingerprint of the machine that recorded them."""
    recorded: dict[str, Tensors] = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():
            case, _, name = key.partition("/")
            recorded.setdefault(case, {})[name] = file.get_tensor(key)
        return recorded, json.loads(file.metadata()["fingerprint"])


def main(path: str | Path = FILE) -> None:
    tensors = {f"{case}/{name}": x for case in CASES for name, x in record(case).items()}
    save_file(tensors, path, metadata={"fingerprint": json.dumps(fingerprint())})
    print(f"{len(CASES)} cases, {len(tensors)} tensors, {Path(path).stat().st_size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
