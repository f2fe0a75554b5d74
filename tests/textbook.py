"""CSPNet as its formula reads: every directed pair, every feature concatenated. Slow, obvious."""

import math

import torch
from torch.nn import functional


def csp_forward(weights, t, species, pos, cell, n_atoms, n_freqs, time_dim):
    """Velocity and denoiser of positions and cells from a state dict, one edge list per call."""
    structures = torch.arange(len(n_atoms)).repeat_interleave(n_atoms)
    start = n_atoms.cumsum(0) - n_atoms
    edges = []
    for s, n in enumerate(n_atoms.tolist()):
        index = torch.arange(n) + start[s]
        edges.append(torch.cartesian_prod(index, index).reshape(-1, 2))
    i, j = torch.cat(edges).T
    half = time_dim // 2
    k = torch.arange(half, dtype=pos.dtype)
    angle = t[:, None] * torch.exp(-k * math.log(1e4) / (half - 1))
    time = torch.cat([angle.sin(), angle.cos()], 1)[structures]
    h = torch.cat([weights["node_embedding.weight"][species - 1], time], 1)
    h = functional.linear(h, weights["atom_latent_emb.weight"], weights["atom_latent_emb.bias"])
    difference = (pos[j] - pos[i]) % 1
    phase = 2 * math.pi * difference[:, :, None] * torch.arange(n_freqs, dtype=pos.dtype)
    psi = torch.cat([phase.sin().flatten(1), phase.cos().flatten(1)], 1)
    gram = (cell @ cell.transpose(1, 2)).flatten(1)[structures[i]]
    layer = 0
    while f"csp_layer_{layer}.layer_norm.weight" in weights:
        w = {
            name.removeprefix(f"csp_layer_{layer}."): value
            for name, value in weights.items()
            if name.startswith(f"csp_layer_{layer}.")
        }
        normed = functional.layer_norm(
            h, (h.shape[1],), w["layer_norm.weight"], w["layer_norm.bias"]
        )
        edge = torch.cat([normed[i], normed[j], gram, psi], 1)
        for step in (0, 2):
            edge = functional.silu(
                functional.linear(edge, w[f"edge_mlp.{step}.weight"], w[f"edge_mlp.{step}.bias"])
            )
        message = torch.zeros_like(h).index_add(0, i, edge) / n_atoms[structures, None]
        node = torch.cat([normed, message], 1)
        for step in (0, 2):
            node = functional.silu(
                functional.linear(node, w[f"node_mlp.{step}.weight"], w[f"node_mlp.{step}.bias"])
            )
        h = h + node
        layer += 1
    h = functional.layer_norm(
        h, (h.shape[1],), weights["final_layer_norm.weight"], weights["final_layer_norm.bias"]
    )
    pooled = torch.zeros(len(n_atoms), h.shape[1], dtype=h.dtype).index_add(0, structures, h)
    pooled = pooled / n_atoms[:, None]
    outputs = {}
    for head, suffix in (("velocity", ""), ("denoiser", "_2")):
        if f"coord_out{suffix}.weight" in weights:
            outputs[head] = {
                "pos": h @ weights[f"coord_out{suffix}.weight"].T,
                "cell": (pooled @ weights[f"lattice_out{suffix}.weight"].T).view(-1, 3, 3) @ cell,
            }
    return outputs
