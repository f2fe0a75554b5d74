"""The policy of latent diffusion: exact probabilities, marginals, and what it leaves unchanged."""

from pathlib import Path

import numpy as np
import pytest
import torch

from irlkit.crystals import CrystalBatch
from irlkit.networks.latent_diffusion import (
    DiffusionTransformer,
    LatentDiffusion,
    denoised,
    signal,
)
from irlkit.rl import (
    GRPOConfig,
    GRPOTrainer,
    LatentPolicy,
    Request,
    generate,
    group_advantages,
    grpo_loss,
    rollout,
)
from irlkit.utils.draws import SharedDraws
from tests.test_house import GRAPH
from tests.test_latent import autoencoder, diffusion, draws
from tests.toys import trainer_config

REQUEST = Request(torch.tensor([2, 1, 4]))


def changed(policy, seed=1, by=0.02):
    """Move the trained weights, so that policy and reference differ."""
    with torch.no_grad():
        for p in policy.network.parameters():
            p += by * torch.randn(p.shape, generator=draws(seed), dtype=p.dtype)
    return policy


def episode(policy, n_steps=4, k=3):
    generator = draws()
    x_0 = policy.process.initial(REQUEST.repeat(k), generator)
    return rollout(policy, x_0, n_steps, generator)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_probabilities_agree_with_torch_distributions(reduction, eta):
    policy = changed(LatentPolicy(diffusion(), eta, reduction))
    trajectory = episode(policy)
    index = torch.tensor([0, 3])
    inputs = trajectory.inputs(policy, index)
    step = policy.steps(inputs)["latent"]
    reduce = torch.mean if reduction == "mean" else torch.sum
    normals = {}
    for name, network in {"ours": policy.network, "theirs": policy.model.network}.items():
        parts = []
        for i in index.tolist():
            t = trajectory.times[i].repeat(len(trajectory.request))
            x = trajectory.states["latent"][i]
            eps = network(x, t, policy.prepare(trajectory.request))
            parts.append(denoised(x, eps, trajectory.times[i], trajectory.times[i + 1], eta))
        means, stds = (torch.stack(part) for part in zip(*parts, strict=True))
        normals[name] = torch.distributions.Normal(means, stds[:, None, None])
    action = trajectory.actions["latent"][index]
    expected = reduce(normals["ours"].log_prob(action), -1)
    torch.testing.assert_close(step.policy.log_prob(action), expected)
    torch.testing.assert_close(trajectory.log_probs["latent"][index], expected)
    kl = reduce(torch.distributions.kl_divergence(normals["ours"], normals["theirs"]), -1)
    torch.testing.assert_close(step.policy.kl(step.reference), kl)
    assert float(kl.min()) > 0
    torch.testing.assert_close(step.policy.entropy(), reduce(normals["ours"].entropy(), -1))


def test_the_ratio_is_one_before_the_first_update():
    policy = changed(LatentPolicy(diffusion()))
    trajectory = episode(policy)
    advantages = group_advantages(torch.randn(9, generator=draws(), dtype=torch.float64), 3)
    loss = grpo_loss(policy, trajectory, advantages, GRPOConfig())
    np.testing.assert_allclose(float(loss.terms["latent_ratio"]), 1, atol=1e-12)
    assert float(loss.terms["latent_approx_kl"]) < 1e-12
    assert abs(float(loss.terms["latent_policy_loss"])) < 1e-12
    loss.total.backward()
    assert max(float(p.grad.abs().max()) for p in policy.network.parameters()) > 0
    assert all(p.grad is None for p in policy.model.parameters())


def test_the_reference_is_the_pretrained_model_or_the_policy_of_the_rollout():
    pretrained, own = (
        changed(LatentPolicy(diffusion(), reference=who)) for who in ("pretrained", "rollout")
    )
    advantages, config = torch.zeros(9), GRPOConfig(kl_weight=1.0)
    kls = []
    for policy in (pretrained, own):
        trajectory = episode(policy)
        kls.append(float(grpo_loss(policy, trajectory, advantages, config).terms["latent_kl"]))
    assert kls[0] > 1e-6 and abs(kls[1]) < 1e-12
    changed(own, seed=2)
    assert float(grpo_loss(own, trajectory, advantages, config).terms["latent_kl"]) > 1e-6


