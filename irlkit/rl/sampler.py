"""Generation: ``integrate`` (no gradients, no probabilities) and ``rollout`` (a policy's episode).

States are wrapped to [0, 1) after every step where they are periodic; increments never are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, overload

import torch
from torch import Tensor
from tqdm.auto import tqdm

from irlkit.crystals import CrystalBatch
from irlkit.crystals.batch import wrap_positions
from irlkit.flows.schedules import (
    FIELD_NAMES,
    Annealing,
    NoAnnealing,
    NoiseSchedule,
    annealing_on_grid,
    check_n_steps,
    time_grid,
)
from irlkit.rl.policies import (
    Outputs,
    Policy,
    StepInputs,
    VelocityField,
    evaluate,
    standard_normal,
)
from irlkit.rl.trajectory import State, Trajectory
from irlkit.utils.checks import checked

__all__ = ["State", "Trajectory", "advance", "integrate", "rollout"]


def advance(state: Mapping[str, Tensor], increments: Mapping[str, Tensor]) -> State:
    """The state after a step; positions are wrapped, whatever the increment.

    Args:
        state: field -> tensor.
        increments: field -> unwrapped increment of the same shape.
    """
    new = {name: state[name] + increments[name] for name in FIELD_NAMES}
    return {**new, "pos": wrap_positions(new["pos"])}


@overload
def integrate(
    model: VelocityField,
    batch: CrystalBatch,
    n_steps: int,
    *,
    annealing: Annealing | None = ...,
    noise: Mapping[str, NoiseSchedule] | None = ...,
    kind: Literal["ode", "sde"] = ...,
    generator: torch.Generator | None = ...,
    x_0: CrystalBatch | None = ...,
    max_batch: int | None = ...,
    record: Literal[False] = ...,
    progress: bool = ...,
) -> CrystalBatch: ...


@overload
def integrate(
    model: VelocityField,
    batch: CrystalBatch,
    n_steps: int,
    *,
    annealing: Annealing | None = ...,
    noise: Mapping[str, NoiseSchedule] | None = ...,
    kind: Literal["ode", "sde"] = ...,
    generator: torch.Generator | None = ...,
    x_0: CrystalBatch | None = ...,
    max_batch: int | None = ...,
    record: Literal[True],
    progress: bool = ...,
) -> tuple[CrystalBatch, list[CrystalBatch]]: ...


@checked
def integrate(
    model: VelocityField,
    batch: CrystalBatch,
    n_steps: int,
    *,
    annealing: Annealing | None = None,
    noise: Mapping[str, NoiseSchedule] | None = None,
    kind: Literal["ode", "sde"] = "ode",
    generator: torch.Generator | None = None,
    x_0: CrystalBatch | None = None,
    max_batch: int | None = None,
    record: bool = False,
    progress: bool = False,
) -> CrystalBatch | tuple[CrystalBatch, list[CrystalBatch]]:
    """Generate one structure per composition with Euler steps.

    The ODE (4), perturbed where there is noise (13), or the SDE (7):

        ode: x(t + dt) = x + [1 + s(t)] b dt + sigma(t) sqrt(dt) xi
        sde: x(t + dt) = x + {[1 + s(t)] b - sigma(t)^2 / [2 gamma(t)] z} dt + sigma(t) sqrt(dt) xi

    with velocity b(t, x) and denoiser z(t, x). The SDE's drift makes up for its noise: the
    structures at time t have the distribution that they have without noise.

    Everyday arguments:

    Args:
        model: velocity field.
        batch: the compositions; its positions and cells are not used.
        n_steps: number of steps, positive; the times are ``time_grid(n_steps)``.
        annealing: s(t, dt); None leaves the velocity as it is.
        generator: draws the base sample and the noise; needed unless ``x_0`` is given and
            there is no noise.

    Rarer ones:
        noise: field -> sigma(t) of the noise in every coordinate; None or a field left out means
            none, whatever the kind.
        kind: "ode" or "sde"; for an SDE the model needs denoisers of the fields with noise.
        x_0: start here instead of drawing from the base distribution.
        max_batch: integrate at most so many structures at a time. Without noise the result does
            not depend on it.
        record: also return the states.
        progress: show a bar.

    Returns:
        The structures, positions in [0, 1); with ``record``, also a list of the n_steps + 1 states,
        the first being x_0.

    Raises:
        ValueError: ``n_steps`` or ``max_batch`` not positive, no generator where one is needed, an
            unknown field in ``noise``, an unknown kind, an SDE without denoiser, or ``x_0`` of
            other compositions.
    """
    check_n_steps(n_steps)
    noise = dict(noise or {})
    if unknown := sorted(set(noise) - set(FIELD_NAMES)):
        raise ValueError(f"noise must be for the fields {FIELD_NAMES}, got {unknown}")
    if kind not in ("ode", "sde"):
        raise ValueError(f"kind must be 'ode' or 'sde', got {kind!r}")
    if kind == "sde" and (
        missing := [f for f in noise if f not in getattr(model, "has_denoiser", ())]
    ):
        raise ValueError(
            f"kind='sde' needs denoisers of the fields with noise, the model has none for "
            f"{missing}; kind='ode' perturbs the velocity alone"
        )
    if generator is None and (x_0 is None or noise):
        raise ValueError("generator must be a torch.Generator unless x_0 is given without noise")
    if x_0 is None:
        assert generator is not None
        with torch.no_grad():
            x_0 = model.sample_base(batch, generator)
    elif not torch.equal(x_0.species, batch.species) or not torch.equal(x_0.n_atoms, batch.n_atoms):
        raise ValueError("x_0 must hold the compositions of batch, in the same order")

    parts = _split(x_0, max_batch)
    annealing = NoAnnealing() if annealing is None else annealing
    finals: list[CrystalBatch] = []
    recorded: list[list[CrystalBatch]] = []
    with tqdm(total=n_steps * len(parts), disable=not progress, unit="step") as bar:
        for part in parts:
            states = _integrate(
                model, part, n_steps, annealing, noise, kind, generator, record, bar
            )
            # Cloned: tensors born in inference mode cannot take part in a later backward pass.
            crystals = [
                part.replace(pos=state["pos"].clone(), cell=state["cell"].clone())
                for state in states
            ]
            finals.append(crystals[-1])
            recorded.append(crystals)
    final = CrystalBatch.concatenate(finals)
    if not record:
        return final
    return final, [CrystalBatch.concatenate(at) for at in zip(*recorded, strict=True)]


def _split(batch: CrystalBatch, max_batch: int | None) -> list[CrystalBatch]:
    """Consecutive parts of at most ``max_batch`` structures."""
    if max_batch is None or len(batch) == 0:
        return [batch]
    if max_batch < 1:
        raise ValueError(f"max_batch must be a positive number of structures, got {max_batch}")
    return [batch[i : i + max_batch] for i in range(0, len(batch), max_batch)]


@torch.inference_mode()
def _integrate(
    model: Any,
    x_0: CrystalBatch,
    n_steps: int,
    annealing: Annealing,
    noise: Mapping[str, NoiseSchedule],
    kind: Literal["ode", "sde"],
    generator: torch.Generator | None,
    record: bool,
    bar: tqdm,
) -> list[State]:
    """All states, or the last one alone."""
    times = time_grid(n_steps, x_0.dtype, x_0.device)
    dts = times.diff()
    factors = {name: 1.0 + s for name, s in annealing_on_grid(annealing, times).items()}
    sigmas = {name: sigma(times[:-1]) for name, sigma in noise.items()}
    stds = {name: sigma * dts.sqrt() for name, sigma in sigmas.items()}
    corrections: dict[str, Tensor] = {}
    options = {}
    if kind == "sde" and noise:
        options["heads"] = ("velocity", "denoiser")
        corrections = {
            name: sigma.square() / (2.0 * model.gamma(name, times[:-1])) * dts
            for name, sigma in sigmas.items()
        }
    conditioning = model.prepare(x_0)
    state: State = {name: getattr(x_0, name) for name in FIELD_NAMES}
    states = [state]
    for i in range(n_steps):
        output = model.velocity(times[i], state["pos"], state["cell"], conditioning, **options)
        increments = {
            name: factors[name][i] * dts[i] * output.velocity[name] for name in FIELD_NAMES
        }
        for name, correction in corrections.items():
            increments[name] = increments[name] - correction[i] * output.denoiser[name]
        for name, std in stds.items():
            assert generator is not None
            xi = standard_normal(state[name], generator)
            increments[name] = increments[name] + std[i] * xi
        state = advance(state, increments)
        states = [*states, state] if record else [state]
        bar.update()
    return states


@checked
def rollout(
    policy: Policy,
    x_0: CrystalBatch,
    n_steps: int,
    generator: torch.Generator,
    record_states: bool | None = None,
    max_batch: int | None = None,
    on_part: Callable[[CrystalBatch], None] | None = None,
) -> Trajectory:
    """Sample an episode: Euler-Maruyama steps whose actions are drawn from the policy.

    Args:
        policy: any policy.
        x_0: base sample.
        n_steps: number of steps, positive.
        generator: draws the actions.
        record_states: keep the states; None keeps them if the policy's update needs them.
        max_batch: roll out at most so many structures at a time; which actions are drawn for
            which structure depends on it.
        on_part: called with the final structures of each part as soon as they are there.

    Returns:
        The trajectory, without gradients.

    Raises:
        ValueError: ``n_steps`` or ``max_batch`` is not positive.
    """
    check_n_steps(n_steps)
    parts = []
    for part in _split(x_0, max_batch):
        parts.append(_rollout(policy, part, n_steps, generator, record_states))
        if on_part is not None:
            on_part(parts[-1].final)
    return parts[0] if len(parts) == 1 else Trajectory.concatenate(parts)


@torch.no_grad()
def _rollout(
    policy: Policy,
    x_0: CrystalBatch,
    n_steps: int,
    generator: torch.Generator,
    record_states: bool | None,
) -> Trajectory:
    times = time_grid(n_steps, x_0.dtype, x_0.device)
    keep = policy.needs_states if record_states is None else record_states
    conditioning = policy.model.prepare(x_0)
    share_features = getattr(policy.model, "pair_features", lambda pos, conditioning: None)
    state: State = {name: getattr(x_0, name) for name in FIELD_NAMES}
    kept_states = [state]
    kept_frozen: list[Outputs] = []
    actions: dict[str, list[Tensor]] = {name: [] for name in policy.fields}
    log_probs: dict[str, list[Tensor]] = {name: [] for name in policy.fields}
    for i in range(n_steps):
        inputs = StepInputs(
            times,
            torch.tensor([i], device=times.device),
            x_0,
            {name: x[None] for name, x in state.items()},
            {},
            conditioning,
            # Where both the frozen and a trained network are evaluated, they share them.
            share_features(state["pos"], conditioning) if policy.needs_states else None,
        )
        frozen = evaluate(policy.model, inputs, policy.heads)
        inputs = replace(inputs, frozen=frozen)
        steps = policy.steps(inputs)
        increments = {}
        for name in FIELD_NAMES:
            if name in steps:
                action = steps[name].policy.sample(generator)
                actions[name].append(action)
                log_probs[name].append(steps[name].policy.log_prob(action))
                increments[name] = policy.increment(name, action, inputs)[0]
            else:
                increments[name] = policy.frozen_increment(name, inputs)[0]
        state = advance(state, increments)
        if keep:
            kept_states.append(state)
        if policy.needs_states:
            kept_frozen.append(frozen)
    return Trajectory(
        times,
        {name: torch.cat(a) for name, a in actions.items()},
        {name: torch.cat(lp) for name, lp in log_probs.items()},
        x_0.replace(pos=state["pos"], cell=state["cell"]),
        {name: torch.stack([s[name] for s in kept_states]) for name in FIELD_NAMES} if keep else {},
        _stack(kept_frozen),
        {1: conditioning},
    )


def _stack(outputs: list[Outputs]) -> Outputs:
    if not outputs:
        return {}
    return {
        head: {name: torch.cat([output[head][name] for output in outputs]) for name in of}
        for head, of in outputs[0].items()
    }
