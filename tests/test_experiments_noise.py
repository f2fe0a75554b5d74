"""Notebook 02's experiment: presets, scales, claims, and a run with a tiny model."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from irlkit.flows.dynamics import Dynamics
from irlkit.flows.schedules import ConstantNoise
from irlkit.lab import experiments
from irlkit.lab.experiments._noise_claims import noise_claims
from irlkit.lab.experiments.claims import _Evidence
from irlkit.lab.experiments.noise_schedules import KINDS, LINE, PERTURBED, SDE, _scale_at
from irlkit.lab.experiments.presets import Rung, presets
from tests.tiny_experiments import evaluated, write_files
from tests.toy_potentials import LennardJonesToy


@pytest.mark.parametrize("name", presets("noise"))
def test_presets_are_complete_and_json(name):
    preset = experiments.resolve("noise", name)
    assert preset.n_steps in preset.evaluation_steps
    assert preset.evaluation_steps[-1] == preset.reference_steps
    assert list(preset.levels) == ["small", "medium", "large"]
    json.dumps(preset.to_dict(), allow_nan=False)


def test_given_parameters_override_the_preset():
    preset = experiments.resolve("noise", "quick", split="val", scales=[0.3, 1], seeds="4,5")
    assert (preset.split, preset.scales, preset.seeds) == ("val", (0.3, 1.0), (4, 5))
    assert preset.n_steps == presets("noise")["quick"].n_steps


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "huge"}, r"preset must be one of \['laptop', 'paper', 'quick'\], got 'huge'"),
        ({"split": "train"}, "split must be one of"),
        ({"scales": [0.2, 0.1]}, "scales must be positive and ascending"),
        ({"scales": [0.0]}, "scales must be positive"),
        ({"n_steps": 500}, "smaller than reference_steps, 500"),
        ({"seeds": [1, 1]}, "seeds must be different"),
    ],
)
def test_parameters_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        experiments.resolve("noise", **arguments)


def test_a_scale_lies_between_those_that_were_tried():
    scales, losses = np.array([0.0, 0.1, 0.4]), np.array([0.0, 0.1, 0.5])
    assert _scale_at(scales, losses, 0.05) == pytest.approx(0.05), "linear from 0 on"
    assert _scale_at(scales, losses, 0.1) == pytest.approx(0.1)
    assert _scale_at(scales, losses, 0.3) == pytest.approx(0.2), "half way of the logarithm"
    assert _scale_at(scales, losses, 0.6) == np.inf


# --------------------------------------------------------------------------------------------------
# Claims
# --------------------------------------------------------------------------------------------------

PRESET = presets("noise")["laptop"]
MEDIUM = {
    (SDE, "constant"): 0.4,
    (SDE, "square root"): 0.6,
    (PERTURBED, "constant"): 0.1,
    (PERTURBED, "square root"): 0.2,
}


GOOD = {
    ("ODE", "handcrafted", 500): 0.67,
    ("ODE", "handcrafted", 50): 0.13,
    ("ODE", "none", 500): 0.61,
    ("ODE", "none", 50): 0.605,
    (SDE, "handcrafted", 500): 0.672,
}
"""Integration, annealing, steps -> match rate: what the paper found, roughly."""


def judge(changes=None, medium=MEDIUM, loss=0.6):
    evaluations = []
    for (way, schedule, k), rate in {**GOOD, **(changes or {})}.items():
        labels = {"integration": way, "schedule": schedule, "n_steps": k, "noise": "none"}
        evaluations += [evaluated(metre=rate, **labels, seed=seed) for seed in (0, 1)]
    evidence = _Evidence(evaluations, experiments.NoiseSchedules.metric_names)
    spread = np.linspace(-0.01, 0.01, 2001)
    spread[0] = 0
    scales = {key: value * (1 + spread) for key, value in medium.items()}
    return noise_claims(evidence, PRESET, scales, np.array([loss, loss - 0.01, loss + 0.01]))


def not_holding(*arguments, **options):
    return {i for i, c in enumerate(judge(*arguments, **options), start=1) if not c.holds}


def test_the_papers_numbers_hold():
    assert not_holding() == set()
    assert [claim.kind for claim in judge()] == ["claim"] * 7 + ["guard"] * 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({("ODE", "handcrafted", 50): 0.65}, {6}),
        ({("ODE", "none", 50): 0.5}, {8}),
        ({("ODE", "none", 500): 0.7, ("ODE", "none", 50): 0.7}, {7}),
        ({(SDE, "handcrafted", 500): 0.6}, {9}),
    ],
)
def test_claims_about_annealing_that_fail(changes, expected):
    assert not_holding(changes) == expected


def test_claims_about_noise_that_fail():
    assert not_holding(medium={**MEDIUM, (SDE, "constant"): 0.1}) == {1}
    assert not_holding(medium={**MEDIUM, (PERTURBED, "square root"): 0.05}) == {4}
    assert not_holding(loss=0.05) == {5}
    assert not_holding(loss=0.1) == {5}, "the interval, not the value"


def test_without_what_is_claimed_nothing_holds():
    plain = {(way, s, k): GOOD["ODE", "none", k] for way, s, k in GOOD}
    judged = judge(plain, dict.fromkeys(MEDIUM, 0.2), loss=0.0)
    assert not any(claim.holds for claim in judged if claim.kind != "guard")
    assert all(claim.control is not None for claim in judged if claim.kind != "guard")


# --------------------------------------------------------------------------------------------------
# The experiment
# --------------------------------------------------------------------------------------------------

TINY = replace(
    presets("noise")["quick"],
    scales=(0.1, 1.0),
    n_steps=2,
    step_counts=(2, 3),
    reference_steps=4,
    test_size=6,
    seeds=(0, 1),
    n_seeds_at_reference=1,
    reference_sweep=(Rung(2, 3, 4),),
    candidates=((2.0, 1.0),),
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("noise"))


def make(files, out_dir, preset=TINY, **options):
    given = {"velocity_checkpoint": files / "second.safetensors", **options}
    checkpoint = given.pop("checkpoint", files / "model.safetensors")
    return experiments.NoiseSchedules(
        checkpoint,
        files / "salts.csv",
        preset,
        potential=LennardJonesToy(),
        out_dir=out_dir,
        progress=False,
        **given,
    )


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    """The experiment, run to its end as the notebook does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IRLKIT_CACHE", str(files / "cache"))
        experiment = make(files, tmp_path_factory.mktemp("results"))
    scanned = experiment.scan()
    pd.testing.assert_frame_equal(scanned, experiment._scanned())
    experiment.sweep_reference()
    experiment.compare_annealing()
    return experiment


