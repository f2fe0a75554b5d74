"""Presets, claims, sweeps, and notebook 04's experiment with a tiny model and data set."""

import json
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.core import Lattice, Structure

from irlkit.crystals import CrystalBatch
from irlkit.data import CrystalDataset
from irlkit.flows.base_distribution import BaseDistribution
from irlkit.flows.dynamics import Dynamics
from irlkit.flows.schedules import (
    ConstantNoise,
    LinearAnnealing,
    load_annealing,
    read_annealing_metadata,
)
from irlkit.lab import experiments
from irlkit.lab.experiments import _handcrafted as handcrafted
from irlkit.lab.experiments import claims, records
from irlkit.lab.experiments._annealing_claims import annealing_claims
from irlkit.lab.experiments._jobs import fingerprint
from irlkit.lab.experiments.presets import Rung, presets
from irlkit.networks.cspnet import CSPNet
from irlkit.networks.flow_model import FlowModel
from irlkit.pretraining import KINDS
from irlkit.rl.policies import VelocityPolicy
from irlkit.rl.trainer import GRPOTrainer
from tests.tiny_experiments import evaluated
from tests.toys import ToyModel

# --------------------------------------------------------------------------------------------------
# Presets
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", presets("annealing"))
def test_presets_are_complete_and_json(name):
    preset = experiments.resolve("annealing", name)
    assert preset.name == name
    assert preset.evaluation_steps[-1] == preset.reference_steps
    assert preset.n_steps in preset.evaluation_steps
    json.dumps(preset.to_dict(), allow_nan=False)


def test_given_parameters_override_the_preset():
    preset = experiments.resolve(
        "annealing", "laptop", n_steps=7, iterations=2, group_size=4, seeds=[5]
    )
    config = preset.config(5)
    assert (preset.iterations, preset.seeds, config.seed, config.group_size) == (2, (5,), 5, 4)
    assert config.n_groups == presets("annealing")["laptop"].config(0).n_groups
    assert 7 in config.step_choices and 7 in preset.evaluation_steps


def test_the_paper_trains_at_100_grid_points_whatever_few_is():
    preset = experiments.resolve("annealing", "paper", n_steps=7)
    assert preset.config(0).step_choices == (99,)
    assert (preset.config(0).n_groups, preset.config(0).group_size) == (16, 64)
    few = [experiments.resolve(k, "paper").n_steps for k in ("annealing", "energy", "noise")]
    many = [presets(k)["paper"].reference_steps for k in ("annealing", "energy", "noise")]
    assert (few, many) == ([9, 49, 49], [949, 739, 739]), "one less than the paper's grid points"


@pytest.mark.parametrize("seeds", [(3, 1), [3, 1], "3,1", "[3, 1]", "(3, 1)"])
def test_seeds_as_people_write_them(seeds):
    assert experiments.resolve("annealing", "quick", seeds=seeds).seeds == (3, 1)
    assert experiments.resolve("annealing", "quick", seeds=4).seeds == (4,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "huge"}, r"one of \['laptop', 'paper', 'quick'\], got 'huge'"),
        ({"n_steps": -1}, "n_steps must be a positive integer"),
        ({"n_steps": 500}, "smaller than reference_steps, 500"),
        ({"iterations": 0}, "iterations must be a positive integer"),
        ({"group_size": 1}, "group_size must be an integer of at least 2"),
        ({"n_groups": 0}, "n_groups must be a positive integer"),
        ({"seeds": [1, 1]}, "seeds must be different"),
        ({"seeds": []}, "at least one"),
        ({"seeds": [-1]}, "non-negative"),
        ({"seeds": "a,b"}, "got 'a,b'"),
        ({"noise_scales": (0.2, 0.1)}, "noise_scales must be positive and ascending"),
    ],
)
def test_parameters_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        experiments.resolve("annealing", **arguments)


def test_fewer_seeds_where_evaluations_are_long():
    preset = replace(presets("annealing")["laptop"], n_seeds_at_reference={"none": 1})
    assert preset.seeds_for(500, "none") == (0,)
    assert preset.seeds_for(500, "learned") == preset.seeds_for(100, "none") == (0, 1, 2)


# --------------------------------------------------------------------------------------------------
# Claims
# --------------------------------------------------------------------------------------------------


