"""What policies share: where steps are taken, what a step is, and the class itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import save
from torch import Tensor, nn

from irlkit.rl.distributions import ActionDistribution
from irlkit.rl.process import Process, Requests, Scope
from irlkit.utils.system import write_atomically

Outputs = dict[str, dict[str, Tensor]]
"""What a network said at k steps: a head, such as "velocity" -> field -> (k, events, ...)."""


@dataclass(frozen=True)
class StepInputs:
    """Where k steps of all structures of a batch are taken.

    Attributes:
        times: the whole time grid, shape (n_steps + 1,).
        index: which steps, shape (k,).
        request: what is generated, B structures.
        states: field -> (k, events, ...) before the step; empty if the policy needs none.
        frozen: what frozen networks say there; empty if the policy needs none.
        conditioning: of ``Policy.prepare`` for k copies of the request, or None.
        features: what several networks share at the states; None where each computes its own.
        mixed_precision: the trained network computes in bfloat16.
    """

    times: Tensor
    index: Tensor
    request: Requests
    states: dict[str, Tensor] = field(default_factory=dict)
    frozen: Outputs = field(default_factory=dict)
    conditioning: Any = None
    features: Any = None
    mixed_precision: bool = False

    def on_grid(self, values: Tensor, like_dims: int) -> Tensor:
        """Return per-step ``values`` (n_steps,) at these steps, to multiply (k, ...)."""
        chosen = values[self.index]
        return chosen.reshape(chosen.shape + (1,) * (like_dims - 1))

    def dt(self, like_dims: int) -> Tensor:
        """Return the step sizes, shape (k, 1, ...)."""
        return self.on_grid(self.times.diff(), like_dims)


@dataclass(frozen=True)
class FieldStep:
    """The policy of one field at k steps.

    Attributes:
        policy: distribution of the action.
        reference: that of the frozen reference policy, in the same space.
        scope: what an event belongs to, "atom" or "structure".
        distillation: squared distance of the denoiser from the frozen one per event (12), or None.
        drift_change: squared difference of the velocity from the frozen one per event, without
            gradient. Shape (k, events), or one that broadcasts to it.
        drift_reference: the square of the frozen velocity, in the same unit.
        n_events: how many of a structure's events bear on the ratio, per step and on average, shape
            (B,); the others have a ratio of exactly 1. None: all do.
    """

    policy: ActionDistribution
    reference: ActionDistribution
    scope: Scope
    distillation: Tensor | None = None
    drift_change: Tensor | None = None
    drift_reference: Tensor | None = None
    n_events: Tensor | None = None


class Policy(nn.Module):
    """Draws the actions of some fields of a process. Its parameters are the trained ones alone.

    A new policy defines ``steps``, from which a rollout samples and a loss scores; the rest has
    defaults that do where no frozen network takes part.

    Args:
        process: what the actions move.
        fields: the reinforced ones; None: all.

    Attributes:
        needs_states: whether ``steps`` looks at the states, which a rollout then keeps.
        noise_scale: field -> factor of the exploration noise; a trainer lets it decay.

    Raises:
        ValueError: no field, or one that the process has not.
    """

    needs_states: ClassVar[bool] = True

    def __init__(self, process: Process, fields: tuple[str, ...] | None = None) -> None:
        super().__init__()
        self.process = process
        self.fields = process.field_names if fields is None else tuple(fields)
        if not self.fields or set(self.fields) - set(process.field_names):
            raise ValueError(
                f"fields must name one or more of {process.field_names}, got {self.fields}"
            )
        self.noise_scale = dict.fromkeys(process.field_names, 1.0)

    @abstractmethod
    def steps(self, inputs: StepInputs) -> dict[str, FieldStep]:
        """Return the distributions of the actions of every reinforced field."""

    def prepare(self, request: Requests) -> Any:
        """Return what stays fixed for a request and serves all its steps."""

    def observe(self, inputs: StepInputs) -> StepInputs:
        """Return the inputs of a rollout's step with what frozen networks say there."""
        return inputs

    def moves(
        self, actions: Mapping[str, Tensor], inputs: StepInputs, generator: Any
    ) -> dict[str, Tensor]:
        """Return what ``Process.advance`` takes, of one step.

        Args:
            actions: reinforced field -> (1, events, ...).
            inputs: of the step.
            generator: of the rollout, for fields that are moved at random without being reinforced.
        """
        return {name: action[0] for name, action in actions.items()}

    def deploy(self) -> Any:
        """Return what generates after training, by ``generate(request, n_steps, ...)``.

        None: the policy's own actions, as in a rollout.
        """
        return None

    def retrace(self, trajectory: Any, generator: Any) -> Any:
        """Return the trajectory that an update takes: this one, or another way to the same ends.

        Args:
            trajectory: of a rollout of the policy as it is now.
            generator: as in ``moves``.
        """
        return trajectory

    def busy_steps(self, trajectory: Any) -> Tensor | None:
        """Return the steps of a trajectory that bear on a loss, shape (k,); None: all may."""
        return None

    def identity(self) -> dict[str, str]:
        """Return what tells runs apart that are not one and the same, for checkpoints."""
        return {"policy": type(self).__name__}

    def save(self, path: str | Path, metadata: Mapping[str, object] | None = None) -> None:
        """Write what was learned as safetensors; metadata as text."""
        tensors = {name: value.contiguous() for name, value in self.state_dict().items()}
        text = {name: str(value) for name, value in (metadata or {}).items()}
        write_atomically(path, save(tensors, metadata=text))
