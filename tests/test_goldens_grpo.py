"""GRPO updates against the reference implementation: trajectories, losses and gradients.

Every number comes from the files; their README gives the conventions.
"""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from irlkit.crystals import CrystalBatch
from irlkit.cspnet import CSPNet, PairTopology
from irlkit.grpo import GRPOConfig, group_advantages, grpo_loss
from irlkit.policies import AnnealingPolicy, ScorePolicy, VelocityPolicy
from irlkit.sampler import Trajectory, advance
from irlkit.schedules import ConstantNoise, LearnedAnnealing, SquareRootNoise, time_grid

GOLDENS = Path(os.environ.get("IRLKIT_GOLDENS", Path(__file__).parent / "goldens"))
POLICIES = {"annealing": AnnealingPolicy, "velocity": VelocityPolicy, "score": ScorePolicy}
NAMES = sorted(
    path.stem
    for path in GOLDENS.glob("*.json")
    if json.loads(path.read_text()).get("policy") in POLICIES
)
FIELDS = ("pos", "cell")


class ReferenceNetwork(torch.nn.Module):
    """A network of the files behind the interface of a model."""

    def __init__(self, weights, gamma):
        super().__init__()
        hidden_dim = weights["node_embedding.weight"].shape[1]
        edge_inputs = weights["csp_layer_0.edge_mlp.0.weight"].shape[1]
        # A network of few layers carries unused layers of another size.
        n_layers = sum(
            weights[name].shape[1] == edge_inputs
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
        ).double()
        self.load(weights)
        self.gamma_scale = gamma
        self.has_denoiser = FIELDS if gamma else ()

    def load(self, weights):
        wanted = self.network.state_dict()
        self.network.load_state_dict({name: weights[name] for name in wanted})

    def prepare(self, crystals):
        return crystals.species, PairTopology.from_n_atoms(crystals.n_atoms)

    def velocity(self, t, pos, cell, conditioning, heads=("velocity",)):
        return self.network(t, conditioning[0], pos, cell, conditioning[1], heads=heads)

    def gamma(self, field, t):
        return torch.sqrt(self.gamma_scale * t * (1 - t))


def with_prefix(tensors, prefix):
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def noise_schedules(specification):
    kinds = {"constant": ConstantNoise, "sqrt": SquareRootNoise}
    return {field: kinds[kind](scale) for field, (kind, scale) in specification.items()}


def relative_difference(value, reference):
    return float(((value - reference).norm() / reference.norm()).detach())


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    settings = json.loads((GOLDENS / f"{request.param}.json").read_text())
    tensors = load_file(GOLDENS / f"{request.param}.safetensors")
    n_steps = settings["integration_time_steps"] - 1
    fields = [field for field in FIELDS if field in settings["noise"]]
    frozen_fields = settings.get("frozen_fields", [])
    assert set(fields) | set(frozen_fields) == set(FIELDS)

    gamma = settings["gamma"][1] if "gamma" in settings else None
    reference = with_prefix(tensors, "reference.encoder.")
    model = ReferenceNetwork(reference, gamma)
    noise = noise_schedules(settings["noise"])
    ref_noise = (
        noise_schedules(settings["reference_noise"]) if "reference_noise" in settings else None
    )
    policy = POLICIES[settings["policy"]](model, noise=noise, ref_noise=ref_noise)

    def load(which):
        if settings["policy"] == "annealing":
            policy.annealing = LearnedAnnealing.from_omatg(with_prefix(tensors, f"{which}."))
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
    trajectory = Trajectory(
        time_grid(n_steps),
        stacked("action", fields, n_steps),
        stacked("old_log_prob", fields, n_steps),
        crystals,
        stacked("state", FIELDS, n_steps + 1),
        frozen,
    )
    weights = settings["weights"]
    config = GRPOConfig(
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


def test_every_update_is_tested():
    assert NAMES


def test_advantages(case):
    ours = group_advantages(case.tensors["rewards"], case.config.group_size)
    assert relative_difference(ours, case.tensors["advantages"]) < 1e-7


def test_old_log_probs(case):
    case.load("old_policy")
    index = torch.arange(case.trajectory.n_steps)
    steps = case.policy.steps(case.trajectory.inputs(case.policy, index))
    for field in case.fields:
        ours = steps[field].policy.log_prob(case.trajectory.actions[field])
        assert relative_difference(ours, case.trajectory.log_probs[field]) < 1e-9


@torch.no_grad()
def test_frozen_outputs_and_integration(case):
    """The states follow from the actions."""
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
                assert relative_difference(getattr(output, head)[field], value[i]) < 1e-9
        frozen = {h: {f: v[None] for f, v in getattr(output, h).items()} for h in heads}
        inputs = replace(trajectory.inputs(policy, torch.tensor([i])), frozen=frozen)
        increments = {
            f: policy.increment(f, trajectory.actions[f][i : i + 1], inputs)[0]
            if f in case.fields
            else policy.frozen_increment(f, inputs)[0]
            for f in FIELDS
        }
        after = advance(state, increments)
        difference = after["pos"] - trajectory.states["pos"][i + 1]
        assert float((difference - difference.round()).abs().max()) < 1e-9
        assert relative_difference(after["cell"], trajectory.states["cell"][i + 1]) < 1e-9


def test_loss_and_gradient(case):
    case.load("policy")
    loss = grpo_loss(case.policy, case.trajectory, case.tensors["advantages"], case.config)
    info = case.settings["info"]
    # The reference counts clipped ratios in single precision.
    names = {
        "loss_policy": ("policy_loss", 1e-7),
        "loss_regularization": ("kl", 1e-7),
        "loss_distillation": ("distillation", 1e-7),
        "clip_fraction": ("clip_fraction", 1e-6),
    }
    for name, value in info.items():
        field, _, term = name.partition("_")
        ours, tolerance = names[term]
        assert float(loss.terms[f"{field}_{ours}"]) == pytest.approx(value, rel=tolerance), name
    assert float(loss.total.detach()) == pytest.approx(case.settings["loss"], rel=1e-7)

    case.policy.zero_grad()
    loss.total.backward()
    gradients = with_prefix(case.tensors, "grad.")
    squared = {"difference": 0.0, "reference": 0.0}
    for name, parameter in case.policy.named_parameters():
        if case.settings["policy"] == "annealing":
            theirs = case.policy.annealing.omatg_name(name.removeprefix("annealing."))
        else:
            theirs = name.replace("network.network.", "encoder.")
        ours = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        expected = gradients.pop(theirs, torch.zeros_like(parameter))
        squared["difference"] += float((ours - expected).square().sum())
        squared["reference"] += float(expected.square().sum())
    assert not gradients, "gradients of parameters that we do not have"
    assert (squared["difference"] / squared["reference"]) ** 0.5 < 1e-7