PRESET = replace(presets("annealing")["laptop"], step_counts=(5, 10, 20, 50, 100, 500))
GOOD = {
    **{("learned", k): (0.8, 0.1) for k in PRESET.evaluation_steps},
    **{("none", k): (0.7, 0.2) for k in PRESET.evaluation_steps},
    ("handcrafted", 500): (0.8, 0.1),
    ("handcrafted", 10): (0.72, 0.15),
    ("rule", 10): (0.8, 0.12),
    ("rule", 5): (0.8, 0.14),
}
"""Schedule, steps -> METRe and RMSE of what should be found."""


def judge(changes=None, smallest=0.3, dropped=()):
    """The claims where everything holds but for the changes."""
    evaluations = []
    for (schedule, k), (metre, rmsd) in {**GOOD, **(changes or {})}.items():
        if (schedule, k) in dropped:
            continue
        tuned_at = k if schedule in ("handcrafted", "rule") else np.nan
        labels = {"schedule": schedule, "tuned_at": tuned_at, "n_steps": k}
        for trained, seed in product((0, 1, 2) if schedule == "learned" else (np.nan,), (0, 1, 2)):
            of = {**labels, "training_seed": trained, "seed": seed}
            evaluations.append(evaluated(metre=metre, rmsd=rmsd, **of))
    evidence = claims._Evidence(evaluations, experiments.VelocityAnnealing.metric_names)
    return annealing_claims(evidence, PRESET, smallest)


def test_all_claims_hold():
    judged = judge()
    assert all(claim.holds for claim in judged)
    assert [claim.kind for claim in judged].count("aim") == 2, "five steps are aims"
    assert [claim.kind for claim in judged[:4]] == ["claim"] * 4
    assert all(claim.low <= claim.value <= claim.high for claim in judged[:-1])
    assert "cRMSE of the learned annealing, 10 steps relative to" in judged[0].claim
    assert judged[0].control == pytest.approx((0.7 * 0.2 + 0.3 * 0.5) / 0.18, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "not_holding"),
    [
        ({("learned", 10): (0.8, 0.13)}, {1, 4}),
        ({("rule", 10): (0.8, 0.1)}, {4}),
        ({("handcrafted", 10): (0.8, 0.1)}, {2, 3}),
        ({("learned", 500): (0.8, 0.2)}, {9}),
        ({("learned", 5): (0.6, 0.1)}, {5, 10, 12}),
    ],
)
def test_claims_that_do_not_hold(changes, not_holding):
    judged = judge(changes)
    assert {i for i, claim in enumerate(judged, start=1) if not claim.holds} == not_holding


def test_what_learned_nothing_satisfies_no_claim():
    null = {(schedule, k): value for (schedule, k), value in GOOD.items() if schedule == "none"}
    judged = judge({("learned", k): value for (_, k), value in null.items()}, smallest=1.0)
    assert not any(claim.holds for claim in judged if claim.kind != "guard")
    assert all(c.value == pytest.approx(c.control) for c in judged if c.control is not None)
    # Where doing nothing is good enough, what is claimed is no evidence, and is not called so.
    trivial = judge({("none", 10): (0.8, 0.1)})
    assert [i for i, c in enumerate(trivial[:9], start=1) if c.kind == "guard"] == [1, 2, 3, 4]


def test_a_reversed_velocity_fails():
    assert judge(smallest=0.0)[-1].verdict == "fails"


def test_what_was_not_measured_is_undecided():
    judged = judge(dropped=[("rule", 10)])
    assert (judged[3].verdict, judged[3].value) == ("undecided", None)
    assert judged[0].holds


def test_comparisons_are_of_the_same_seeds():
    names = {"crmse": "cRMSE"}
    rows = [
        evaluated(schedule=schedule, rmsd=rmsd, seed=seed)
        for schedule, rmsd, seed in (("a", 0.1, 0), ("b", 0.1, 0), ("b", 0.3, 1))
    ]
    evidence = claims._Evidence(rows, names)
    a, b = (claims._Group(name, {"schedule": name}) for name in "ab")
    assert evidence.check("crmse", a, b, ">= 1", relative=True).value == pytest.approx(1.0)
    pairs = [
        evaluated(schedule=name, rmsd=0.1 * (1 + t), training_seed=t, seed=s)
        for name, t, s in (("a", 0, 0), ("a", 1, 1), *(("b", t, s) for t in (0, 1) for s in (0, 1)))
    ]
    same = claims._Evidence(pairs, names).check("crmse", a, b, ">= 1", relative=True)
    assert same.value == same.low == same.high == pytest.approx(1.0), "of the pairs that both have"
    with pytest.raises(ValueError, match="nothing was evaluated yet"):
        claims._Evidence([], names)


