"""Diffusion of an autoencoder's latents: the transformer, its noise, and steps back to crystals.

Chemeleon2's second stage, written anew: a transformer with adaLN-zero (Peebles and Xie 2023), told
time and number of atoms, predicts the noise (Ho et al. 2020). With abar_t = prod_s (1 - beta_s),
beta linear, and z a latent over the standard deviation of all latents,

    x_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from irlkit.crystals import CrystalBatch
from irlkit.networks import _files
from irlkit.networks._transformer import Block, Slots
from irlkit.networks.autoencoder import Autoencoder
from irlkit.networks.cspnet import TimeEmbedding
from irlkit.utils.checks import check_count, check_finite, checked
from irlkit.utils.settings import torch_settings

FORMAT = "irlkit-latent-diffusion-1"
N_TIMES = 1000
BETAS = (1e-4, 0.02)


class DiffusionTransformer(nn.Module):
    """Predicts the noise in latents, which it takes for a set: the order of atoms means nothing.

    Args:
        latent_dim: Numbers per atom.
        max_atoms: Most atoms that a structure may have.
        width: Channels.
        n_layers: Layers.
        n_heads: Heads of their attention.
        conditional: May be told a property, such as the band gap, whose mean and standard
            deviation in the training set `target_scale` holds.

    Raises:
        ValueError: a size is below 1, or the heads do not divide the width.
    """

    target_scale: Tensor

    @checked
    def __init__(
        self,
        latent_dim: int,
        max_atoms: int,
        width: int = 128,
        n_layers: int = 6,
        n_heads: int = 4,
        conditional: bool = False,
    ) -> None:
        super().__init__()
        self.sizes: dict[str, Any] = dict(
            latent_dim=latent_dim,
            max_atoms=max_atoms,
            width=width,
            n_layers=n_layers,
            n_heads=n_heads,
        )
        for name, value in self.sizes.items():
            check_count(name, value)
        self.sizes["conditional"] = conditional
        if width % n_heads or width % 2:
            raise ValueError(f"width must be a multiple of 2 and of n_heads={n_heads}, got {width}")
        self.latent_in = nn.Linear(latent_dim, width)
        self.time = TimeEmbedding(max(4, width))
        self.time_in = nn.Sequential(
            nn.Linear(max(4, width), width), nn.SiLU(), nn.Linear(width, width)
        )
        self.size_in = nn.Embedding(max_atoms, width)
        if conditional:
            self.target_in = nn.Sequential(
                nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
            )
            self.register_buffer("target_scale", torch.tensor([0.0, 1.0]))
        self.blocks = nn.ModuleList(Block(width, n_heads, condition=width) for _ in range(n_layers))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, latent_dim)
        for linear in (self.modulation, self.out):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, t: Tensor, slots: Slots, target: Tensor | None = None) -> Tensor:
        """Predict the noise in latents.

        Args:
            x: Latents, shape (n, latent_dim).
            t: Diffusion times, 0 to `N_TIMES` - 1, shape (B,).
            slots: Which atoms belong together.
            target: Property that the structures are to have, in its unit, nan where any will do,
                shape (B,); None: any for all.
        """
        condition = self.time_in(self.time(t.to(x))) + self.size_in(slots.n_atoms - 1)
        if target is not None:
            mean, std = self.target_scale
            told = self.target_in(((target.to(x) - mean) / std).nan_to_num()[:, None])
            condition = condition + told * ~target.isnan()[:, None]
        condition = nn.functional.silu(condition)
        h = self.latent_in(x)
        for block in self.blocks:
            h = block(h, slots, condition)
        shift, scale = self.modulation(condition).index_select(0, slots.batch).chunk(2, dim=1)
        return self.out(self.norm(h) * (1 + scale) + shift)


class LatentDiffusion(nn.Module):
    """Generates crystals of given numbers of atoms: latents are denoised, then decoded.

    Args:
        autoencoder: Frozen; decodes latents.
        network: Predicts the noise in them.
        scale: Standard deviation of all latents of the training set.
        info: Plain data about training.

    Raises:
        ValueError: the network's latents have another size than the autoencoder's, or a scale that
            is not positive.
    """

    @checked
    def __init__(
        self,
        autoencoder: Autoencoder,
        network: DiffusionTransformer,
        scale: float = 1.0,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if network.sizes["latent_dim"] != autoencoder.latent_dim:
            raise ValueError(
                f"network: its latents have {network.sizes['latent_dim']} numbers per atom, those "
                f"of the autoencoder {autoencoder.latent_dim}; train one on the other's latents"
            )
        check_finite("scale", scale, above=0)
        self.autoencoder = autoencoder.requires_grad_(False)
        self.network = network
        self.scale = scale
        self.info = dict(info or {})

    def check(self, n_atoms: Tensor) -> None:
        """Raise a ValueError unless cells, n_atoms of shape (B,), are as large as those seen."""
        largest = self.network.sizes["max_atoms"]
        whole = n_atoms.ndim == 1 and not n_atoms.is_floating_point() and len(n_atoms)
        if not whole or int(n_atoms.min()) < 1:
            raise ValueError(
                "n_atoms must be whole numbers of atoms, one or more structures of one or more, "
                f"shape (B,), got {n_atoms.tolist()!r:.60}"
            )
        if int(n_atoms.max()) > largest:
            raise ValueError(
                f"n_atoms must be at most {largest}, the largest cells that this model has seen, "
                f"got {int(n_atoms.max())}"
            )

    def losses(
        self, crystals: CrystalBatch, generator: torch.Generator, target: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the loss at one random time per structure: mean squared error of the noise.

        Args:
            crystals: Data, at least one structure.
            generator: Draws latents, times and noise; on the CPU.
            target: Property that the network is told, nan for those that it is not told, (B,).
        """
        with torch.no_grad():
            mean, std = self.autoencoder.encode(crystals)
            noise = torch.randn(2, *mean.shape, generator=generator).to(mean)
            z = (mean + std * noise[0]) / self.scale
        size = len(crystals)
        # One time in each of as many equal parts of the range as there are structures.
        strata = (torch.arange(size) + torch.rand(size, generator=generator)) / size
        t = (N_TIMES * strata[torch.randperm(size, generator=generator)]).long()
        t = t.clamp(max=N_TIMES - 1).to(z.device)  # The last part's end can be rounded up.
        slots = Slots.from_n_atoms(crystals.n_atoms)
        x = _noised(z, noise[1], t[slots.batch, None])
        return {"noise": (self.network(x, t, slots, target) - noise[1]).square().mean()}

    def _guided(
        self, x: Tensor, t: Tensor, slots: Slots, target: Tensor | None, guidance: float
    ) -> Tensor:
        """Return the noise of classifier-free guidance (Ho and Salimans 2022), shape of x.

        With w the guidance and c the target, eps(x) + w [eps(x | c) - eps(x)]; arguments as for
        `generate` and `DiffusionTransformer.forward`.
        """
        if target is None or guidance == 0:
            return self.network(x, t, slots)
        told = self.network(x, t, slots, target)
        return told if guidance == 1 else torch.lerp(self.network(x, t, slots), told, guidance)

    def times(self, n_steps: int) -> Tensor:
        """Return the diffusion times of so many steps with noise and a last one without.

        Returns:
            Float64, from `N_TIMES` - 1 down, shape (n_steps + 1,).

        Raises:
            ValueError: no step, or as many as there are times.
        """
        check_count("n_steps", n_steps, most=N_TIMES - 1)
        last = torch.arange(n_steps + 1, 0, -1, dtype=torch.float64)
        return (last * (N_TIMES / (n_steps + 1))).round() - 1

    @torch.no_grad()
    def latents_to_crystals(self, x: Tensor, n_atoms: Tensor) -> CrystalBatch:
        """Return the crystals of denoised latents x (n, latent_dim), in units of `scale`."""
        return self.autoencoder.crystals(self.scale * x, n_atoms)

    @checked
    @torch_settings(plain=True)
    @torch.no_grad()
    def generate(
        self,
        request: Tensor,
        n_steps: int = 49,
        *,
        generator: torch.Generator,
        max_batch: int | None = None,
        eta: float = 1.0,
        target: float | Tensor | None = None,
        guidance: float = 1.0,
    ) -> CrystalBatch:
        """Generate crystals by DDIM (Song et al. 2021), with noise at eta above 0.

        Args:
            request: Atoms per structure, int64, shape (B,).
            n_steps: Steps before the last one, which has no noise.
            generator: Draws the noise, on its own device.
            max_batch: At most so many structures at a time.
            eta: Share of the noise of the diffusion's reverse, 0 to 1.
            target: Property that the structures are to have, for all or each, shape (B,), in the
                unit of what the model was trained with; None: any.
            guidance: How much what the model is told counts: 0 not at all, 1 as in the data; more
                buys closeness to the target with diversity.

        Raises:
            ValueError: more atoms than the model has seen, or a target for a model that was not
                trained with a property.
        """
        self.check(request)
        if max_batch is not None:
            check_count("max_batch", max_batch)
        check_finite("eta", eta, least=0, most=1)
        check_finite("guidance", guidance, least=0)
        targets = self._targets(target, len(request))
        like, made = self.network.out.weight, []
        times = self.times(n_steps)
        size = max_batch or max(len(request), 1)
        for k, n_atoms in enumerate(request.to(like.device).split(size)):
            told = None if targets is None else targets[k * size : (k + 1) * size].to(like)
            slots = Slots.from_n_atoms(n_atoms)
            shape = (len(slots.batch), self.autoencoder.latent_dim)
            x = torch.randn(shape, generator=generator, device=generator.device).to(like)
            for i, t in enumerate(times):
                now = t.expand(len(n_atoms)).to(like.device)
                eps = self._guided(x, now, slots, told, guidance)
                following = times[i + 1] if i < n_steps else t.new_tensor(-1.0)
                x, std = denoised(x, eps, t, following, eta)
                if i < n_steps and eta:
                    xi = torch.randn(shape, generator=generator, device=generator.device)
                    x = x + std * xi.to(like)
            made.append(self.latents_to_crystals(x, n_atoms))
        return CrystalBatch.concatenate(made)

    def _targets(self, target: float | Tensor | None, size: int) -> Tensor | None:
        """What `generate` was asked for, checked, a number per structure."""
        if target is None:
            return None
        if not self.network.sizes["conditional"]:
            raise ValueError(
                "target: this model was trained without a property and cannot be told one; give "
                "pretrain_diffusion a target, or leave it out here"
            )
        targets = torch.as_tensor(target, dtype=torch.float64)
        if targets.shape not in ((), (size,)):
            raise ValueError(
                f"target must be a number or have one for each of {size} structures, got shape "
                f"{tuple(targets.shape)}"
            )
        return targets.expand(size)

    @checked
    def save(self, path: str | os.PathLike[str], autoencoder: str | None = None) -> None:
        """Write the weights of autoencoder and transformer to one safetensors file.

        Args:
            path: File to write.
            autoencoder: Name of the one that comes with the package, if it is this model's: the
                file then names it and has the transformer's weights alone.
        """
        description = {
            "format": FORMAT,
            "autoencoder": autoencoder or self.autoencoder.sizes,
            "network": self.network.sizes,
            "autoencoder_info": self.autoencoder.info,
            "scale": self.scale,
            "info": self.info,
        }
        _files.write(path, self, description, _left_out(description))

    @classmethod
    @checked
    def load(
        cls, path: str | os.PathLike[str], device: str | torch.device = "cpu"
    ) -> LatentDiffusion:
        """Read a model that `save` wrote, in evaluation mode.

        Args:
            path: File, or "chemeleon-dit", which comes with the package.
            device: Where to put the weights.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no latent diffusion of this package, or its tensors do not fit.

        >>> model = LatentDiffusion.load("chemeleon-dit")
        >>> draws, n_atoms = torch.Generator().manual_seed(0), torch.tensor([2, 5])
        >>> made = model.generate(n_atoms, 20, generator=draws, target=3.0, guidance=2.0)
        >>> made.n_atoms.tolist(), made.pos.shape
        ([2, 5], torch.Size([7, 3]))
        """

        def build(description: dict[str, Any]) -> LatentDiffusion:
            sizes, info = description["autoencoder"], description["autoencoder_info"]
            if isinstance(sizes, str):
                if os.sep in sizes:  # A file from elsewhere does not say which others are read.
                    raise ValueError(f"it names the autoencoder {sizes!r}, which is a path")
                autoencoder = Autoencoder.load(sizes)
            else:
                autoencoder = Autoencoder(**sizes, info=info)
            network = DiffusionTransformer(**description["network"])
            return cls(autoencoder, network, description["scale"], description["info"])

        file = _files.shipped(path, "latent")
        return _files.read(file, FORMAT, build, device, "LatentDiffusion.save", _left_out)