def test_the_last_step_has_no_noise_and_no_probability():
    policy = LatentPolicy(diffusion())
    trajectory = episode(policy, n_steps=4)
    assert trajectory.actions["latent"].shape == (4, 21, 8)
    x, t = trajectory.actions["latent"][-1], trajectory.times[-1]
    eps = policy.network(x, t.repeat(9), policy.prepare(trajectory.request))
    end, _ = denoised(x, eps, t, torch.tensor(-1.0), 1.0)
    torch.testing.assert_close(trajectory.states["latent"][-1], end)
    final = policy.model.latents_to_crystals(end.detach(), trajectory.request.n_atoms)
    torch.testing.assert_close(trajectory.final.pos, final.pos)
    for i in range(3):  # Before it, the state after a step is the action.
        assert torch.equal(trajectory.states["latent"][i + 1], trajectory.actions["latent"][i])


class GaussianScore(DiffusionTransformer):
    """The exact noise of latents that are normal, with a mean and a spread per dimension.

    The mean is trained as the bias of the last layer.
    """

    mean = torch.linspace(-1, 1, 8, dtype=torch.float64)
    spread = torch.linspace(0.3, 1.5, 8, dtype=torch.float64)

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.out.bias = torch.nn.Parameter(self.mean.clone())

    def forward(self, x, t, slots):
        abar = signal(t)[slots.batch, None]
        variance = abar * self.spread.square() + 1 - abar
        return (1 - abar).sqrt() * (x - abar.sqrt() * self.out.bias) / variance


@pytest.mark.parametrize(("eta", "n_steps"), [(1.0, 299), (0.3, 99)])
def test_marginals_of_a_gaussian_whose_score_is_known(eta, n_steps):
    """Rollouts end in the distribution of the data, and so does the model's own generation."""
    model = LatentDiffusion(autoencoder(), GaussianScore(8, 5, 16, 1, 2).double())
    request, ends = Request(torch.full((1000,), 4)), []
    nothing = CrystalBatch.from_formulas(["H"])
    model.latents_to_crystals = lambda x, n_atoms: ends.append(x) or nothing
    policy = LatentPolicy(model, eta=eta)
    rollout(
        policy, policy.process.initial(request, draws()), n_steps, draws(1), record_states=False
    )
    model.generate(request.n_atoms, n_steps, generator=draws(2), eta=eta)
    assert len(ends) == 2
    for latents in ends:
        assert latents.shape == (4000, 8)
        assert float((latents.mean(0) - GaussianScore.mean).abs().max()) < 0.08
        assert float((latents.std(0) / GaussianScore.spread - 1).abs().max()) < 0.07


def test_renoised_paths_give_the_same_gradient():
    """Of the mean of a normal distribution, where the first of its numbers is rewarded.

    More steps to the same ends are more draws of the noise, and leave less of it in the gradient.
    """

    network = GaussianScore(8, 5, 16, 1, 2).double()
    model = LatentDiffusion(autoencoder(), network)
    model.latents_to_crystals = lambda x, n_atoms: CrystalBatch.from_formulas(["H"])
    request = Request(torch.full((150,), 4))

    def gradient(renoised, seed):
        policy = LatentPolicy(model, reduction="sum", renoised=renoised)
        first = rollout(policy, policy.process.initial(request, draws(seed)), 9, draws(100 + seed))
        trajectory = policy.retrace(first, draws(200 + seed))
        ends = first.states["latent"][-1]
        assert torch.equal(trajectory.states["latent"][-1], ends)
        assert trajectory.n_steps == (renoised or 9)
        rewards = ends[:, 0].unflatten(0, (150, 4)).mean(1)
        loss = grpo_loss(policy, trajectory, rewards - rewards.mean(), GRPOConfig())
        assert float(loss.terms["latent_ratio"]) == pytest.approx(1)
        loss.total.backward()
        return -policy.network.out.bias.grad

    likeness = []
    for renoised in (None, 9, 36):
        found = torch.stack([gradient(renoised, seed) for seed in range(12)])
        assert float(torch.nn.functional.normalize(found.mean(0), dim=0)[0]) > 0.95
        likeness.append(float(torch.nn.functional.normalize(found, dim=1)[:, 0].mean()))
    assert likeness[1] < likeness[2]


def test_renoised_paths_need_no_more_memory_than_a_rollout():
    policy = LatentPolicy(diffusion(), renoised=5)
    trajectory = episode(policy)
    n_atoms = len(trajectory.states["latent"][-1])
    seen = []
    policy.network.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    assert policy.retrace(trajectory, draws(1)).log_probs["latent"].shape == (5, n_atoms)
    assert seen == [n_atoms] * 5


