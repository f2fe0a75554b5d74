"""Autoencoder and diffusion of latents: what they compute, learn, keep and refuse."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from irlkit.crystals import CrystalBatch, validity
from irlkit.crystals.batch import wrap_positions
from irlkit.data import CrystalDataset, load
from irlkit.networks import composition
from irlkit.networks._transformer import Slots
from irlkit.networks.autoencoder import Autoencoder, reconstruction_losses, shifted
from irlkit.networks.flow_model import FlowModel
from irlkit.networks.latent_diffusion import (
    N_TIMES,
    DiffusionTransformer,
    LatentDiffusion,
    denoised,
    signal,
)
from irlkit.networks.pretrained import load_pretrained
from irlkit.pretraining.latent import (
    AutoencoderConfig,
    DiffusionConfig,
    pretrain_autoencoder,
    pretrain_diffusion,
    reconstruction_evaluation,
    sample_evaluation,
)
from tests.toys import crystals, flow_model

TINY = {
    "width": 16,
    "n_layers": 1,
    "n_heads": 2,
    "batch_size": 8,
    "iterations": 6,
    "warmup": 2,
    "validate_every": 3,
}


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def autoencoder(latent_dim=8, seed=0):
    torch.manual_seed(seed)
    return Autoencoder(16, 1, 2, latent_dim).double()


def diffusion(seed=0, max_atoms=5):
    torch.manual_seed(seed)
    network = DiffusionTransformer(8, max_atoms, 16, 2, 2)
    for p in network.parameters():  # Else all that follows from adaLN-zero would be 0.
        torch.nn.init.normal_(p, std=0.2)
    return LatentDiffusion(autoencoder(), network.double(), 1.5, {"seed": seed})


@pytest.fixture(scope="module")
def dataset():
    batch = crystals((1, 2, 2, 3, 1, 2), torch.float32).standard_orientation()
    table = pd.DataFrame({"formula": batch.reduced_formulas(), "n_atoms": batch.n_atoms.numpy()})
    return CrystalDataset("toy", None, batch, table.assign(material_id=list("abcdef")))


def outputs(model, batch):
    """What both networks make of a batch: latents, and what they stand for."""
    with torch.no_grad():
        mean, std = model.encode(batch)
        return mean, std, model.decode(mean, batch.n_atoms)


# --- invariances ---


def test_structures_do_not_see_each_other():
    model, batch = autoencoder(), crystals()
    mean, std, decoded = outputs(model, batch)
    starts = (batch.n_atoms.cumsum(0) - batch.n_atoms).tolist()
    for i, start in enumerate(starts):
        atoms = slice(start, start + int(batch.n_atoms[i]))
        alone = outputs(model, batch[i])
        torch.testing.assert_close(alone[0], mean[atoms])
        torch.testing.assert_close(alone[1], std[atoms])
        torch.testing.assert_close(alone[2].species, decoded.species[atoms])
        torch.testing.assert_close(alone[2].lengths, decoded.lengths[i : i + 1])


def test_the_order_of_atoms_means_nothing():
    model, network = autoencoder(), diffusion().network
    batch = crystals((5,))
    order = torch.tensor([3, 0, 4, 1, 2])
    turned = CrystalBatch(batch.species[order], batch.pos[order], batch.cell, batch.n_atoms)
    mean, _, decoded = outputs(model, batch)
    other, _, again = outputs(model, turned)
    torch.testing.assert_close(other, mean[order])
    torch.testing.assert_close(again.pos, decoded.pos[order])
    torch.testing.assert_close(again.angles, decoded.angles)
    t, slots = torch.tensor([300.0]), Slots.from_n_atoms(batch.n_atoms)
    torch.testing.assert_close(network(mean[order], t, slots), network(mean, t, slots)[order])


def test_positions_are_periodic():
    """0 and 1 are one place: to the encoder, to the loss, and to what is decoded."""
    model, batch = autoencoder(), crystals()
    moved = batch.replace(pos=batch.pos + torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(model.encode(moved)[0], model.encode(batch)[0])
    losses = [reconstruction_losses(model, b, draws())["pos"] for b in (batch, moved)]
    torch.testing.assert_close(*losses)
    plain = [reconstruction_losses(model, b, draws(), periodic=False) for b in (batch, moved)]
    assert float(plain[1]["pos"]) > float(plain[0]["pos"]) + 0.5
    made = model.crystals(torch.randn(11, 8, generator=draws(), dtype=torch.float64), batch.n_atoms)
    assert bool(((made.pos >= 0) & (made.pos < 1)).all())


def test_the_loss_of_positions_is_that_of_coordinates_for_small_errors():
    """(2 pi)^-2 |v - v'|^2 of unit vectors is (x - x')^2, up to the fourth order."""
    model, batch = autoencoder(), crystals()
    error = 0.003
    decode = model.decode

    def nearly_exact(latent, n_atoms):
        decoded = decode(latent, n_atoms)
        angle = 2 * math.pi * (batch.pos + error)
        vectors = torch.stack([angle.cos(), angle.sin()], 2)
        return type(decoded)(decoded.species, vectors, decoded.lengths, decoded.angles)

    model.decode = nearly_exact
    losses = [
        reconstruction_losses(model, batch, draws(), periodic=periodic)["pos"].item()
        for periodic in (True, False)
    ]
    np.testing.assert_allclose(losses[0], error**2, rtol=1e-3)
    inside = batch.pos < 1 - error  # Where the plain error does not jump.
    assert bool(inside.all())
    np.testing.assert_allclose(losses[1], error**2, rtol=1e-9)


def test_shifted_crystals_are_the_same_crystals():
    batch = crystals()
    moved = shifted(batch, draws())
    change = wrap_positions(moved.pos - batch.pos)
    first = change[batch.n_atoms.cumsum(0) - batch.n_atoms]
    difference = change - first[batch.batch]
    torch.testing.assert_close(difference, difference.round(), atol=1e-12, rtol=0)
    assert not torch.allclose(first[0], first[1])
    assert torch.equal(moved.cell, batch.cell)


def test_kl_agrees_with_torch_distributions():
    model, batch = autoencoder(), crystals()
    normal = torch.distributions.Normal(*model.encode(batch))
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
    found = reconstruction_losses(model, batch, draws())["kl"]
    torch.testing.assert_close(found, expected.sum(1).mean())


def test_latents_far_away_give_crystals_and_no_exception():
    from irlkit.crystals import validity

    n_atoms = torch.tensor([2, 3])
    for scale in (1.0, 1e3, 1e30):
        latent = scale * torch.randn(5, 8, generator=draws(), dtype=torch.float64)
        made = autoencoder().crystals(latent, n_atoms)
        assert made.species.min() >= 1 and len(validity.check(made).valid) == 2


# --- learning ---


def test_a_tiny_autoencoder_learns_a_few_crystals():
    train = load("prototypes", "train", max_atoms=3)
    few = train.select(np.arange(0, 240, 30))
    before = reconstruction_evaluation(few)(autoencoder().float())
    settings = {**TINY, "width": 32, "iterations": 250, "learning_rate": 1e-2, "ema_decay": 0.98}
    config = AutoencoderConfig(**settings | {"validate_every": 250, "augment": False})
    model = pretrain_autoencoder(few, config, progress=False)
    after = reconstruction_evaluation(few)(model)
    assert before["validation_recovered"] <= 0.2 and after["validation_recovered"] >= 0.75
    assert after["validation_species"] >= after["validation_recovered"]


def test_the_shipped_autoencoder_recovers_structures_that_it_has_not_seen():
    """Of the test split at least 90 %, also when shifted; an untrained network none."""
    model, untrained = Autoencoder.load("chemeleon-vae"), autoencoder().float()
    test = load("prototypes", "test").subset(200)
    moved = CrystalDataset("moved", None, shifted(test.batch, draws()), test.table)
    for references in (test, moved):
        found = reconstruction_evaluation(references)
        assert found(model)["validation_recovered"] >= 0.9
        assert found(untrained)["validation_recovered"] < 0.02
    assert model.info["n_train"] == 6495 and model.info["seen"]["max_atoms"] == 12


def stopped_and_continued(train, evaluate, tmp_path):
    """A run that is stopped and started again gives the bits of one that never was."""
    whole = train(None, None)

    def stop(model):
        raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="stopped after"):
        train(tmp_path, stop)
    resumed = train(tmp_path, evaluate)
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    history = pd.read_parquet(tmp_path / "history.parquet")
    assert history["iteration"].tolist() == [3, 6]
    assert {"validation_loss", "loss"} <= set(history.columns)
    return resumed, history


def test_training_of_the_autoencoder_continues(dataset, tmp_path):
    def train(folder, evaluate):
        return pretrain_autoencoder(
            dataset,
            AutoencoderConfig(**TINY),
            validation=dataset,
            evaluate=evaluate,
            out_dir=folder,
            progress=False,
        )

    model, history = stopped_and_continued(train, reconstruction_evaluation(dataset), tmp_path)
    assert "validation_recovered" in history.columns
    again = Autoencoder.load(tmp_path / "model.safetensors")
    assert again.info["seen"]["max_atoms"] == 3 and again.sizes == model.sizes
    torch.testing.assert_close(again.encode(dataset.batch), model.encode(dataset.batch))


def test_training_of_the_diffusion_continues(dataset, tmp_path):
    frozen = autoencoder().float()
    before = [p.clone() for p in frozen.parameters()]

    def train(folder, evaluate):
        return pretrain_diffusion(
            dataset,
            frozen,
            DiffusionConfig(**TINY),
            validation=dataset,
            evaluate=evaluate,
            out_dir=folder,
            progress=False,
        )

    model, history = stopped_and_continued(train, sample_evaluation(dataset, 8, 3), tmp_path)
    assert "validation_valid" in history.columns
    for ours, theirs in zip(frozen.parameters(), before, strict=True):
        assert torch.equal(ours, theirs)
    mean, _ = frozen.encode(dataset.batch)
    np.testing.assert_allclose(model.scale, float(mean.std()), rtol=0.02)
    again = LatentDiffusion.load(tmp_path / "model.safetensors")
    request = torch.tensor([1, 3, 2])
    ours, theirs = (m.generate(request, 3, generator=draws()) for m in (again, model))
    assert torch.equal(ours.species, theirs.species) and torch.equal(ours.pos, theirs.pos)


def test_a_time_at_the_end_of_the_range_is_the_last(dataset, monkeypatch):
    almost_one = 1 - 2**-24
    monkeypatch.setattr(torch, "rand", lambda n, generator=None: torch.full((n,), almost_one))
    assert (torch.arange(6) + torch.rand(6)).max() / 6 == 1, "it is rounded up"
    losses = diffusion().losses(dataset.batch.to(dtype=torch.float64), draws())
    assert bool(losses["noise"].isfinite())


def test_a_run_with_another_autoencoder_target_or_data_is_no_continuation(dataset, tmp_path):
    def train(data=dataset, seed=0, target=None):
        model = autoencoder(seed=seed).float()
        options = {"target": target, "out_dir": tmp_path, "progress": False}
        return pretrain_diffusion(data, model, DiffusionConfig(**TINY), **options)

    train()
    with pytest.raises(ValueError, match="a run with another autoencoder"):
        train(seed=1)
    with pytest.raises(ValueError, match="a run with another target"):
        train(target=torch.arange(6))
    moved = dataset.batch.replace(pos=wrap_positions(dataset.batch.pos + 0.1))
    with pytest.raises(ValueError, match="a run with another dataset"):
        train(CrystalDataset("moved", None, moved, dataset.table))


def test_the_loss_of_the_diffusion_falls(dataset):
    settings = {**TINY, "iterations": 80, "learning_rate": 1e-2, "ema_decay": 0.9}
    config = DiffusionConfig(**settings, augment=False)
    model = pretrain_diffusion(dataset, autoencoder().float(), config, progress=False)
    generator = draws(3)
    loss = np.mean([float(model.losses(dataset.batch, generator)["noise"]) for _ in range(20)])
    assert loss < 0.85  # 1 is that of predicting nothing.


def test_a_model_that_is_told_a_property_generates_what_it_was_told(dataset):
    """A toy whose property is the number of an element: guided samples differ, told ones follow."""
    target = (dataset.batch.n_atoms > 1).double()
    target[0] = torch.nan
    config = DiffusionConfig(**{**TINY, "iterations": 3})
    model = pretrain_diffusion(
        dataset, autoencoder().float(), config, target=target, progress=False
    )
    known = target[1:]
    spread = torch.stack([known.mean(), known.std(correction=0)]).float()
    torch.testing.assert_close(model.network.target_scale, spread)
    with torch.no_grad():
        for p in model.network.parameters():
            p.copy_(torch.randn(p.shape, generator=draws(1)) * 0.2)
    x, slots = torch.randn(5, 8, generator=draws()), Slots.from_n_atoms(torch.tensor([2, 3]))
    t, nan = torch.tensor([300.0, 300.0]), torch.nan
    free = model.network(x, t, slots)
    half = model.network(x, t, slots, torch.tensor([1.0, nan]))
    torch.testing.assert_close(half[2:], free[2:])
    assert not torch.allclose(half[:2], free[:2])
    told = torch.tensor([1.0, nan])
    for guidance in (0.0, 0.5, 1.0, 3.0):
        found = model._guided(x, t, slots, told, guidance)
        torch.testing.assert_close(found, free + guidance * (half - free))
    request = torch.tensor([1, 3, 2])

    def made(**options):
        return model.generate(request, 3, generator=draws(), max_batch=2, **options).pos

    assert torch.equal(made(), made(target=1.0, guidance=0.0))
    assert torch.equal(made(target=1.0), made(target=torch.ones(3)))
    assert not torch.equal(made(), made(target=1.0))


# --- steps ---


def test_steps_of_ddim_agree_with_their_definition():
    """At eta = 1 they are the posterior q(x_s | x_t, z) of the diffusion; at 0 none has noise."""
    x, eps = torch.randn(2, 7, 8, generator=draws(), dtype=torch.float64)
    t, s = torch.tensor(400.0), torch.tensor(350.0)
    here, there = signal(t), signal(s)
    z = (x - (1 - here).sqrt() * eps) / here.sqrt()
    alpha = here / there  # Of the step from s to t.
    mean = (there.sqrt() * (1 - alpha) * z + alpha.sqrt() * (1 - there) * x) / (1 - here)
    found, std = denoised(x, eps, t, s, 1.0)
    torch.testing.assert_close(found, mean)
    torch.testing.assert_close(std, ((1 - there) / (1 - here) * (1 - alpha)).sqrt())
    assert float(denoised(x, eps, t, s, 0.0)[1]) == 0
    end, nothing = denoised(x, eps, t, torch.tensor(-1.0), 1.0)
    torch.testing.assert_close(end, z)
    assert float(nothing) == 0


def test_times_fall_from_noise_to_the_last_step():
    times = diffusion().times(49)
    assert len(times) == 50 and float(times[0]) == N_TIMES - 1 and float(times[-1]) == 19
    assert bool((times.diff() < 0).all())


# --- what is refused ---


def test_errors(tmp_path, dataset):
    model = diffusion()
    with pytest.raises(ValueError, match=r"at most 5, the largest cells .* got 7"):
        model.generate(torch.tensor([2, 7]), generator=draws())
    for wrong in ([0], [], [2.0], [[2]]):
        with pytest.raises(ValueError, match="n_atoms must be whole numbers of atoms"):
            model.generate(torch.tensor(wrong), generator=draws())
    with pytest.raises(ValueError, match="max_batch must be at least 1, got -1"):
        model.generate(torch.tensor([2]), generator=draws(), max_batch=-1)
    with pytest.raises(ValueError, match=r"latents have 8 numbers per atom, those of the auto.* 4"):
        LatentDiffusion(autoencoder(latent_dim=4), model.network)
    with pytest.raises(ValueError, match=r"\(5, 8\): this autoencoder has 8 numbers .*\(5, 4\)"):
        autoencoder().decode(torch.zeros(5, 4), torch.tensor([2, 3]))
    with pytest.raises(ValueError, match="n_heads must divide the width of 16, got 3"):
        Autoencoder(16, 1, 3)
    with pytest.raises(ValueError, match="width must be a multiple"):
        DiffusionTransformer(8, 5, 15, 1, 2)
    with pytest.raises(ValueError, match="n_steps must be at least 1 and at most 999"):
        model.times(1000)
    with pytest.raises(ValueError, match="kl_weight must be a finite number of at least 0"):
        AutoencoderConfig(kl_weight=-1.0)
    with pytest.raises(ValueError, match="ema_decay must be below 1"):
        DiffusionConfig(ema_decay=1.0)
    with pytest.raises(ValueError, match="trained without a property and cannot be told one"):
        model.generate(torch.tensor([2]), generator=draws(), target=3.0)
    told = LatentDiffusion(autoencoder(), DiffusionTransformer(8, 5, 16, 1, 2, True).double())
    with pytest.raises(ValueError, match=r"one for each of 1 structures, got shape \(2,\)"):
        told.generate(torch.tensor([2]), generator=draws(), target=torch.ones(2))
    with pytest.raises(ValueError, match="guidance must be a finite number of at least 0"):
        told.generate(torch.tensor([2]), generator=draws(), target=1.0, guidance=-1.0)
    with pytest.raises(ValueError, match=r"eta must be .* at most 1, got 2"):
        told.generate(torch.tensor([2]), generator=draws(), eta=2.0)
    for target in (torch.ones(6), torch.ones(2), torch.full((6,), torch.nan)):
        with pytest.raises(ValueError, match=r"target must have a number for each of 6"):
            pretrain_diffusion(dataset, autoencoder().float(), target=target)
    with pytest.raises(ValueError, match=r"drop_target must be .* at most 1"):
        DiffusionConfig(drop_target=1.5)
    with pytest.raises(ValueError, match="two structures or more, got 1"):
        pretrain_autoencoder(dataset.select([0]))


def test_a_file_may_name_the_autoencoder_that_comes_with_the_package(tmp_path):
    """It has the transformer's weights alone; in half precision, they are read as float32."""
    model = LatentDiffusion(Autoencoder.load("chemeleon-vae"), DiffusionTransformer(8, 5, 16, 1, 2))
    torch.nn.init.normal_(model.network.out.weight, std=0.1)
    whole, small = tmp_path / "whole.safetensors", tmp_path / "small.safetensors"
    model.save(whole)
    model.half().save(small, autoencoder="chemeleon-vae")
    assert small.stat().st_size < 0.05 * whole.stat().st_size
    again, exact = LatentDiffusion.load(small), LatentDiffusion.load(whole)
    for name, value in again.state_dict().items():
        assert value.dtype == torch.float32
        tolerance = {} if name.startswith("autoencoder") else {"rtol": 2e-3, "atol": 1e-4}
        torch.testing.assert_close(value, exact.state_dict()[name], **tolerance)


