"""How long an experiment will take, before it starts.

How often the network is evaluated follows from the preset; what that costs is measured on a few
structures of the data, and so is what judging a structure costs (matching and energy).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch

from irlkit.lab.experiments.base import Experiment
from irlkit.lab.experiments.presets import AnnealingPreset, EnergyPreset, Rung
from irlkit.networks.cspnet import PairTopology
from irlkit.rl.config import TrainerConfig
from irlkit.utils.checks import checked

KINDS = ["forward", "backward", "judged"]
"""Network evaluations of one structure at one time, without and with gradients by the parameters;
and structures that are judged."""


@checked
def estimate(experiment: Experiment) -> pd.DataFrame:
    """Estimate the time of the experiment of notebook 03 or 04, after a trial of some seconds.

    Trainings are counted one after the other, also where notebook 03 has several at a time.

    Args:
        experiment: before it starts; it is not changed.

    Returns:
        A row per stage: forward, backward and judged (counts), and seconds (a factor of two either
        way is usual).

    Raises:
        ValueError: another kind of experiment.
    """
    preset, n_validation, n_test = (
        experiment.preset,
        len(experiment.validation),
        len(experiment.test),
    )
    if isinstance(preset, EnergyPreset):
        n_compositions = min(preset.diversity[0], len(experiment.test.references()))
        table = energy_work(preset, n_validation, n_test, n_compositions)
    elif isinstance(preset, AnnealingPreset):
        table = annealing_work(preset, n_validation, n_test)
    else:
        raise ValueError(
            f"experiment must be that of notebook 03 or 04, got one with a {type(preset).__name__}"
        )
    return table.assign(seconds=table[KINDS].to_numpy() @ _measure(experiment))


def in_words(table: pd.DataFrame) -> str:
    """Return what ``estimate`` has found as a sentence.

    >>> in_words(pd.DataFrame({"seconds": [5400.0, 60.0]}, index=["training", "evaluation"]))
    'Estimate: about 1.5 hours, 99% of it for training (a factor of two either way is usual)'
    """
    seconds = float(table["seconds"].sum())
    shown = f"{seconds:.0f} seconds"
    for unit, size in (("minutes", 60), ("hours", 3600), ("days", 86400)):
        if seconds >= 1.5 * size:
            shown = f"{seconds / size:.1f} {unit}"
    longest = table["seconds"].idxmax()
    share = table["seconds"].max() / max(seconds, 1e-9)
    return (
        f"Estimate: about {shown}, {share:.0%} of it for {longest} "
        "(a factor of two either way is usual)"
    )


def annealing_work(preset: AnnealingPreset, n_validation: int, n_test: int) -> pd.DataFrame:
    """Count what notebook 04 does, stage by stage; subsets may be a little larger.

    Args:
        preset: size and settings.
        n_validation: structures of the validation split.
        n_test: structures of the test split that are evaluated.
    """
    n_trials, size = preset.few_step_sweep
    few_sweep = (Rung(n_trials, size, preset.n_steps),)
    stages = {
        "sweep for many steps": _sweep(preset.reference_sweep, preset.candidates, n_validation),
        "sweep for few steps": _sweep(few_sweep, preset.candidates, n_validation),
        "training": len(preset.seeds) * _training(preset.config(0), n_validation),
    }
    for schedule in ("none", "handcrafted", "learned"):
        counts = [k for k in preset.evaluation_steps for _ in preset.seeds_for(k, schedule)] + [
            preset.n_steps
        ] * (len(preset.seeds) if schedule == "handcrafted" else 0)
        stages[f"evaluation, {schedule}"] = _generated(n_test, counts)
    return _table(stages)


def energy_work(
    preset: EnergyPreset, n_validation: int, n_test: int, n_compositions: int
) -> pd.DataFrame:
    """Count what notebook 03 does, stage by stage.

    Args:
        preset: size and settings.
        n_validation: structures of the validation split.
        n_test: structures of the test split that are evaluated.
        n_compositions: that the diversity is looked at of.
    """
    few, many = preset.n_steps, preset.reference_steps
    # Fields that are not reinforced follow the frozen network, which is evaluated beside.
    deployed = 1 if len(preset.fields) == 2 else 2
    counts = [k for k in (few, many) for _ in preset.seeds_for(k)]
    stages = {
        "sweep for many steps": _sweep(preset.reference_sweep, preset.candidates, n_validation),
        "evaluation, pretrained": 2 * _generated(n_test, counts),
    }
    if preset.annealing == "learn":
        learning = _training(preset.annealing_config(), n_validation)
        stages["learning the annealing"] = learning + _generated(n_test, counts)
    for name, variants in (
        ("training", preset.policies),
        ("training with other noise", preset.noise_study),
    ):
        total = np.zeros(3)
        for variant in variants:
            config = preset.config(variant, preset.seeds[0])
            run = _training(config, n_validation, True, deployed)
            run = run + _generated(n_test, [few], deployed)
            total = total + len(preset.seeds_of(variant)) * run
        stages[name] = total
    n = n_compositions * preset.diversity[1]
    trained = len(preset.policies) * _generated(n, [few], deployed)
    stages["diversity"] = _generated(n, [few]) + trained
    return _table(stages)


def _table(stages: dict[str, np.ndarray]) -> pd.DataFrame:
    return pd.DataFrame(list(stages.values()), index=list(stages), columns=KINDS)


def _generated(n: int, counts: Sequence[int], networks: int = 1) -> np.ndarray:
    """n structures with each of some numbers of steps, which are judged."""
    return np.array([n * sum(counts) * networks, 0, n * len(counts)], dtype=float)


def _sweep(rungs: Sequence[Rung], candidates: Sequence[tuple[float, float]], n: int) -> np.ndarray:
    trials = [rungs[0].n_trials + len(candidates), *(rung.n_trials for rung in rungs[1:])]
    parts = [
        k * _generated(min(rung.n_structures, n), [rung.n_steps])
        for k, rung in zip(trials, rungs, strict=True)
    ]
    return np.sum(parts, axis=0)


def _training(
    config: TrainerConfig, n_validation: int, network: bool = False, deployed: int = 1
) -> np.ndarray:
    """One run with its validations, of an annealing or of a network."""
    assert config.iterations is not None
    n_validations = 1 + config.iterations // config.validate_every
    validated = n_validations * min(config.validation_size or n_validation, n_validation)
    rollouts = config.iterations * config.n_groups * config.group_size
    n_steps = float(np.mean(config.step_choices))
    judged = rollouts + validated * len(config.validation_step_choices)
    forward = rollouts * n_steps * (2 if network else 1)
    forward += validated * sum(config.validation_step_choices) * deployed
    used = max(round(config.step_fraction * n_steps), 1)
    backward = rollouts * used * config.n_ppo_epochs if network else 0
    return np.array([forward, backward, judged], dtype=float)


def _measure(experiment: Experiment) -> np.ndarray:
    """Seconds of one of each kind, on some training structures."""
    model, rng = experiment.model, np.random.default_rng(0)
    rows = np.sort(rng.permutation(len(experiment.train))[:32])
    batch = experiment.train.batch[rows].to(model.device, dtype=model.dtype)
    # The network looks at all pairs; structures of the sample may be larger or smaller.
    sizes = experiment.train.batch.n_atoms.double().square().mean()
    scale = float(sizes / batch.n_atoms.double().square().mean()) / len(batch)
    topology = PairTopology.from_n_atoms(batch.n_atoms)
    t = torch.tensor(0.5, device=model.device, dtype=model.dtype)
    parameters = list(model.parameters())
    wanted = [parameter.requires_grad for parameter in parameters]

    def evaluate() -> torch.Tensor:
        out = model.network(t, batch.species, batch.pos, batch.cell, topology)
        return sum(value.square().sum() for value in out.velocity.values())

    with torch.no_grad():
        forward = _seconds(evaluate)
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            backward = _seconds(
                lambda: torch.autograd.grad(evaluate(), parameters, allow_unused=True)
            )
    finally:
        for parameter, flag in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(flag)
    few = experiment.test.subset(min(len(experiment.test), 16))
    judged = _seconds(lambda: experiment._judge(few.batch, few)) / len(few)
    return np.array([forward * scale, backward * scale, judged])


def _seconds(compute: Callable[[], object]) -> float:
    """Shortest of three: what other programs take is not part of it."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        compute()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)
