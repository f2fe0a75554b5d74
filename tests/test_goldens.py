"""Agreement with the reference implementation: network, loader, interpolants, updates, metrics.

The folder of stored cases is the one named by IRLKIT_GOLDENS, else tests/goldens. Cases are found
by the pattern of their file names and every number comes from the files; the README beside the
stored cases gives conventions and tolerances.
"""

import json
import os
import re
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure
from safetensors.torch import load_file

import irlkit
from irlkit.crystals import CrystalBatch
from irlkit.evaluate.metrics import MatchPool, evaluate
from irlkit.flows.discrete import DiscreteFlow
from irlkit.flows.dynamics import advance
from irlkit.flows.interpolants import (
    ConstantEpsilon,
    EncoderDecoderGamma,
    EncoderDecoderPath,
    LinearPath,
    SqrtGamma,
    TrigonometricPath,
    VanishingEpsilon,
    VarianceExplodingPath,
    VariancePreservingPath,
    time_derivative,
)
from irlkit.flows.schedules import ConstantNoise, SquareRootNoise, time_grid
from irlkit.networks.cspnet import CSPNet, PairTopology
from irlkit.networks.omatg import network_weights, read_config
from irlkit.rl.grpo import group_advantages, grpo_loss
from irlkit.rl.policies import AnnealingPolicy, ScorePolicy, VelocityPolicy
from irlkit.rl.trajectory import Trajectory
from tests.omatg_annealing import annealing_from_omatg, omatg_name
from tests.toys import trainer_config

GOLDENS = Path(os.environ.get("IRLKIT_GOLDENS") or Path(__file__).parent / "goldens")
POLICIES = {"annealing": AnnealingPolicy, "velocity": VelocityPolicy, "score": ScorePolicy}
FIELDS = ("pos", "cell")

FORWARD = 1e-9  # network outputs and interpolants, relative
UPDATE = 1e-7  # losses and gradients, norm of the difference over the norm
METRIC = 1e-6  # metrics, absolute


def read_json(name):
    return json.loads((GOLDENS / name).read_text(encoding="utf-8"))


def names(pattern):
    return sorted(path.name for path in GOLDENS.glob(pattern))


def stems(pattern):
    return sorted(path.stem for path in GOLDENS.glob(pattern))


def relative_difference(value, reference):
    return float(((value - reference).norm() / reference.norm()).detach())


def with_prefix(tensors, prefix):
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


UPDATES = [
    stem for stem in stems("*.json") if isinstance(kind := read_json(f"{stem}.json"), dict)
    and kind.get("policy") in POLICIES
]  # fmt: skip


def test_every_file_belongs_to_a_test():
    known = {"loop.safetensors", "relaxed_by_ase.json"}  # of test_loop_goldens.py, test_relax.py
    for stem in [*UPDATES, *stems("*cspnet*.json"), *stems("denovo_mask*.json")]:
        known |= {f"{stem}.json", f"{stem}.safetensors"}
    for pattern in ("interpolants*.json", "metrics*.json", "omatg*.ckpt", "omatg*.yaml"):
        known |= set(names(pattern))
    cases = [name for name in names("*") if not name.startswith(("README", "."))]
    assert UPDATES and set(cases) <= known


# --- network and loader ---


def network_inputs(tensors):
    """Species (0 where masked), time, positions and cells; pairs."""
    topology = PairTopology.from_n_atoms(tensors["in.n_atoms"].long())
    values = (tensors[f"in.{name}"] for name in ("t", "pos", "cell"))
    return tensors["in.species"].long(), *values, topology


def check_outputs(output, tensors):
    for field in FIELDS:
        for head, suffix in (("velocity", "b"), ("denoiser", "eta")):
            ours = getattr(output, head)[field]
            assert relative_difference(ours, tensors[f"out.{field}_{suffix}"]) < FORWARD
    if "out.species_logits" in tensors:
        logits = output.species["species"]
        assert relative_difference(logits, tensors["out.species_logits"]) < FORWARD


def weights_of(tensors):
    """The network's weights, whose names some files begin with that of the encoder."""
    weights = with_prefix(tensors, "weights.")
    return {name.removeprefix("encoder."): value for name, value in weights.items()}


def heads_of(tensors):
    return ("velocity", "denoiser", *(["species"] if "out.species_logits" in tensors else []))


