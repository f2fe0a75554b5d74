"""The policy of latent diffusion: DDIM's steps with noise, as Chemeleon2 reinforces them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.networks._transformer import Slots
from irlkit.networks.latent_diffusion import (
    N_TIMES,
    DiffusionTransformer,
    LatentDiffusion,
    _noised,
    denoised,
)
from irlkit.rl.distributions import Gaussian
from irlkit.rl.policies.base import FieldStep, Policy, StepInputs
from irlkit.rl.policies.flow import _module_digest
from irlkit.rl.process import Field, Process, Requests, State
from irlkit.rl.trajectory import Trajectory
from irlkit.utils.checks import check_count, check_finite, checked
from irlkit.utils.draws import standard_normal


class DenoisedLatents(Process):
    """Moves latents from noise to those of crystals, for given numbers of atoms.

    Args:
        model: Decodes them.
    """

    fields: ClassVar[tuple[Field, ...]] = (Field("latent", "atom", "real", 1),)

    def __init__(self, model: LatentDiffusion) -> None:
        self.model = model

    def grid(self, n_steps: int, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> Tensor:
        """Return the diffusion times, which fall, shape (n_steps + 1,).

        The last is that of the step without noise.
        """
        return self.model.times(n_steps).to(device, dtype)

    def initial(self, request: Requests, generator: torch.Generator) -> State:
        """Draw noise.

        Raises:
            ValueError: the request gives compositions, or more atoms than the model has seen.
        """
        if isinstance(request, CrystalBatch) or request.crystals is not None:
            raise ValueError(
                "request must be a Request of numbers of atoms alone: latent diffusion chooses the "
                "species itself, got compositions"
            )
        self.model.check(request.n_atoms)
        shape = (int(request.n_atoms.sum()), self.model.autoencoder.latent_dim)
        noise = torch.randn(shape, generator=generator, device=generator.device)
        return State(request, self.fields, {"latent": noise.to(self.model.network.out.weight)})

    def advance(self, state: State, moves: Mapping[str, Tensor], step: int) -> State:
        return state.moved_to(moves)

    def decode(self, state: State) -> CrystalBatch:
        return self.model.latents_to_crystals(state["latent"], state.request.n_atoms)


class _MeanGaussian(Gaussian):
    """Probabilities, divergences and entropies are means over an event's numbers, not sums."""

    def _sum(self, value: Tensor) -> Tensor:
        return super()._sum(value) / self.mean.shape[-1]


