"""A MACE model as small as it can be, with random weights."""

import numpy as np
import torch


def write_mace(path, elements):
    """Write a model for some atomic numbers, ascending; returns the path."""
    from irlkit.potentials.mace import _mace

    with _mace():
        from e3nn import o3
        from mace import modules

        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
        model = modules.ScaleShiftMACE(
            r_max=5.0,
            num_bessel=4,
            num_polynomial_cutoff=5,
            max_ell=2,
            interaction_cls=block,
            interaction_cls_first=block,
            num_interactions=2,
            num_elements=len(elements),
            hidden_irreps=o3.Irreps("8x0e+8x1o"),
            MLP_irreps=o3.Irreps("8x0e"),
            gate=torch.nn.functional.silu,
            atomic_energies=np.linspace(-5, -1, len(elements)),
            avg_num_neighbors=20.0,
            atomic_numbers=elements,
            correlation=2,
            atomic_inter_scale=1.0,
            atomic_inter_shift=0.1,
        )
        torch.save(model, path)
    return path