def test_claims_table_is_readable():
    table = claims.claims_table(judge({("learned", 5): (0.1, 0.1)}))
    expected = ["claim", "kind", "value", "95 % interval", "control", "target", "verdict"]
    assert list(table.columns) == expected
    assert table["kind"][5] == "aim" and table["verdict"][5] == "fails", "numbered from 1"
    assert " " not in table["target"][1] + table["95 % interval"][1], "breaks over two lines"
    assert table["claim"].str.len().max() > 50
    assert all(claim in table._repr_html_() for claim in table["claim"]), "texts are cut"


def test_the_conclusion_is_computed():
    text = claims._verdicts_in_words(judge({("learned", 5): (0.6, 0.1)}))
    assert text.startswith("**Claims:** 8 hold (number 1, 2, 3, 4, 6, 7, 8, 9). **Aims:** 2 fail")
    assert "1 fails (number 12)" in text
    text = claims._verdicts_in_words(judge(dropped=[("rule", 10)]))
    assert "1 is undecided (number 4)" in text


def test_means_have_their_range():
    assert claims._with_range(pd.Series([0.7, 0.75, np.nan, 0.8])) == "0.750 (0.700 to 0.800)"
    assert claims._with_range(pd.Series([0.7, np.nan])) == "0.700"
    assert claims._with_range(pd.Series([np.nan])) == ""


# --------------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------------


def test_json_is_strict(tmp_path):
    data = {
        "nan": float("nan"),
        "inf": np.float64("inf"),
        3: (np.int64(2), torch.tensor([1.5, float("nan")])),
        "array": np.array([True, False]),
        "path": tmp_path,
    }
    path = tmp_path / "new" / "r.json"
    records._write_json(data, path)
    assert json.loads(path.read_text()) == {
        "nan": None,
        "inf": None,
        "3": [2, [1.5, None]],
        "array": [True, False],
        "path": str(tmp_path),
    }


def test_environment_names_versions():
    found = records._environment("cpu")
    assert found["versions"]["torch"] == torch.__version__
    assert found["device"] == "cpu" and found["n_cores"] >= 1


# --------------------------------------------------------------------------------------------------
# Handcrafted sweep
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def polymorphs():
    """Fifteen structures of eight compositions."""
    species = torch.arange(1, 9).repeat_interleave(torch.tensor([1, 3, 2, 1, 1, 2, 4, 1]))
    n = len(species)
    batch = CrystalBatch(
        species, torch.zeros(n, 3), torch.eye(3).repeat(n, 1, 1), torch.ones_like(species)
    )
    table = {"material_id": range(n), "formula": batch.reduced_formulas(), "n_atoms": 1}
    return CrystalDataset("polymorphs", None, batch, pd.DataFrame(table))


class Measure:
    """cRMSE with its minimum at (6, 2), the worse the fewer the steps."""

    def __init__(self):
        self.calls = []

    def __call__(self, data, n_steps, annealing):
        self.calls.append((len(data), n_steps, annealing))
        crmse = ((annealing.pos - 6) ** 2 + (annealing.cell - 2) ** 2) / 100 + 1 / n_steps
        summary = {"metre": 1 - crmse, "crmse": crmse}
        return SimpleNamespace(summary=lambda: summary)


def test_a_sweep_begins_without_annealing_and_finds_the_best(polymorphs):
    measure = Measure()
    rungs = (Rung(24, 4, 10),)
    trials = handcrafted.sweep(measure, polymorphs, rungs, progress=False)
    assert len(trials) == 24 and len(trials.drop_duplicates(["pos", "cell"])) == 24
    assert measure.calls[0][2] == LinearAnnealing(0.0, 0.0)
    assert trials[["pos", "cell"]].to_numpy().max() <= handcrafted.SWEEP_RANGE
    assert trials[["pos", "cell"]].to_numpy().max() > 0.9 * handcrafted.SWEEP_RANGE
    best = handcrafted.best_of(trials)
    assert abs(best.pos - 6) < 3 and abs(best.cell - 2) < 3
    again = handcrafted.sweep(Measure(), polymorphs, rungs, progress=False)
    pd.testing.assert_frame_equal(trials, again)