def test_a_bad_structure_changes_no_other_and_ranks_draw_what_one_would():
    policy = changed(LatentPolicy(diffusion(), renoised=5))
    trajectory = episode(policy)
    whole = policy.retrace(trajectory, draws(1))
    ours = [slice(0, 9), slice(9, 21)]
    for k, atoms in enumerate(ours):
        part = trajectory.select(torch.arange(6) if k == 0 else torch.arange(6, 9))
        shared = {"atom": SharedDraws(draws(1), 21, atoms)}
        again = policy.retrace(part, shared)
        torch.testing.assert_close(again.actions["latent"], whole.actions["latent"][:, atoms])
        torch.testing.assert_close(again.log_probs["latent"], whole.log_probs["latent"][:, atoms])
    trajectory.states["latent"][-1, 0] = torch.nan
    bad = policy.retrace(trajectory, draws(1)).log_probs["latent"]
    assert bad[:, :2].isnan().all()
    torch.testing.assert_close(bad[:, 2:], whole.log_probs["latent"][:, 2:])


def compact(structures):
    """More for small cells."""
    return -structures.volume.clamp(min=1e-3).log()


def test_it_learns_with_the_trainer_and_continues(tmp_path):
    config = trainer_config(
        n_groups=2,
        group_size=12,
        n_steps=4,
        learning_rate=1e-2,
        seed=3,
        n_ppo_epochs=2,
        max_batch=13,
    )
    request = Request(torch.tensor([1, 3]))
    model = diffusion()

    def trainer(**options):
        policy = LatentPolicy(model)
        return GRPOTrainer(
            policy, compact, request, config, validation=request.repeat(12), **options
        )

    first = trainer(out_dir=tmp_path)
    first.run(25, progress=False)
    history = first.history
    assert first.validate() > history["validation_reward"].iloc[0] + 0.02
    assert {"latent_kl", "latent_policy_loss", "latent_clip_fraction"} <= set(history.columns)
    again = trainer(out_dir=tmp_path, resume=True)
    for ours, theirs in zip(again.policy.parameters(), first.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_saved_policy_is_a_model(tmp_path):
    policy = changed(LatentPolicy(diffusion()))
    policy.save(tmp_path / "policy.safetensors", {"iterations": 3})
    model = LatentDiffusion.load(tmp_path / "policy.safetensors")
    assert model.info["iterations"] == 3 and model.info["policy"]["reduction"] == "mean"
    ours, theirs = (
        generate(p, REQUEST, 3, generator=draws()) for p in (policy, LatentPolicy(model))
    )
    assert torch.equal(ours.pos, theirs.pos) and torch.equal(ours.species, theirs.species)
    with pytest.raises(ValueError, match="what JSON can hold"):
        policy.save(tmp_path / "b.safetensors", {"bad": object()})


def test_errors():
    model = diffusion(max_atoms=5)
    policy = LatentPolicy(model)
    with pytest.raises(ValueError, match=r"at most 5, the largest cells .* has seen, got 6"):
        policy.process.initial(Request(torch.tensor([6])), draws())
    with pytest.raises(ValueError, match=r"numbers of atoms alone.* got compositions"):
        policy.process.initial(CrystalBatch.from_formulas(["NaCl"]), draws())
    with pytest.raises(ValueError, match=r"eta must be .* at most 1, got 1\.5"):
        LatentPolicy(model, eta=1.5)
    with pytest.raises(ValueError, match="eta must be a finite number above 0"):
        LatentPolicy(model, eta=0.0)
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum', got 'product'"):
        LatentPolicy(model, reduction="product")
    with pytest.raises(ValueError, match=r"renoised must be .* got 0"):
        LatentPolicy(model, renoised=0)
    with pytest.raises(ValueError, match="which do not determine one"):
        rollout(policy, CrystalBatch.from_formulas(["NaCl"]), 2, draws())


# --- what a new generator touches ---

OWN = {
    "irlkit.networks._transformer",
    "irlkit.networks.autoencoder",
    "irlkit.networks.latent_diffusion",
    "irlkit.pretraining.latent",
    "irlkit.rl.policies.latent",
}
REGISTRIES = {"irlkit.rl.policies", "irlkit.rl", "irlkit.pretraining.__main__"}


def test_a_new_generator_is_new_files_and_registry_lines():
    """Rollout, loss, trainer, rewards and metrics know nothing of latents; the registries do."""
    importers = {module for module, others in GRAPH.items() if others & OWN and module not in OWN}
    outside = {module for module in importers if not module.startswith("irlkit.lab")}
    assert outside <= REGISTRIES, sorted(outside - REGISTRIES)
    root = Path(__file__).parents[1] / "irlkit"
    for folder in ("rl", "rewards", "evaluate"):
        for path in (root / folder).rglob("*.py"):
            if path.name not in {"latent.py", "__init__.py"}:
                text = path.read_text()
                assert "LatentPolicy" not in text and "latent_diffusion" not in text, path
