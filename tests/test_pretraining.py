"""Training: losses against their definition, reproducibility, resume, errors."""

import os
from dataclasses import replace

import pandas as pd
import pytest
import torch

from irlkit.crystals import CrystalBatch
from irlkit.data import CrystalDataset
from irlkit.flows.interpolants import center, time_derivative
from irlkit.pretraining import (
    KINDS,
    PretrainingConfig,
    build_model,
    interpolant_losses,
    metre_evaluation,
    pretrain,
    total_loss,
)
from irlkit.utils.packing import pack, unpack

TINY = {
    "hidden_dim": 12,
    "n_layers": 2,
    "n_freqs": 3,
    "time_dim": 8,
    "batch_size": 8,
    "iterations": 6,
    "validate_every": 3,
    "warmup": 2,
}


@pytest.fixture
def dataset():
    generator = torch.Generator().manual_seed(0)
    n_atoms = torch.tensor([1, 2, 2, 3, 1, 2])
    n = int(n_atoms.sum())
    batch = CrystalBatch(
        torch.randint(1, 20, (n,), generator=generator),
        torch.rand(n, 3, generator=generator),
        (4 * torch.eye(3) + torch.rand(6, 3, 3, generator=generator)),
        n_atoms,
    ).standard_orientation()
    table = pd.DataFrame(
        {
            "material_id": [f"t{i}" for i in range(6)],
            "formula": batch.reduced_formulas(),
            "n_atoms": n_atoms.numpy(),
        }
    )
    return CrystalDataset("toy", None, batch, table)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("kind", ["linear-ode", "trig-sde-gamma", "denovo-mask", "denovo-uniform"])
def test_loss_falls_on_one_batch(kind, dataset):
    config = PretrainingConfig(kind=kind, **(TINY | {"iterations": 150, "learning_rate": 3e-3}))
    model = pretrain(dataset, config, progress=False)

    def loss(m):
        generator = torch.Generator().manual_seed(9)
        with torch.no_grad():
            draws = [
                total_loss(interpolant_losses(m, dataset.batch, generator), config)
                for _ in range(20)
            ]
        return float(torch.stack(draws).mean())

    assert loss(model) < 0.9 * loss(build_model(dataset, config))
    assert model.info["dataset"] == "toy" and model.info["n_train"] == 6


def test_velocity_target_has_no_center_of_mass_motion(dataset):
    """A structure of one atom has a zero target, so a zero velocity has no position loss."""
    config = PretrainingConfig(**TINY)
    model = build_model(dataset, config)
    torch.nn.init.zeros_(model.network.coord_out.weight)
    ones = dataset.batch.select(dataset.batch.n_atoms == 1)
    loss = interpolant_losses(model, ones, torch.Generator().manual_seed(0))
    assert float(loss["velocity_pos"].detach()) == 0.0
    assert float(loss["velocity_cell"].detach()) > 0.0


def test_antithetic_losses_follow_their_definition(dataset, monkeypatch):
    """z is read off the two states; with a zero velocity the mixed terms of +z and -z cancel."""
    config = PretrainingConfig(kind="trig-sde-gamma", **TINY)
    model = build_model(dataset, config).double()
    torch.nn.init.zeros_(model.network.coord_out.weight)
    batch = dataset.batch.to(dtype=torch.float64)
    velocity, calls = model.velocity, []

    def record(t, pos, cell, conditioning, heads):
        output = velocity(t, pos, cell, conditioning, heads)
        calls.append((t, pos, cell, output))
        return output

    monkeypatch.setattr(model, "velocity", record)
    with torch.no_grad():
        loss = interpolant_losses(model, batch, torch.Generator().manual_seed(0))
    (t, plus, cell, first), (_, minus, same_cell, second) = calls
    assert torch.equal(cell, same_cell)
    t = t[batch.batch][:, None]
    difference = plus - minus
    z = (difference - difference.round()) / (2 * model.gamma("pos", t))
    assert 0.5 < float(z.std()) < 1.5
    denoiser = 0.5 * sum(
        (output.denoiser["pos"] - sign * z).square().mean()
        for sign, output in ((1, first), (-1, second))
    )
    assert {name for name in loss if "denoiser" in name} == {"denoiser_pos"}
    torch.testing.assert_close(loss["denoiser_pos"], denoiser)

    model.interpolants["pos"] = replace(model.interpolants["pos"], gamma=None)
    with torch.no_grad():
        noiseless = interpolant_losses(model, batch, torch.Generator().manual_seed(0))
    extra = center(
        time_derivative(KINDS["trig-sde-gamma"]["pos"].gamma, t) * z, batch.batch, batch.n_atoms
    )
    torch.testing.assert_close(
        loss["velocity_pos"], noiseless["velocity_pos"] + extra.square().mean()
    )


def test_same_seed_same_bits_and_resume_equals_no_stop(dataset, tmp_path):
    config = PretrainingConfig(kind="trig-sde-gamma", **TINY)
    plain = pretrain(dataset, config, progress=False)
    again = pretrain(dataset, config, progress=False)
    assert torch.equal(weights(plain), weights(again))

    class Stop(Exception):
        pass

    def stop_at_first_validation(model):
        if not stopped:
            stopped.append(True)
            return {"metre": 0.5}
        raise Stop

    stopped: list[bool] = []
    with pytest.raises(Stop):
        pretrain(
            dataset, config, progress=False, out_dir=tmp_path, evaluate=stop_at_first_validation
        )
    assert (tmp_path / "checkpoint.pt").exists()
    resumed = pretrain(dataset, config, progress=False, out_dir=tmp_path)
    assert torch.equal(weights(plain), weights(resumed))
    history = pd.read_parquet(tmp_path / "history.parquet")
    assert history["iteration"].tolist() == [3, 6]
    assert history["metre"][0] == 0.5