def test_later_rounds_take_the_best_with_more_effort(polymorphs):
    measure = Measure()
    rungs = (Rung(8, 3, 10), Rung(2, 8, 100))
    trials = handcrafted.sweep(measure, polymorphs, rungs, ((6.0, 2.0),), progress=False)
    assert list(trials["round"]) == [0] * 9 + [1] * 2
    assert measure.calls[0][2] == LinearAnnealing(6.0, 2.0)
    assert measure.calls[-1][0] > measure.calls[0][0]
    assert set(trials["n_steps"]) == {10, 100}
    # The best of the last round, not one of the first that seemed better with fewer structures.
    assert handcrafted.best_of(trials) == LinearAnnealing(6.0, 2.0)
    last = handcrafted.last_round(trials)
    assert len(last) == 2 and last["crmse"].is_monotonic_increasing


def test_a_sweep_without_rounds_is_refused(polymorphs):
    with pytest.raises(ValueError, match="at least one round"):
        handcrafted.sweep(Measure(), polymorphs, ())


# --------------------------------------------------------------------------------------------------
# The experiment
# --------------------------------------------------------------------------------------------------

TINY = replace(
    presets("annealing")["quick"],
    train_steps=(2, 4),
    step_counts=(2, 4),
    n_steps=3,
    reference_steps=6,
    test_size=6,
    iterations=2,
    grpo={
        "n_groups": 2,
        "group_size": 3,
        "validate_every": 1,
        "validation_n_steps": 2,
        "validation_size": 4,
    },
    few_step_sweep=(4, 4),
    noise_scales=(1e-6, 5.0),
    noise_scan_size=4,
    reference_sweep=(Rung(4, 3, 4), Rung(2, 4, 6)),
    n_seeds_at_reference={"none": 1},
    annealing={"condition_on_dt": True},
    candidates=(),
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint that nobody trained, and a CSV with rock salts and caesium chlorides."""
    folder = tmp_path_factory.mktemp("experiment")
    torch.manual_seed(0)
    model = FlowModel(
        CSPNet(8, 1, 3, 8), KINDS["linear-ode"], BaseDistribution((1.3,) * 3, (0.2,) * 3)
    )
    model.save(folder / "model.safetensors")
    rows = []
    for cation, anion in product(("Li", "Na", "K", "Rb", "Cs", "Ag"), ("F", "Cl", "Br", "I", "H")):
        sites = [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]]
        for lattice in (Lattice.cubic(3.5), Lattice.from_parameters(3.8, 3.8, 3.8, 60, 60, 60)):
            rows.append({"material_id": len(rows), "cif": Structure(lattice, *sites).to(fmt="cif")})
    pd.DataFrame(rows).to_csv(folder / "salts.csv", index=False)
    return folder


def make(files, out_dir, preset=TINY):
    return experiments.VelocityAnnealing(
        files / "model.safetensors",
        files / "salts.csv",
        preset,
        out_dir=out_dir,
        progress=False,
    )


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    """The experiment, run to its end as the notebook does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IRLKIT_CACHE", str(files / "cache"))
        experiment = make(files, tmp_path_factory.mktemp("results"))
    experiment.sweep_reference()
    experiment.evaluate("none")
    experiment.evaluate("handcrafted")
    experiment.train_schedules()
    experiment.evaluate("learned")
    experiment.sweep_few_steps()
    experiment.evaluate("handcrafted", 3, tuned_at=3)
    experiment.sweep_rule(3, 2)
    experiment.evaluate("rule")
    experiment.evaluate("rule", 2, tuned_at=2)
    return experiment


def test_every_schedule_is_evaluated_for_every_seed_and_number_of_steps(finished):
    rows = finished.evaluation
    counts = rows.groupby(["schedule", "tuned_at"], dropna=False).size().to_dict()
    assert sorted(counts.values()) == [2, 2, 7, 8, 8, 12]
    # All pairs of training and base seeds where steps are few.
    learned = rows[rows["schedule"] == "learned"].groupby("n_steps").size()
    assert learned.to_dict() == {2: 4, 3: 4, 4: 2, 6: 2}
    assert list(finished.seed_spreads("crmse").index) == [("learned", 2), ("learned", 3)]
    assert set(rows["n_steps"]) == {2, 3, 4, 6}
    assert set(rows["n_structures"]) == {len(finished.test)}
    assert len(finished.structures) == len(rows) * len(finished.test)
    table = finished.table()
    assert len(table) == 4 + 4 + 4 + 1 + 4 + 1
    assert len(table.query("steps == 3")) == 5
    mean = rows[(rows["schedule"] == "none") & (rows["n_steps"] == 2)]["crmse"].mean()
    assert table.loc[("none", 2), "cRMSE"].startswith(f"{mean:.3f} (")
    with pytest.raises(ValueError, match=r"name must be one of \['metrics'\], got 'metric'"):
        finished.table("metric")


def test_a_cell_that_is_run_again_replaces_what_was_there(finished):
    before = finished.evaluation.drop(columns="seconds")
    finished.evaluate("none", 2)
    pd.testing.assert_frame_equal(finished.evaluation.drop(columns="seconds"), before)


def test_evaluations_go_on_where_they_were_interrupted(files, tmp_path, finished, monkeypatch):
    make(files, tmp_path).evaluate("none", (2, 3))
    counted = []
    judge = experiments.VelocityAnnealing._judge
    monkeypatch.setattr(
        experiments.VelocityAnnealing, "_judge", lambda *a: counted.append(1) or judge(*a)
    )
    rows = make(files, tmp_path).evaluate("none")
    assert len(rows) == 7 and len(counted) == 3, "those at two and three steps are there"
    expected = finished.evaluation.query("schedule == 'none'")
    columns = ["n_steps", "seed", "metre", "crmse", "n_structures"]
    pd.testing.assert_frame_equal(
        rows[columns], expected[columns].reset_index(drop=True), check_dtype=False
    )


def test_base_samples_depend_on_the_seed_alone(finished):
    batch = finished.test.batch
    first, again, other = (finished._base_sample(batch, seed) for seed in (0, 0, 1))
    assert torch.equal(first.pos, again.pos) and not torch.equal(first.pos, other.pos)
    no, zero = (finished.measure(finished.test, 3, s, 0) for s in (None, LinearAnnealing()))
    assert no.summary() == pytest.approx(zero.summary(), nan_ok=True)


def test_learned_schedules_are_those_with_the_best_validation(finished):
    assert set(finished.learned) == set(TINY.seeds)
    history = finished.history.set_index(["seed", "iteration"])["validation_reward"]
    for seed, iteration in finished.best_iteration.items():
        assert history[seed, iteration] == history[seed].max()


def test_curves_are_those_of_the_schedules(finished):
    curves = finished.schedule_curves()
    # Two learned ones at few, fewest and most steps, two handcrafted ones at few, and rules.
    assert len(curves) == 2 * (2 * (3 + 2 + 6) + 2 * 3 + 3 + 2)
    best = finished.best_handcrafted(6)
    rows = curves[(curves["tuned_at"] == 6) & (curves["field"] == "pos")]
    np.testing.assert_allclose(rows["factor"], 1 + best.pos * rows["t"], rtol=1e-5)


def test_metrics_during_training_are_drawn_beside_the_test_split(finished):
    validations, tests = finished.curves()
    assert len(validations) == 2 * 3 and set(validations["seed"]) == {0, 1}
    crmse = finished.pool.stol - finished.history["validation_reward"].to_numpy()
    np.testing.assert_allclose(validations["polymorph_crmse"], crmse, atol=1e-6)
    schedules = ["no annealing", "learned annealing", "handcrafted", "handcrafted, 6 steps", "rule"]
    assert sorted(tests["policy"]) == sorted(schedules)
    many = finished.evaluation.query("n_steps == 6 and schedule == 'handcrafted' and tuned_at == 6")
    found = tests.set_index("policy").loc["handcrafted, 6 steps", "valid_rate"]
    assert found == pytest.approx(many["valid_rate"].mean())
    rows = finished.evaluation.query("n_steps == 3 and schedule == 'rule'")
    found = tests.set_index("policy").loc["rule", "polymorph_match_rate"]
    assert found == pytest.approx(rows["polymorph_match_rate"].mean())


def test_example_starts_from_one_noise_and_ends_at_the_evaluated_structure(finished):
    number, panels = finished.example()
    none, learned, reference = panels.values()
    assert [title.split(":")[0] for title in panels][:2] == ["no annealing", "learned annealing"]
    assert all("RMSD" in title or "no match" in title for title in list(panels)[:2])
    assert len(none) == len(learned) == 4
    assert torch.equal(none[0].pos, learned[0].pos)
    whole = finished.generate(finished.test.batch, 3, finished.learned[0], 0)
    torch.testing.assert_close(learned[-1].pos, whole[number].pos, atol=1e-4, rtol=0)
    assert torch.equal(reference[0].species, learned[0].species)


def test_some_structures_to_play_with(finished):
    assert len(finished.finished(3).structures) == 3
    found = finished.finished(99)
    assert len(found.structures) == len(finished.test) and found.n_steps == 3
    assert next(iter(found.schedules)) == "learned"


def test_results_are_complete_and_strict(finished):
    judged = finished.claims()
    text = finished.conclusion(judged)
    assert "**Claims:**" in text and "4 test structures" in text and "quick" in text
    paths = finished.write_results(judged)
    assert all(path.is_file() for path in paths)
    found = json.loads(
        (finished.out_dir / "results.json").read_text(),
        parse_constant=lambda text: pytest.fail(f"{text} is not JSON"),
    )
    keys = "parameters environment dataset evaluation handcrafted_sweep rule_sweep training claims"
    assert set(found) == set(keys.split())
    assert not finished._unwritten.exists(), "what is written is evaluated anew"
    assert found["parameters"]["preset"] == "quick"
    assert found["dataset"]["split_sizes"].keys() == {"train", "val", "test"}
    assert found["training"]["best_iteration"].keys() == {"0", "1"}
    assert len(found["claims"]) == len(judged)
    assert len(found["evaluation"]) == len(finished.evaluation)
    for row in found["evaluation"]:
        assert (row["coefficients"] is not None) == (row["schedule"] in ("handcrafted", "rule"))
        assert (row["training_seed"] is not None) == (row["schedule"] == "learned")
    assert [len(sweep["trials"]) for sweep in found["handcrafted_sweep"]] == [6, 4]
    for seed in TINY.seeds:
        path = finished.out_dir / f"schedule_seed_{seed}.safetensors"
        t = torch.tensor([0.2, 0.7])
        expected = finished.learned[seed](t, torch.full_like(t, 0.1))
        loaded = load_annealing(path)(t, torch.full_like(t, 0.1))
        assert torch.equal(loaded["pos"], expected["pos"])
        assert read_annealing_metadata(path)["train_steps"] == [2, 3, 4]
    table = pd.read_parquet(finished.out_dir / "structures.parquet")
    assert {"schedule", "n_steps", "seed", "formula", "rmsd"} <= set(table)
    assert len(pd.read_parquet(finished.out_dir / "history.parquet")) == 2 * 3


def test_figures_are_written_without_a_network(tmp_path):
    go = pytest.importorskip("plotly.graph_objects")
    (path,) = records._write_figures({"a": go.Figure()}, tmp_path)
    assert (tmp_path / "plotly.min.js").is_file()
    assert "cdn" not in path.read_text()


def test_without_noise_the_scan_is_the_ode(files, tmp_path):
    experiment = make(files, tmp_path)
    table = experiment.scan_noise()
    seeds = experiment.preset.seeds
    assert len(table) == 2 * 2 * 3 * len(seeds) and "scan of the noise" in experiment.seconds
    data = experiment.validation.subset(4)
    for seed in seeds:
        expected = experiment.measure(data, 3, None, seed)
        own = table[(table["seed"] == seed) & (table["scale"] < 1)]
        np.testing.assert_allclose(own["crmse"], expected.crmse, atol=1e-4)
    assert set(table.loc[table["scale"] == 0, "cost"]) == {"0.000"}
    loud = experiment._perturbed(data, {"cell": ConstantNoise(5.0)}, seeds[0])
    quiet = experiment._perturbed(data, {"cell": ConstantNoise(1e-6)}, seeds[0])
    assert loud.valid_rate < quiet.valid_rate
    named = {"positions, constant", "lattice, constant"}
    assert set(table["line"]) == named | {"positions, square root", "lattice, square root"}


def test_schedules_are_used_on_other_data(files, tmp_path):
    here, there = (
        make(files, tmp_path / name, replace(TINY, annealing={}, seeds=(0, 1), rule_size=4))
        for name in ("here", "there")
    )
    there.dataset = "other"
    with pytest.raises(ValueError, match="call train_schedules of both"):
        here.transfer(there)
    for experiment in (here, there):
        experiment.policies = {seed: experiment.policy(seed) for seed in (0, 1)}
    with pytest.raises(ValueError, match="call sweep_rule"):
        here.transfer(there)
    for experiment in (here, there):
        experiment.sweep_rule(2, 3)
    table = here.transfer(there, 2, 3)
    assert len(table) == 2 * 2 * 5 and list(table.index.levels[1]) == [2, 3]
    # What has learned nothing is no annealing, wherever it comes from.
    for name in ("learned", "learned elsewhere"):
        rows = table.xs(name, level="annealing")
        assert set(rows["cRMSE minus none"]) == {"0.000, fails"}
    rows = here.evaluation[here.evaluation["schedule"] == "learned elsewhere"]
    assert len(rows) == 2 * 2 * 2, "all pairs of seeds, for two numbers of steps"
    rule = here.evaluation[here.evaluation["schedule"] == "rule from elsewhere"]
    best = there.best_rule(3)
    assert set(rule.loc[rule["n_steps"] == 3, "pos"]) == {best.pos}


def test_the_order_of_things_is_explained(files, tmp_path):
    experiment = make(files, tmp_path)
    with pytest.raises(ValueError, match="schedule must be none, handcrafted, rule or learned"):
        experiment.evaluate("bogus")
    with pytest.raises(ValueError, match="sweep for 6 steps"):
        experiment.evaluate("handcrafted")
    with pytest.raises(ValueError, match="call sweep_rule"):
        experiment.evaluate("rule")
    with pytest.raises(ValueError, match="train_schedules"):
        experiment.evaluate("learned")
    assert "tiny" not in experiment.summary().to_string()


def test_interrupted_training_goes_on_where_it_was(files, tmp_path, finished, monkeypatch):
    experiment = make(files, tmp_path)
    iterate, count = GRPOTrainer._iterate, iter(range(99))

    def interrupted(trainer):
        if next(count) == 1:
            raise KeyboardInterrupt
        return iterate(trainer)

    monkeypatch.setattr(GRPOTrainer, "_iterate", interrupted)
    with pytest.raises(KeyboardInterrupt, match="iteration 1 of 2 of seed 0; run this cell again"):
        experiment.train_schedules()
    assert not experiment.learned, "half a training is no schedule"
    assert len(experiment.history) == 2
    experiment.train_schedules()
    assert next(count) == 5, "two iterations of two seeds, and the one that was interrupted"
    assert set(experiment.learned) == set(TINY.seeds)
    for seed, annealing in experiment.learned.items():
        for name, value in annealing.state_dict().items():
            assert torch.equal(value, finished.learned[seed].state_dict()[name])
    # Once finished, a further call begins anew.
    experiment.train_schedules()
    assert next(count) == 10 and len(experiment.history) == 2 * 3


def test_a_new_process_goes_on_where_the_last_one_ended(
    files, tmp_path, finished, monkeypatch, capsys
):
    earlier = make(files, tmp_path)
    earlier.train_schedules()
    earlier._trainings.finish()
    iterate, calls = GRPOTrainer._iterate, []

    def dying(trainer):
        if len(calls) == 3:
            raise SystemExit
        calls.append(trainer)
        return iterate(trainer)

    monkeypatch.setattr(GRPOTrainer, "_iterate", dying)
    with pytest.raises(SystemExit):
        make(files, tmp_path).train_schedules()
    monkeypatch.setattr(GRPOTrainer, "_iterate", lambda t: calls.append(t) or iterate(t))
    experiment = make(files, tmp_path)
    experiment.train_schedules()
    assert len(calls) == 4, "two iterations of two seeds, each once"
    printed = capsys.readouterr().out
    assert "seed 0: 2 iterations are there" in printed and "seed 1: 1 iterations" in printed
    for seed, annealing in experiment.learned.items():
        for name, value in annealing.state_dict().items():
            assert torch.equal(value, finished.learned[seed].state_dict()[name])
    assert experiment.seconds["training"] > 0
    # Other settings begin anew, and say so; so does what has written its results.
    noisier = {"pos": 0.3, "cell": 0.3}
    with pytest.warns(UserWarning, match="seed 0 begins anew: .* its noise is"):
        make(files, tmp_path, replace(TINY, noise=noisier)).train_schedules()
    experiment._trainings.finish()
    calls.clear()
    make(files, tmp_path).train_schedules()
    assert len(calls) == 4


def test_an_interrupt_before_the_first_validation_starts_anew(files, tmp_path, monkeypatch):
    """And not from what an earlier run has left in the same folder."""
    earlier = make(files, tmp_path, replace(TINY, seeds=(0,)))
    earlier.train_schedules()
    earlier._trainings.finish()
    experiment = make(files, tmp_path, replace(TINY, seeds=(0,)))
    validate = GRPOTrainer._validate

    def interrupted(trainer, seed):
        monkeypatch.setattr(GRPOTrainer, "_validate", validate)
        raise KeyboardInterrupt

    monkeypatch.setattr(GRPOTrainer, "_validate", interrupted)
    with pytest.raises(KeyboardInterrupt, match="iteration 0 of 2"):
        experiment.train_schedules()
    assert not len(experiment.history)
    iterate, calls = GRPOTrainer._iterate, []
    monkeypatch.setattr(GRPOTrainer, "_iterate", lambda t: calls.append(t) or iterate(t))
    experiment.train_schedules()
    assert len(calls) == 2


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there(files, device):
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used here .*'cpu' always"):
        experiments.VelocityAnnealing(
            files / "model.safetensors", files / "salts.csv", TINY, device=device
        )


def test_a_folder_that_cannot_be_made(files, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"out_dir: the folder .* cannot be made"):
        make(files, tmp_path / "file" / "results")


def test_what_is_no_checkpoint_is_named(files, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        experiments.VelocityAnnealing("nowhere", files / "salts.csv", TINY, progress=False)


class OwnSchedule:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, t, dt):
        return {name: torch.full_like(t, self.factor) for name in ("pos", "cell")}


def test_names_of_evaluations_are_those_of_what_generates():
    """Not of where it is in memory: another run, or an object that came later, could be there."""

    def deployed(scale, **options):
        policy = VelocityPolicy(ToyModel(), {"pos": ConstantNoise(0.1)}, **options)
        with torch.no_grad():
            policy.network.scale.fill_(scale)
        return fingerprint(vars(policy.deploy()))

    assert deployed(0.5) == deployed(0.5) != deployed(0.6)
    own = [fingerprint(vars(Dynamics(ToyModel(), OwnSchedule(x)))) for x in (1.0, 1.0, 2.0)]
    assert own[0] == own[1] != own[2]
    functions = [fingerprint(lambda t, x=x: x * t) for x in (1.0, 1.0, 2.0)]
    assert functions[0] == functions[1] != functions[2]
    methods = [fingerprint(OwnSchedule(x).__call__) for x in (1.0, 1.0, 2.0)]
    assert methods[0] == methods[1] != methods[2]
    assert fingerprint(lambda t: t + 1) != fingerprint(lambda t: t + 2) != fingerprint(abs)
    assert fingerprint([1, 2]) != fingerprint([1, 3])


def test_parameters_are_names_that_cells_set_to_values():
    cells = ["", "seed = 1", "x = = 3", "table.size = 100", "a, b = 1, 2", "c = 3", "del c"]
    cells += ["seed = 2", "n = m = 5", "def f(): pass", "print(seed)", "y = f()"]
    assert records.parameters_of({"In": cells, "seed": 2, "n": 5, "m": 5}) == {
        "seed": 2,
        "n": 5,
        "m": 5,
    }
