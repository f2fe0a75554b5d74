"""Notebook 03's experiment: presets, claims, what has changed, and a run with a tiny model."""

import json
import time
from contextlib import contextmanager
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.core import Lattice, Structure

from irlkit.crystals import CrystalBatch
from irlkit.evaluate import metrics
from irlkit.flows.schedules import (
    LinearAnnealing,
    annealing_on_grid,
    load_annealing,
    save_annealing,
    time_grid,
)
from irlkit.lab import experiments, runs
from irlkit.lab.experiments import _changes as changes
from irlkit.lab.experiments import _training as training
from irlkit.lab.experiments._energies import find_judge
from irlkit.lab.experiments._energy_claims import (
    ANNEALED,
    PRETRAINED,
    energy_claims,
    untrained,
)
from irlkit.lab.experiments._gain import AFTER, BEFORE, LIMIT, Gains, WatchedEnergy
from irlkit.lab.experiments._training import file_name
from irlkit.lab.experiments.claims import _Evidence
from irlkit.lab.experiments.presets import AnnealingTraining, Rung, Variant, presets
from irlkit.rewards import EnergyReward
from irlkit.rl.policies import load_dynamics
from irlkit.rl.trainer import GRPOTrainer
from irlkit.utils.workers import Outcome, WorkerPool, WorkersLostError
from tests.tiny_experiments import evaluated, write_files
from tests.toy_potentials import LennardJonesToy

# --------------------------------------------------------------------------------------------------
# Presets
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", presets("energy"))
def test_presets_are_complete_and_json(name):
    preset = experiments.resolve("energy", name)
    assert preset.name == name
    for variant in preset.variants:
        assert preset.config(variant, 3).seed == 3
        assert preset.config(variant, 3).validation_step_choices == (preset.n_steps,)
    json.dumps(preset.to_dict(), allow_nan=False)


def test_given_parameters_override_the_preset():
    preset = experiments.resolve(
        "energy",
        "laptop",
        fields="pos, cell",
        iterations=2,
        n_groups=3,
        group_size=4,
        seeds=5,
        kl_weight=0.5,
    )
    config = preset.config("score-based", 5)
    assert (preset.fields, preset.iterations, preset.seeds) == (("pos", "cell"), 2, (5,))
    assert (config.n_groups, config.group_size) == (3, 4)
    assert all(preset.config(name, 0).grpo.weight("kl", "pos") == 0.5 for name in preset.variants)
    # What a preset says of one policy does not hide a parameter.
    paper = experiments.resolve("energy", "paper", kl_weight=0.5)
    assert all(paper.config(name, 0).grpo.weight("kl", "pos") == 0.5 for name in paper.variants)
    assert paper.config("score-based", 0).grpo.clip_eps == 0.2567


def test_variants_have_their_own_settings():
    variants = {"other": Variant("velocity", noise="small", grpo={"clip_eps": 0.07}, n_seeds=1)}
    preset = replace(presets("energy")["quick"], noise_study=variants)
    assert preset.config("other", 0).grpo.clip_eps == 0.07
    assert preset.config("score-based", 0).grpo.clip_eps != 0.07
    assert preset._seeds_of("other") == (0,) and preset._seeds_of("score-based") == (0, 1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fields": ("species",)}, "fields must be one or more of"),
        ({"fields": ()}, "fields must be one or more of"),
        ({"noise": {"medium": {"pos": 0.1}}}, "of level 'large', which score-based, large"),
        ({"policies": {"a": Variant("score")}}, "policies must be one of each kind"),
        ({"noise_study": {"score-based": Variant("score")}}, "noise_study must have other names"),
        ({"n_steps": 100}, "smaller than reference_steps, 100"),
        ({"iterations": 0}, "iterations must be a positive integer"),
        ({"seeds": (-1,)}, "non-negative"),
        ({"grpo": {"group_size": 1}}, "group_size must be an integer of at least 2"),
    ],
)
def test_settings_that_make_no_sense(changed, message):
    with pytest.raises(ValueError, match=message):
        replace(presets("energy")["quick"], **changed)


def test_names_that_make_no_sense():
    with pytest.raises(ValueError, match="preset must be one of"):
        experiments.resolve("energy", "huge")
    with pytest.raises(ValueError, match="policy must be one of"):
        Variant("annealing")


# --------------------------------------------------------------------------------------------------
# Claims
# --------------------------------------------------------------------------------------------------

PRESET = presets("energy")["laptop"]


