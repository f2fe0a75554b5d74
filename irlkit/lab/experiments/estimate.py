"""How long an experiment will take and how much memory it needs, before it starts.

The numbers of evaluations follow from the preset; what one costs is measured on a few structures of
the data. Cost grows in proportion to structures and steps, and with the square of the number of
atoms, since the network looks at all pairs (see the performance page in `benchmarks`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from irlkit.crystals import CrystalBatch
from irlkit.evaluate import metrics
from irlkit.lab.experiments.energy_presets import EnergyPreset, Variant
from irlkit.lab.experiments.presets import Preset, Rung
from irlkit.networks.cspnet import PairTopology
from irlkit.rl.config import TrainerConfig
from irlkit.utils.checks import checked

if TYPE_CHECKING:
    from irlkit.lab.experiments.base import Experiment

_EDGES_AT_ONCE = 8192
"""Edges that pass through a layer together on a CPU."""

_PAIR_BYTES = 368
"""What a training pass keeps per edge besides one vector per layer."""


@dataclass(frozen=True)
class Work:
    """A stage of an experiment.

    Attributes:
        name: of the stage.
        forward: evaluations of the network, of one structure at one time each.
        backward: those with gradients by the parameters.
        matched: structures that are compared with references.
        energies: structures whose energy is computed.
    """

    name: str
    forward: float = 0.0
    backward: float = 0.0
    matched: float = 0.0
    energies: float = 0.0


@dataclass(frozen=True)
class Cost:
    """Seconds of one unit of each kind of ``Work``, and bytes of a training pass per pair."""

    forward: float
    backward: float
    matched: float
    energy: float = 0.0
    bytes_per_pair: float = 0.0

    def seconds(self, work: Work) -> float:
        """How long a stage takes."""
        return (
            work.forward * self.forward
            + work.backward * self.backward
            + work.matched * self.matched
            + work.energies * self.energy
        )


@dataclass(frozen=True)
class Estimate:
    """What an experiment is expected to take.

    Attributes:
        table: a row per stage, with the columns of ``Work`` and seconds.
        memory: bytes on the network's device: weights, trajectories and updates.
        device: of the network.
    """

    table: pd.DataFrame
    memory: float
    device: str

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return float(self.table["seconds"].sum())

    def __str__(self) -> str:
        longest = self.table.sort_values("seconds").iloc[-1]
        return (
            f"Estimate: about {duration(self.seconds)} and {self.memory / 2**30:.1f} GB on "
            f"{self.device}, {longest['seconds'] / max(self.seconds, 1e-9):.0%} of the time for "
            f"{longest['name']} (from a short trial; a factor of two either way is usual)"
        )


@checked
def estimate(experiment: Experiment) -> Estimate:
    """Time and memory of the experiment of notebook 03 or 04, after a trial of some seconds.

    Trainings are counted one after the other, also where notebook 03 has several at a time.

    Args:
        experiment: before it starts; it is not changed.

    Raises:
        ValueError: another kind of experiment.
    """
    preset = experiment.settings
    n_val, n_test = len(experiment.validation), len(experiment.test)
    if isinstance(preset, EnergyPreset):
        n_compositions = min(preset.diversity[0], len(experiment.test.references()))
        works = energy_work(preset, n_val, n_test, n_compositions)
        config = preset.config(next(iter(preset.policies)), preset.seeds[0])
    elif isinstance(preset, Preset):
        works = annealing_work(preset, n_val, n_test)
        config = preset.config(preset.seeds[0])
    else:
        raise ValueError(
            f"experiment must be that of notebook 03 or 04, got one with a {type(preset).__name__}"
        )
    cost = measure(experiment)
    table = pd.DataFrame([{**vars(work), "seconds": cost.seconds(work)} for work in works])
    trained = isinstance(preset, EnergyPreset)
    memory = memory_of(experiment, config, cost.bytes_per_pair, trained)
    return Estimate(table, memory, str(experiment.device))


def duration(seconds: float) -> str:
    """Seconds for people."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


# --------------------------------------------------------------------------------------------------
# What there is to do
# --------------------------------------------------------------------------------------------------


