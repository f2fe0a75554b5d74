"""Downloading published models; the network is played by a stand-in."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

import irlkit
from irlkit.networks.omatg import download

NAME = "omatg/MP-20-CSP/Linear-ODE"
YAML = """
model:
  si:
    class_path: omg.si.StochasticInterpolants
    init_args:
      stochastic_interpolants:
        - {class_path: omg.si.SingleStochasticInterpolantIdentity}
        - class_path: omg.si.SingleStochasticInterpolant
          init_args: &ode
            interpolant: omg.si.PeriodicLinearInterpolant
            differential_equation_type: ODE
            integrator_kwargs: {method: euler}
        - class_path: omg.si.SingleStochasticInterpolant
          init_args: {<<: *ode, interpolant: omg.si.LinearInterpolant}
      integration_time_steps: 5
  sampler:
    class_path: omg.sampler.IndependentSampler
    init_args:
      cell_distribution:
        class_path: omg.InformedLatticeDistribution
        init_args: {dataset_name: mp_20}
  model:
    class_path: omg.Model
    init_args:
      encoder:
        class_path: omg.CSPNetFull
        init_args: {hidden_dim: 8, num_layers: 1, num_freqs: 2}
      head: {class_path: omg.PassThrough}
      time_embedder: {class_path: omg.SinusoidalTimeEmbeddings, init_args: {dim: 8}}
"""


def place(folder):
    folder.mkdir(parents=True)
    network = irlkit.networks.cspnet.CSPNet(8, 1, 2, 8, denoiser=True)
    state = {f"model.encoder.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state}, folder / "checkpoint.ckpt")
    (folder / "config.yaml").write_text(YAML)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A client of the hub: `hub.publish` says what a download brings."""
    cache = tmp_path / "hub"
    snapshot = cache / "models--OMatG--MP-20-CSP" / "snapshots" / "abc"
    asked = []

    def snapshot_download(repository, allow_patterns):
        asked.append((repository, allow_patterns))
        hub.publish(snapshot)
        return str(snapshot)

    module = ModuleType("huggingface_hub")
    module.snapshot_download = snapshot_download
    constants = ModuleType("huggingface_hub.constants")
    constants.HF_HUB_CACHE = str(cache)
    module.constants = constants
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", constants)
    monkeypatch.setenv("IRLKIT_CACHE", str(tmp_path / "mine"))
    hub = SimpleNamespace(
        publish=lambda folder: place(folder / "Linear-ODE"), asked=asked, snapshot=snapshot
    )
    return hub


def test_download(hub, capsys):
    assert download.main([NAME]) == 0
    output = capsys.readouterr().out
    assert output.splitlines()[0] == (
        f"{NAME}: downloading from https://huggingface.co/OMatG/MP-20-CSP, folder Linear-ODE, "
        f"to {hub.snapshot.parents[2]}"
    )
    assert str(hub.snapshot / "Linear-ODE") in output
    ((repository, patterns),) = hub.asked
    assert repository == "OMatG/MP-20-CSP"
    assert "Linear-ODE/*.ckpt" in patterns and "Linear-ODE/*.yaml" in patterns
    # The second time nothing is asked of the network.
    assert download.download(NAME) == hub.snapshot / "Linear-ODE"
    assert len(hub.asked) == 1
    assert "nothing downloaded" in capsys.readouterr().out


def test_loading_by_name(hub):
    pytest.importorskip("yaml")
    with pytest.raises(FileNotFoundError, match=rf"Run `irlkit download {NAME}`, or on a"):
        irlkit.load_omatg(NAME)
    download.download(NAME)
    model = irlkit.load_omatg(NAME)
    assert model.info["name"] == "Linear-ODE"
    assert len(hub.asked) == 1


def test_files_placed_by_hand_come_first(hub, tmp_path, capsys):
    folder = place(tmp_path / "mine" / NAME)
    assert download.download(NAME) == folder == download.find_downloaded(NAME)
    assert hub.asked == []
    assert f"already in {folder}" in capsys.readouterr().out


def test_offline_says_what_to_place_where(hub, tmp_path, capsys):
    def fail(folder):
        raise OSError("Name or service not known\nand many more lines")

    hub.publish = fail
    assert download.main([NAME]) == 1
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 1
    assert "(OSError: Name or service not known). Without a connection" in output.err
    assert "https://huggingface.co/OMatG/MP-20-CSP/tree/main/Linear-ODE" in output.err
    assert f"place both in {tmp_path / 'mine' / NAME}" in output.err
    # What the message says works.
    place(tmp_path / "mine" / NAME)
    assert download.main([NAME]) == 0


def test_a_model_that_is_not_published(hub):
    hub.publish = lambda folder: None
    with pytest.raises(ConnectionError, match="has no folder 'Linear-ODE' with a checkpoint"):
        download.download(NAME)


def test_without_the_client(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", None)
    with pytest.raises(ImportError, match=r"pip install 'irlkit\[download\]', or on a machine"):
        download.download(NAME)


@pytest.mark.parametrize("name", ["Linear-ODE", "omatg/a", "other/a/b", "omatg/../x", "omatg/a/.."])
def test_names(name):
    with pytest.raises(ValueError, match="name: expected omatg/<repository>/<model>"):
        download.download(name)
