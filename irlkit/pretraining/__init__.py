"""Training of flow models: velocity loss (Eq. 2), denoiser loss (Eq. 5), EMA, checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.data import CrystalDataset
from irlkit.evaluate import metrics
from irlkit.flows.base_distribution import BaseDistribution
from irlkit.flows.discrete import DiscreteFlow
from irlkit.flows.dynamics import Dynamics
from irlkit.flows.interpolants import (
    T_MAX,
    T_MIN,
    Interpolant,
    LinearPath,
    SqrtGamma,
    TrigonometricPath,
    center,
    pair_with_data,
)
from irlkit.networks.cspnet import CSPNet
from irlkit.networks.flow_model import FlowModel
from irlkit.pretraining._denovo import denovo_evaluation as denovo_evaluation
from irlkit.pretraining._loop import LoopConfig, TrainingState, check_dataset, run
from irlkit.utils.checks import check_count, checked
from irlkit.utils.settings import torch_settings

#: Interpolants of the two kinds of model that the package ships; gamma is that of OMatG's
#: Trig-SDE-Gamma.
KINDS: dict[str, dict[str, Interpolant]] = {
    "linear-ode": {
        "pos": Interpolant(LinearPath(), periodic=True, center_of_mass_free=True),
        "cell": Interpolant(LinearPath()),
    },
    "trig-sde-gamma": {
        "pos": Interpolant(
            TrigonometricPath(), SqrtGamma(0.049242906), periodic=True, center_of_mass_free=True
        ),
        "cell": Interpolant(TrigonometricPath()),
    },
}
#: De novo generation: the species' flow of those kinds in which they are generated too.
SPECIES = {"denovo-mask": DiscreteFlow("mask"), "denovo-uniform": DiscreteFlow("uniform")}
KINDS |= dict.fromkeys(SPECIES, KINDS["linear-ode"])


@checked
@dataclass(frozen=True, kw_only=True)
class PretrainingConfig(LoopConfig):
    """Settings of `pretrain` beside `LoopConfig`'s.

    Attributes:
        kind: one of `KINDS`.
        hidden_dim: channels of the network.
        n_layers: layers of the network.
        n_freqs: frequencies of the pair features.
        time_dim: size of the time embedding.
        cell_weight: weight of the cell's losses against the positions'.
        denoiser_weight: weight of the denoiser's losses against the velocities'.
        species_weight: weight of the species' cross-entropy, for kinds that generate them.
        pairing: shift and reorder base positions towards the data (`pair_with_data`).
    """

    kind: str = "linear-ode"
    hidden_dim: int = 128
    n_layers: int = 4
    n_freqs: int = 16
    time_dim: int = 128
    iterations: int = 45_000
    learning_rate: float = 3e-3
    warmup: int = 500
    cell_weight: float = 0.02
    denoiser_weight: float = 0.1
    species_weight: float = 0.2
    pairing: bool = True
    validate_every: int = 2500

    _sizes: ClassVar[tuple[str, ...]] = ("hidden_dim", "n_layers", "n_freqs", "time_dim")
    _weights: ClassVar[tuple[str, ...]] = ("cell_weight", "denoiser_weight", "species_weight")

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {sorted(KINDS)}, got {self.kind!r}")
        super().__post_init__()


def total_loss(losses: Mapping[str, Tensor], config: PretrainingConfig) -> Tensor:
    """Return the weighted sum of what `interpolant_losses` returns, a scalar.

    >>> losses = {"velocity_pos": torch.tensor(1.0), "velocity_cell": torch.tensor(10.0)}
    >>> total_loss(losses, PretrainingConfig(cell_weight=0.1))
    tensor(2.)
    """
    heads = {"velocity": 1.0, "denoiser": config.denoiser_weight, "crossentropy": 1.0}
    fields = {"pos": 1.0, "cell": config.cell_weight, "species": config.species_weight}
    total = torch.zeros(())
    for name, value in losses.items():
        head, field = name.split("_")
        total = total.to(value) + heads[head] * fields[field] * value
    return total


def interpolant_losses(
    model: FlowModel, x_1: CrystalBatch, generator: torch.Generator, *, pairing: bool = True
) -> dict[str, Tensor]:
    """Return the losses (2) and (5) at one stratified random time per structure.

    With latent noise both signs of z are evaluated at the same draw (antithetic pairs), which
    keeps the variance of the loss finite where the derivative of gamma diverges.

    Args:
        model: trained model.
        x_1: data, cells in the standard orientation, at least one.
        generator: draws times, base samples and latent noise; on the CPU.
        pairing: pair base positions with the data (`interpolants.pair_with_data`).

    Returns:
        Scalars: "velocity_{field}" and, for fields with latent noise, "denoiser_{field}" -> mean
        squared error, with gradient; "crossentropy_species", the mean over all atoms, where species
        are generated.
    """
    device, dtype, size = x_1.device, x_1.dtype, len(x_1)
    strata = (torch.arange(size) + torch.rand(size, generator=generator)) / size
    strata = strata[torch.randperm(size, generator=generator)]
    t = (T_MIN + (T_MAX - T_MIN) * strata).to(device, dtype)
    x_0 = model.sample_base(x_1, generator)
    data = {"pos": x_1.pos, "cell": x_1.cell}
    base = {"pos": x_0.pos, "cell": x_0.cell}
    if pairing:
        # Without a species at the start, all atoms of a structure are exchangeable.
        kinds = x_1.species if model.species is None else torch.zeros_like(x_1.species)
        base["pos"] = pair_with_data(base["pos"], data["pos"], kinds, x_1.batch, x_1.n_atoms)
    times = {"pos": t[x_1.batch][:, None], "cell": t[:, None, None]}
    noise = {
        name: torch.randn(data[name].shape, generator=generator).to(device, dtype)
        for name, interpolant in model.interpolants.items()
        if interpolant.gamma is not None
    }
    conditioning = model.prepare(x_1)
    signs = (1.0, -1.0) if noise else (1.0,)
    heads = ("velocity", "denoiser") if noise else ("velocity",)
    masked: dict[str, Any] = {}
    if model.species is not None:
        n_species = model.network.sizes["n_species"]
        x_t = model.species.interpolate(t[x_1.batch], x_1.species, n_species, generator)
        masked, heads = {"species": x_t}, (*heads, "species")
    losses: dict[str, Tensor] = {}
    for sign in signs:
        states, targets = {}, {}
        for name, interpolant in model.interpolants.items():
            z = sign * noise[name] if name in noise else None
            states[name], target = interpolant.sample(times[name], base[name], data[name], z)
            if interpolant.center_of_mass_free:
                target = center(target, x_1.batch, x_1.n_atoms)
            targets[name] = target
        output = model.velocity(t, states["pos"], states["cell"], conditioning, heads, **masked)
        errors = {f"velocity_{name}": output.velocity[name] - targets[name] for name in data}
        errors |= {f"denoiser_{name}": output.denoiser[name] - sign * noise[name] for name in noise}
        parts = {name: error.square().mean() for name, error in errors.items()}
        if model.species is not None:
            logits = output.species["species"]
            parts["crossentropy_species"] = model.species.cross_entropy(logits, x_1.species)
        for name, part in parts.items():
            losses[name] = losses.get(name, 0.0) + part / len(signs)
    return losses


def build_model(dataset: CrystalDataset, config: PretrainingConfig) -> FlowModel:
    """Return an untrained model, base distribution fitted to a data set, weights of a seed."""
    interpolants = KINDS[config.kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = CSPNet(
            config.hidden_dim,
            config.n_layers,
            config.n_freqs,
            config.time_dim,
            denoiser=any(entry.gamma is not None for entry in interpolants.values()),
            species_head=config.kind in SPECIES,
            mask_token=config.kind in SPECIES and SPECIES[config.kind].base == "mask",
        )
    batch = dataset.batch
    if config.kind not in SPECIES:
        return FlowModel(network, interpolants, BaseDistribution.fit(batch.cell))
    species = replace(SPECIES[config.kind], elements=tuple(batch.species.unique().tolist()))
    base = BaseDistribution.fit(batch.cell, batch.n_atoms)
    return FlowModel(network, interpolants, base, species=species)


class _State(TrainingState):
    """Training of a flow model."""

    def losses(
        self, model: FlowModel, batch: CrystalBatch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        losses = interpolant_losses(model, batch, generator, pairing=self.config.pairing)
        return {**losses, "loss": total_loss(losses, self.config)}


@checked
@torch_settings(plain=True)
def pretrain(
    dataset: CrystalDataset,
    config: PretrainingConfig | None = None,
    *,
    validation: CrystalDataset | None = None,
    evaluate: Callable[[FlowModel], Mapping[str, float]] | None = None,
    out_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    info: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> FlowModel:
    """Train a flow model; with `out_dir`, stop and call again to continue.

    Stopped in whatever way, SIGKILL included, it continues from its last checkpoint and ends with
    the bits (on a CPU) of a run that was never stopped. A checkpoint is written after every
    iteration, or as `checkpoint_every` says, beside the next one: at most one finished iteration
    is repeated. After a KeyboardInterrupt, the model is returned as it is, with a warning.

    Args:
        dataset: training structures.
        config: settings; the defaults are those of the shipped models but for `kind`.
        validation: structures for the validation loss, at the same draws every time.
        evaluate: called with the averaged model at each validation; its numbers (for instance
            METRe) enter the history.
        out_dir: folder for ``checkpoint.pt``, ``model.safetensors`` and ``history.parquet``.
        device: where to train.
        info: plain data to keep with the model.
        progress: show a progress bar.

    Returns:
        The model with averaged weights; its `info` says after how many iterations.

    Raises:
        ValueError: the data set is empty, or `out_dir` holds a checkpoint of other settings.
        OSError: `out_dir` cannot be written to.
        FloatingPointError: a gradient is not finite.
    """
    config = config or PretrainingConfig()
    check_dataset(dataset)
    state = _State(build_model(dataset, config).to(device), config, len(dataset))
    return run(
        state,
        dataset,
        config.kind,
        validation=validation,
        evaluate=evaluate,
        out_dir=out_dir,
        device=device,
        info=info,
        progress=progress,
    )


@checked
def metre_evaluation(
    validation: CrystalDataset, n_structures: int = 256, n_steps: int = 50, seed: int = 0
) -> Callable[[FlowModel], dict[str, float]]:
    """Return an `evaluate` for `pretrain`: METRe and cRMSE of plain Euler integration.

    Args:
        validation: reference structures.
        n_structures: about how many of them to use, all polymorphs of each composition.
        n_steps: integration steps, without annealing.
        seed: of the base samples, the same at every call.
    """
    check_count("n_structures", n_structures)
    check_count("n_steps", n_steps)
    references = validation.subset(n_structures)

    def compute(model: FlowModel) -> dict[str, float]:
        generator = torch.Generator().manual_seed(seed)
        batch = references.batch.to(model.device)
        generated = Dynamics(model).generate(batch, n_steps, generator=generator).to("cpu")
        with metrics.MatchPool(n_workers=0) as pool:
            found = metrics.evaluate(generated, references, pool)
        return {"validation_metre": found.metre, "validation_crmse": found.crmse}

    return compute
