"""How much notebook 09 does, preset by preset."""

from __future__ import annotations

from dataclasses import dataclass, replace

from irlkit.lab.experiments._denovo_sizes import DeNovoSize


@dataclass(frozen=True)
class LatentSize(DeNovoSize):
    """How much notebook 09 does; `n_steps` and `learning_rate` are those of the discrete flow.

    Attributes:
        ablations: none is trained here.
        latent_steps: from noise to latents, before the last one, which has no noise.
        latent_learning_rate: of Adam, for latent diffusion.
        guidances: among which that of guidance to a band gap is chosen; 0 is no guidance.
    """

    ablations: tuple[str, ...] = ()
    latent_steps: int = 24
    latent_learning_rate: float = 2e-4
    guidances: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0)

    def of_latents(self) -> LatentSize:
        """Return the size of latent diffusion's part."""
        return replace(self, n_steps=self.latent_steps, learning_rate=self.latent_learning_rate)


SIZES = {
    "quick": LatentSize(
        n_structures=12,
        iterations=1,
        ablation_iterations=1,
        gap_iterations=1,
        n_groups=2,
        group_size=6,
        n_steps=8,
        relax_steps=2,
        max_steps=30,
        temperatures=(0.8,),
        judged=False,
        latent_steps=8,
        guidances=(2.0,),
    ),
    "laptop": LatentSize(60, 10, 10, 8, group_size=32, temperatures=(0.85, 0.95)),
    "long": LatentSize(1000, 60, 25, 40, seeds=(0, 1, 2)),
    "paper": LatentSize(
        10_000, 300, 100, 100, seeds=(0, 1, 2), group_size=128, n_steps=100, latent_steps=99
    ),
}
