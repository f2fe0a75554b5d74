"""Published models as small as they can be: real configurations, random weights."""

from pathlib import Path

import torch

from irlkit.networks.cspnet import CSPNet
from irlkit.networks.omatg import read_config

GOLDENS = Path(__file__).parent / "goldens"
SIZES = {"hidden_dim": 8, "num_layers": 1, "num_freqs": 3}


def write_model(folder, kind="linear_ode"):
    """Write checkpoint and configuration of a published model's kind; returns the folder."""
    import yaml

    config = yaml.safe_load((GOLDENS / f"omatg_{kind}.yaml").read_text())
    model = config["model"]["model"]["init_args"]
    model["encoder"]["init_args"] = SIZES
    model["time_embedder"]["init_args"]["dim"] = 8
    folder.mkdir(parents=True)
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = CSPNet(**read_config(config).network, denoiser=True)
    state = {f"model.encoder.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 1, "global_step": 2}, folder / "model.ckpt")
    return folder
