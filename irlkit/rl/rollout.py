"""An episode of a policy: actions are drawn, the process moves, everything is kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.flows.schedules import check_n_steps
from irlkit.rl.policies.base import Outputs, Policy, StepInputs
from irlkit.rl.process import Requests, State
from irlkit.rl.trajectory import Trajectory
from irlkit.utils.checks import checked
from irlkit.utils.draws import SharedDraws


@checked
def rollout(
    policy: Policy,
    x_0: State | CrystalBatch,
    n_steps: int,
    generator: torch.Generator | dict[str, SharedDraws],
    record_states: bool | None = None,
    max_batch: int | None = None,
    on_part: Callable[[CrystalBatch], None] | None = None,
) -> Trajectory:
    """Sample an episode: at every step, actions are drawn from the policy and taken.

    Args:
        policy: any policy.
        x_0: where it begins, of ``policy.process.initial``; crystals, where they determine a state.
        n_steps: number of steps, positive.
        generator: draws the actions; or scope -> this rank's share of one.
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
    if isinstance(x_0, CrystalBatch):
        x_0 = policy.process.encode(x_0)
    keep = policy.needs_states if record_states is None else record_states
    parts = []
    for part in x_0.split(max_batch):
        parts.append(_rollout(policy, part, n_steps, generator, keep))
        if on_part is not None:
            on_part(parts[-1].final)
    return parts[0] if len(parts) == 1 else Trajectory.concatenate(parts, x_0.request)


@torch.no_grad()
def _rollout(
    policy: Policy,
    state: State,
    n_steps: int,
    generator: torch.Generator | dict[str, SharedDraws],
    keep: bool,
) -> Trajectory:
    process = policy.process
    # A tensor whose floating dtype and device are those to compute with.
    like = next((x for x in state.values.values() if x.is_floating_point()), None)
    like = next(policy.parameters()) if like is None else like
    times = process.grid(n_steps, like.dtype, like.device)
    conditioning = policy.prepare(state.request)
    states = [state.values]
    frozen: list[Outputs] = []
    actions: dict[str, list[Tensor]] = {name: [] for name in policy.fields}
    log_probs: dict[str, list[Tensor]] = {name: [] for name in policy.fields}
    for i in range(n_steps):
        inputs = policy.observe(
            StepInputs(
                times,
                torch.tensor([i], device=times.device),
                state.request,
                {name: x[None] for name, x in state.values.items()},
                conditioning=conditioning,
            )
        )
        steps = policy.steps(inputs)
        taken = {}
        for name in process.field_names:
            if name in steps:
                step = steps[name]
                draws = generator[step.scope] if isinstance(generator, dict) else generator
                taken[name] = step.policy.sample(draws)
                actions[name].append(taken[name])
                log_probs[name].append(step.policy.log_prob(taken[name]))
        moves = policy.moves(taken, inputs, generator)
        state = process.advance(state, moves, i)
        if keep:
            states.append(state.values)
        if policy.needs_states:
            frozen.append(inputs.frozen)
    return Trajectory(
        times,
        state.request,
        {name: torch.cat(a) for name, a in actions.items()},
        {name: torch.cat(lp) for name, lp in log_probs.items()},
        process.decode(state),
        {name: steps[name].scope for name in policy.fields},
        process.scopes,
        {name: torch.stack([s[name] for s in states]) for name in states[0]} if keep else {},
        _stack(frozen),
        {1: conditioning},
    )


@checked
def generate(
    policy: Policy,
    request: Requests,
    n_steps: int,
    *,
    generator: torch.Generator,
    max_batch: int | None = None,
) -> CrystalBatch:
    """Generate structures with a policy as it is deployed.

    Args:
        policy: any policy.
        request: what to generate.
        n_steps: number of steps.
        generator: draws the base sample, and what else is drawn.
        max_batch: at most so many structures at a time.
    """
    deployed = policy.deploy()
    if deployed is not None:
        crystals = request if isinstance(request, CrystalBatch) else request.crystals
        asked = request.n_atoms if crystals is None else crystals
        return deployed.generate(asked, n_steps, generator=generator, max_batch=max_batch)
    x_0 = policy.process.initial(request, generator)
    return rollout(policy, x_0, n_steps, generator, False, max_batch).final


def _stack(outputs: list[Outputs]) -> Outputs:
    if not outputs:
        return {}
    return {
        head: {name: torch.cat([output[head][name] for output in outputs]) for name in of}
        for head, of in outputs[0].items()
    }