FEW, MANY = PRESET.n_steps, PRESET.reference_steps
GOOD = {
    ("score-based", "none", FEW): (0.40, 0.10, 0.8),
    ("velocity-based", "none", FEW): (0.38, 0.10, 0.8),
    (untrained("score-based"), "none", FEW): (0.90, 0.15, 0.8),
    (untrained("velocity-based"), "none", FEW): (1.00, 0.15, 0.8),
    (PRETRAINED, "none", FEW): (1.00, 0.15, 0.8),
    (PRETRAINED, "none", MANY): (0.95, 0.15, 0.8),
    (PRETRAINED, "handcrafted", MANY): (0.90, 0.14, 0.8),
    (PRETRAINED, "rule", FEW): (0.60, 0.12, 0.8),
}
"""Policy, annealing, steps -> energy, RMSE and match rate of what should be found."""


def judge(changes=None, with_annealing=False):
    evaluations = []
    for (policy, schedule, k), (energy, rmsd, rate) in {**GOOD, **(changes or {})}.items():
        labels = {"policy": policy, "schedule": schedule, "n_steps": k}
        trained = (0, 1, 2) if policy in PRESET.policies else (np.nan,)
        for t, seed in product(trained, PRESET.seeds):
            of = {**labels, "training_seed": t, "seed": seed}
            evaluations.append(evaluated(energy=energy, rmsd=rmsd, metre=rate, **of))
    evidence = _Evidence(evaluations, experiments.EnergyReinforcement.metric_names)
    return energy_claims(evidence, PRESET, with_annealing, with_rule=True)


def not_holding(changes=None):
    return {i for i, c in enumerate(judge(changes), start=1) if not c.holds}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, set()),
        ({("score-based", "none", FEW): (0.6, 0.1, 0.8)}, {1, 2, 7, 8, 17, 18, 21, 22, 32}),
        ({("velocity-based", "none", FEW): (0.48, 0.1, 0.8)}, {12, 13, 19, 20, 31}),
        ({("score-based", "none", FEW): (0.40, 0.16, 0.8)}, {3, 11}),
        ({("velocity-based", "none", FEW): (0.38, 0.1, 0.75)}, {28, 29}),
        ({(PRETRAINED, "rule", FEW): (0.39, 0.1, 0.8)}, {21, 22}),
        # Of an energy below the reference, no share can be taken.
        ({(PRETRAINED, "handcrafted", MANY): (-0.1, 0.14, 0.8)}, {7, 8, 9, 10, 12, 13, 14, 15}),
    ],
)
def test_claims(changes, expected):
    found = not_holding(changes)
    assert found >= expected and len(found - expected) <= 2, found


def test_what_learned_nothing_satisfies_no_claim():
    null = {(name, "none", FEW): GOOD[untrained(name), "none", FEW] for name in PRESET.policies}
    judged = judge(null)
    assert not any(claim.holds for claim in judged if claim.kind != "guard")
    kinds = [claim.kind for claim in judge()]
    assert kinds[:6] == ["claim"] * 6
    assert set(kinds[6:24]) == {"aim"}
    assert kinds[24:] == ["guard"] * 8
    assert all(claim.control is not None for claim in judged)


def test_what_the_annealing_gains_is_not_a_gain_of_energies():
    rows = {(PRETRAINED, "learned", FEW): (0.37, 0.1, 0.8)}
    judged = {
        c.claim: c for c in judge(rows, with_annealing=True) if "learned annealing" in c.claim
    }
    assert [claim.holds for claim in judged.values()] == [False, False]
    assert all("minus that of the pretrained model with the learned" in text for text in judged)


def test_what_was_not_measured_is_undecided():
    judged = judge({("velocity-based", "none", FEW): (np.nan, np.nan, 0.8)})
    assert [c.verdict for c in judged[3:6]] == ["undecided"] * 3


# --------------------------------------------------------------------------------------------------
# What has changed
# --------------------------------------------------------------------------------------------------


def salt(shift=(0, 0, 0), a=4.0, second=(0.5, 0.5, 0.5)):
    sites = np.array([[0, 0, 0], second]) + shift
    return Structure(Lattice.cubic(a), ["Cs", "Cl"], sites)


def test_a_shift_of_all_atoms_is_no_move():
    before = CrystalBatch.from_structures([salt(), salt(shift=(0.9, 0, 0))])
    after = CrystalBatch.from_structures([salt(shift=(0.3, 0.1, 0)), salt(shift=(0.1, 0, 0))])
    table = changes.atom_changes(before, after, before)
    np.testing.assert_allclose(table["moved"], 0.0, atol=1e-5)