class LatentPolicy(Policy):
    """Trains a copy of the transformer by the probabilities of DDIM's steps.

    An action is an atom's latent after a step: normal, with DDIM's mean and standard deviation.
    The last step, from the smallest time of the grid to the latent that is decoded, has no noise
    and so no probability; it is taken with the last action and left out of the ratio.

    A rollout's path is one way to the latents z that were rewarded, and much of the gradient of its
    probability is the noise that it took up. With ``renoised=m`` an update takes another path of m
    steps to the same z, one that the diffusion itself would have come: x_t = sqrt(abar_t) z +
    sqrt(1 - abar_t) eps with new noise at each step, and for an action the mean of x_s given x_t
    and z. Ratios then compare how probable policies make the ends (their variational bound), and
    where a model has learned the reverse of the diffusion, both gradients have the same mean. An
    end with a bad reward can be made less probable without limit: without a KL term trainings of
    `chemeleon-dit` fell apart after some 40 iterations.

    Args:
        model: Frozen pretrained model.
        eta: Share of the noise of the diffusion's reverse, above 0, at most 1.
        reduction: "mean" over latent dimensions as in Chemeleon2, which makes a ratio the
            latent_dim-th root of that of the actions; or "sum", exact probabilities of an atom.
        renoised: Steps of the paths of an update; None: it takes those of the rollout.
        reference: Whom the KL divergence is from: the "pretrained" model, or the policy of the
            "rollout", as in Chemeleon2.

    Raises:
        ValueError: an eta that is not in (0, 1]; another reduction or reference; renoised below 1.

    >>> from irlkit.networks.autoencoder import Autoencoder
    >>> from irlkit.rl import Request, generate
    >>> model = LatentDiffusion(Autoencoder(8, 1, 1), DiffusionTransformer(8, 4, 8, 1, 1))
    >>> request = Request(torch.tensor([2, 3]))
    >>> generate(LatentPolicy(model), request, 5, generator=torch.Generator().manual_seed(0))
    CrystalBatch(n_structures=2, n=5, dtype=torch.float32, device=cpu)
    """

    @checked
    def __init__(
        self,
        model: LatentDiffusion,
        eta: float = 1.0,
        reduction: Literal["mean", "sum"] = "mean",
        reference: Literal["pretrained", "rollout"] = "pretrained",
        renoised: int | None = None,
    ) -> None:
        check_finite("eta", eta, above=0, most=1)
        super().__init__(DenoisedLatents(model))
        # In a tuple, so that the frozen model is neither trained nor stored with the policy.
        self._frozen = (model,)
        self.network = copy.deepcopy(model.network).requires_grad_(True)
        self.eta, self.reduction, self.reference = float(eta), reduction, reference
        if renoised is not None:
            check_count("renoised", renoised, most=N_TIMES - 1)
        self.renoised = renoised

    @property
    def model(self) -> LatentDiffusion:
        """The frozen pretrained model."""
        return self._frozen[0]

    def prepare(self, request: Requests) -> Slots:
        return Slots.from_n_atoms(request.n_atoms)

    def observe(self, inputs: StepInputs) -> StepInputs:
        from_whom = self.network if self.reference == "rollout" else self.model.network
        noise = self._noise(from_whom, inputs)
        return StepInputs(**{**vars(inputs), "frozen": {"noise": {"latent": noise}}})

    def steps(self, inputs: StepInputs) -> dict[str, FieldStep]:
        kind = Gaussian if self.reduction == "sum" else _MeanGaussian
        x, frozen = inputs.states["latent"], inputs.frozen["noise"]["latent"]
        t, following = (inputs.times[inputs.index + i][:, None, None] for i in (0, 1))
        trained = self._noise(self.network, inputs)
        ours, theirs = (
            kind(*self._scaled(denoised(x, eps, t, following, self.eta)), event_dims=1)
            for eps in (trained, frozen)
        )
        return {"latent": FieldStep(ours, theirs, "atom")}

    def moves(
        self, actions: Mapping[str, Tensor], inputs: StepInputs, generator: Any
    ) -> dict[str, Tensor]:
        x = actions["latent"]
        if int(inputs.index[0]) == len(inputs.times) - 2:
            last = StepInputs(
                inputs.times,
                inputs.index + 1,
                inputs.request,
                {"latent": x},
                conditioning=inputs.conditioning,
            )
            end = inputs.times.new_full((1, 1, 1), -1.0)
            t = inputs.times[-1:, None, None]
            x, _ = denoised(x, self._noise(self.network, last), t, end, self.eta)
        return {"latent": x[0]}

    @torch.no_grad()
    def retrace(self, trajectory: Trajectory, generator: Any) -> Trajectory:
        if self.renoised is None:
            return trajectory
        z = trajectory.states["latent"][-1:]
        first, last = trajectory.times[[0, -1]].tolist()
        times = torch.linspace(first, last, self.renoised + 1).round().to(trajectory.times)
        t, following = times[:-1, None, None], times[1:, None, None]
        draws = generator["atom"] if isinstance(generator, dict) else generator
        eps = standard_normal(z.expand(self.renoised, -1, -1), draws)
        x = _noised(z, eps, t)
        actions, _ = denoised(x, eps, t, following, self.eta)
        new = Trajectory(
            times,
            trajectory.request,
            {"latent": actions},
            {"latent": actions[..., 0]},
            trajectory.final,
            trajectory.action_scopes,
            trajectory.state_scopes,
            {"latent": torch.cat([x, z])},
        )
        log_probs, frozen = [], []
        for i in torch.arange(self.renoised, device=z.device):  # as a rollout, a step at a time
            inputs = self.observe(new.inputs(self, i[None]))
            log_probs.append(self.steps(inputs)["latent"].policy.log_prob(actions[i][None]))
            frozen.append(inputs.frozen["noise"]["latent"])
        return replace(
            new,
            log_probs={"latent": torch.cat(log_probs)},
            frozen={"noise": {"latent": torch.cat(frozen)}},
        )

    def save(self, path: str | Path, metadata: Mapping[str, object] | None = None) -> None:
        """Write a model that ``LatentDiffusion.load`` reads.

        Args:
            path: File to write.
            metadata: Anything JSON can hold; it becomes part of the model's ``info``.

        Raises:
            ValueError: Metadata that JSON cannot hold.
        """
        model = self.model
        info = {**model.info, **(metadata or {}), "policy": self._description()}
        LatentDiffusion(model.autoencoder, self.network, model.scale, info).save(path)

    def identity(self) -> dict[str, str]:
        return {
            **super().identity(),
            **{name: str(value) for name, value in self._description().items()},
            "model": _module_digest(self.model),
        }

    def _description(self) -> dict[str, Any]:
        names = ("eta", "reduction", "reference", "renoised")
        return {name: getattr(self, name) for name in names}

    def _scaled(self, step: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        mean, std = step
        return mean, std * self.noise_scale["latent"]

    def _noise(self, network: DiffusionTransformer, inputs: StepInputs) -> Tensor:
        """The noise that a network sees at k steps, (k, n, latent_dim)."""
        x = inputs.states["latent"]
        k, n_structures = len(inputs.index), len(inputs.request)
        t = inputs.times[inputs.index].repeat_interleave(n_structures)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=inputs.mixed_precision):
            noise = network(x.flatten(0, 1), t, inputs.conditioning)
        return noise.to(x.dtype).unflatten(0, (k, x.shape[1]))
