"""OMatG models: configurations, checkpoints that fit or don't, refusals, generation."""

import copy
import math
import os
import pickle
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import irlkit
from irlkit.evaluate.metrics import MatchPool, evaluate
from irlkit.flows.base_distribution import LATTICE_STATISTICS, BaseDistribution
from irlkit.flows.interpolants import (
    EncoderDecoderPath,
    Interpolant,
    LinearPath,
    TrigonometricPath,
    VarianceExplodingPath,
    VariancePreservingPath,
    time_derivative,
)
from irlkit.flows.schedules import LinearAnnealing
from irlkit.networks import omatg
from irlkit.networks.cspnet import CSPNet
from tests.tiny_omatg import GOLDENS
from tests.toys import integrate

yaml = pytest.importorskip("yaml")

SIZES = {"hidden_dim": 8, "num_layers": 2, "num_freqs": 3}
SI = "omg.si.single_stochastic_interpolant.SingleStochasticInterpolant"


def component(class_path, **arguments):
    return {"class_path": class_path, "init_args": arguments} if arguments else class_path


def field_entry(interpolant, kind=SI, equation="ODE", **more):
    return component(
        kind,
        interpolant=interpolant,
        differential_equation_type=equation,
        integrator_kwargs={"method": "euler"},
        **more,
    )


@pytest.fixture
def config():
    """A small Linear-ODE model's configuration."""
    return {
        "model": {
            "si": component(
                "omg.si.stochastic_interpolants.StochasticInterpolants",
                stochastic_interpolants=[
                    "omg.si.x.SingleStochasticInterpolantIdentity",
                    field_entry("omg.si.interpolants.PeriodicLinearInterpolant"),
                    field_entry("omg.si.interpolants.LinearInterpolant"),
                ],
                data_fields=["species", "pos", "cell"],
                integration_time_steps=5,
            ),
            "sampler": component(
                "omg.sampler.IndependentSampler",
                pos_distribution="omg.sampler.x.UniformPositionDistribution",
                cell_distribution=component(
                    "omg.sampler.x.InformedLatticeDistribution", dataset_name="perov_5"
                ),
                species_distribution="omg.sampler.x.MirrorSpecies",
            ),
            "model": component(
                "omg.model.model.Model",
                encoder=component("omg.model.encoders.cspnet_full.CSPNetFull", **SIZES),
                head="omg.model.heads.pass_through.PassThrough",
                time_embedder=component("omg.x.SinusoidalTimeEmbeddings", dim=16),
            ),
        }
    }


def fields_of(config):
    return config["model"]["si"]["init_args"]["stochastic_interpolants"]


def sampler_of(config):
    return config["model"]["sampler"]["init_args"]


def encoder_of(config):
    return config["model"]["model"]["init_args"]["encoder"]["init_args"]


def network():
    torch.manual_seed(0)
    return CSPNet(8, 2, 3, 16, denoiser=True)


def write_checkpoint(path, state=None, **more):
    if state is None:
        state = {f"model.encoder.{k}": v for k, v in network().state_dict().items()}
    torch.save({"state_dict": state, "epoch": 7, "global_step": 70, **more}, path)
    return path


# --- what a configuration says ---


