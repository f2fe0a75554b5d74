"""The baseline: CSPNet over a list of directed edges with concatenated features.

It is written as public implementations are, with their shortcuts left out where those cost
nothing: the list of edges is built at each call, without a loop, and the Fourier features are
computed once per call, not once per layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from irlkit.networks._pairs import PairFeatures, PairTopology
from irlkit.networks.cspnet import CSPLayer, CSPNet, NetworkOutput
from irlkit.networks.flow_model import FlowModel


class EdgeListNetwork(CSPNet):
    """The same function and parameters as `CSPNet`."""

    def forward(
        self,
        t: Tensor,
        species: Tensor,
        pos: Tensor,
        cell: Tensor,
        topology: PairTopology,
        features: PairFeatures | None = None,
        heads: Sequence[str] = ("velocity",),
    ) -> NetworkOutput:
        """See `CSPNet.forward`; features are not used."""
        n_atoms = topology.n_atoms
        structure = torch.arange(len(n_atoms), device=pos.device).repeat_interleave(n_atoms)
        receiver, sender = fully_connected(n_atoms)
        time = self.time_embedding(t.reshape(-1).to(pos.dtype)).expand(len(n_atoms), -1)
        h = torch.cat([self.node_embedding(species - 1), time[structure]], dim=1)
        h = self.atom_latent_emb(h)
        difference = (pos[sender] - pos[receiver]) % 1
        frequencies = 2 * math.pi * torch.arange(self.n_freqs, device=pos.device, dtype=pos.dtype)
        angles = (difference[:, :, None] * frequencies).flatten(1)
        psi = torch.cat([angles.sin(), angles.cos()], dim=1)
        gram = (cell @ cell.transpose(1, 2)).flatten(1)[structure[receiver]]
        for k in range(self.n_layers):
            layer = cast(CSPLayer, self.get_submodule(f"csp_layer_{k}"))
            normed = layer.layer_norm(h)
            edge = torch.cat([normed[receiver], normed[sender], gram, psi], dim=1)
            edge = layer.edge_mlp(edge)
            message = torch.zeros_like(h).index_add(0, receiver, edge)
            message = message / n_atoms[structure, None]
            h = h + layer.node_mlp(torch.cat([normed, message], dim=1))
        h = self.final_layer_norm(h)
        pooled = torch.zeros(len(n_atoms), h.shape[1], dtype=h.dtype, device=h.device)
        pooled = pooled.index_add(0, structure, h) / n_atoms[:, None]
        outputs: dict[str, dict[str, Tensor]] = {"velocity": {}, "denoiser": {}}
        for head in heads:
            suffix = "" if head == "velocity" else "_2"
            of_cell = functional.linear(pooled, self.get_parameter(f"lattice_out{suffix}.weight"))
            outputs[head] = {
                "pos": functional.linear(h, self.get_parameter(f"coord_out{suffix}.weight")),
                "cell": of_cell.view(-1, 3, 3) @ cell,
            }
        return NetworkOutput(outputs["velocity"], outputs["denoiser"])


def fully_connected(n_atoms: Tensor) -> tuple[Tensor, Tensor]:
    """Receivers and senders of all directed pairs, those of an atom with itself included."""
    atom = torch.arange(int(n_atoms.sum()), device=n_atoms.device)
    of_atom = n_atoms.repeat_interleave(n_atoms)
    first = (n_atoms.cumsum(0) - n_atoms).repeat_interleave(n_atoms)
    receiver = atom.repeat_interleave(of_atom)
    offset = of_atom.cumsum(0) - of_atom
    place = torch.arange(len(receiver), device=n_atoms.device) - offset[receiver]
    return receiver, first[receiver] + place


def with_edge_list(model: FlowModel) -> FlowModel:
    """The same model with the baseline's network."""
    sizes: dict[str, Any] = model.network.sizes
    network = EdgeListNetwork(**sizes)
    network.load_state_dict(model.network.state_dict())
    network = network.to(model.device, model.dtype).train(model.training)
    return EdgeListModel(network, model.interpolants, model.base, model.info)


class EdgeListModel(FlowModel):
    """A model that prepares nothing."""

    def pair_features(self, pos: Tensor, conditioning: object) -> None:  # type: ignore[override]
        """Nothing to share."""
