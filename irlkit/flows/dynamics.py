"""Generation without a policy: the equations of a step, and `Dynamics`, which takes the steps.

Positions are wrapped to [0, 1) after every step; increments never are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from irlkit.crystals import CrystalBatch
from irlkit.crystals.batch import wrap_positions
from irlkit.flows.constraints import Constraints
from irlkit.flows.schedules import (
    FIELD_NAMES,
    Annealing,
    NoAnnealing,
    NoiseSchedule,
    StateAnnealing,
    annealing_on_grid,
    check_n_steps,
    time_grid,
)
from irlkit.flows.schedules.state import FlowSteps
from irlkit.utils.checks import checked
from irlkit.utils.draws import standard_normal
from irlkit.utils.settings import torch_settings


class VelocityField(Protocol):
    """What generation needs of a model; ``FlowModel`` is one."""

    def prepare(self, batch: CrystalBatch) -> Any:
        """Return the conditioning on the compositions, used at every step."""

    def velocity(self, t: Tensor, pos: Tensor, cell: Tensor, conditioning: Any) -> Any:
        """Return an output whose ``velocity`` maps "pos" to (n, 3) and "cell" to (B, 3, 3)."""

    def sample_base(self, batch: CrystalBatch, generator: torch.Generator) -> CrystalBatch:
        """Draw x_0 for the compositions."""


def score_factor(sigma: Tensor, gamma: Tensor) -> Tensor:
    """Return sigma^2 / (2 gamma), by which the drift of the SDE subtracts the denoiser (7).

    The drift is [1 + s] b - sigma^2 / (2 gamma) z: it makes up for the noise, so that structures at
    time t have the distribution that they have without noise.

    Args:
        sigma: noise scale, any shape.
        gamma: latent-noise coefficient of the interpolant, the same shape.
    """
    return sigma.square() / (2.0 * gamma)


def advance(values: Mapping[str, Tensor], increments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return positions and cells after a step; positions are wrapped, whatever the increment.

    Args:
        values: "pos" (n, 3) and "cell" (B, 3, 3).
        increments: unwrapped, of the same shapes.
    """
    new = {name: values[name] + increments[name] for name in FIELD_NAMES}
    return {**new, "pos": wrap_positions(new["pos"])}