@pytest.mark.parametrize(
    ("entry", "path"),
    [
        ("LinearInterpolant", LinearPath()),
        ("TrigonometricInterpolant", TrigonometricPath()),
        (("EncoderDecoderInterpolant", {}), EncoderDecoderPath()),
        (
            ("EncoderDecoderInterpolant", {"switch_time": 0.3, "power": 0.5}),
            EncoderDecoderPath(0.3, 0.5),
        ),
        (
            ("ScoreBasedDiffusionModelInterpolantVP", {"tau": "omg.si.tau.TauConstantSchedule"}),
            VariancePreservingPath("constant"),
        ),
        (
            (
                "ScoreBasedDiffusionModelInterpolantVP",
                {"tau": component("omg.si.tau.TauLinearSchedule", beta_min=0.2, beta_max=9.0)},
            ),
            VariancePreservingPath("linear", beta_min=0.2, beta_max=9.0),
        ),
        (
            (
                "ScoreBasedDiffusionModelInterpolantVP",
                {"tau": component("omg.si.tau.TauCosineSchedule", offset=0.01)},
            ),
            VariancePreservingPath("cosine", offset=0.01),
        ),
        (
            (
                "ScoreBasedDiffusionModelInterpolantVE",
                {
                    "sigma": component(
                        "omg.si.sigma.GeometricSigma", sigma_min="5e-3", sigma_max=0.4
                    )
                },
            ),
            VarianceExplodingPath(0.005, 0.4),
        ),
    ],
)
def test_interpolants(config, entry, path):
    name, arguments = (entry, {}) if isinstance(entry, str) else entry
    for i, prefix in ((1, "Periodic"), (2, "")):
        fields_of(config)[i]["init_args"]["interpolant"] = component(
            f"omg.si.interpolants.{prefix}{name}", **arguments
        )
    parsed = omatg.read_config(config)
    assert parsed.interpolants["pos"] == Interpolant(path, periodic=True)
    assert parsed.interpolants["cell"] == Interpolant(path)


def test_gammas_epsilons_and_who_needs_a_denoiser(config):
    fields = fields_of(config)
    fields[1] = field_entry(
        "x.PeriodicLinearInterpolant",
        equation="SDE",
        gamma=component("x.LatentGammaSqrt", a=0.05),
        epsilon=component("x.VanishingEpsilon", c=2.0, mu=0.1, sigma=0.02),
    )
    fields[2] = field_entry(
        "x.LinearInterpolant",
        gamma=component("x.LatentGammaEncoderDecoder", a=0.3, switch_time=0.4, power=0.5),
    )
    parsed = omatg.read_config(config)
    assert parsed.interpolants["pos"].gamma.a == 0.05
    assert vars(parsed.interpolants["cell"].gamma) == {"a": 0.3, "switch_time": 0.4, "power": 0.5}
    # The denoiser of an ODE was never trained.
    assert parsed.interpolants["pos"].heads == ("velocity", "denoiser")
    assert parsed.interpolants["cell"].heads == ("velocity",)
    assert parsed.settings["epsilon"]["pos"] == {
        "name": "VanishingEpsilon",
        "c": 2.0,
        "mu": 0.1,
        "sigma": 0.02,
    }
    assert parsed.settings["epsilon"]["cell"] is None


@pytest.mark.parametrize("dataset", sorted(LATTICE_STATISTICS))
def test_informed_lattice_distributions(config, dataset):
    sampler_of(config)["cell_distribution"]["init_args"]["dataset_name"] = dataset
    base = omatg.read_config(config).base
    assert (base.log_length_mean, base.log_length_std) == LATTICE_STATISTICS[dataset]
    cell = base.sample_cell(4000, torch.Generator().manual_seed(0), torch.float64)
    fitted = BaseDistribution.fit(cell)
    assert fitted.log_length_mean == pytest.approx(base.log_length_mean, abs=0.03)


def test_training_set_has_the_informed_lengths(shared_data):
    """The stored lengths are those of the real sets, here of a part of each."""
    from irlkit import data

    for file, name in (("perov_5.csv.gz", "perov_5"), ("carbon_24.csv.gz", "carbon_24")):
        fitted = BaseDistribution.fit(data.load(shared_data / file, progress=False).batch.cell)
        known = BaseDistribution.informed(name)
        assert fitted.log_length_mean == pytest.approx(known.log_length_mean, abs=0.05)


def test_normal_base_distributions(config):
    sampler_of(config)["pos_distribution"] = component("x.NormalPositionDistribution", loc=0.5)
    sampler_of(config)["cell_distribution"] = component("x.NormalCellDistribution", scale=2.0)
    base = omatg.read_config(config).base
    assert BaseDistribution.from_dict(base.to_dict()) == base
    generator = torch.Generator().manual_seed(0)
    pos = base.sample_pos(1000, generator, torch.float64)
    assert bool(((pos >= 0) & (pos < 1)).all())
    cell = base.sample_cell(2000, generator, torch.float64)
    assert float(cell.mean()) == pytest.approx(0.0, abs=0.1)
    assert float(cell.std()) == pytest.approx(2.0, rel=0.05)