def test_moves_and_distances_are_in_angstrom():
    before, after = (CrystalBatch.from_structures([salt(second=(x, 0.5, 0.5))]) for x in (0.5, 0.6))
    table = changes.atom_changes(before, after, before)
    assert list(table["element"]) == ["Cs", "Cl"]
    # 0.1 x 4 A apart from each other: 0.2 A each from their common shift.
    np.testing.assert_allclose(table["moved"], 0.2, atol=1e-5)
    np.testing.assert_allclose(table["nearest before"], 2 * np.sqrt(3), rtol=1e-5)
    np.testing.assert_allclose(table["nearest after"], np.sqrt(1.6**2 + 8), rtol=1e-5)
    np.testing.assert_allclose(table["nearest in reference"], table["nearest before"])
    np.testing.assert_allclose(table["volume before"], 32, rtol=1e-5)


def test_the_nearest_atom_can_be_an_image():
    lone = CrystalBatch.from_structures(
        [Structure(Lattice([[3, 0, 0], [2.9, 1, 0], [0, 0, 5]]), ["Po"], [[0, 0, 0]])]
    )
    np.testing.assert_allclose(changes.nearest_distances(lone), np.hypot(0.1, 1), rtol=1e-4)


def test_structures_that_match_count_once():
    far = Structure(Lattice.tetragonal(2.5, 9.0), ["Cs", "Cl"], [[0, 0, 0], [0, 0, 0.5]])
    broken = salt(second=(0.01, 0.0, 0.0))
    groups = CrystalBatch.from_structures([salt(), salt(shift=(0.2, 0, 0)), far, far, broken, far])
    with metrics.MatchPool(0) as pool:
        table = changes.count_distinct(groups, 3, pool)
        assert list(table["n_valid"]) == [3, 2]
        assert list(table["n_distinct"]) == [2, 1]
        alone = changes.count_distinct(groups[4:5], 1, pool)
    assert list(alone["n_distinct"]) == [0]


# --------------------------------------------------------------------------------------------------
# The experiment
# --------------------------------------------------------------------------------------------------

TINY = replace(
    presets("energy")["quick"],
    n_steps=3,
    train_steps=2,
    iterations=2,
    grpo={"n_groups": 2, "group_size": 3, "validate_every": 1, "validation_size": 4},
    reference_steps=4,
    test_size=6,
    reference_sweep=(Rung(2, 3, 4),),
    candidates=(),
    diversity=(2, 3),
    n_relaxed=(2, 6),
    relax_steps=2,
    annealing="learn",
    annealing_training=AnnealingTraining(
        iterations=2,
        grpo={"n_groups": 2, "group_size": 3, "validate_every": 1, "validation_size": 4},
        schedule={"positive": True},
    ),
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("energy"))