def annealing_work(preset: Preset, n_validation: int, n_test: int) -> list[Work]:
    """What notebook 04 does, stage by stage; subsets may be a little larger.

    Args:
        preset: size and settings.
        n_validation: structures of the validation split.
        n_test: structures of the test split that are evaluated.
    """
    n_trials, size = preset.few_step_sweep
    few_sweep = (Rung(n_trials, size, preset.n_steps),)
    works = [
        _sweep("sweep for many steps", preset.reference_sweep, preset.candidates, n_validation),
        _sweep("sweep for few steps", few_sweep, preset.candidates, n_validation),
        Work("training") if not preset.seeds else _training(preset.config(0), n_validation),
    ]
    works[-1] = _times(works[-1], len(preset.seeds))
    for schedule in ("none", "handcrafted", "learned"):
        counts = [
            n_steps
            for n_steps in preset.evaluation_steps
            for _ in preset.seeds_for(schedule, n_steps)
        ]
        if schedule == "handcrafted":
            counts += [preset.n_steps] * len(preset.seeds)
        works.append(
            Work(f"evaluation, {schedule}", n_test * sum(counts), matched=n_test * len(counts))
        )
    return works


def energy_work(
    preset: EnergyPreset, n_validation: int, n_test: int, n_compositions: int
) -> list[Work]:
    """What notebook 03 does, stage by stage.

    Args:
        preset: size and settings.
        n_validation: structures of the validation split.
        n_test: structures of the test split that are evaluated.
        n_compositions: that the diversity is looked at of.
    """
    few, many = preset.n_steps, preset.reference_steps
    # Fields that are not reinforced follow the frozen network, which is evaluated beside.
    deployed = 1 if len(preset.fields) == 2 else 2
    counts = [k for k in (few, many) for _ in preset.seeds_for(k)] * 2
    n = n_test * len(counts)
    works = [
        _sweep("sweep for many steps", preset.reference_sweep, preset.candidates, n_validation),
        Work("evaluation, pretrained", n_test * sum(counts), matched=n, energies=n + n_test),
    ]
    if preset.annealing == "learn":
        work = _training(preset.annealing_config(), n_validation)
        n //= 2
        evaluated = Work("", n_test * sum(counts) // 2, matched=n, energies=n)
        works.append(_total("learning the annealing", [work, evaluated]))
    stages: tuple[tuple[str, dict[str, Variant]], ...] = (
        ("training", dict(preset.policies)),
        ("training with other noise", dict(preset.noise_study)),
    )
    for name, variants in stages:
        parts, n_runs = [], 0
        for variant in variants:
            seeds = len(preset.seeds_of(variant))
            config = preset.config(variant, preset.seeds[0])
            parts.append(_times(_training(config, n_validation, True, deployed), seeds))
            n_runs += seeds
        n = n_test * n_runs
        parts.append(Work("", n * few * deployed, matched=n, energies=n))
        works.append(_total(name, parts))
    n = n_compositions * preset.diversity[1]
    forward = n * few * (1 + deployed * len(preset.policies))
    n *= 1 + len(preset.policies)
    works.append(Work("diversity", forward, matched=n, energies=n))
    return works


def _sweep(
    name: str, rungs: Sequence[Rung], candidates: Sequence[tuple[float, float]], n: int
) -> Work:
    trials = [rungs[0].n_trials + len(candidates), *(rung.n_trials for rung in rungs[1:])]
    matched = [k * min(rung.n_structures, n) for k, rung in zip(trials, rungs, strict=True)]
    steps = [rung.n_steps for rung in rungs]
    return Work(name, float(np.dot(matched, steps)), matched=sum(matched))


def _training(
    config: TrainerConfig, n_validation: int, network: bool = False, deployed: int = 1
) -> Work:
    """One training run, with validations.

    Args:
        config: settings, with the number of iterations.
        n_validation: structures of the validation split.
        network: whether a network is trained, and judged by energies.
        deployed: network evaluations per step of the validation.
    """
    assert config.iterations is not None
    n_validations = 1 + config.iterations // config.validate_every
    validated = n_validations * min(config.validation_size or n_validation, n_validation)
    rollouts = config.iterations * config.n_groups * config.group_size
    n_steps = float(np.mean(config.step_choices))
    forward = rollouts * n_steps * (2 if network else 1)
    forward += validated * sum(config.validation_step_choices) * deployed
    validated *= len(config.validation_step_choices)
    if not network:
        return Work("training", forward, matched=rollouts + validated)
    used = max(round(config.step_fraction * n_steps), 1)
    backward = rollouts * used * config.n_ppo_epochs
    return Work("training", forward, backward, validated, rollouts + validated)


def _times(work: Work, k: int) -> Work:
    return _total(work.name, [work] * k)


def _total(name: str, works: Sequence[Work]) -> Work:
    kinds = ("forward", "backward", "matched", "energies")
    return Work(name, **{kind: sum(getattr(work, kind) for work in works) for kind in kinds})


# --------------------------------------------------------------------------------------------------
# What it costs
# --------------------------------------------------------------------------------------------------


def measure(experiment: Experiment) -> Cost:
    """Time one unit of each kind of work on some training structures."""
    device, model = experiment.device, experiment.model
    cuda = device.type == "cuda"
    rng = np.random.default_rng(0)
    data = experiment.train
    rows = np.sort(rng.permutation(len(data))[: 512 if cuda else 32])
    batch = data.batch[rows].to(device, dtype=model.dtype)
    # Structures of the sample may be larger or smaller than those of the set.
    scale = _pairs(data.batch) / _pairs(batch)
    topology = PairTopology.from_n_atoms(batch.n_atoms)
    t = torch.tensor(0.5, device=device, dtype=model.dtype)

    def evaluate() -> torch.Tensor:
        out = model.network(t, batch.species, batch.pos, batch.cell, topology)
        return sum(value.square().sum() for value in out.velocity.values())

    def forward() -> None:
        with torch.no_grad():
            evaluate()

    parameters = list(model.parameters())
    wanted = [parameter.requires_grad for parameter in parameters]
    bytes_per_pair = 0.0

    def backward() -> None:
        torch.autograd.grad(evaluate(), parameters, allow_unused=True)

    seconds = _seconds(forward, device)
    with torch.enable_grad():
        try:
            for parameter in parameters:
                parameter.requires_grad_(True)
            before = torch.cuda.memory_allocated(device) if cuda else 0
            if cuda:
                torch.cuda.reset_peak_memory_stats(device)
            trained = _seconds(backward, device)
            if cuda:
                peak = torch.cuda.max_memory_allocated(device) - before
                bytes_per_pair = peak / float(batch.n_atoms.square().sum())
        finally:
            for parameter, flag in zip(parameters, wanted, strict=True):
                parameter.requires_grad_(flag)
    per_structure = scale / len(batch)
    references = experiment.test.subset(min(len(experiment.test), 32))
    generator = torch.Generator().manual_seed(0)
    matched = math.inf
    for _ in range(3):  # The first time, worker processes start.
        noise = torch.randn(references.batch.pos.shape, generator=generator)
        shifted = references.batch.replace(pos=references.batch.pos + 0.02 * noise)
        started = time.perf_counter()
        metrics.evaluate(shifted, references, experiment.pool)
        matched = min(matched, (time.perf_counter() - started) / len(references))
    energy = 0.0
    potential = getattr(experiment, "potential", None)
    if potential is not None:
        few = data.batch[rows[:16]]
        potential(few[:1])
        started = time.perf_counter()
        potential(few)
        energy = (time.perf_counter() - started) / len(few)
    return Cost(
        seconds * per_structure, trained * per_structure, matched, energy, float(bytes_per_pair)
    )


def _seconds(compute: Callable[[], object], device: torch.device) -> float:
    """Shortest of four: what other programs take is not part of it."""
    times = []
    for _ in range(4):
        started = time.perf_counter()
        compute()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times)