# --- refusals, by name ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: fields_of(c).__setitem__(0, "omg.si.x.DiscreteFlowMatchingMask"),
            "species_distribution MirrorSpecies is not supported; supported are MaskSpeciesDist",
        ),
        (
            lambda c: fields_of(c).__setitem__(0, "omg.si.x.DiscreteFlowMatchingUniform"),
            "species_distribution MirrorSpecies .* supported are UniformSpeciesDistribution",
        ),
        (
            lambda c: fields_of(c).__setitem__(2, "omg.si.x.SingleStochasticInterpolantIdentity"),
            "cell: SingleStochasticInterpolantIdentity is not supported",
        ),
        (
            lambda c: fields_of(c)[1]["init_args"].update(interpolant="x.LinearInterpolant"),
            "LinearInterpolant for pos is not supported: fractional coordinates need a periodic",
        ),
        (
            lambda c: fields_of(c)[2]["init_args"].update(interpolant="x.MirrorInterpolant"),
            "interpolant of cell: MirrorInterpolant is not supported",
        ),
        (
            lambda c: fields_of(c)[1]["init_args"].update(gamma="x.LatentGammaOther"),
            "gamma of pos: LatentGammaOther is not supported; supported are LatentGammaSqrt",
        ),
        (
            lambda c: fields_of(c)[1]["init_args"].update(epsilon="x.ConstantEpsilon"),
            "epsilon for pos must be given for an SDE, and only",
        ),
        (
            lambda c: sampler_of(c).update(pos_distribution="x.MirrorPosition"),
            "pos_distribution MirrorPosition is not supported",
        ),
        (
            lambda c: sampler_of(c)["cell_distribution"]["init_args"].update(dataset_name="mine"),
            "no lattice statistics of 'mine', known are",
        ),
        (lambda c: encoder_of(c).update(ln=False), "ln=False of CSPNetFull is not supported"),
        (lambda c: encoder_of(c).update(new=1), "argument new=1 of CSPNetFull is not supported"),
        (
            lambda c: c["model"]["model"]["init_args"].update(prop_embedder="x.Y"),
            "prop_embedder: guidance by properties is not supported",
        ),
        (lambda c: c.pop("model"), "not a configuration of an OMatG model .*model"),
        (
            lambda c: c["model"]["si"]["init_args"].update(integration_time_steps=1),
            "integration_time_steps must be at least 2, got 1",
        ),
    ],
)
def test_what_is_not_supported_is_named(config, change, message):
    change(config)
    with pytest.raises(ValueError, match=message):
        omatg.read_config(config)


def test_configurations_with_every_default_written_out(config):
    expected = omatg.read_config(config)
    encoder_of(config).update(
        latent_dim=16, max_atoms=100, act_fn="silu", dis_emb="sin", edge_style="fc", cutoff=7.0,
        max_neighbors=20, ln=True, ip=True, pred_type=True, pred_scalar=False, prop=False,
        am_hidden_dim=128, prop_embed_dim=32,
    )  # fmt: skip
    assert omatg.read_config(config) == expected


def test_other_integrators_are_told(config):
    fields_of(config)[1]["init_args"]["integrator_kwargs"] = {"method": "midpoint"}
    with pytest.warns(UserWarning, match="integrate pos with the method 'midpoint'; here every"):
        omatg.read_config(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [unclosed", "is not YAML of plain data"),
        ("!!python/object/apply:os.system ['touch {path}']", "is not YAML of plain data"),
        ("- 1\n- 2\n", "is not a configuration of an OMatG model"),
        ("", "is not a configuration of an OMatG model"),
    ],
)
def test_broken_configuration_files(tmp_path, text, message):
    trace = tmp_path / "trace"
    (tmp_path / "c.yaml").write_text(text.replace("{path}", str(trace)))
    with pytest.raises(ValueError, match=message):
        omatg.read_config(tmp_path / "c.yaml")
    assert not trace.exists()
    with pytest.raises(FileNotFoundError, match="no configuration file"):
        omatg.read_config(tmp_path / "other.yaml")