@pytest.mark.parametrize("case", stems("*cspnet*.json"))
@torch.no_grad()
def test_network(case):
    settings, tensors = read_json(f"{case}.json"), load_file(GOLDENS / f"{case}.safetensors")
    sizes = {
        "hidden_dim": settings["hidden_dim"],
        "n_layers": settings["num_layers"],
        "n_freqs": settings["num_freqs"],
        "time_dim": settings["time_embedding_dim"],
        "n_species": settings["max_atoms"],
        "species_head": "out.species_logits" in tensors,
        "mask_token": "mask_token" in settings,
    }
    state = {f"model.encoder.{k}": v for k, v in weights_of(tensors).items()}
    network = CSPNet(**sizes, denoiser=True).to(getattr(torch, settings["dtype"]))
    network.load_state_dict(network_weights(state, network))
    species, t, pos, cell, topology = network_inputs(tensors)
    output = network(t, species, pos, cell, topology, heads=heads_of(tensors))
    check_outputs(output, tensors)


@pytest.mark.parametrize("case", stems("omatg*.ckpt"))
@torch.no_grad()
def test_loaded_checkpoint(case):
    model = irlkit.load_omatg(GOLDENS / f"{case}.ckpt", GOLDENS / f"{case}.yaml")
    ours = model.network.state_dict()
    checked = 0
    for name in names("*cspnet*.safetensors"):
        tensors = load_file(GOLDENS / name)
        theirs = weights_of(tensors)
        if not all(k in theirs and torch.equal(v, theirs[k]) for k, v in ours.items()):
            continue  # another network
        species, t, pos, cell, topology = network_inputs(tensors)
        asked = topology.n_atoms
        if model.species is None:
            asked = CrystalBatch(species, pos, cell, asked)
        conditioning, heads = model.prepare(asked), heads_of(tensors)
        output = model.velocity(t, pos, cell, conditioning, heads, species=species)
        check_outputs(output, tensors)
        checked += 1
    assert checked, "no stored network has the weights of this checkpoint"


@pytest.mark.parametrize("case", stems("omatg*.yaml"))
def test_configuration(case, tmp_path):
    """Everything the file says arrives, and weights of its sizes can be loaded with it."""
    yaml = pytest.importorskip("yaml")
    content = yaml.safe_load((GOLDENS / f"{case}.yaml").read_text(encoding="utf-8"))
    config = read_config(GOLDENS / f"{case}.yaml")
    si = content["model"]["si"]["init_args"]
    settings = config.settings
    assert settings["n_steps"] == si["integration_time_steps"] - 1
    assert settings["pairing"] == content["model"]["use_min_perm_dist"]
    assert settings["loss_weights"] == content["model"]["relative_si_costs"]
    t = torch.linspace(0.01, 0.99, 7, dtype=torch.float64)
    for name, entry in zip(si["data_fields"], si["stochastic_interpolants"], strict=True):
        if name == "species":
            base = entry["class_path"].rpartition("DiscreteFlowMatching")[2].lower()
            if base in ("mask", "uniform"):
                noise = entry.get("init_args", {}).get("noise", 0.0)
                assert (config.species.base, config.species.noise) == (base, noise)
            else:
                assert config.species is None
            continue
        arguments, ours = entry["init_args"], config.interpolants[name]
        kind = arguments["interpolant"]
        kind = (kind if isinstance(kind, str) else kind["class_path"]).rpartition(".")[2]
        assert ours.periodic == kind.startswith("Periodic")
        if not kind.endswith(("VP", "VE")):
            wanted = kind.removeprefix("Periodic").removesuffix("Interpolant") + "Path"
            assert type(ours.path).__name__ == wanted
        assert ours.center_of_mass_free == arguments["correct_center_of_mass_motion"]
        assert settings["annealing"][name] == arguments["velocity_annealing_factor"]
        assert settings["differential_equation"][name] == arguments["differential_equation_type"]
        assert (ours.gamma is None) == (arguments.get("gamma") is None)
        if ours.gamma is not None:
            for key, value in arguments["gamma"].get("init_args", {}).items():
                assert getattr(ours.gamma, key) == value
            assert bool((ours.gamma(t) > 0).all())
        assert (settings["epsilon"][name] is None) == (arguments.get("epsilon") is None)
        if arguments.get("epsilon") is not None:
            assert arguments["epsilon"]["init_args"].items() <= settings["epsilon"][name].items()
    encoder = content["model"]["model"]["init_args"]["encoder"].get("init_args", {})
    for theirs, ours in (("hidden_dim", "hidden_dim"), ("num_layers", "n_layers")):
        if theirs in encoder:
            assert config.network[ours] == encoder[theirs]

    network = CSPNet(**config.network, denoiser=True)
    state = {f"model.encoder.{k}": v for k, v in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "checkpoint.ckpt")
    model = irlkit.load_omatg(tmp_path / "checkpoint.ckpt", GOLDENS / f"{case}.yaml")
    assert all(
        torch.equal(v, model.network.state_dict()[k]) for k, v in network.state_dict().items()
    )