def test_packing_keeps_every_bit():
    tree = {
        "weights": {"a": torch.randn(2, 3), "b": torch.tensor(2.0)},
        "states": [(torch.arange(4), None), {0: torch.empty(0, 3), "text": (0.9, "x")}],
        "halves": torch.randn(3, 2).bfloat16().T,
    }
    packed, tensors = pack(tree)
    assert tensors.keys() == {"float32", "int64", "bfloat16"}
    unpacked = unpack(packed, tensors)
    torch.testing.assert_close(unpacked["weights"], tree["weights"], rtol=0, atol=0)
    assert torch.equal(unpacked["states"][0][0], tree["states"][0][0])
    assert unpacked["states"][0][1] is None
    assert unpacked["states"][1][0].shape == (0, 3)
    assert unpacked["states"][1]["text"] == (0.9, "x")
    assert torch.equal(unpacked["halves"], tree["halves"])
    before = tree["weights"]["a"].clone()
    tensors["float32"].zero_()
    unpacked["weights"]["a"].zero_()
    assert torch.equal(tree["weights"]["a"], before), "no memory is shared"
    with pytest.raises(ValueError, match="tensors of int64 are missing"):
        unpack(packed, {k: v for k, v in tensors.items() if k != "int64"})
    with pytest.raises(ValueError, match="more tensors than"):
        unpack(packed, {**tensors, "float64": torch.zeros(1)})


def test_errors(dataset, tmp_path):
    with pytest.raises(ValueError, match="kind must be one of"):
        PretrainingConfig(kind="no-such-kind")
    for setting, message in (
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number above 0, got nan"),
        ({"warmup": -1}, "warmup must be at least 0, got -1"),
        ({"ema_decay": 1.0}, "ema_decay must be below 1, got 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            PretrainingConfig(**setting)
    with pytest.raises(ValueError, match="dataset: training needs two structures or more, got 1"):
        pretrain(dataset.select([0]), PretrainingConfig(**TINY), progress=False)
    for content in (b"", b"garbage", [1, 2], {"weights": torch.zeros(2)}, {"config": os.system}):
        if isinstance(content, bytes):
            (tmp_path / "checkpoint.pt").write_bytes(content)
        else:  # The last one holds code, which must not be run.
            torch.save(content, tmp_path / "checkpoint.pt")
        with pytest.raises(ValueError, match="is not a pretraining checkpoint"):
            pretrain(dataset, PretrainingConfig(**TINY), progress=False, out_dir=tmp_path)
    (tmp_path / "checkpoint.pt").unlink()
    pretrain(dataset, PretrainingConfig(**TINY), progress=False, out_dir=tmp_path)
    others = dataset.select(range(len(dataset) - 1))
    with pytest.raises(ValueError, match="belongs to a run with another dataset"):
        pretrain(others, PretrainingConfig(**TINY), progress=False, out_dir=tmp_path)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del content["about"]  # As before it was there.
    torch.save(content, tmp_path / "checkpoint.pt")
    pretrain(dataset, PretrainingConfig(**TINY), progress=False, out_dir=tmp_path)
    with pytest.raises(ValueError, match="belongs to a run with other settings"):
        pretrain(
            dataset,
            PretrainingConfig(**(TINY | {"hidden_dim": 8})),
            progress=False,
            out_dir=tmp_path,
        )


def test_command_line_trains_validates_and_continues(tmp_path, capsys, monkeypatch):
    from irlkit.pretraining import __main__ as pretraining

    monkeypatch.setitem(
        pretraining.CONFIGS, "linear-ode", lambda **k: PretrainingConfig(**(TINY | k))
    )
    monkeypatch.setattr(
        pretraining,
        "metre_evaluation",
        lambda validation: metre_evaluation(validation, n_structures=4, n_steps=2),
    )
    arguments = ["--out-dir", str(tmp_path), "--iterations", "4", "--batch-size", "8"]
    for _ in range(2):
        pretraining.main([*arguments, "--validate-every", "2"])
        assert "model.safetensors" in capsys.readouterr().out
    history = pd.read_parquet(tmp_path / "history.parquet")
    assert history["iteration"].tolist() == [2, 4]
    assert history["validation_metre"].between(0, 1).all()
    assert history["validation_crmse"].between(0, 0.5).all()


def test_command_line_trains_both_stages_of_latent_diffusion(tmp_path, capsys, monkeypatch):
    from irlkit.networks.autoencoder import Autoencoder
    from irlkit.networks.latent_diffusion import LatentDiffusion
    from irlkit.pretraining import __main__ as pretraining

    small = {"width": 16, "n_layers": 1, "n_heads": 2}
    for kind in ("autoencoder", "latent-diffusion"):
        monkeypatch.setitem(pretraining.LARGE, kind, small)
        monkeypatch.setattr(pretraining, "sample_evaluation", lambda training: lambda model: {})
        out = ["--out-dir", str(tmp_path / kind), "--kind", kind, "--large"]
        first = tmp_path / "autoencoder" / "model.safetensors"
        more = ["--autoencoder", str(first), "--target", "band-gap"] if kind[0] == "l" else []
        pretraining.main([*out, *more, "--iterations", "2", "--batch-size", "8"])
        assert "2 iterations" in capsys.readouterr().out
    assert Autoencoder.load(first).sizes["width"] == 16
    model = LatentDiffusion.load(tmp_path / "latent-diffusion" / "model.safetensors")
    mean, std = model.network.target_scale.tolist()
    assert 0 < mean < std < 5 and model.info["target"] == "band-gap"
