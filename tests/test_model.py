"""Models: saving, loading, shipped checkpoints, base samples and their errors."""

import json

import pytest
import torch
from safetensors.torch import save_file

import irlkit
from irlkit import data as datasets
from irlkit.evaluate.metrics import MatchPool, evaluate
from irlkit.flows.base_distribution import BaseDistribution
from irlkit.flows.interpolants import Interpolant
from irlkit.flows.schedules import ConstantNoise, LinearAnnealing
from irlkit.networks.cspnet import CSPNet
from irlkit.networks.flow_model import FlowModel
from irlkit.networks.pretrained import PRETRAINED
from irlkit.pretraining import KINDS
from irlkit.rl.policies import VelocityPolicy
from tests.tiny_omatg import write_model
from tests.toys import integrate


@pytest.fixture
def model():
    torch.manual_seed(0)
    return FlowModel(
        CSPNet(8, 2, 3, 8, denoiser=True),
        KINDS["trig-sde-gamma"],
        BaseDistribution((1.5, 1.5, 1.7), (0.2, 0.2, 0.2)),
        {"name": "tiny"},
    )


def test_what_json_cannot_hold_is_not_saved(model, tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(ValueError, match=r"metadata .* must be what JSON can hold"):
        VelocityPolicy(model, noise={"cell": ConstantNoise(1.0)}).save(path, {"bad": object()})
    assert not path.exists()


def test_saved_model_computes_the_same(model, small_batch, tmp_path):
    batch = small_batch.to(dtype=torch.float32)
    model.save(tmp_path / "m.safetensors")
    loaded = irlkit.load_pretrained(tmp_path / "m.safetensors")
    assert loaded.info == {"name": "tiny"}
    assert loaded.interpolants == model.interpolants
    assert loaded.has_denoiser == ("pos",)
    outputs = [
        m.velocity(0.3, batch.pos, batch.cell, m.prepare(batch), ("velocity", "denoiser"))
        for m in (model, loaded)
    ]
    for field in ("pos", "cell"):
        assert torch.equal(outputs[0].velocity[field], outputs[1].velocity[field])
        assert torch.equal(outputs[0].denoiser[field], outputs[1].denoiser[field])


def test_pair_features_can_be_shared(model, small_batch):
    batch = small_batch.to(dtype=torch.float32)
    conditioning = model.prepare(batch)
    features = model.pair_features(batch.pos, conditioning)
    plain, shared = (
        model.velocity(0.3, batch.pos, batch.cell, conditioning, features=given).velocity
        for given in (None, features)
    )
    assert torch.equal(plain["pos"], shared["pos"]) and torch.equal(plain["cell"], shared["cell"])


def test_base_sample_is_seeded_and_keeps_compositions(model, small_batch):
    first, second = (
        model.sample_base(small_batch, torch.Generator().manual_seed(5)) for _ in range(2)
    )
    assert torch.equal(first.pos, second.pos) and torch.equal(first.cell, second.cell)
    assert torch.equal(first.species, small_batch.species)
    assert bool((first.volume > 0).all())


def test_gamma_only_where_there_is_latent_noise(model):
    t = torch.tensor([0.5])
    assert float(model.gamma("pos", t)) == pytest.approx((0.049242906 / 4) ** 0.5)
    with pytest.raises(ValueError, match="interpolant of 'cell' has no latent noise"):
        model.gamma("cell", t)


def test_interpolants_of_both_fields_are_needed(model):
    with pytest.raises(ValueError, match="interpolants: expected those of 'pos' and 'cell'"):
        FlowModel(model.network, {"pos": Interpolant()}, model.base)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a checkpoint at all", "is not a safetensors checkpoint"),
        (b"", "is not a safetensors checkpoint"),
        ("no metadata", "not a model of this package"),
        ("other format", "format 'something-else'"),
        ("missing tensor", "do not fit its description"),
    ],
)
def test_broken_checkpoints(content, message, model, tmp_path):
    path = tmp_path / "broken.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "no metadata":
        save_file({"a": torch.zeros(1)}, path)
    elif content == "other format":
        save_file({}, path, metadata={"irlkit": json.dumps({"format": "something-else"})})
    else:
        model.save(path)
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {k: file.get_tensor(k) for k in file.keys()}
        tensors.pop("network.coord_out.weight")
        save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match=message):
        irlkit.load_pretrained(path)


def test_unknown_name_lists_the_shipped_models():
    with pytest.raises(FileNotFoundError, match="neither a file nor one of the models in the"):
        irlkit.load_pretrained("no-such-model")


def test_shipped_models_load_and_say_how_they_were_made():
    for name in ("linear-ode", "trig-sde-gamma", "denovo-mask"):
        shipped = irlkit.load_pretrained(name)
        assert shipped.info["dataset"] == "prototypes"
        assert shipped.info["config"]["kind"] == name
        assert shipped.interpolants == KINDS[name]
        cards = [path.read_text(encoding="utf-8") for path in PRETRAINED.glob("*.md")]
        assert any(name in card for card in cards)


def test_shipped_model_predicts_structures():
    """Well below what its card says, for a few structures and steps."""
    model = irlkit.load_pretrained("linear-ode")
    test = datasets.load("prototypes", split="test").subset(64)
    generated = integrate(
        model,
        test.batch,
        50,
        annealing=LinearAnnealing(5.0, 1.0),
        generator=torch.Generator().manual_seed(0),
    )
    with MatchPool(n_workers=0) as pool:
        metrics = evaluate(generated, test, pool)
    assert metrics.metre > 0.6 and metrics.crmse < 0.28


def test_checkpoints_of_omatg_load_by_name_path_and_folder(tmp_path, monkeypatch):
    """What notebooks call `checkpoint` may be a published model, too."""
    pytest.importorskip("yaml")
    monkeypatch.setenv("IRLKIT_CACHE", str(tmp_path))
    folder = write_model(tmp_path / "omatg" / "MP-20-CSP" / "Linear-ODE")
    (checkpoint,) = folder.glob("*.ckpt")
    for given in ("omatg/MP-20-CSP/Linear-ODE", checkpoint, folder):
        loaded = irlkit.load_pretrained(given)
        assert loaded.info["source"] == "OMatG" and not loaded.training
    with pytest.raises(FileNotFoundError, match="download omatg/MP-20-CSP/Other"):
        irlkit.load_pretrained("omatg/MP-20-CSP/Other")
    with pytest.raises(FileNotFoundError, match=r"no file at .*none\.ckpt"):
        irlkit.load_pretrained(folder / "none.ckpt")


def test_shipped_model_of_species_generates():
    """Bounds below what its card says: valid structures, some of them of the training split."""
    from irlkit.data import load
    from irlkit.pretraining import denovo_evaluation

    training = load("prototypes", "train", progress=False)
    model = irlkit.load_pretrained("denovo-mask")
    found = denovo_evaluation(training, 96, 10)(model)
    assert found["validation_valid"] > 0.9 and found["validation_unique"] > 0.9
    assert 0.5 < found["validation_novel"] < 0.97
    assert set(training.batch.species.tolist()) == set(model.species.elements)