# --- discrete flow ---


@pytest.mark.parametrize("case", stems("denovo_mask*.json"))
def test_masked_flow(case):
    """Every step from its draws, with possible candidates and actions; the training loss."""
    settings, tensors = read_json(f"{case}.json"), load_file(GOLDENS / f"{case}.safetensors")
    flow = DiscreteFlow(noise=settings["noise"], final_window=settings["unmask_all_within"])
    times, logits = tensors["times"], tensors["logits"]
    rules = flow.rules(torch.tensor([logits.shape[1]]), settings["n_species"])
    assert float(times[-1]) == pytest.approx(settings["big_time"], abs=1e-6)
    assert settings["steps"] == len(times) - 1 == len(logits)
    for i in range(settings["steps"]):
        before = tensors[f"before.{i}"][None].long()
        step = flow.step(logits[[i]], before, times, i, rules)
        draws = (tensors[f"{name}.{i}"][None] for name in ("x_1", "u_unmask", "u_mask"))
        after = step.taken(*draws)
        assert torch.equal(after[0], tensors[f"after.{i}"].long())
        assert bool(step.log_prob(after).isfinite().all())
    assert bool((after > 0).all())
    loss = flow.cross_entropy(logits[0], tensors["loss.x_1"].long())
    assert float(loss) == pytest.approx(settings["loss"], rel=UPDATE)


# --- interpolants ---

CURVES = {
    "linear": LinearPath,
    "trigonometric": TrigonometricPath,
    "encoder_decoder": EncoderDecoderPath,
    "gamma_sqrt": SqrtGamma,
    "gamma_encoder_decoder": EncoderDecoderGamma,
    "constant_epsilon": ConstantEpsilon,
    "vanishing_epsilon": VanishingEpsilon,
    "variance_preserving_tau_constant": lambda: VariancePreservingPath("constant"),
    "variance_preserving_tau_linear": lambda **k: VariancePreservingPath("linear", **k),
    "variance_preserving_tau_cosine": lambda **k: VariancePreservingPath("cosine", **k),
    "variance_exploding_sigma_geometric": VarianceExplodingPath,
}
PARAMETERS = {
    field.name
    for kind in CURVES.values()
    if isinstance(kind, type)
    for field in dataclass_fields(kind)
}


def build_curve(name, case):
    """The object of a case: by the start of its name, with the numbers in its name and entries."""
    start = max((start for start in CURVES if name.startswith(start)), key=len, default=None)
    assert start is not None, f"no rule for the stored case {name}"
    keys = "|".join(sorted(PARAMETERS, key=len, reverse=True))
    found = re.findall(rf"_({keys})(\d+(?:p\d+)?(?:em?\d+)?)(?=_|$)", name.removeprefix(start))
    numbers = {k: float(v.replace("p", ".").replace("em", "e-")) for k, v in found}
    if isinstance(case, dict):
        numbers |= {k: v for k, v in case.items() if isinstance(v, int | float)}
    return CURVES[start](**numbers)


CURVE_CASES = [
    (file, name) for file in names("interpolants*.json") for name in read_json(file) if name != "t"
]


@pytest.mark.parametrize(("file", "name"), CURVE_CASES)
def test_interpolant(file, name):
    stored = read_json(file)
    t = torch.tensor(stored["t"], dtype=torch.float64)
    case = stored[name]
    item = build_curve(name, case)
    curves = {"": case} if isinstance(case, list) else case
    checked = 0
    for key, values in curves.items():
        if not isinstance(values, list):
            continue
        quantity, derivative = key.removesuffix("_dot"), key.endswith("_dot")
        ours = time_derivative(item, t) if derivative else item(t)
        if quantity in ("alpha", "beta"):
            ours = ours[quantity == "beta"]
        expected = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(ours, expected, rtol=FORWARD, atol=1e-12)
        checked += 1
    assert checked


# --- updates ---