def test_the_shipped_model_generates_what_it_learned():
    """Most are valid in few steps, and those that are told a band gap are nearer to it."""
    model = LatentDiffusion.load("chemeleon-dit")
    assert model.info["iterations"] == 20_000 and model.network.sizes["max_atoms"] == 12
    gap = composition.load("band-gap")
    request = torch.randint(2, 9, (48,), generator=draws())
    free, told = (
        model.generate(request, 9, generator=draws(1), target=target, guidance=3.0)
        for target in (None, 3.0)
    )
    assert float(validity.check(free).valid.mean()) > 0.8
    assert float(gap(told).median()) > float(gap(free).median()) + 1


def test_checkpoints_of_the_other_family_are_told_apart(tmp_path):
    files = {"flow": tmp_path / "a", "autoencoder": tmp_path / "b", "diffusion": tmp_path / "c"}
    flow_model().save(files["flow"])
    autoencoder().save(files["autoencoder"])
    diffusion().save(files["diffusion"])
    readers = {"flow": FlowModel, "autoencoder": Autoencoder, "diffusion": LatentDiffusion}
    words = {"flow": "a flow model: irlkit.load_pretrained", "autoencoder": "Autoencoder.load"}
    words["diffusion"] = "a latent diffusion: LatentDiffusion.load"
    for kind, reader in readers.items():
        assert isinstance(reader.load(files[kind]), reader)
        for other in set(files) - {kind}:
            with pytest.raises(ValueError, match=words[other]):
                reader.load(files[other])
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        Autoencoder.load(tmp_path / "d")
    with pytest.raises(ValueError, match=r"Autoencoder\.load"):
        load_pretrained("chemeleon-vae")
    diffusion().save(files["diffusion"], autoencoder="/elsewhere/model")
    with pytest.raises(ValueError, match="which is a path"):
        LatentDiffusion.load(files["diffusion"])
