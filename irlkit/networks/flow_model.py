"""`FlowModel`: network, interpolants and base distribution in one safetensors file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from irlkit.crystals import CrystalBatch
from irlkit.flows._plain import from_plain, to_plain
from irlkit.flows._species import SpeciesRules
from irlkit.flows.base_distribution import BaseDistribution
from irlkit.flows.constraints import Constraints
from irlkit.flows.discrete import SPECIES_FLOWS, DiscreteFlow
from irlkit.flows.interpolants import Interpolant
from irlkit.networks import _files
from irlkit.networks.cspnet import CSPNet, NetworkOutput, PairFeatures, PairTopology
from irlkit.utils.checks import checked

FORMAT = "irlkit-flow-model-1"


@dataclass(frozen=True)
class Conditioning:
    """What stays fixed while structures are generated.

    Attributes:
        species: Atomic numbers, shape (n,); None where they are part of the state.
        topology: Pairs of atoms.
        rules: What the species are bound to, where they are part of the state.
    """

    species: Tensor | None
    topology: PairTopology
    rules: SpeciesRules | None = None


class FlowModel(nn.Module):
    """A generative model of crystals for given compositions, or of species as well.

    Args:
        network: Velocity (and denoiser) of positions and cell.
        interpolants: Interpolant of each of the fields "pos" and "cell".
        base: Base distribution.
        info: Plain data about training, kept with the weights.
        species: Flow of the species in de novo generation; None: they are always given.

    Raises:
        ValueError: the interpolants are not those of the two fields, or the network lacks what the
            flow of the species needs.
    """

    @checked
    def __init__(
        self,
        network: CSPNet,
        interpolants: Mapping[str, Interpolant],
        base: BaseDistribution,
        info: Mapping[str, Any] | None = None,
        species: DiscreteFlow | None = None,
    ) -> None:
        super().__init__()
        masked = species is not None and species.base == "mask"
        if species is not None and (
            "species" not in network.heads or (masked and network.first_species)
        ):
            raise ValueError(
                f"species: a flow with {species.base} base needs a network with species_head=True"
                f"{' and mask_token=True' if masked else ''}, got one of {network.sizes}"
            )
        if set(interpolants) != {"pos", "cell"}:
            raise ValueError(
                f"interpolants: expected those of 'pos' and 'cell', got {sorted(interpolants)}"
            )
        self.network = network
        self.interpolants = dict(interpolants)
        self.base = base
        self.species = species
        self.info = dict(info or {})

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.network.coord_out.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return self.network.coord_out.weight.dtype

    @property
    def has_denoiser(self) -> tuple[str, ...]:
        """Fields with a trained denoiser, in general those whose interpolant has latent noise."""
        if "denoiser" not in self.network.heads:
            return ()
        return tuple(name for name, entry in self.interpolants.items() if "denoiser" in entry.heads)

    @checked
    def prepare(
        self,
        batch: CrystalBatch | Tensor,
        constraints: Constraints | None = None,
        given: Tensor | None = None,
    ) -> Conditioning:
        """Pairs and species of a batch, made once and used at every step.

        Args:
            batch: Compositions; or numbers of atoms, int64 of shape (B,), if species are generated.
            constraints: What the species are bound to in that case.
            given: In that case, atomic numbers that are given, 0 for others, shape (n,).

        Raises:
            ValueError: the batch is empty, numbers of atoms for a model of given species,
                constraints that cannot be met, or constraints where species are given.
        """
        if not len(batch):
            raise ValueError("batch must hold at least one structure, got none")
        bound = constraints is not None
        if isinstance(batch, CrystalBatch):
            if bound:
                raise ValueError("constraints bind species that are generated; these are given")
            return Conditioning(batch.species, PairTopology.from_n_atoms(batch.n_atoms))
        if self.species is None:
            raise ValueError("batch must hold compositions: this model does not generate species")
        if batch.dtype != torch.int64 or batch.ndim != 1 or int(batch.min()) < 1:
            raise ValueError(
                "batch of numbers of atoms must be an int64 tensor of shape (B,), all above 0, "
                f"got {batch.dtype} of shape {tuple(batch.shape)}"
            )
        if bound and given is not None and bool((given > 0).any()):
            raise ValueError("constraints bind species that are generated; some are given")
        rules = self.species.rules(batch, self.network.sizes["n_species"], constraints)
        if given is not None:
            rules = replace(rules, given=torch.where(rules.given > 0, rules.given, given))
        return Conditioning(None, PairTopology.from_n_atoms(batch), rules)

    def pair_features(self, pos: Tensor, conditioning: Conditioning) -> PairFeatures:
        """Pair features at `pos` (n, 3), to be shared by several evaluations at one state."""
        return PairFeatures.from_positions(pos, conditioning.topology, self.network.n_freqs)

    def velocity(
        self,
        t: float | Tensor,
        pos: Tensor,
        cell: Tensor,
        conditioning: Conditioning,
        heads: Sequence[str] = ("velocity",),
        features: PairFeatures | None = None,
        species: Tensor | None = None,
    ) -> NetworkOutput:
        """Velocity b(t, x) and, on request, denoiser z(t, x).

        Args:
            t: Time in [0, 1], a number or of shape () or (B,).
            pos: Fractional coordinates, shape (n, 3).
            cell: Lattice vectors as rows in Å, shape (B, 3, 3).
            conditioning: Of `prepare`.
            heads: Which of "velocity", "denoiser" and "species" to compute.
            features: Pair features at `pos`, if already computed.
            species: Atomic numbers, 0 where masked, shape (n,); None takes the given ones.

        Returns:
            Per head and field, tensors of the fields' shapes, per unit of time.
        """
        time = torch.as_tensor(t, dtype=pos.dtype, device=pos.device)
        derived = [n for n, entry in self.interpolants.items() if "velocity" not in entry.heads]
        wanted = tuple(heads)
        if derived and "velocity" in wanted:
            wanted = tuple(dict.fromkeys(("velocity", "denoiser", *wanted)))
        species = conditioning.species if species is None else species
        output = self.network(time, species, pos, cell, conditioning.topology, features, wanted)
        if not derived or "velocity" not in wanted:
            return output
        batch = conditioning.topology.batch
        per_field = {
            "pos": (pos, time if time.ndim == 0 else time[batch, None]),
            "cell": (cell, time if time.ndim == 0 else time[:, None, None]),
        }
        for name in derived:
            (x_t, at), z = per_field[name], output.denoiser[name]
            output.velocity[name] = self.interpolants[name].velocity_from_denoiser(at, x_t, z)
        denoiser = output.denoiser if "denoiser" in heads else {}
        return NetworkOutput(output.velocity, denoiser, output.species)

    @checked
    def gamma(self, field: str, t: Tensor) -> Tensor:
        """Latent-noise coefficient gamma(t) of a field, shape of `t`; alpha(t) if one-sided.

        Raises:
            ValueError: the field has no latent noise.
        """
        if field not in self.interpolants:
            raise ValueError(f"field must be one of {sorted(self.interpolants)}, got {field!r}")
        entry = self.interpolants[field]
        if entry.one_sided:
            return entry.path(t)[0]
        if entry.gamma is None:
            raise ValueError(f"field: the interpolant of {field!r} has no latent noise gamma")
        return entry.gamma(t)

    @checked
    def sample_base(self, batch: CrystalBatch, generator: torch.Generator) -> CrystalBatch:
        """Draw x_0 for the compositions of `batch`, whose positions and cells are ignored.

        Draws are made on the generator's device, so a CPU generator gives one x_0 for all devices.
        """
        pos = self.base.sample_pos(len(batch.species), generator, self.dtype)
        cell = self.base.sample_cell(len(batch.n_atoms), generator, self.dtype)
        return batch.to(dtype=self.dtype).replace(
            pos=pos.to(batch.device), cell=cell.to(batch.device)
        )

    def sample_state(
        self, conditioning: Conditioning, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Draw species (n,), positions (n, 3) and cells (B, 3, 3) where a flow of all three begins.

        Args:
            conditioning: Of `prepare`, for numbers of atoms.
            generator: Draws them on its own device.
        """
        rules = conditioning.rules
        assert rules is not None and self.species is not None
        species = self.species.initial(rules, generator)
        pos = self.base.sample_pos(len(species), generator, self.dtype).to(self.device)
        cell = self.base.sample_cell(len(rules.n_atoms), generator, self.dtype).to(self.device)
        return {"species": species, "pos": rules.hold(pos), "cell": cell}

    @checked
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and description to one safetensors file."""
        description = {
            "format": FORMAT,
            "network": self.network.sizes,
            "interpolants": {name: entry.to_dict() for name, entry in self.interpolants.items()},
            "base": self.base.to_dict(),
            "info": self.info,
        }
        if self.species is not None:
            description["species"] = to_plain(self.species, SPECIES_FLOWS)
        _files.write(path, self, description)

    @classmethod
    @checked
    def load(cls, path: str | os.PathLike[str], device: str | torch.device = "cpu") -> FlowModel:
        """Read a model that `save` wrote.

        Args:
            path: safetensors file.
            device: Where to put the weights.

        Returns:
            Model in evaluation mode.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a checkpoint of this package, or its tensors do not fit.
        """

        def build(description: dict[str, Any]) -> FlowModel:
            species = description.get("species")
            return cls(
                CSPNet(**description["network"]),
                {k: Interpolant.from_dict(v) for k, v in description["interpolants"].items()},
                BaseDistribution.from_dict(description["base"]),
                description["info"],
                None if species is None else from_plain(species, SPECIES_FLOWS),
            )

        return _files.read(path, FORMAT, build, device)