def make(files, out_dir, preset=TINY, **options):
    return experiments.EnergyReinforcement(
        files / "model.safetensors",
        files / "salts.csv",
        preset,
        out_dir=out_dir,
        **{"potential": LennardJonesToy(), "progress": False, **options},
    )


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    """The experiment, run to its end as the notebook does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IRLKIT_CACHE", str(files / "cache"))
        judge = LennardJonesToy(sigma=2.3)
        experiment = make(files, tmp_path_factory.mktemp("results"), judge=judge)
    experiment.sweep_reference()
    experiment.sweep_rule()
    experiment.evaluate_pretrained()
    experiment.learn_annealing()
    experiment.evaluate_annealing()
    experiment.train_policies()
    experiment.evaluate_policies()
    experiment.study_noise()
    experiment.evaluate_policies(TINY.noise_study)
    experiment.diversity()
    experiment.measure_gain()
    return experiment


def test_every_policy_is_trained_with_every_seed(finished):
    assert set(finished.policies) == {
        *((name, seed) for name in TINY.policies for seed in (0, 1)),
        ("score-based, large noise", 0),
    }
    assert len(finished.history) == (5 + 1) * 3
    assert set(finished.history["policy"]) == {*TINY.variants, "annealing"}
    start = finished.model.state_dict()
    for policy in finished.policies.values():
        assert policy.model is finished.model
        assert policy.network.state_dict().keys() == start.keys()


def test_training_leaves_the_pretrained_model_as_it_was(finished, files):
    fresh = experiments.EnergyReinforcement._load(files / "model.safetensors", torch.device("cpu"))
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, finished.model.state_dict()[name])


def test_the_kept_policies_are_those_with_the_best_validation(finished):
    history = finished.history.set_index(["policy", "seed", "iteration"])[
        "validation_reward"
    ].sort_index()
    for (name, seed), iteration in finished.best_iteration.items():
        assert history[name, seed, iteration] == history[name, seed].max()


def test_evaluations_are_labelled(finished):
    rows = finished.evaluation
    assert rows.groupby("policy").size().to_dict() == {
        PRETRAINED: 3 * 2 + 3 * 1 + 2,
        "score-based": 4,
        "velocity-based": 4,
        untrained("score-based"): 2,
        untrained("velocity-based"): 2,
        "score-based, large noise": 1,
    }
    assert len(finished.table()) == 6 + 3 + 3
    # Each policy is measured in one of two calls; the time of both is noted. What was the same as
    # the pretrained model was not computed again.
    policies = rows[rows["policy"].isin(TINY.variants)]
    assert finished.seconds["evaluation of policies"] >= policies["seconds"].sum()
    assert set(finished.structures["policy"]) == set(rows["policy"])


def test_validation_curves_have_what_the_paper_shows(finished):
    curves, lines = finished.curves(TINY.policies)
    assert len(curves) == 2 * 2 * 3
    assert curves["polymorph_match_rate"].between(0, 1).all()
    assert curves["invalid_rate"].between(0, 1).all()
    # All begin with the same model; a score-based policy adds the same noise in each validation.
    start = curves[curves["iteration"] == 0]
    energy = start.groupby("policy")["energy_above_lowest"]
    assert (energy.nunique(dropna=False) == 1).all()
    assert list(lines["policy"]) == ["pretrained, annealed, 4 steps", *TINY.policies]


def test_matches_are_told_apart_by_polymorph(finished):
    table = finished.table("polymorphs")
    rows = finished.structures
    assert len(table) == len(finished.table())
    for (policy, schedule, n_steps), values in table.iterrows():
        of = (rows["policy"] == policy) & (rows["n_steps"] == n_steps)
        of &= rows["schedule"] == schedule
        lowest = rows[of].groupby("formula")["reference_energy"].transform("min")
        is_lowest = rows[of]["reference_energy"] - lowest <= 1e-3
        matched = rows[of]["rmsd"].notna()
        assert 0 < is_lowest.sum() < of.sum(), "some of both, or nothing is tested"
        assert values["lowest polymorph"] == pytest.approx(matched[is_lowest].mean(), abs=1e-4)
        assert values["other polymorphs"] == pytest.approx(matched[~is_lowest].mean(), abs=1e-4)
        evaluated = finished.evaluation
        own = (evaluated["policy"] == policy) & (evaluated["n_steps"] == n_steps)
        own &= evaluated["schedule"] == schedule
        rate = evaluated.loc[own, "polymorph_match_rate"].mean()
        assert values["any polymorph"] == pytest.approx(rate, abs=1e-4)


def test_validation_is_drawn_beside_the_test_split(finished):
    pytest.importorskip("plotly")
    from irlkit.lab.plots.reinforcement import validation_curves

    curves, tests = finished.curves(TINY.policies)
    tests = tests.fillna(0.5)
    figure = validation_curves(curves.fillna(1.0), tests, ("polymorph_match_rate", "invalid_rate"))
    solid = [trace for trace in figure.data if trace.fill is None and trace.line.dash is None]
    dashed = [trace for trace in figure.data if trace.line.dash is not None]
    assert len(solid) == 2 * 2 and len(dashed) == 2 * 3
    assert {trace.line.dash for trace in dashed} == {"dot", "dash"}
    assert dashed[0].line.color not in {trace.line.color for trace in solid}, "the pretrained one"
    score_based = curves[curves["policy"] == "score-based"]
    expected = score_based.groupby("iteration")["polymorph_match_rate"].mean()
    np.testing.assert_allclose(solid[0].y, expected)
    with pytest.raises(ValueError, match="at least one entry"):
        validation_curves(curves.head(0), tests)


def test_every_run_is_judged(finished):
    findings = finished.table("findings")
    assert {"policy", "seed", "severity", "finding", "advice"} <= set(findings)
    runs = findings[["policy", "seed"]].drop_duplicates()
    known = {*finished.policies, ("annealing", 0)}
    assert {tuple(run) for run in runs.itertuples(index=False)} <= known


def test_before_and_after_start_from_one_noise(finished, monkeypatch):
    # Of the untrained model, too few structures have an energy: three are given one.
    gains = {ANNEALED: [3.0, 2.0, 5.0], "velocity-based": [1.0, 3.0, 4.5]}
    missing = [np.nan] * (len(finished.test) - 3)
    energies = {name: np.array([*values, *missing]) for name, values in gains.items()}
    monkeypatch.setattr(finished, "energies", lambda: energies)
    panels, atoms = finished.before_and_after("velocity-based")
    assert len(panels) == 9 and len(atoms) == 6
    assert list(atoms["structure"]) == [1, 1, 2, 2, 3, 3]
    assert [title.split()[2].strip(":") for title in panels] == ["before", "after", "reference"] * 3
    whole = finished.generate(finished.test.batch, 3, finished.annealing, 0)
    chosen = [0, 2, 1]  # The largest, the median and the smallest gain: 2.0, 0.5 and -1.0.
    for number, panel in zip(chosen, list(panels.values())[::3], strict=True):
        torch.testing.assert_close(panel.pos, whole[number].pos, atol=1e-4, rtol=0)


def test_too_few_structures_to_show(finished, monkeypatch):
    nothing = {name: np.full(len(finished.test), np.nan) for name in (ANNEALED, "score-based")}
    monkeypatch.setattr(finished, "energies", lambda: nothing)
    with pytest.raises(ValueError, match="0 test structures have an energy"):
        finished._examples("score-based")


def test_diversity_is_counted_for_all_policies(finished):
    table = finished._tables()["diversity"]
    assert len(table) == 3 * 2 and set(table["n_generated"]) == {3}
    assert (table["n_distinct"] <= table["n_valid"]).all()


def test_results_are_complete_and_strict(finished):
    judged = finished.claims()
    assert "toy's, on" in finished.conclusion(judged)
    paths = finished.write_results(judged)
    assert all(path.is_file() for path in paths)
    found = json.loads(
        (finished.out_dir / "results.json").read_text(),
        parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"),
    )
    keys = "parameters environment dataset evaluation handcrafted_sweep training claims"
    assert set(found) == {*keys.split(), "potential", "diversity", "rule_sweep"}
    assert found["potential"] == "toy"
    assert found["training"]["best_iteration"]["velocity-based"].keys() == {"0", "1"}
    for row in found["evaluation"]:
        assert {"policy", "energy_above_reference", "invalid_rate", "potential"} <= set(row)
    history = pd.read_parquet(finished.out_dir / "history.parquet")
    assert {"policy", "seed", "validation_info_match_matched"} <= set(history)


# --------------------------------------------------------------------------------------------------
# Is the gain real?
# --------------------------------------------------------------------------------------------------


def gained(rewarded, judge, relaxed, n=60):
    """Energies before and after, that fall by so much, with a little noise."""
    rng = np.random.default_rng(0)
    spread, parts = rng.uniform(0.5, 1.5, n), []
    start = {kind: rng.uniform(2, 3, n) for kind in ("rewarded", "judge", "relaxed")}
    for when, times in ((BEFORE, 0), (AFTER, 1), (AFTER, 1)):
        labels = {"policy": "p", "when": when, "training_seed": np.nan, "formula": range(n)}
        falls = {"rewarded": rewarded, "judge": judge, "relaxed": relaxed}
        energies = {kind: start[kind] - times * fall * spread for kind, fall in falls.items()}
        parts.append(pd.DataFrame({**labels, **energies, "judge, relaxed": energies["relaxed"]}))
    table = pd.concat(parts)
    table["formula"] = "c" + table["formula"].astype(str)
    table.loc[3, "judge"] = np.nan
    return Gains(table)


@pytest.mark.parametrize(
    ("falls", "holding"),
    [
        ((0.5, 0.5, 0.3), {0, 1, 2, 4, 5, 6, 7}),
        ((0.5, 0.1, 0.3), {2, 4, 5, 6, 7}),  # the judge sees a fifth of it
        ((0.5, 0.5, 0.05), {0, 1, 2, 4, 6}),  # a tenth survives
        ((0.5, -0.5, -0.1), set()),
        ((0.0, 0.0, 0.0), set()),
    ],
)
def test_a_gain_that_others_do_not_see_is_not_claimed(falls, holding):
    claims = gained(*falls).claims({"p": "p"})
    assert {i for i, c in enumerate(claims) if c.holds and c.kind != "guard"} == holding
    assert [c.kind for c in claims] == [*["claim"] * 3, "guard", *["claim", "aim"] * 2]


def test_gains_are_those_of_structures_that_have_all_energies():
    found = gained(0.5, 0.4, 0.3)
    gains = found.gains("p")
    assert all(gain.shape == (2, 1, 60) for gain in gains.values())
    assert np.isnan(gains["rewarded"]).sum() == 2 and np.isnan(gains["rewarded"][:, 0, 3]).all()
    row = found.in_words(["p"]).loc[("p", "judge")]
    assert row["pairs"] == 2 * 59 and row["gain, mean"].startswith("0.4")


def test_energies_that_were_not_rewarded_are_validated_and_measured(finished):
    curves, lines, columns = finished.gain_curves()
    assert columns == ["energy_above_lowest", "judge_above_lowest", "relaxed_above_lowest"]
    assert len(curves) == 2 * 2 * 3 and not len(lines)
    table = finished._tables()["gain"]
    assert table.groupby(["policy", "when"]).size().to_dict() == {
        (name, when): n for name in TINY.policies for when, n in ((BEFORE, 4), (AFTER, 8))
    }
    before = table[table["when"] == BEFORE]
    computed = finished.potential(
        finished.generate(finished.test.batch, 3, finished.policy("score-based").deploy(), 0)
    )
    np.testing.assert_allclose(before["rewarded"][:4], computed.energy_per_atom, rtol=1e-4)
    assert (before["relaxed"] <= before["rewarded"] + 1e-3)[before["rewarded"].notna()].all()
    assert not np.allclose(before["judge"], before["rewarded"], equal_nan=True)
    assert set(finished.table("gain").columns) >= {"gain, mean", "pairs"}
    assert any("survives relaxation, by the judge" in c.claim for c in finished.claims())
    assert "The judge is toy" in finished._remark()


def test_watched_energies_are_bounded_and_reward_nothing(finished):
    data = finished.test
    energy = EnergyReward(finished.potential, clip=np.inf, references=data)
    close = data.batch.replace(cell=data.batch.cell * 0.4)
    assert energy(close).info["energy_above_reference"].max() > LIMIT
    found = WatchedEnergy(energy, 2)(close)
    assert not found.values.any() and found.info["energy_above_reference"][:2].max() == LIMIT
    assert np.isnan(found.info["energy_above_reference"][2:]).all()
    relaxed = WatchedEnergy(energy, 2, 20)(close).info["energy_above_reference"][:2]
    assert relaxed.min() < 0 and relaxed.max() <= LIMIT

    class FarBelow(EnergyReward):
        def __call__(self, batch):
            result = super().__call__(batch)
            result.info["energy_above_reference"][0] = -1e5
            return result

    energy = FarBelow(finished.potential, clip=np.inf, references=data)
    assert WatchedEnergy(energy, 2)(close).info["energy_above_reference"][0] == -LIMIT


def test_judges_by_name(monkeypatch):
    assert find_judge("none") is None
    toy = LennardJonesToy()
    assert find_judge(toy) is toy

    def missing(name, **options):
        raise ImportError("no sevenn")

    monkeypatch.setattr("irlkit.potentials.get", missing)
    assert find_judge("auto") is None
    with pytest.raises(ImportError, match="no sevenn"):
        find_judge("7net-0")


def test_learned_weights_generate_what_the_policy_generates(finished):
    finished._save_learned()
    batch = finished.test.batch
    for name in TINY.policies:
        path = finished.out_dir / f"{file_name(name)}_seed_1.safetensors"
        loaded = load_dynamics(path, finished.model)
        expected = finished.generate(batch, 3, finished._deployed(name, 1), 0)
        found = finished.generate(batch, 3, loaded, 0)
        torch.testing.assert_close(found.pos, expected.pos)


def test_positions_and_cells_can_be_reinforced_together(files, tmp_path):
    preset = replace(TINY, fields=("pos", "cell"), seeds=(0,), iterations=1, annealing="none")
    experiment = make(files, tmp_path, preset)
    history = experiment.train_policies()
    assert {"pos_kl", "cell_kl"} <= set(history)
    assert len(experiment.evaluate_policies()) == 2 * 2
    experiment._save_learned()
    dynamics = load_dynamics(tmp_path / "score_based_seed_0.safetensors", experiment.model)
    assert dynamics.kind == "sde" and set(dynamics.noise) == {"pos"}


def test_an_annealing_is_carried_into_both_policies(files, tmp_path):
    schedule = tmp_path / "schedule.safetensors"
    save_annealing(LinearAnnealing(3.0, 0.0), schedule)
    for given in ((3.0, 0.0), str(schedule)):
        preset = experiments.resolve("energy", "quick", annealing=given)
        preset = replace(TINY, annealing=preset.annealing, seeds=(0,), iterations=1)
        experiment = make(files, tmp_path, preset)
        experiment.train_policies()
        for policy in experiment.policies.values():
            assert policy.deploy().annealing == LinearAnnealing(3.0, 0.0)
        rows = experiment.evaluate_policies()
        assert set(rows["schedule"]) == {"handcrafted" if isinstance(given, tuple) else "learned"}
        assert rows["tuned_at"].isna().all()


def test_both_policies_begin_with_the_annealing_that_was_learned(finished):
    energies = finished.energies()
    assert list(energies) == [PRETRAINED, ANNEALED, *TINY.policies]
    assert {len(values) for values in energies.values()} == {len(finished.test)}
    times = time_grid(3)
    learned = annealing_on_grid(finished.annealing, times)
    assert not torch.equal(learned["pos"], torch.zeros(3))
    for policy in finished.policies.values():
        kept = annealing_on_grid(policy.deploy().annealing, times)
        assert all(torch.equal(kept[field], learned[field]) for field in learned)
    rows = finished.evaluation
    assert set(rows.loc[rows["policy"] != PRETRAINED, "schedule"]) == {"learned"}
    paths = finished._save_learned()
    assert paths[-1].name == "annealing.safetensors"
    saved = annealing_on_grid(load_annealing(paths[-1]), times)
    assert all(torch.equal(saved[field], learned[field]) for field in learned)


def test_policies_wait_for_the_annealing(files, tmp_path):
    experiment = make(files, tmp_path)
    for call in (experiment.train_policies, experiment.study_noise, experiment.evaluate_annealing):
        with pytest.raises(ValueError, match="call learn_annealing"):
            call()
    without = make(files, tmp_path, replace(TINY, annealing="none"))
    assert without.learn_annealing().empty and without.evaluate_annealing().empty
    assert without._start == PRETRAINED


def test_interrupted_training_goes_on_where_it_was(files, tmp_path, monkeypatch):
    experiment = make(files, tmp_path, replace(TINY, seeds=(0,), annealing="none"))
    iterate, count = GRPOTrainer._iterate, iter(range(99))

    def interrupted(trainer):
        if next(count) == 3:
            raise KeyboardInterrupt
        return iterate(trainer)

    monkeypatch.setattr(GRPOTrainer, "_iterate", interrupted)
    with pytest.raises(KeyboardInterrupt, match="iteration 1 of 2 of velocity-based, seed 0"):
        experiment.train_policies()
    assert set(experiment.policies) == {("score-based", 0)}
    experiment.train_policies()
    assert next(count) == 5, "two iterations of two policies, and the interrupted one"
    # Once finished, a further call begins anew, and leaves the noise study alone.
    experiment.study_noise()
    experiment.train_policies()
    assert next(count) == 5 + 1 + 2 + 4
    assert len(experiment.policies) == 3


@contextmanager
def one_thread():
    """As in the processes: rounding turns Adam's first steps round where gradients are near 0."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def test_without_a_noise_study(files, tmp_path):
    preset = replace(TINY, seeds=(0,), iterations=1, annealing="none", noise_study={})
    experiment = make(files, tmp_path, preset)
    experiment.train_policies()
    rows = experiment.evaluate_policies()
    assert len(experiment.study_noise()) == len(experiment.history)
    assert experiment.evaluate_policies(preset.noise_study).empty
    assert len(experiment.evaluation) == len(rows) == 2 * 2
    assert list(preset.variants) == list(preset.policies)