def test_without_pyyaml(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ImportError, match="needs PyYAML: pip install pyyaml"):
        omatg.read_config(tmp_path / "c.yaml")


# --- checkpoints ---


def test_loaded_model_survives_saving(config, tmp_path, small_batch):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    write_checkpoint(tmp_path / "checkpoint.ckpt")
    model = irlkit.load_omatg(tmp_path)
    assert model.info["omatg"]["epoch"] == 7
    assert model.info["omatg"]["n_steps"] == 4
    model.save(tmp_path / "m.safetensors")
    again = irlkit.load_pretrained(tmp_path / "m.safetensors")
    assert again.info == model.info
    assert again.interpolants == model.interpolants and again.base == model.base
    batch = small_batch.to(dtype=torch.float32)
    ours, theirs = (
        m.velocity(0.3, batch.pos, batch.cell, m.prepare(batch)).velocity for m in (model, again)
    )
    assert torch.equal(ours["pos"], theirs["pos"])
    assert all(p.requires_grad for p in model.parameters())
    assert irlkit.load_omatg(tmp_path, dtype=torch.float64).dtype == torch.float64


def test_network_of_few_layers_carries_unused_ones(config, tmp_path):
    state = {f"model.encoder.{k}": v for k, v in network().state_dict().items()}
    state["model.encoder.csp_layer_2.edge_mlp.0.weight"] = torch.zeros(128, 325)
    state["model.encoder.csp_layer_3.node_mlp.0.bias"] = torch.zeros(128)
    state["model.encoder.type_out.weight"] = torch.zeros(100, 8)
    model = irlkit.load_omatg(write_checkpoint(tmp_path / "c.ckpt", state), config)
    assert model.network.n_layers == 2


