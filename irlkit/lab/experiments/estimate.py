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

from irlkit.lab.experiments._handcrafted import RULE_TRIALS
from irlkit.lab.experiments._stages import in_words
from irlkit.lab.experiments.base import Experiment
from irlkit.lab.experiments.presets import ANNEALING, AnnealingPreset, EnergyPreset, Rung
from irlkit.networks.cspnet import PairTopology
from irlkit.rl.config import TrainerConfig

_KINDS = ["forward", "backward", "judged"]
"""Network evaluations of one structure at one time, without and with gradients by the parameters;
and structures that are judged."""
_SAMPLE = 128
"""Structures that the network is timed with: for a few, each takes far longer than for many."""


def estimate(experiment: Experiment) -> str:
    """Return the time of the experiment of notebook 03 or 04 in words, after a trial of seconds.

    Trainings are counted one after the other, also where notebook 03 has several at a time.

    Args:
        experiment: before it starts. From then on it says how much time is left when a stage
            begins; nothing else of it is changed.

    Raises:
        ValueError: another kind of experiment.
    """
    work = _count_work(experiment)
    seconds = work.to_numpy() @ _measure(experiment)
    experiment.planned = dict(zip(work.index, seconds.tolist(), strict=True))
    share = seconds.max() / max(seconds.sum(), 1e-9)
    return (
        f"Estimate: about {in_words(float(seconds.sum()))}, {share:.0%} of it for "
        f"{work.index[seconds.argmax()]} (a factor of two either way is usual)"
    )


def _count_work(experiment: Experiment) -> pd.DataFrame:
    """What an experiment does, a row per stage, called as in its ``seconds``.

    Subsets may be a little larger.
    """
    preset, n, n_test = experiment.preset, len(experiment.validation), len(experiment.test)
    if not isinstance(preset, AnnealingPreset | EnergyPreset):
        raise ValueError(
            f"experiment must be that of notebook 03 or 04, got one with a {type(preset).__name__}"
        )
    few, many = preset.n_steps, preset.reference_steps
    reference = _sweep(preset.reference_sweep, preset.candidates, n)
    stages = {f"sweep at {many} steps": reference}
    if isinstance(preset, AnnealingPreset):
        few_sweep = (Rung(*preset.few_step_sweep, few),)
        stages[f"sweep at {few} steps"] = _sweep(few_sweep, preset.candidates, n)
        scanned = 1 + 4 * len(preset.noise_scales)  # Two fields, two schedules.
        counts = [few] * scanned * len(preset.seeds)
        stages["scan of the noise"] = _generated(min(preset.noise_scan_size, n), counts)
        stages["training"] = len(preset.seeds) * _training(preset.config(0), n)
        fewest = preset.evaluation_steps[0]
        for k in {few, fewest}:
            stages[f"sweep of the rule at {k} steps"] = _rule(preset, n, k)
        for schedule, tuned in (
            ("none", ""),
            ("handcrafted", f" for {many} steps"),
            ("rule", f" for {few} steps"),
            ("learned", ""),
        ):
            counts = []
            for k in preset.evaluation_steps:
                seeds = preset.seeds_for(k, schedule)
                crossed = schedule == "learned" and k <= few
                counts += [k] * len(seeds) * (len(preset.seeds) if crossed else 1)
            stages[f"evaluation of {schedule}{tuned}"] = _generated(n_test, counts)
        # Of the handcrafted annealing for few steps, and of the rule for the fewest.
        counts = [few] * len(preset.seeds)
        stages[f"evaluation of handcrafted for {few} steps"] = _generated(n_test, counts)
        if fewest != few:
            counts = [fewest] * len(preset.seeds)
            stages[f"evaluation of rule for {fewest} steps"] = _generated(n_test, counts)
    else:
        # Fields that are not reinforced follow the frozen network, which is evaluated beside.
        networks = 1 if len(preset.fields) == 2 else 2
        counts = [k for k in (few, many) for _ in preset.seeds_for(k)]
        stages[f"sweep of the rule at {few} steps"] = _rule(preset, n, few)
        of_rule = _generated(n_test, [few] * len(preset.seeds))
        stages["evaluation of the pretrained model"] = 2 * _generated(n_test, counts) + of_rule
        if preset.annealing == "learn":
            stages["training of the annealing"] = _training(preset.config(ANNEALING, 0), n)
            stages["evaluation of the learned annealing"] = _generated(n_test, counts)
        names = "training with other noise", "training"
        for name in preset.variants:
            config = preset.config(name, 0)
            run = _training(config, n, networks)
            if name in preset.policies:
                validations = 1 + preset.iterations // config.validate_every
                run = run + validations * _relaxed(preset.n_relaxed[0], preset)
            tested = len(preset._seeds_of(name)) * _generated(n_test, [few], networks)
            if name in preset.policies:  # All pairs of seeds, and before training.
                tested = (len(preset.seeds) + 1) * tested
            for stage, more in (
                (names[name in preset.policies], len(preset._seeds_of(name)) * run),
                ("evaluation of policies", tested),
            ):
                stages[stage] = stages.get(stage, 0.0) + more
        judged = _generated(preset.n_relaxed[1], [few], networks) + _relaxed(
            preset.n_relaxed[1], preset
        )
        stages["judge and relaxation"] = len(preset.policies) * (1 + len(preset.seeds)) * judged
        compositions = min(preset.diversity[0], len(experiment.test.references()))
        size = compositions * preset.diversity[1]
        trained = len(preset.policies) * _generated(size, [few], networks)
        stages["diversity"] = _generated(size, [few]) + trained
    return pd.DataFrame.from_dict(stages, orient="index", columns=_KINDS)


