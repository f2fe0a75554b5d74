"""The experiment of notebook 09, tiny; and its claims with policies that learned nothing."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import irlkit
from irlkit.data import load
from irlkit.flows.constraints import Constraints
from irlkit.lab import plots
from irlkit.lab.experiments import denovo, latent
from irlkit.lab.experiments.latent import FLOW, GUIDED, LATENT, LONGER
from irlkit.lab.plots._latent import latent_map
from irlkit.networks.autoencoder import Autoencoder
from irlkit.networks.latent_diffusion import DiffusionTransformer, LatentDiffusion
from irlkit.rl import rollout
from tests.test_null_policy import check

TINY = replace(
    latent.SIZES["quick"],
    n_structures=8, n_groups=1, group_size=4, n_steps=4, relax_steps=1, max_steps=2,
    latent_steps=4, latent_learning_rate=1e-3,
)  # fmt: skip
REINFORCED, START, RULE, GAP = denovo.REINFORCED, denovo.START, denovo.RULE, denovo.GAP


@pytest.fixture(scope="module")
def flow():
    return irlkit.load_pretrained("denovo-mask")


@pytest.fixture(scope="module")
def diffusion():
    """An untrained transformer on the latents of the shipped autoencoder."""
    torch.manual_seed(0)
    network = DiffusionTransformer(8, 20, 16, 1, 2, conditional=True)
    torch.nn.init.normal_(network.out.weight, std=0.1)
    return LatentDiffusion(Autoencoder.load("chemeleon-vae"), network).eval()


def make(flow, diffusion, folder, **changes):
    size = replace(TINY, **changes)
    return latent.GeneratorComparison(size, flow, diffusion, folder, n_workers=0, progress=False)


def test_a_run_its_tables_figures_and_files(flow, diffusion, tmp_path):
    experiment = make(flow, diffusion, tmp_path)
    experiment.evaluate(START)
    assert set(experiment.tune_temperature()["generator"]) == {FLOW, LATENT}
    rule = experiment.experiments[LATENT].policies[RULE, 0]
    assert rule.noise_scale == {"latent": TINY.temperatures[0]}
    history = experiment.train(REINFORCED)
    assert set(history["variant"]) == {f"{FLOW}, reinforced", f"{LATENT}, reinforced"}
    experiment.train(GAP, LATENT)
    experiment.evaluate(RULE)
    experiment.evaluate(REINFORCED)
    experiment.evaluate(GAP, LATENT)
    assert list(experiment.tune_guidance()["guidance"]) == list(TINY.guidances)
    cost = experiment.seconds()
    assert (cost["rewards"] == 4).all() and (cost["seconds"] > 0).all()
    assert set(experiment._at_equal()) == {"rewards"}
    faster = experiment.train_equal_seconds()
    longer = experiment.seconds(LONGER)
    assert list(longer.index) == [faster] and cost["seconds"].idxmin() == faster
    assert float(longer["seconds"].iloc[0]) >= float(cost["seconds"].max())
    # Cells that run again change nothing.
    experiment.train(REINFORCED)
    assert experiment.train_equal_seconds() == faster
    pd.testing.assert_frame_equal(experiment.seconds(), cost)
    pd.testing.assert_frame_equal(experiment.seconds(LONGER), longer)
    experiment.evaluate(LONGER, faster)
    assert experiment._at_equal()["seconds"][faster] == LONGER
    table = experiment.table()
    assert len(table) == 9 and f"{LATENT}, {GUIDED}" in table.index
    assert experiment.draw_training().data and len(experiment.draw_pareto().data) == 9
    claims = experiment.claims()
    texts = [claim.claim for claim in claims]
    assert sum("at equal seconds" in text for text in texts) == 1
    assert sum("of 3 eV" in text for text in texts) == 3
    paths = experiment.write_results(claims, {}, {})
    assert all(path.exists() for path in paths)
    assert {path.suffix for path in paths} == {".extxyz", ".safetensors", ".parquet", ".json"}


def test_claims_of_policies_that_learned_nothing(flow, diffusion, tmp_path):
    experiment = make(flow, diffusion, tmp_path, seeds=(0, 1))
    for name, e in experiment.experiments.items():
        for variant in (REINFORCED, RULE, LONGER) if name == FLOW else (REINFORCED, RULE, GAP):
            e.policies |= {(variant, seed): e.generator.policy() for seed in (0, 1)}
            e.evaluate(START, variant)
    e.metrics |= {(GUIDED, seed): e.metrics[START, seed] for seed in (0, 1)}
    experiment._collect()
    claims = experiment.claims()
    assert sum("equal" in claim.claim for claim in claims) == 2
    check(claims, 12)


def test_guidance_of_nothing_is_what_the_policy_generates(flow, diffusion, tmp_path):
    experiment = make(flow, diffusion, tmp_path)
    e = experiment.experiments[LATENT]
    ours = experiment._guided(6, 3, guidance=0.0)
    theirs = e.generate(e.generator.policy(), 6, 3)
    torch.testing.assert_close(ours.pos, theirs.pos)
    assert torch.equal(ours.species, theirs.species)
    assert set(e.elements()) >= {"O", "Na"}
    with pytest.raises(ValueError, match="constraints must be None for a latent diffusion"):
        e.generate(e.generator.policy(), 2, 0, Constraints(elements=["O"]))


def test_the_latent_space_looked_at(diffusion):
    known = load("prototypes", "test", progress=False)
    table = latent.latent_map(diffusion, known.batch)
    assert len(table) == len(known) and table["class"].nunique() == 7
    families = {"CsMgF3": "halides", "LaGaO3": "oxides", "Sr(PRh)2": "pnictides"}
    for formula, family in families.items():
        assert set(table.loc[table["formula"] == formula, "class"]) == {family}
    first, second = table.attrs["explained"]
    assert 1 > first >= second > 0
    np.testing.assert_allclose(table[["first", "second"]].mean(), 0, atol=1e-6)
    figure = latent_map(table)
    assert sum(len(trace.x) for trace in figure.data) == len(known)
    assert "% of the variance" in figure.layout.xaxis.title.text


def test_a_line_between_two_crystals(diffusion):
    known = load("prototypes", "test", progress=False)
    ends = [known[known.table["formula"] == name][0].batch for name in ("CsMgF3", "LaGaO3")]
    line = latent.interpolate(diffusion, *ends, n_points=4)
    assert len(line) == 4
    formulas = line.reduced_formulas()
    assert (formulas[0], formulas[-1]) == ("CsMgF3", "LaGaO3")
    with pytest.raises(ValueError, match=r"of equally many atoms, got \[5\] and \[2\]"):
        latent.interpolate(diffusion, ends[0], known[known.batch.n_atoms == 2][0].batch)
    with pytest.raises(ValueError, match="n_points must be at least 2, got 1"):
        latent.interpolate(diffusion, *ends, n_points=1)


def test_a_path_from_noise_whose_elements_change_is_drawn(diffusion, flow, tmp_path):
    e = make(flow, diffusion, tmp_path).experiments[LATENT]
    policy, draws = e.generator.policy(), torch.Generator().manual_seed(0)
    x_0 = policy.process.initial(e.request(3, 0), draws)
    trajectory = rollout(policy, x_0, 6, draws)
    path = latent.decoded_path(diffusion, trajectory, 1, n_frames=4)
    assert len(path) == 4 and all(len(state) == 1 for state in path)
    assert torch.equal(path[-1].species, trajectory.final[1].species)
    assert len({tuple(state.species.tolist()) for state in path}) > 1
    figure = plots.trajectories({"path": path})
    elements = {int(z) for state in path for z in state.species}
    for frame, state in zip(figure.frames, path, strict=True):
        balls = [trace for trace in frame.data if trace.type == "mesh3d"]
        assert len(balls) == len(elements)
        drawn = [trace for trace in balls if trace.i is not None and len(trace.i)]
        assert len(drawn) == len(set(state.species.tolist()))


def test_sizes():
    assert set(latent.SIZES) == {"quick", "laptop", "long", "paper"}
    size = latent.SIZES["laptop"].of_latents()
    assert size.n_steps == size.latent_steps and size.learning_rate == size.latent_learning_rate