@pytest.fixture(scope="module")
def one_after_the_other(files, tmp_path_factory):
    experiment = make(
        files, tmp_path_factory.mktemp("sequential"), IN_PROCESSES, potential="chgnet"
    )
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.setattr(experiment, "_potential_name", None)
        experiment.train_policies()
    return experiment


IN_PROCESSES = replace(TINY, seeds=(0,), annealing="none", n_workers=2)


def check_same_training(experiment, expected):
    assert set(experiment.policies) == set(expected.policies)
    columns = ["policy", "seed", "iteration", "reward", "validation_reward", "grad_norm"]
    pd.testing.assert_frame_equal(
        experiment.history[columns], expected.history[columns], rtol=1e-4, atol=1e-5
    )
    for key, policy in expected.policies.items():
        state = experiment.policies[key].state_dict()
        for name, value in policy.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-5)


def test_processes_train_what_one_process_does(files, tmp_path, one_after_the_other, monkeypatch):
    experiment = make(files, tmp_path, IN_PROCESSES, potential="chgnet", progress=True)
    monkeypatch.setattr(GRPOTrainer, "_iterate", None)  # Not in this process.
    experiment.train_policies()
    check_same_training(experiment, one_after_the_other)
    assert experiment.seconds["training"] > 0


def patch_processes(patch, replacement):
    """Replaces what is done in processes that train, but in no others."""
    patch.setattr(training, "WorkerPool", type("Pool", (WorkerPool,), {"map": replacement}))