def _generated(n: int, counts: Sequence[int], networks: int = 1) -> np.ndarray:
    """n structures with each of some numbers of steps, which are judged."""
    return np.array([n * sum(counts) * networks, 0, n * len(counts)], dtype=float)


def _relaxed(n: int, preset: EnergyPreset) -> np.ndarray:
    """n structures that are relaxed; a step costs about what judging does."""
    return np.array([0, 0, n * preset.relax_steps], dtype=float)


def _sweep(rungs: Sequence[Rung], candidates: Sequence[tuple[float, float]], n: int) -> np.ndarray:
    work = len(candidates) * _generated(min(rungs[0].n_structures, n), [rungs[0].n_steps])
    for rung in rungs:
        work = work + rung.n_trials * _generated(min(rung.n_structures, n), [rung.n_steps])
    return work


def _rule(preset: AnnealingPreset | EnergyPreset, n: int, *counts: int) -> np.ndarray:
    rungs = [Rung(len(RULE_TRIALS), preset.rule_size, k) for k in counts]
    return np.sum([_sweep([rung], (), n) for rung in rungs], axis=0)


def _training(config: TrainerConfig, n_validation: int, networks: int = 0) -> np.ndarray:
    """One run with its validations, of an annealing or of a network, deployed with `networks`."""
    assert config.iterations is not None
    n_validations = 1 + config.iterations // config.validate_every
    validated = n_validations * min(config.validation_size or n_validation, n_validation)
    rollouts = config.iterations * config.n_groups * config.group_size
    n_steps = float(np.mean(config.step_choices))
    used = max(round(config.step_fraction * n_steps), 1)
    backward = rollouts * used * config.n_ppo_epochs if networks else 0
    rolled_out = np.array([rollouts * n_steps * (2 if networks else 1), backward, rollouts])
    return rolled_out + _generated(validated, config.validation_step_choices, max(networks, 1))


def _measure(experiment: Experiment) -> np.ndarray:
    """Seconds of one of each kind, on some training structures."""
    model, rng = experiment.model, np.random.default_rng(0)
    rows = np.sort(rng.permutation(len(experiment.train))[:_SAMPLE])
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
    """Shortest of five: what other programs take, and a first call, is not part of it."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        compute()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)