def _left_out(description: Mapping[str, Any]) -> str:
    """How the names of weights begin that a file has not: those of an autoencoder that it names."""
    return "autoencoder." if isinstance(description["autoencoder"], str) else "-"


def signal(t: Tensor) -> Tensor:
    """Return abar at diffusion times t of any shape, 0 to `N_TIMES` - 1; 1 at -1. Float64.

    >>> signal(torch.tensor([-1.0, 0.0, 999.0]))
    tensor([1.0000e+00, 9.9990e-01, 4.0358e-05], dtype=torch.float64)
    """
    betas = torch.linspace(*BETAS, N_TIMES, dtype=torch.float64)
    abar = torch.cat([betas.new_ones(1), (1 - betas).cumprod(0)]).to(t.device)
    return abar[t.long() + 1]


def _noised(z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Return x_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps; times t broadcast, shape of eps."""
    abar = signal(t).to(z)
    return abar.sqrt() * z + (1 - abar).sqrt() * eps


def denoised(
    x: Tensor, eps: Tensor, t: Tensor, following: Tensor, eta: float
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the next state of DDIM (Song et al. 2021, Eq. 12).

    With s the following time, z = (x - sqrt(1 - abar_t) eps) / sqrt(abar_t) the predicted latent
    and sigma^2 = eta^2 (1 - abar_s) / (1 - abar_t) (1 - abar_t / abar_s), the mean is
    sqrt(abar_s) z + sqrt(1 - abar_s - sigma^2) eps.

    Args:
        x: States, shape (..., latent_dim).
        eps: Predicted noise, the same shape.
        t: Their times, broadcast against x.
        following: The next times, -1 for the end, where the standard deviation is 0.
        eta: 0 to 1.

    Returns:
        Mean, of x's shape, and standard deviation, of t's.
    """
    here, there = signal(t), signal(following)
    variance = eta**2 * (1 - there) / (1 - here) * (1 - here / there)
    z = (x - (1 - here).sqrt().to(x) * eps) / here.sqrt().to(x)
    mean = there.sqrt().to(x) * z + (1 - there - variance).clamp(min=0).sqrt().to(x) * eps
    return mean, variance.sqrt().to(x)