class ReferenceNetwork(torch.nn.Module):
    """A network of the files behind the interface of a model."""

    def __init__(self, weights, gamma, dtype):
        super().__init__()
        hidden_dim = weights["node_embedding.weight"].shape[1]
        edge_inputs = weights["csp_layer_0.edge_mlp.0.weight"].shape[1]
        # A network of few layers carries unused layers of another size.
        n_layers = sum(
            weights[name].shape == weights["csp_layer_0.edge_mlp.0.weight"].shape
            for name in weights
            if re.fullmatch(r"csp_layer_\d+\.edge_mlp\.0\.weight", name)
        )
        self.network = CSPNet(
            hidden_dim,
            n_layers,
            (edge_inputs - 2 * hidden_dim - 9) // 6,
            weights["atom_latent_emb.weight"].shape[1] - hidden_dim,
            weights["node_embedding.weight"].shape[0],
            denoiser=True,
        ).to(dtype)
        self.load(weights)
        self.gamma_curve = gamma
        self.has_denoiser = FIELDS if gamma else ()

    def load(self, weights):
        wanted = self.network.state_dict()
        self.network.load_state_dict({name: weights[name] for name in wanted})

    def prepare(self, crystals):
        return crystals.species, PairTopology.from_n_atoms(crystals.n_atoms)

    def velocity(self, t, pos, cell, conditioning, heads=("velocity",)):
        return self.network(t, conditioning[0], pos, cell, conditioning[1], heads=heads)

    def gamma(self, field, t):
        return self.gamma_curve(t)


NOISES = {"constant": ConstantNoise, "sqrt": SquareRootNoise}
GAMMAS = {"sqrt": SqrtGamma, "encoder_decoder": EncoderDecoderGamma}


def noise_schedules(specification):
    return {field: NOISES[kind](*numbers) for field, (kind, *numbers) in specification.items()}


def load_annealing(weights, frozen_fields):
    annealing = annealing_from_omatg(weights)
    for field in frozen_fields:
        # The reference implementation does not anneal what it does not reinforce.
        for parameter in list(annealing.heads[field].children())[-1].parameters():
            torch.nn.init.zeros_(parameter)
    return annealing


@pytest.fixture(scope="module", params=UPDATES)
def case(request):
    settings = read_json(f"{request.param}.json")
    tensors = load_file(GOLDENS / f"{request.param}.safetensors")
    n_steps = settings["integration_time_steps"] - 1
    frozen_fields = settings.get("frozen_fields", [])
    fields = [f for f in FIELDS if f in settings["noise"] and f not in frozen_fields]
    assert set(fields) | set(frozen_fields) == set(FIELDS)

    gamma = None
    if "gamma" in settings:
        kind, *numbers = settings["gamma"]
        gamma = GAMMAS[kind](*numbers)
    dtype = getattr(torch, settings["dtype"])
    model = ReferenceNetwork(with_prefix(tensors, "reference.encoder."), gamma, dtype)

    def schedules(name):
        entry = settings.get(name)
        return entry and noise_schedules({f: v for f, v in entry.items() if f in fields})

    policy = POLICIES[settings["policy"]](
        model, noise=schedules("noise"), ref_noise=schedules("reference_noise")
    )

    def load(which):
        if settings["policy"] == "annealing":
            policy.annealing = load_annealing(with_prefix(tensors, f"{which}."), frozen_fields)
        else:
            policy.network.load(with_prefix(tensors, f"{which}.encoder."))

    def stacked(kind, names, count):
        return {f: torch.stack([tensors[f"{kind}.{i}.{f}"] for i in range(count)]) for f in names}

    crystals = CrystalBatch(
        tensors["species"].long(),
        tensors[f"state.{n_steps}.pos"],
        tensors[f"state.{n_steps}.cell"],
        tensors["n_atoms"].long(),
    )
    frozen = {
        head: stacked(key, [f for f in FIELDS if f"{key}.0.{f}" in tensors], n_steps)
        for head, key in (("velocity", "reference_b"), ("denoiser", "reference_eta"))
        if any(name.startswith(f"{key}.") for name in tensors)
    }
    annealing = settings["policy"] == "annealing"
    trajectory = Trajectory(
        time_grid(n_steps, dtype),
        crystals,
        stacked("action", fields, n_steps),
        stacked("old_log_prob", fields, n_steps),
        crystals,
        dict.fromkeys(fields, "structure") if annealing else policy.process.scopes,
        policy.process.scopes,
        stacked("state", FIELDS, n_steps + 1),
        frozen,
    )
    weights = settings["weights"]
    config = trainer_config(
        n_groups=settings["groups"],
        group_size=settings["group_size"],
        n_steps=n_steps,
        clip_eps=settings["clip_epsilon"],
        normalization=settings.get("position_normalization", "per_atom_surrogate"),
        **{
            f"{term}_weight": {f: weights.get(f"{f}_{term}", 0.0) for f in fields}
            for term in ("policy", "kl", "distillation")
        },
    )
    return SimpleNamespace(
        policy=policy,
        load=load,
        trajectory=trajectory,
        config=config,
        fields=fields,
        settings=settings,
        tensors=tensors,
        model=model,
    )


