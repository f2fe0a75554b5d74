"""The runs that `tests.kills` kills, as small as they can be.

Only processes that are to be killed import this: it loads what they need, before they are forked.
"""

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import optuna
import torch
from optuna.storages.journal import _file as journal_files

from irlkit import pretraining
from irlkit.data import load
from irlkit.flows.schedules import ConstantNoise, LearnedAnnealing
from irlkit.lab.sweeps import SPACES, PolicyObjective, Sweep, run_optuna
from irlkit.lab.sweeps import objective as objectives
from irlkit.potentials import CHGNetPotential
from irlkit.pretraining import PretrainingConfig, pretrain
from irlkit.rewards import CRMSEReward, EnergyReward
from irlkit.rl.policies import AnnealingPolicy, VelocityPolicy
from irlkit.rl.trainer import GRPOTrainer
from irlkit.utils import system
from tests.toys import ToyModel, crystals, flow_model, trainer_config, volume_reward

# Loads what is loaded late.
optuna.logging.set_verbosity(optuna.logging.WARNING)
optuna.create_study(sampler=optuna.samplers.TPESampler())

torch.set_num_threads(1)
DATA = load("prototypes", "train", max_atoms=4, progress=False).subset(8)
CHGNET = CHGNetPotential()
NOISE = {"pos": ConstantNoise(0.1), "cell": ConstantNoise(0.1)}
ITERATIONS = 8
SWEEP_TRIALS, SWEEP_ITERATIONS = 3, 4


def run(kind: str, folder: Path, log: Path, write: int | None) -> None:
    """Begin or continue a run in a folder.

    Args:
        kind: one of the functions below.
        folder: of the run.
        log: gets an "i" for each iteration that begins, and a "w" for each place in the writing of
            a file where a process could be killed.
        write: SIGKILL at this place, counted from 0; None: nowhere.
    """
    torch.set_num_threads(1)
    places = 0

    def note(letter):
        with open(log, "ab") as file:
            file.write(letter)

    def begins():
        note(b"i")

    def place():
        nonlocal places
        note(b"w")
        if places == write:
            os.kill(os.getpid(), signal.SIGKILL)
        places += 1

    _kill_in_writes(place)
    RUNS[kind](folder, begins)


def _kill_in_writes(place):
    """Call `place` in the middle of each atomic write, before its syncs and before the rename.

    And in the middle of what is added to Optuna's journal.
    """

    class HalfWay:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            half = len(data) // 2
            self.file.write(data[:half])
            self.file.flush()
            place()
            self.file.write(data[half:])

    def before(function):
        def call(*arguments):
            place()
            return function(*arguments)

        return call

    def opened(path, mode="r", **options):
        file = open(path, mode, **options)
        return HalfWay(file) if mode in ("wb", "ab") else file

    system.open = opened
    journal_files.open = opened
    os.fsync, os.replace = before(os.fsync), before(os.replace)


def _pretraining(folder, begins):
    step = pretraining._State.step

    def counted(state, batch):
        begins()
        return step(state, batch)

    pretraining._State.step = counted
    config = PretrainingConfig(
        kind="trig-sde-gamma", hidden_dim=16, n_layers=2, n_freqs=3, time_dim=8,
        iterations=3 * ITERATIONS, batch_size=6, validate_every=ITERATIONS,
    )  # fmt: skip
    pretrain(DATA, config, validation=DATA, out_dir=folder, progress=False)


def _grpo(policy, reward, folder, begins):
    def counted(structures):
        begins()
        return reward(structures)

    config = trainer_config(
        n_groups=2, group_size=4, n_steps=3, n_ppo_epochs=2, validate_every=2, validation_size=2,
        average_decay=0.9, iterations=ITERATIONS, learning_rate=1e-3,
    )  # fmt: skip
    GRPOTrainer(
        policy, counted, DATA, config, validation=DATA, validation_reward=reward, out_dir=folder,
        resume=True,
    ).run(progress=False)  # fmt: skip


def _annealing(folder, begins):
    policy = AnnealingPolicy(flow_model(), LearnedAnnealing(8, 1), NOISE)
    _grpo(policy, CRMSEReward(DATA, pool=0), folder, begins)


def _energy(folder, begins):
    _grpo(VelocityPolicy(flow_model(), NOISE), EnergyReward(CHGNET), folder, begins)


def _sweep(folder, begins):
    def counted(structures):
        begins()
        return volume_reward(structures)

    model, data = ToyModel().requires_grad_(False), crystals()
    parts = objectives._Parts(model, data, data, counted, volume_reward, ExitStack())
    objectives._load_parts = lambda objective: parts
    space = SPACES["annealing"].narrowed({"group_size": (4, 8)}, n_groups=2)
    grpo = {"n_steps": 3, "validate_every": 2, "max_batch": 64}
    objective = PolicyObjective(space, iterations=SWEEP_ITERATIONS, grpo=grpo)
    sweep = Sweep(folder, space, objective.describe())
    run_optuna(sweep, objective, SWEEP_TRIALS, progress=False)


RUNS = {
    "pretraining": _pretraining,
    "annealing": _annealing,
    "energy": _energy,
    "sweep": _sweep,
}
