"""Training of latent diffusion in two stages: an autoencoder of crystals, then the diffusion."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.data import CrystalDataset
from irlkit.evaluate.matching import MatchPool
from irlkit.evaluate.novelty import TOLERANCES
from irlkit.networks.autoencoder import Autoencoder, reconstruction_losses, shifted
from irlkit.networks.latent_diffusion import DiffusionTransformer, LatentDiffusion
from irlkit.pretraining._denovo import shares_of_samples
from irlkit.pretraining._loop import LoopConfig, TrainingState, check_dataset, digest, run
from irlkit.utils.checks import check_finite, checked
from irlkit.utils.settings import torch_settings


@checked
@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(LoopConfig):
    """Settings of `pretrain_autoencoder` beside `LoopConfig`'s; weights of losses are Chemeleon2's.

    Attributes:
        width: channels.
        n_layers: layers of encoder and of decoder.
        n_heads: heads of the attention.
        latent_dim: numbers per atom.
        species_weight: of the cross-entropy of species.
        pos_weight: of the squared error of fractional coordinates.
        lengths_weight: of that of lengths over N^(1/3), Å.
        angles_weight: of that of angles, radians.
        kl_weight: of the KL divergence from a standard normal.
        periodic: compare coordinates on the circle; see `reconstruction_losses`.
        augment: shift each structure by a random vector.
    """

    width: int = 128
    n_layers: int = 4
    n_heads: int = 4
    latent_dim: int = 8
    ema_decay: float = 0.999
    species_weight: float = 1.0
    pos_weight: float = 10.0
    lengths_weight: float = 1.0
    angles_weight: float = 10.0
    kl_weight: float = 1e-5
    periodic: bool = True
    augment: bool = True

    _sizes: ClassVar[tuple[str, ...]] = ("width", "n_layers", "n_heads", "latent_dim")
    _parts: ClassVar[tuple[str, ...]] = ("species", "pos", "lengths", "angles", "kl")
    _weights: ClassVar[tuple[str, ...]] = tuple(f"{part}_weight" for part in _parts)


class _AutoencoderState(TrainingState):
    """Training of an autoencoder."""

    def losses(
        self, model: Autoencoder, batch: CrystalBatch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        config = self.config
        if config.augment:
            batch = shifted(batch, generator)
        parts = reconstruction_losses(model, batch, generator, periodic=config.periodic)
        weights = {name: getattr(config, f"{name}_weight") for name in config._parts}
        total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        return {**parts, "loss": total}


@checked
@torch_settings(plain=True)
def pretrain_autoencoder(
    dataset: CrystalDataset,
    config: AutoencoderConfig | None = None,
    *,
    validation: CrystalDataset | None = None,
    evaluate: Callable[[Autoencoder], Mapping[str, float]] | None = None,
    out_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    info: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Autoencoder:
    """Train an autoencoder of crystals; with `out_dir`, stop and call again to continue.

    Args:
        dataset: training structures, in Niggli cells as `irlkit.data.load` gives them.
        config: settings.
        validation, evaluate, out_dir, device, info, progress: as for `irlkit.pretraining.pretrain`;
            `reconstruction_evaluation` makes an `evaluate`.

    Returns:
        The autoencoder with averaged weights.

    Raises:
        ValueError: the data set has less than two structures, or `out_dir` holds a checkpoint of
            other settings.
    """
    config = config or AutoencoderConfig()
    check_dataset(dataset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Autoencoder(config.width, config.n_layers, config.n_heads, config.latent_dim)
    return run(
        _AutoencoderState(model.to(device), config, len(dataset)),
        dataset,
        "autoencoder",
        validation=validation,
        evaluate=evaluate,
        out_dir=out_dir,
        device=device,
        info=info,
        progress=progress,
    )


@checked
def reconstruction_evaluation(
    references: CrystalDataset, n_structures: int | None = None
) -> Callable[[Autoencoder], dict[str, float]]:
    """Return an `evaluate` for `pretrain_autoencoder`: how well structures survive the way back.

    Its numbers, of crystals decoded from the means of their latents: "validation_recovered", the
    share of structures that pymatgen's StructureMatcher finds again, at its own tolerances, and
    whose atoms all have their species; "validation_species", the share with the latter alone;
    "validation_rmsd", the mean displacement of the recovered over (V/N)^(1/3).

    Args:
        references: structures.
        n_structures: about how many of them; None: all.
    """
    batch = references.subset(n_structures).batch
    with MatchPool(n_workers=0, **TOLERANCES) as pool:
        prepared = pool.prepare(batch)
    pairs = np.arange(len(batch))[:, None].repeat(2, axis=1)

    @torch.no_grad()
    def compute(model: Autoencoder) -> dict[str, float]:
        like = next(model.parameters())
        known = batch.to(like.device, like.dtype)
        made = model.crystals(model.encode(known)[0], known.n_atoms).to("cpu")
        wrong = batch.batch[made.species != batch.species]
        exact = torch.ones(len(batch), dtype=torch.bool)
        exact[wrong] = False
        rmsd = np.where(exact.numpy(), pool.rmsd(made, prepared, pairs), np.nan)
        found = np.isfinite(rmsd)
        return {
            "validation_recovered": float(found.mean()),
            "validation_species": float(exact.double().mean()),
            "validation_rmsd": float(rmsd[found].mean()) if found.any() else float("nan"),
        }

    return compute


@checked
@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(LoopConfig):
    """Settings of `pretrain_diffusion` beside `LoopConfig`'s.

    Attributes:
        width: channels.
        n_layers: layers.
        n_heads: heads of the attention.
        augment: shift each structure by a random vector before it is encoded; else it is learned
            where the data have it.
        drop_target: share of the structures whose property the network is not told, so that it
            learns to do without.
    """

    width: int = 128
    n_layers: int = 6
    n_heads: int = 4
    augment: bool = False
    drop_target: float = 0.2

    _sizes: ClassVar[tuple[str, ...]] = ("width", "n_layers", "n_heads")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite("drop_target", self.drop_target, least=0, most=1)


class _DiffusionState(TrainingState):
    """Training of a diffusion; what is frozen has no gradient and so stays as it is."""

    target: Tensor | None = None

    def next_indices(self) -> Tensor:
        self.rows = super().next_indices()
        return self.rows

    def losses(
        self, model: LatentDiffusion, batch: CrystalBatch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        if self.config.augment:
            batch = shifted(batch, generator)
        target = None
        if self.target is not None and model is self.model:  # Validation is without.
            target = self.target[self.rows]
            drop = torch.rand(len(target), generator=generator) < self.config.drop_target
            target = target.masked_fill(drop, torch.nan).to(batch.pos.device)
        losses = model.losses(batch, generator, target)
        return {**losses, "loss": losses["noise"]}


@checked
@torch_settings(plain=True)
def pretrain_diffusion(
    dataset: CrystalDataset,
    autoencoder: Autoencoder,
    config: DiffusionConfig | None = None,
    *,
    target: Tensor | None = None,
    validation: CrystalDataset | None = None,
    evaluate: Callable[[LatentDiffusion], Mapping[str, float]] | None = None,
    out_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    info: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> LatentDiffusion:
    """Train a diffusion of an autoencoder's latents; with `out_dir`, call again to continue.

    Args:
        dataset: training structures, those of the autoencoder.
        autoencoder: trained; it is copied and stays as it is.
        config: settings.
        target: property of each structure that `generate` can be told then, such as the band gap
            in eV; nan where it is unknown, shape (B,); None: none.
        validation, evaluate, out_dir, device, info, progress: as for `irlkit.pretraining.pretrain`;
            `sample_evaluation` makes an `evaluate`.

    Returns:
        The model with averaged weights; it generates structures of as many atoms as the data have.

    Raises:
        ValueError: the data set has less than two structures, targets that are not one for each of
            them or all alike, or `out_dir` holds a checkpoint of other settings.
    """
    config = config or DiffusionConfig()
    check_dataset(dataset)
    target = None if target is None else target.to(torch.get_default_dtype())
    spread = None if target is None else _mean_and_std(target, len(dataset))
    autoencoder = copy.deepcopy(autoencoder).to(device).eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(config.seed)
        network = DiffusionTransformer(
            autoencoder.latent_dim,
            int(dataset.batch.n_atoms.max()),
            config.width,
            config.n_layers,
            config.n_heads,
            conditional=spread is not None,
        )
        if spread is not None:
            network.target_scale.copy_(spread)
        known = dataset.batch.standard_orientation().to(device)
        parts = torch.arange(len(known), device=known.device).split(512)
        scale = float(torch.cat([autoencoder.encode(known[part])[0] for part in parts]).std())
    model = LatentDiffusion(autoencoder, network, scale).to(device)
    state = _DiffusionState(model, config, len(dataset))
    state.target = target
    state.about["autoencoder"] = digest(autoencoder.state_dict().values())
    state.about["target"] = "" if target is None else digest([target])
    return run(
        state,
        dataset,
        "latent diffusion",
        validation=validation,
        evaluate=evaluate,
        out_dir=out_dir,
        device=device,
        info=info,
        progress=progress,
    )


def _mean_and_std(target: Tensor, size: int) -> Tensor:
    """Of the known values of a property, shape (2,)."""
    known = target[target.isfinite()]
    if target.shape != (size,) or not len(known) or float(known.std(correction=0)) == 0:
        raise ValueError(
            f"target must have a number for each of {size} structures, not all alike, got shape "
            f"{tuple(target.shape)} with {len(known.unique())} different values"
        )
    return torch.stack([known.mean(), known.std(correction=0)])


@checked
def sample_evaluation(
    training: CrystalDataset, n_structures: int = 256, n_steps: int = 49, seed: int = 0
) -> Callable[[LatentDiffusion], dict[str, float]]:
    """Return an `evaluate` for `pretrain_diffusion`: that of `denovo_evaluation`.

    Args:
        training: what is not novel; samples have its numbers of atoms.
        n_structures: how many to generate.
        n_steps: steps with noise.
        seed: of the samples, the same at every call.
    """

    def samples(model: LatentDiffusion) -> CrystalBatch:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(len(training), (n_structures,), generator=generator)
        return model.generate(
            training.batch.n_atoms[rows], n_steps, generator=generator, max_batch=128
        )

    return shares_of_samples(training, samples)