def test_interrupted_processes_go_on_where_they_were(
    files, tmp_path, one_after_the_other, monkeypatch
):
    experiment = make(files, tmp_path, IN_PROCESSES, potential="chgnet")
    train_all = WorkerPool.map

    def interrupted(pool, assignments):
        pool.n_workers = 1
        train_all(pool, [replace(assignments[0], iterations=1)])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch_processes(patch, interrupted)
        with pytest.raises(KeyboardInterrupt, match="run this cell again"):
            experiment.train_policies()
    assert runs.read(tmp_path / "training" / "score_based_seed_0").done == 1
    started = time.perf_counter()
    before = experiment.seconds["training"]
    experiment.train_policies()
    taken = time.perf_counter() - started
    assert experiment.seconds["training"] <= before + taken, "no second is counted twice"
    check_same_training(experiment, one_after_the_other)


def test_what_a_process_could_not_finish_is_trained_here(
    files, tmp_path, one_after_the_other, monkeypatch
):
    experiment = make(files, tmp_path, IN_PROCESSES, potential="chgnet")
    lost = [Outcome(error="it ended")]
    patch_processes(monkeypatch, lambda pool, assignments: lost * len(assignments))
    warning = "velocity-based, seed 0 goes on in this process: it ended"
    with one_thread(), pytest.warns(UserWarning, match=warning):
        experiment.train_policies()
    check_same_training(experiment, one_after_the_other)