def corrupt(name, value):
    def change(state):
        if value is None:
            state.pop(name)
        else:
            state[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            corrupt("model.encoder.coord_out.weight", torch.zeros(3, 9)),
            r"model.encoder.coord_out.weight has shape \(3, 9\), the configuration asks for",
        ),
        (
            corrupt("model.encoder.final_layer_norm.bias", None),
            "model.encoder.final_layer_norm.bias is missing",
        ),
        (
            corrupt("model.encoder.csp_layer_7.layer_norm.bias", torch.zeros(8)),
            "model.encoder.csp_layer_7.layer_norm.bias belongs to nothing",
        ),
        (
            corrupt("model.encoder.csp_layer_2.edge_mlp.0.weight", torch.zeros(8, 43)),
            "model.encoder.csp_layer_2.edge_mlp.0.weight belongs to nothing",
        ),
        (
            corrupt("model.prop_embedder.weight", torch.zeros(8)),
            "model.prop_embedder.weight is of a part that is not supported",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(config, tmp_path, change, message):
    state = {f"model.encoder.{k}": v for k, v in network().state_dict().items()}
    change(state)
    with pytest.raises(ValueError, match=message):
        irlkit.load_omatg(write_checkpoint(tmp_path / "c.ckpt", state), config)


def test_sizes_are_told(config, tmp_path):
    encoder_of(config)["hidden_dim"] = 12
    with pytest.raises(ValueError, match=r"has shape \(8.*sizes are {'hidden_dim': 12"):
        irlkit.load_omatg(write_checkpoint(tmp_path / "c.ckpt"), config)


class Payload:
    """Creates a file when it is unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


class SystemPayload(Payload):
    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_loading_draws_no_random_numbers(config, tmp_path):
    write_checkpoint(tmp_path / "c.ckpt")
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    irlkit.load_omatg(tmp_path / "c.ckpt", config)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("payload", [Payload, SystemPayload])
@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".model"])
def test_malicious_checkpoint_executes_nothing(config, tmp_path, payload, suffix):
    trace = tmp_path / "trace"
    path = tmp_path / f"c{suffix}"
    write_checkpoint(path, callbacks={"x": payload(trace)})
    with pytest.raises(ValueError, match=r"cannot be read .*not loaded"):
        irlkit.load_omatg(path, config)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # what the payload would have done
    assert trace.exists()


def test_harmless_parts_of_lightning_checkpoints(config, tmp_path, monkeypatch):
    name = "lightning.fabric.utilities.data"
    attribute_dict = type("AttributeDict", (dict,), {"__module__": name})
    for parent in ("lightning", "lightning.fabric", "lightning.fabric.utilities"):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    module = ModuleType(name)
    module.AttributeDict = attribute_dict
    monkeypatch.setitem(sys.modules, name, module)
    path = write_checkpoint(
        tmp_path / "c.ckpt",
        callbacks={"best_model_score": torch.tensor(0.5), "dirpath": Path("/some/where")},
        loops={"best": np.float64(1.5), "n": np.int64(3)},
        hyper_parameters=attribute_dict(lr=0.1, name="x"),
        optimizer_states=[{"state": {}, "param_groups": [{"lr": 1e-3, "params": [0]}]}],
    )
    assert irlkit.load_omatg(path, config).info["omatg"]["global_step"] == 70


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (b"junk", "damaged"),
        (b"PK\x03\x04 not a zip file", "damaged"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (pickle.dumps({"state_dict": {}}), "a pickle"),
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear in it is neither a tensor nor"),
        (torch.jit.script(torch.nn.ReLU()), "a compiled model"),
    ],
)
def test_broken_checkpoints(config, tmp_path, content, reason):
    path = tmp_path / "c.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        (torch.jit if isinstance(content, torch.jit.ScriptModule) else torch).save(content, path)
    with pytest.raises(ValueError, match=rf"checkpoint: .*c.ckpt cannot be read .*{reason}") as e:
        irlkit.load_omatg(path, config)
    assert "weights_only" not in str(e.value)


def test_truncated_checkpoint(config, tmp_path):
    path = write_checkpoint(tmp_path / "c.ckpt")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        irlkit.load_omatg(path, config)


def test_checkpoints_of_something_else(config, tmp_path):
    path = tmp_path / "c.ckpt"
    torch.save({"weights": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"has no state_dict of tensors, found \['weights'\]"):
        irlkit.load_omatg(path, config)
    write_checkpoint(path, {"layer.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"no tensor of its state is named model\.encoder"):
        irlkit.load_omatg(path, config)


def test_missing_and_ambiguous_files(config, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoint: no file \*.ckpt in"):
        irlkit.load_omatg(tmp_path)
    write_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(FileNotFoundError, match=r"config: no file \*.yaml or \*.yml in"):
        irlkit.load_omatg(tmp_path)
    write_checkpoint(tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=r"name one of the files in .*a\.ckpt, b\.ckpt"):
        irlkit.load_omatg(tmp_path)
    with pytest.raises(FileNotFoundError, match="checkpoint: no file at"):
        irlkit.load_omatg(tmp_path / "c.ckpt", config)


# --- generation ---


def test_generation_of_an_ode_is_annealed(config, tmp_path, small_batch):
    for i, factor in ((1, 3.0), (2, 0.5)):
        fields_of(config)[i]["init_args"]["velocity_annealing_factor"] = factor
    model = irlkit.load_omatg(write_checkpoint(tmp_path / "c.ckpt"), config)
    seeds = [torch.Generator().manual_seed(2) for _ in range(2)]
    ours = omatg.dynamics_of(model).generate(small_batch, 4, generator=seeds[0])
    expected = integrate(
        model, small_batch, 4, annealing=LinearAnnealing(3.0, 0.5), generator=seeds[1]
    )
    assert torch.equal(ours.pos, expected.pos) and torch.equal(ours.cell, expected.cell)
    with MatchPool(n_workers=0) as pool:
        assert 0 <= evaluate(ours, small_batch.to(dtype=ours.dtype), pool).match_rate <= 1


def sde_config(config, one_sided):
    more = {} if one_sided else {"gamma": component("x.LatentGammaSqrt", a=0.05)}
    fields_of(config)[1] = field_entry(
        component(
            "x.PeriodicScoreBasedDiffusionModelInterpolantVP", tau="omg.si.tau.TauConstantSchedule"
        )
        if one_sided
        else "x.PeriodicTrigonometricInterpolant",
        kind=f"{SI}OS" if one_sided else SI,
        equation="SDE",
        epsilon=component("x.ConstantEpsilon", c=0.02),
        velocity_annealing_factor=2.0,
        **more,
    )
    return config


@pytest.mark.parametrize("one_sided", [False, True])
def test_one_step_of_an_sde(config, tmp_path, small_batch, one_sided):
    """Mean and noise of x + [(1 + s t) b - (epsilon / gamma) z] dt + sqrt(2 epsilon dt) xi."""
    model = irlkit.load_omatg(write_checkpoint(tmp_path / "c.ckpt"), sde_config(config, one_sided))
    assert model.has_denoiser == ("pos",)
    model = model.double()
    x_0 = model.sample_base(small_batch, torch.Generator().manual_seed(1))
    t, dt = 1e-3, 0.998
    output = model.velocity(t, x_0.pos, x_0.cell, model.prepare(x_0), ("velocity", "denoiser"))
    scale = math.sqrt(1 - t**2) if one_sided else math.sqrt(0.05 * t * (1 - t))
    drift = (1 + 2.0 * t) * output.velocity["pos"] - 0.02 / scale * output.denoiser["pos"]
    xi = torch.randn(x_0.pos.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    expected = x_0.pos + drift * dt + math.sqrt(2 * 0.02 * dt) * xi
    draws = torch.Generator().manual_seed(5)
    ours = omatg.dynamics_of(model).generate(x_0, 1, generator=draws, x_0=x_0)
    difference = ours.pos - expected.detach()
    assert float((difference - difference.round()).abs().max()) < 1e-9


def test_velocity_follows_from_the_denoiser(config, tmp_path, small_batch):
    """With a perfect denoiser the velocity is that of the interpolant's path."""
    for path in (
        VariancePreservingPath("constant"),
        VariancePreservingPath("linear"),
        VarianceExplodingPath(),
    ):
        one_sided = Interpolant(path, one_sided=True, trained_heads=("denoiser",))
        generator = torch.Generator().manual_seed(0)
        z, x_1 = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64).unbind(0)
        t = torch.full((6, 1), 0.7, dtype=torch.float64)
        sample = one_sided.sample(t, z, x_1)
        velocity = one_sided.velocity_from_denoiser(t, sample.x_t, z)
        torch.testing.assert_close(velocity, sample.target)

    fields_of(config)[2] = field_entry(
        component(
            "x.ScoreBasedDiffusionModelInterpolantVP",
            tau=component("x.TauLinearSchedule", beta_min=0.1, beta_max=20.0),
        ),
        kind=f"{SI}OS",
        predict_velocity=False,
    )
    model = irlkit.load_omatg(write_checkpoint(tmp_path / "c.ckpt"), config)
    assert model.has_denoiser == ("cell",)
    batch = small_batch.to(dtype=torch.float32)
    conditioning = model.prepare(batch)
    times = torch.full((len(batch),), 1e-3)  # where beta is no number of single precision
    output = model.velocity(times, batch.pos, batch.cell, conditioning)
    assert not output.denoiser
    draws = torch.Generator().manual_seed(0)
    generated = omatg.dynamics_of(model).generate(batch, 4, generator=draws)
    assert bool(generated.pos.isfinite().all())
    both = model.velocity(1e-3, batch.pos, batch.cell, conditioning, ("velocity", "denoiser"))
    for name in ("pos", "cell"):
        torch.testing.assert_close(output.velocity[name], both.velocity[name], rtol=1e-4, atol=1e-4)
        assert bool(output.velocity[name].isfinite().all())
    path = model.interpolants["cell"].path
    time = torch.tensor(1e-3, dtype=torch.float64)
    ratio = time_derivative(lambda t: path(t)[1].log(), time)
    alpha, rate = path(time)[0], time_derivative(path, time)[0]
    z = both.denoiser["cell"].double()
    expected = rate * z + ratio * (batch.cell.double() - alpha * z)
    torch.testing.assert_close(both.velocity["cell"].double(), expected, rtol=1e-4, atol=1e-4)


