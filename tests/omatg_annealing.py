"""Learned annealings under the names of OMatG-IRL's parameters."""

import re

from irlkit.flows.schedules import LearnedAnnealing


def annealing_from_omatg(state_dict):
    """A schedule from ``_trunk.{k}.*`` and ``_{field}_head.*``, or ``_{field}_mlp.{k}.*``."""
    renamed = {_rename(name): value for name, value in state_dict.items()}
    shared = "trunk.0.weight" in renamed
    start = "trunk." if shared else "heads.pos."
    first = renamed[f"{start}0.weight"]
    n_layers = len({name.split(".")[-2] for name in renamed if name.startswith(start)})
    annealing = LearnedAnnealing(first.shape[0], n_layers - 2, shared, first.shape[1] == 2)
    annealing.to(first.dtype).load_state_dict(renamed)
    return annealing


def omatg_name(annealing, name):
    """OMatG-IRL's name of the parameter that is called ``name`` here."""
    if name.startswith("trunk."):
        return f"_{name}"
    _, field, layer, kind = name.split(".")
    if annealing.arguments["shared_trunk"]:
        return f"_{field}_head.{kind}"
    return f"_{field}_mlp.{layer}.{kind}"


def _rename(name):
    name = re.sub(r"^_(pos|cell)_head\.", r"heads.\1.0.", name)
    name = re.sub(r"^_(pos|cell)_mlp\.", r"heads.\1.", name)
    return re.sub(r"^_trunk\.", "trunk.", name)