def _pairs(batch: CrystalBatch) -> float:
    """Mean number of pairs of atoms per structure."""
    return float(batch.n_atoms.double().square().mean())


def memory_of(
    experiment: Experiment, config: TrainerConfig, bytes_per_pair: float, trained: bool
) -> float:
    """Bytes on the network's device, at the most demanding moment of training.

    Args:
        experiment: with model and data.
        config: settings of the training.
        bytes_per_pair: of a training pass, if it was measured; 0: from the sizes of the network.
        trained: whether networks are trained.
    """
    network = experiment.model.network
    width = torch.finfo(experiment.model.dtype).bits // 8
    weights = float(sum(p.numel() for p in network.parameters())) * width
    pairs = _pairs(experiment.train.batch)
    atoms = float(experiment.train.batch.n_atoms.double().mean())
    structures = config.n_groups * config.group_size
    n_steps = max(config.step_choices)
    hidden, n_layers = network.sizes["hidden_dim"], network.sizes["n_layers"]
    inputs = (2 * hidden + 9 + 6 * network.sizes["n_freqs"]) * width
    at_once = min(structures, config.max_batch or structures)
    part = at_once * pairs
    if experiment.device.type == "cpu":
        part = min(part, _EDGES_AT_ONCE)
    # Of every state: positions, cell, actions and, of networks, velocity and denoiser.
    state = (3 * atoms + 9) * width
    kept = structures * (n_steps + 1) * state * (5 if trained else 1)
    if not trained:
        return weights + kept + part * inputs
    rows = structures * max(round(config.step_fraction * n_steps), 1)
    updated = min(rows, config.max_minibatch or rows) * pairs
    each = bytes_per_pair or (hidden * n_layers * width + _PAIR_BYTES)
    if not bytes_per_pair:
        part += min(updated, _EDGES_AT_ONCE) if experiment.device.type == "cpu" else updated
    # Frozen and trained network, its gradients, and two moments of Adam.
    return 5 * weights + kept + updated * each + part * inputs