def test_where_no_process_starts_policies_are_trained_here(
    files, tmp_path, one_after_the_other, monkeypatch
):
    def lost(pool, assignments):
        raise WorkersLostError("no memory")

    experiment = make(files, tmp_path, IN_PROCESSES, potential="chgnet")
    patch_processes(monkeypatch, lost)
    with one_thread(), pytest.warns(UserWarning, match=r"n_workers=0 .*: no memory"):
        experiment.train_policies()
    check_same_training(experiment, one_after_the_other)


def test_the_order_of_things_is_explained(files, tmp_path):
    experiment = make(files, tmp_path, replace(TINY, annealing="none"))
    with pytest.raises(ValueError, match="call sweep_reference"):
        experiment.evaluate_pretrained()
    with pytest.raises(ValueError, match="'score-based' of seed 0 is not trained yet"):
        experiment.evaluate_policies()
    assert "toy" in experiment.summary().to_string()


@pytest.mark.filterwarnings("ignore:toy gave no energy")
def test_references_without_an_energy_are_left_out_and_named(files, tmp_path):
    """Elements that the potential does not know, and structures that it fails on."""

    class Partial(LennardJonesToy):
        def check(self, compositions):
            if (compositions.species == 47).any():
                raise ValueError("no silver")

    with pytest.warns(UserWarning) as caught:
        experiment = make(files, tmp_path, potential=Partial(breaks=(9,)))
    said = [str(warning.message) for warning in caught]
    unknown = [text for text in said if "the potential toy does not know its elements" in text]
    failed = [text for text in said if "ArithmeticError: this toy cannot" in text]
    assert len(unknown) == 2 and "of the split 'train' are left out" in unknown[0]
    assert len(failed) == 1 and "structures of the split 'test' are left out" in failed[0]
    for split in (experiment.train, experiment.validation, experiment.test):
        assert not (split.batch.species == 47).any()
    assert experiment.test.table["formula"].tolist() == ["KI", "KI"]
    assert len(experiment.test.skipped) == 2
    experiment.sweep_reference()
    experiment.evaluate_pretrained()
    experiment.learn_annealing()
    experiment.train_policies()
    assert experiment.evaluation["n_structures"].eq(len(experiment.test)).all()
    with pytest.raises(ValueError, match="none remains"), pytest.warns(UserWarning):
        make(files, tmp_path, potential=LennardJonesToy(breaks=range(1, 100)))


def test_a_model_without_denoiser_is_refused_at_once(files, tmp_path):
    with pytest.raises(ValueError, match="no denoiser"):
        experiments.EnergyReinforcement(
            files / "second.safetensors",
            files / "salts.csv",
            TINY,
            potential=LennardJonesToy(),
            out_dir=tmp_path,
            progress=False,
        )


def test_names_of_files():
    assert file_name("score-based, small noise") == "score_based_small_noise"