def test_every_way_schedule_and_scale_is_evaluated(finished):
    rows = finished.evaluation
    counts = rows.groupby(["integration", "schedule"]).size().to_dict()
    # Two seeds: 2 kinds x 2 scales, twice perturbed (two models); without noise at 2, 3 and 4
    # steps (one seed at 4), and at 2 steps of the second model.
    assert counts[SDE, "none"] == 8 and counts[PERTURBED, "none"] == 16
    assert counts["ODE", "none"] == 5 + 2 and counts["ODE", "handcrafted"] == 5
    assert counts[SDE, "handcrafted"] == 1
    assert set(rows["potential"]) == {"toy"}
    assert len(finished.structures) == len(rows) * len(finished.test)
    assert "energy_above_reference" in finished.structures


def test_lines_begin_without_noise(finished):
    rows = finished._scanned()
    assert rows["line"].nunique() == 6
    for _, line in rows[rows["seed"] == 0].groupby("line"):
        assert sorted(line["scale"]) == [0.0, 0.1, 1.0]
    first = rows[(rows["scale"] == 0) & (rows["seed"] == 0)]
    of_first_model = first[first["model"] == finished.checkpoint]
    assert of_first_model["crmse"].nunique() == 1, "without noise, all ways are one"
    assert len(of_first_model) == 4


