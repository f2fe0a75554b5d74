"""What notebooks 00 and 01 compute."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import irlkit
from irlkit.crystals.compositions import from_formula
from irlkit.flows.interpolants import Interpolant, SqrtGamma, TrigonometricPath
from irlkit.flows.schedules import ConstantNoise, load_annealing, time_grid
from irlkit.lab import plots, polymorphs, teaching
from irlkit.lab.experiments import bring_your_own, lessons, quickstart, records
from irlkit.lab.experiments.claims import Claim
from irlkit.lab.experiments.finished import SHIPPED
from irlkit.lab.experiments.presets import choose


@pytest.mark.parametrize("module", [lessons, quickstart, bring_your_own])
def test_presets_and_what_is_given_instead(module):
    first = next(iter(vars(module.SIZES["quick"])))
    assert choose(module.SIZES, "quick", {first: None}) == module.SIZES["quick"]
    assert getattr(choose(module.SIZES, "quick", {first: 30}), first) == 30
    with pytest.raises(ValueError, match=r"preset must be one of .*'laptop'.* got 'huge'"):
        choose(module.SIZES, "huge", {})
    for name in (first, "iterations"):
        with pytest.raises(ValueError, match="are needed"):
            choose(module.SIZES, "quick", {name: 0})


def test_known_structures_are_those_of_the_composition():
    assert not len(polymorphs.known_structures(from_formula("Xe17")))
    assert lessons.find_crystal("TiO2").reduced_formulas() == ["TiO2"]
    with pytest.raises(ValueError, match="no structure of 'Xe17'"):
        lessons.find_crystal("Xe17")


def test_a_wrong_formula_is_answered_by_its_words_alone(capsys, monkeypatch, tmp_path):
    interactive = pytest.importorskip("IPython.core.interactiveshell")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # a shell has its own
    assert len(quickstart.composition_of("TiO2", 2).species) == 6
    shell = interactive.InteractiveShell()
    shell.user_ns["composition_of"] = quickstart.composition_of
    for formula, words in (("Xx2", "'Xx' is no element"), ("NaCl500", "501 atoms"), ("", "NaCl")):
        shell.run_cell(f"composition_of({formula!r})")
        said = capsys.readouterr()
        assert words in said.out + said.err
        assert "Traceback" not in said.out + said.err


def test_energies_are_counted_from_the_lowest_of_all_sets():
    before, after = np.array([-1.0, np.nan, -1.96]), np.array([-2.0, -1.98, -1.0])
    table = quickstart.energy_table({"before": before, "after": after})
    assert list(table["with an energy"]) == [2, 3]
    assert list(table["near the lowest"]) == [1, 2]
    assert table.loc["before", "mean, eV/atom"] == pytest.approx(-1.48)
    mean, near, valid = quickstart.energy_claims(before, after)
    assert (valid.value, valid.kind) == (pytest.approx(2 / 3), "guard")
    assert (mean.verdict, mean.kind) == ("undecided", "aim")  # one is lower, one higher
    assert mean.value == pytest.approx(-0.02) and mean.low < 0 < mean.high
    assert near.value == pytest.approx(1 / 3)
    lower, *_ = quickstart.energy_claims(before, before - 0.1)
    assert lower.holds and lower.value == pytest.approx(-0.1)
    unchanged = quickstart.energy_claims(before, before)
    assert [claim.holds for claim in unchanged] == [False, False, True]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([-0.5, -0.6, -0.4, -0.5], ("has helped", "−0.500 eV/atom")),
        ([0.1, 0.12, 0.08, 0.1], ("has made it worse", "+0.100 eV/atom")),
        ([-0.1, 0.1, -0.1, 0.11], ("no clear effect", "95 % interval −0.1")),
        ([-0.5, -0.6, -0.4, np.nan], ("has helped", "1 structures fewer have one")),
        ([np.nan, np.nan, np.nan, 0.1], ("cannot be judged", "3 structures fewer")),
    ],
)
def test_a_notebook_says_whether_learning_made_it_worse(changes, words):
    before = np.array([-1.0, -2.0, -3.0, -4.0])
    said = quickstart.verdict(before, before + changes)
    assert all(part in said for part in words), said


def test_distance_from_what_is_known_is_a_guard():
    energies = np.array([-1.0, -2.0])
    *_, guard = quickstart.energy_claims(energies, energies, 0.004)
    assert guard.holds and guard.kind == "guard" and guard.value == 0.004
    assert len(quickstart.energy_claims(energies, energies)) == 3


def test_no_energy_at_all_holds_nothing():
    nothing = np.full(3, np.nan)
    table = quickstart.energy_table({"before": nothing, "after": nothing})
    assert table["lowest, eV/atom"].isna().all() and (table["near the lowest"] == 0).all()
    mean, _, valid = quickstart.energy_claims(nothing, nothing)
    assert not valid.holds and not mean.holds and mean.value is None


def test_interpolants_go_from_noise_to_the_crystal():
    model = irlkit.load_pretrained("linear-ode")
    crystal = lessons.find_crystal("NaCl")
    generator = torch.Generator().manual_seed(0)
    x_0 = model.sample_base(crystal, generator)
    states = lessons.interpolate(model, x_0, crystal, time_grid(4), generator)
    assert len(states) == 5
    torch.testing.assert_close(states[0].cell, x_0.cell, atol=0.05, rtol=0)
    torch.testing.assert_close(states[-1].cell, crystal.cell, atol=0.05, rtol=0)
    gap = states[-1].pos - crystal.pos
    assert (gap - gap.round()).abs().max() < 0.01, "on the torus"


def test_spreads_and_their_claims():
    flow = teaching.PlaneFlow(Interpolant())
    generator = torch.Generator().manual_seed(0)
    data = flow.sample_data(2000, generator)
    sets = {"data": data, "ODE": data, "SDE": data, "noise alone": 2 * data}
    table = lessons.spreads(flow, sets)
    assert table.loc["data", "distance"] == pytest.approx(2**0.5, rel=0.05)
    assert 0.15 < table.loc["data", "smallest share"] <= 0.2
    exact = 1 + 0.1 * torch.randn(64, generator=generator, dtype=torch.float64)

    def claims_of(exact, learned, untrained):
        return lessons.interpolant_claims(exact, learned, untrained, flow, sets)

    claims = claims_of(exact, 1.05 * exact, 3.0 * exact)
    assert all(claim.holds for claim in claims) and claims[0].control == pytest.approx(3.0)
    ratio = table.loc["noise alone", "distance"] / table.loc["SDE", "distance"]
    assert claims[1].value == pytest.approx(ratio)
    assert claims[1].low < ratio < claims[1].high
    assert not claims_of(exact, 0.5 * exact, 3.0 * exact)[-1].holds, "no network beats the mean"
    assert not claims_of(0.0 * exact, exact, 3.0 * exact)[-1].holds
    close = 1.095 + 0.1 * torch.randn(64, generator=generator, dtype=torch.float64)
    assert claims_of(exact, close, 3.0 * exact)[0].verdict == "undecided"


def test_a_network_in_the_plane_that_learned_nothing_satisfies_guards_alone():
    flow = teaching.PlaneFlow(Interpolant())
    generator = torch.Generator().manual_seed(0)
    network = teaching.PlaneNetwork(generator)
    exact, untrained = (
        teaching.velocity_loss(flow, of, torch.Generator().manual_seed(1))
        for of in (flow.velocity, network)
    )
    points = flow.sample_data(500, generator)
    sets = dict.fromkeys(("data", "ODE", "SDE"), points)
    sets["noise alone"] = flow.sample_base(500, generator)
    claims = lessons.interpolant_claims(exact, untrained, untrained, flow, sets)
    assert {claim.kind for claim in claims if claim.holds} == {"guard"}
    assert [claim.kind for claim in claims if not claim.holds] == ["aim"]


def test_parameters_of_a_notebook_are_what_its_literal_cells_set():
    cells = ["", '# Parameters\npreset = "quick"', "seed = 1\nlevels = [1, -2.5]  # of three"]
    cells += ["import sys\nsize = 3", "n = f(seed)", "print(seed)", "seed = 2"]
    namespace = {"In": cells, "preset": "quick", "seed": 5, "levels": [1, -2.5], "size": 3, "n": 4}
    expected = {"preset": "quick", "seed": 5, "levels": [1, -2.5]}
    assert records.parameters_of(namespace) == expected


def test_records_are_strict_json_tables_and_figures(tmp_path):
    paths = records.write_records(
        tmp_path / "new",
        parameters={"preset": "quick"},
        device="cpu",
        dataset={"name": "NaCl"},
        claims=[Claim.check("it is", 1.0, "> 0")],
        tables={"history": pd.DataFrame({"loss": [1.0, np.nan]})},
        figures={"densities": plots.densities({"a": [[0.0, 1.0]]})},
        potential=float("nan"),
    )
    assert all(path.is_file() for path in paths)
    results = json.loads((tmp_path / "new" / "results.json").read_text())
    assert results["claims"][0]["verdict"] == "holds" and results["potential"] is None
    assert len(pd.read_parquet(tmp_path / "new" / "history.parquet")) == 2


def test_what_the_exercises_of_notebook_01_say():
    """The numbers of exercises 2 and 3, and of the annealing in section 6."""
    noisy = Interpolant(TrigonometricPath(), SqrtGamma(0.5))
    plane, generator = teaching.PlaneFlow(noisy), torch.Generator().manual_seed(0)
    start = plane.sample_base(4000, generator)
    ends, _ = teaching.integrate(plane.velocity, start, 1)
    torch.testing.assert_close(ends[-1], 1.25 * start, rtol=0.002, atol=0.002)
    noise, found = {"noise": ConstantNoise(0.6), "generator": generator}, {}
    score = {"denoiser": plane.denoiser, "gamma": noisy.gamma}
    for n_steps in (10, 50):
        for name, options in (("ODE", {}), ("SDE", noise | score), ("noise alone", noise)):
            states, _ = teaching.integrate(plane.velocity, start, n_steps, **options)
            spreads = lessons.spreads(plane, {name: states[-1]})
            found[name, n_steps] = float(spreads.loc[name, "distance"])
    said = {"ODE": (2.17, 1.56), "SDE": (2.66, 1.66), "noise alone": (3.44, 2.55)}
    for name, distances in said.items():
        assert [found[name, n] for n in (10, 50)] == pytest.approx(distances, abs=0.1)
    t = torch.arange(10) / 10
    annealing = load_annealing(SHIPPED / "schedule_seed_0.safetensors")
    factor = 1 + annealing(t, torch.full_like(t, 0.1))["pos"].detach()
    assert factor[:6].round(decimals=1).aminmax() == (4.5, 5.7) and factor[6] < 4.5
    assert factor[-1] == pytest.approx(1, abs=0.05)