def test_advantages(case):
    ours = group_advantages(case.tensors["rewards"], case.config.group_size)
    assert relative_difference(ours, case.tensors["advantages"]) < UPDATE


def test_old_log_probs(case):
    case.load("old_policy")
    index = torch.arange(case.trajectory.n_steps)
    steps = case.policy.steps(case.trajectory.inputs(case.policy, index))
    for field in case.fields:
        ours = steps[field].policy.log_prob(case.trajectory.actions[field])
        assert relative_difference(ours, case.trajectory.log_probs[field]) < FORWARD


@torch.no_grad()
def test_frozen_outputs_and_integration(case):
    """The states follow from the actions."""
    case.load("old_policy")
    trajectory, policy = case.trajectory, case.policy
    heads = {head: trajectory.frozen.get(head, {}) for head in policy.heads}
    for i in range(trajectory.n_steps):
        state = {f: trajectory.states[f][i] for f in FIELDS}
        output = case.model.velocity(
            trajectory.times[i],
            **state,
            conditioning=case.model.prepare(trajectory.final),
            heads=policy.heads,
        )
        for head, stored in heads.items():
            for field, value in stored.items():
                ours = getattr(output, head)[field]
                assert relative_difference(ours, value[i]) < FORWARD
        frozen = {h: {f: v[None] for f, v in getattr(output, h).items()} for h in heads}
        inputs = replace(trajectory.inputs(policy, torch.tensor([i])), frozen=frozen)
        increments = {
            f: policy.increment(f, trajectory.actions[f][i : i + 1], inputs)[0]
            if f in case.fields
            else policy._frozen_increment(f, inputs)[0]
            for f in FIELDS
        }
        after = advance(state, increments)
        difference = after["pos"] - trajectory.states["pos"][i + 1]
        assert float((difference - difference.round()).abs().max()) < FORWARD
        assert relative_difference(after["cell"], trajectory.states["cell"][i + 1]) < FORWARD


def test_loss_and_gradient(case):
    case.load("policy")
    loss = grpo_loss(case.policy, case.trajectory, case.tensors["advantages"], case.config.grpo)
    # The reference counts clipped ratios in single precision.
    terms = {
        "loss_policy": ("policy_loss", UPDATE),
        "loss_regularization": ("kl", UPDATE),
        "loss_distillation": ("distillation", UPDATE),
        "clip_fraction": ("clip_fraction", 1e-6),
    }
    for name, value in case.settings["info"].items():
        field, _, term = name.partition("_")
        ours, tolerance = terms[term]
        assert float(loss.terms[f"{field}_{ours}"]) == pytest.approx(value, rel=tolerance), name
    assert float(loss.total.detach()) == pytest.approx(case.settings["loss"], rel=UPDATE)

    case.policy.zero_grad()
    loss.total.backward()
    gradients = with_prefix(case.tensors, "grad.")
    squared = {"difference": 0.0, "reference": 0.0}
    for name, parameter in case.policy.named_parameters():
        if case.settings["policy"] == "annealing":
            theirs = omatg_name(case.policy.annealing, name.removeprefix("annealing."))
        else:
            theirs = name.replace("network.network.", "encoder.")
        ours = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        expected = gradients.pop(theirs, torch.zeros_like(parameter))
        squared["difference"] += float((ours - expected).square().sum())
        squared["reference"] += float(expected.square().sum())
    left = [name for name, value in gradients.items() if bool(value.any())]
    assert not left, "gradients of parameters that we do not have"
    assert (squared["difference"] / squared["reference"]) ** 0.5 < UPDATE


# --- metrics ---


def structures(records):
    return CrystalBatch.from_structures(
        [Structure(Lattice(r["cell"]), r["numbers"], r["frac"]) for r in records],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("file", names("metrics*.json"))
def test_metrics(file):
    stored = read_json(file)
    with MatchPool(n_workers=0, **stored["tolerances"]) as pool:
        metrics = evaluate(structures(stored["generated"]), structures(stored["reference"]), pool)
    for name, golden in (
        ("match_rate", "match_rate"),
        ("rmse", "rmse"),
        ("metre", "metre"),
        ("best_rmse", "metre_mean_rmsd"),
        ("crmse", "crmse"),
    ):
        assert getattr(metrics, name) == pytest.approx(stored[golden], abs=METRIC), name
    expected = np.array(stored["rmsd_per_reference"], dtype=float)
    np.testing.assert_allclose(
        metrics.table["best_rmsd"], expected, rtol=0, atol=METRIC, equal_nan=True
    )