def test_losses_start_at_zero_and_never_fall(finished):
    for _, rows in finished._losses().groupby(LINE):
        losses = rows["loss"].to_numpy()
        assert np.isnan(losses).all() or ((losses >= 0).all() and (np.diff(losses) >= 0).all())


def test_noise_changes_structures_and_the_score_matters(finished):
    batch = finished.test.batch
    noise = {"pos": ConstantNoise(0.5)}
    plain = finished.generate(batch, 2, None, 0)
    noisy = Dynamics(finished.model, None, noise)
    perturbed, again = (finished.generate(batch, 2, noisy, 0) for _ in range(2))
    sde = finished.generate(batch, 2, replace(noisy, kind="sde"), 0)
    assert torch.equal(perturbed.pos, again.pos)
    assert not torch.allclose(plain.pos, perturbed.pos)
    assert not torch.allclose(sde.pos, perturbed.pos)
    other = finished.generate(batch, 2, noisy, 1)
    assert not torch.allclose(other.pos, perturbed.pos)


def test_a_second_model_starts_from_its_own_base(finished):
    batch = finished.test.batch
    own = finished._base_sample(batch, 3, finished.second)
    expected = finished.second.sample_base(batch, torch.Generator().manual_seed(3))
    assert torch.equal(own.cell, expected.cell)


def test_energies_of_every_scale(finished):
    energies = finished.energies(SDE)
    assert list(energies) == ["no noise", "scale 0.1", "scale 1"]
    assert all(values.shape == (len(finished.test),) for values in energies.values())


def test_results_are_complete_and_strict(finished):
    judged = finished.claims()
    assert len(judged) == 9
    text = finished.conclusion(judged)
    assert "**Claims:**" in text and "quick" in text
    paths = finished.write_results(judged)
    assert all(path.is_file() for path in paths)
    found = json.loads(
        (finished.out_dir / "results.json").read_text(),
        parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"),
    )
    keys = "parameters environment dataset evaluation handcrafted_sweep potential noise_scales"
    assert set(found) == {*keys.split(), "claims", "rule_sweep"}
    assert found["potential"] == "toy"
    assert len(found["noise_scales"]) == 6
    for row in found["evaluation"]:
        assert {"energy_above_reference", "invalid_rate", "potential", "metre"} <= set(row)
        assert (row["coefficients"] is not None) == (row["schedule"] == "handcrafted")
    names = {path.name for path in paths}
    assert {"evaluation.parquet", "structures.parquet", "losses.parquet"} <= names
    assert "history.parquet" not in names, "nothing was trained"


def test_tables_for_people(finished):
    table = finished.table("scales")
    assert len(table) == 6 and next(iter(table.columns)).startswith("small")
    assert finished.table("annealing").index.names == ["integration", "annealing", "steps"]
    assert "perturbed ODE only" in finished.summary().to_string()


def test_the_order_of_things_is_explained(files, tmp_path):
    experiment = make(files, tmp_path, velocity_checkpoint=None)
    with pytest.raises(ValueError, match="call scan"):
        experiment.compare_annealing()
    with pytest.raises(ValueError, match=r"has no denoiser for \['pos'\]"):
        make(files, tmp_path, checkpoint=files / "second.safetensors")


def test_kinds_of_noise_have_one_scale():
    t = torch.tensor([0.5])
    assert {name: float(kind(0.3)(t)) for name, kind in KINDS.items()} == pytest.approx(
        {"constant": 0.3, "square root": 0.3}
    )


def test_the_validation_split_can_be_taken(files, tmp_path):
    experiment = make(files, tmp_path, replace(TINY, split="val"), velocity_checkpoint=None)
    assert experiment.test.split == "val"