def test_interpolants_that_contradict_themselves():
    with pytest.raises(ValueError, match="only a one-sided interpolant can do without"):
        Interpolant(trained_heads=("denoiser",))
    with pytest.raises(ValueError, match="trained_heads: expected 'velocity', 'denoiser' or both"):
        Interpolant(trained_heads=())
    one_sided = Interpolant(VarianceExplodingPath(), one_sided=True, trained_heads=("denoiser",))
    assert Interpolant.from_dict(copy.deepcopy(one_sided.to_dict())) == one_sided


def test_generation_needs_settings():
    with pytest.raises(ValueError, match="model must be one that load_omatg made"):
        omatg.dynamics_of(irlkit.load_pretrained("linear-ode"))


# --- de novo generation ---


def uniform(content):
    """The configuration of the golden de novo model with the uniform base."""
    content = copy.deepcopy(content)
    fields_of(content)[0] = component("omg.si.x.DiscreteFlowMatchingUniform", noise=0.0)
    sampler_of(content)["species_distribution"] = "omg.x.UniformSpeciesDistribution"
    return content


@pytest.fixture
def denovo():
    return yaml.safe_load((GOLDENS / "omatg_denovo.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("row", [True, False])
@pytest.mark.parametrize("base", ["mask", "uniform"])
def test_models_of_species_generate(base, row, denovo, tmp_path):
    """With the uniform base, the mask's row of the embedding is there or not."""
    content = torch.load(GOLDENS / "omatg_denovo.ckpt", weights_only=True)
    name = "model.encoder.node_embedding.weight"
    if not row:
        content["state_dict"][name] = content["state_dict"][name][1:].clone()
    torch.save(content, tmp_path / "c.ckpt")
    config = denovo if base == "mask" else uniform(denovo)
    if base == "mask" and not row:
        with pytest.raises(ValueError, match=r"has shape \(100, .* asks for \(101,"):
            irlkit.load_omatg(tmp_path / "c.ckpt", config)
        return
    model = irlkit.load_omatg(tmp_path / "c.ckpt", config)
    assert (model.species.base, model.species.final_window) == (base, 5e-3)
    dynamics, n_atoms = omatg.dynamics_of(model), torch.tensor([2, 5, 3])
    assert dynamics.kind == "sde" and set(dynamics.noise) == {"pos"}
    made = dynamics.generate(n_atoms, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made.n_atoms, n_atoms) and bool(made.cell.isfinite().all())
    model.save(tmp_path / "model.safetensors")
    again = omatg.dynamics_of(irlkit.load_pretrained(tmp_path / "model.safetensors"))
    draws = torch.Generator().manual_seed(0)
    assert torch.equal(again.generate(n_atoms, 5, generator=draws).pos, made.pos)
    with pytest.raises(ValueError, match="does not know how many atoms"):
        model.base.sample_n_atoms(3, draws)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: fields_of(c)[0]["init_args"].update(corrector=1),
            r"arguments \['corrector'\] of DiscreteFlowMatchingMask are not supported",
        ),
        (
            lambda c: sampler_of(c).update(
                species_distribution=component("x.MaskSpeciesDistribution", elements=[1])
            ),
            "species_distribution MaskSpeciesDistribution with .*elements",
        ),
        (lambda c: fields_of(c)[0]["init_args"].update(noise=-1.0), "noise must be"),
    ],
)
def test_what_a_flow_of_species_cannot_have(change, message, denovo):
    change(denovo)
    with pytest.raises(ValueError, match=message):
        omatg.read_config(denovo)