@checked
@dataclass(frozen=True)
class Dynamics:
    """A model and how its velocity is followed from noise to structures.

    The ODE (4), perturbed where there is noise (13), or the SDE (7):

        ode: x(t + dt) = x + [1 + s(t)] b dt + sigma(t) sqrt(dt) xi
        sde: x(t + dt) = x + {[1 + s(t)] b - sigma(t)^2 / [2 gamma(t)] z} dt + sigma(t) sqrt(dt) xi

    with velocity b(t, x) and denoiser z(t, x).

    Attributes:
        model: velocity field, with denoisers for an SDE.
        annealing: s(t, dt), or a ``StateAnnealing``; None leaves the velocity as it is.
        noise: field -> sigma(t) of the noise in every coordinate; a field left out has none.
        kind: "ode" or "sde"; for an SDE the model needs denoisers of the fields with noise.
        constraints: what the compositions are bound to, where they are generated as well.

    Raises:
        ValueError: an unknown field in ``noise``, an unknown kind, or an SDE without denoiser.

    >>> import irlkit
    >>> model = irlkit.load_pretrained("linear-ode")
    >>> salt = irlkit.CrystalBatch.from_formulas(["NaCl"])
    >>> generator = torch.Generator().manual_seed(0)
    >>> Dynamics(model).generate(salt, 2, generator=generator).formulas()
    ['Cl1 Na1']
    """

    model: VelocityField
    annealing: Annealing | StateAnnealing | None = None
    noise: Mapping[str, NoiseSchedule] = field(default_factory=dict)
    kind: Literal["ode", "sde"] = "ode"
    constraints: Constraints | None = None

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.noise) - set(FIELD_NAMES)):
            raise ValueError(f"noise must be for the fields {FIELD_NAMES}, got {unknown}")
        denoised = getattr(self.model, "has_denoiser", ())
        if self.kind == "sde" and (missing := [f for f in self.noise if f not in denoised]):
            raise ValueError(
                f"kind='sde' needs denoisers of the fields with noise, the model has none for "
                f"{missing}; kind='ode' perturbs the velocity alone"
            )

    @checked
    @torch_settings(plain=True)
    def generate(
        self,
        batch: CrystalBatch | Tensor,
        n_steps: int,
        *,
        generator: torch.Generator | None = None,
        x_0: CrystalBatch | None = None,
        max_batch: int | None = None,
        record: list[CrystalBatch] | None = None,
        progress: bool = False,
    ) -> CrystalBatch:
        """Generate one structure per composition, or number of atoms, with Euler steps.

        Args:
            batch: the compositions; its positions and cells are not used. Or numbers of atoms,
                int64 of shape (B,), for a model that generates species as well.
            n_steps: number of steps, positive; the times are ``time_grid(n_steps)``.
            generator: draws the base sample and the noise; needed unless ``x_0`` is given and
                there is no noise.
            x_0: start here instead of drawing from the base distribution.
            max_batch: integrate at most so many structures at a time. Without noise, and with
                given compositions, the result does not depend on it.
            record: gets the n_steps + 1 states appended, the first being x_0; not where species
                are generated, which are masked on the way.
            progress: show a bar.

        Returns:
            The structures, positions in [0, 1).

        Raises:
            ValueError: ``n_steps`` or ``max_batch`` not positive, no generator where one is needed,
                or ``x_0`` of other compositions.
        """
        check_n_steps(n_steps)
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"max_batch must be a positive number of structures, got {max_batch}")
        if isinstance(batch, Tensor):
            if generator is None or x_0 is not None or record is not None:
                raise ValueError(
                    "batch of numbers of atoms: needs a generator, and neither x_0 nor record; "
                    "irlkit.rl.rollout takes and keeps states with masked species"
                )
            if isinstance(self.annealing, StateAnnealing):
                raise ValueError("annealing sees compositions, which numbers of atoms do not have")
            return self._generate_species(batch, n_steps, generator, max_batch, progress)
        if self.constraints is not None:
            raise ValueError("constraints bind species that are generated; these are given")
        if generator is None and (x_0 is None or self.noise):
            raise ValueError(
                "generator must be a torch.Generator unless x_0 is given without noise"
            )
        if x_0 is None:
            assert generator is not None
            with torch.no_grad():
                x_0 = self.model.sample_base(batch, generator)
        elif not torch.equal(x_0.species, batch.species) or not torch.equal(
            x_0.n_atoms, batch.n_atoms
        ):
            raise ValueError("x_0 must hold the compositions of batch, in the same order")
        size = max_batch or max(len(x_0), 1)
        parts = [x_0[i : i + size] for i in range(0, max(len(x_0), 1), size)]
        generated: list[list[CrystalBatch]] = []
        with tqdm(total=n_steps * len(parts), disable=not progress, unit="step") as bar:
            for part in parts:
                state = {name: getattr(part, name) for name in FIELD_NAMES}
                conditioning, keep = self.model.prepare(part), record is not None
                states = self._integrate(part, conditioning, state, n_steps, generator, keep, bar)
                # Cloned: tensors born in inference mode cannot take part in a later backward pass.
                generated.append(
                    [part.replace(pos=s["pos"].clone(), cell=s["cell"].clone()) for s in states]
                )
        joined = [CrystalBatch.concatenate(at) for at in zip(*generated, strict=True)]
        if record is not None:
            record.extend(joined)
        return joined[-1]

    @torch.no_grad()
    def _generate_species(
        self,
        n_atoms: Tensor,
        n_steps: int,
        generator: torch.Generator,
        max_batch: int | None,
        progress: bool,
    ) -> CrystalBatch:
        model: Any = self.model
        parts = n_atoms.split(max_batch or max(len(n_atoms), 1))
        generated = []
        with tqdm(total=n_steps * len(parts), disable=not progress, unit="step") as bar:
            for part in parts:
                conditioning = model.prepare(part, self.constraints)
                state = model.sample_state(conditioning, generator)
                states = self._integrate(None, conditioning, state, n_steps, generator, False, bar)
                values = {name: value.clone() for name, value in states[-1].items()}
                generated.append(CrystalBatch(**values, n_atoms=part))
        return CrystalBatch.concatenate(generated)

    @torch.inference_mode()
    def _integrate(
        self,
        batch: CrystalBatch | None,
        conditioning: Any,
        state: dict[str, Tensor],
        n_steps: int,
        generator: torch.Generator | None,
        keep: bool,
        bar: tqdm,
    ) -> list[dict[str, Tensor]]:
        """Return all states, or the last one alone."""
        model: Any = self.model
        times = time_grid(n_steps, state["pos"].dtype, state["pos"].device)
        dts = times.diff()
        annealing = NoAnnealing() if self.annealing is None else self.annealing
        factors: dict[str, Tensor] = {}
        if not isinstance(annealing, StateAnnealing):
            factors = {name: 1.0 + s for name, s in annealing_on_grid(annealing, times).items()}
        sigmas = {name: sigma(times[:-1]) for name, sigma in self.noise.items()}
        stds = {name: sigma * dts.sqrt() for name, sigma in sigmas.items()}
        corrections: dict[str, Tensor] = {}
        options: dict[str, Any] = {}
        if self.kind == "sde" and sigmas:
            options["heads"] = ("velocity", "denoiser")
            corrections = {
                name: score_factor(sigma, model.gamma(name, times[:-1])) * dts
                for name, sigma in sigmas.items()
            }
        if "species" in state:
            options["heads"] = (*options.get("heads", ("velocity",)), "species")
        states = [state]
        for i in range(n_steps):
            if "species" in state:
                options["species"] = state["species"]
            output = model.velocity(times[i], state["pos"], state["cell"], conditioning, **options)
            if isinstance(annealing, StateAnnealing):
                assert batch is not None
                now = slice(i, i + 1)
                s, v = ({f: x[f][None] for f in FIELD_NAMES} for x in (state, output.velocity))
                seen = FlowSteps(times[now], dts[now], batch, s, v)
                at = {f: x[0] for f, x in annealing.factors(seen).items()}
            else:
                at = {name: factor[i] for name, factor in factors.items()}
            increments = {name: at[name] * dts[i] * output.velocity[name] for name in FIELD_NAMES}
            for name, correction in corrections.items():
                increments[name] = increments[name] - correction[i] * output.denoiser[name]
            for name, std in stds.items():
                assert generator is not None
                xi = standard_normal(state[name], generator)
                increments[name] = increments[name] + std[i] * xi
            moved = advance(state, increments)
            if "species" in state:
                logits, rules = output.species["species"][None], conditioning.rules
                step = model.species.step(logits, state["species"][None], times, i, rules)
                moved["species"] = step.sample(generator)[0]
                moved["pos"] = rules.hold(moved["pos"])
            state = moved
            states = [*states, state] if keep else [state]
            bar.update()
        return states
