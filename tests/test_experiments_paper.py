"""The paper's own runs, each on tiny stand-ins for its model, data and potential; estimates."""

import itertools
import re
from dataclasses import replace

import pandas as pd
import pytest
import torch

from irlkit import potentials
from irlkit.lab import experiments
from irlkit.lab._splits import load_splits
from irlkit.lab.experiments import base
from irlkit.lab.experiments._stages import announce, in_words
from irlkit.lab.experiments.estimate import _count_work
from irlkit.lab.experiments.presets import Rung, presets
from irlkit.networks.cspnet import CSPNet
from tests.tiny_experiments import write_files
from tests.tiny_mace import write_mace
from tests.tiny_omatg import write_model
from tests.toy_potentials import LennardJonesToy

pytest.importorskip("yaml")

ANNEALING = replace(
    presets("annealing")["paper"],
    n_steps=2,
    train_steps=(3,),
    step_counts=(2,),
    reference_steps=4,
    test_size=6,
    seeds=(0, 1),
    iterations=2,
    grpo={
        **presets("annealing")["paper"].grpo,
        "n_groups": 2,
        "group_size": 3,
        "validate_every": 1,
        "validation_n_steps": 2,
        "validation_size": 3,
    },
    few_step_sweep=(2, 3),
    noise_scales=(0.2,),
    noise_scan_size=3,
    reference_sweep=(Rung(2, 3, 3), Rung(1, 3, 4)),
    n_workers=1,  # rewards are asked beside the rollouts, where time limits need a process
)
ENERGY = replace(
    presets("energy")["paper"],
    n_steps=2,
    iterations=2,
    grpo={
        **presets("energy")["paper"].grpo,
        "n_groups": 2,
        "group_size": 3,
        "validate_every": 1,
        "validation_size": 3,
        "step_fraction": 0.5,
    },
    reference_steps=4,
    test_size=6,
    seeds=(0, 1),
    reference_sweep=(Rung(2, 3, 4),),
    diversity=(2, 3),
    n_relaxed=(2, 3),
    relax_steps=2,
    n_workers=0,
)


@pytest.fixture
def placed(tmp_path, monkeypatch):
    """Models and data where the paper's presets look for them."""
    monkeypatch.setenv("IRLKIT_CACHE", str(tmp_path))
    models = tmp_path / "omatg" / "MP-20-CSP"
    write_model(models / "Linear-ODE")
    write_model(models / "Trig-SDE-Gamma", "trig_sde_gamma")
    rows = pd.read_csv(write_files(tmp_path) / "salts.csv")
    folder = tmp_path / "mp-20"
    folder.mkdir()
    for name, part in (("train", rows[:40]), ("val", rows[40:46]), ("test", rows[46:])):
        part.to_csv(folder / f"{name}.csv", index=False)
    return tmp_path


def run_annealing(experiment):
    experiment.sweep_reference()
    experiment.scan_noise()
    experiment.evaluate("none")
    experiment.evaluate("handcrafted")
    experiment.train_schedules()
    experiment.sweep_few_steps()
    experiment.evaluate("handcrafted", experiment.preset.n_steps, tuned_at=2)
    experiment.evaluate("learned")
    experiment.sweep_rule(2)
    experiment.evaluate("rule")


def run_energy(experiment):
    experiment.sweep_reference()
    experiment.sweep_rule()
    experiment.evaluate_pretrained()
    experiment.train_policies()
    experiment.evaluate_policies()
    experiment.study_noise()
    experiment.evaluate_policies(experiment.preset.noise_study)
    experiment.measure_gain()
    experiment.diversity()


def make_annealing(placed):
    return experiments.VelocityAnnealing(
        ANNEALING.checkpoint, ANNEALING.dataset, ANNEALING, out_dir=placed / "04", progress=False
    )


def make_energy(placed, potential):
    return experiments.EnergyReinforcement(
        ENERGY.checkpoint,
        ENERGY.dataset,
        ENERGY,
        potential=potential,
        out_dir=placed / "03",
        progress=False,
    )


@pytest.fixture
def counted(monkeypatch):
    """How many structures the network was evaluated for, without and with gradients."""
    counts = {"forward": 0, "backward": 0}
    forward = CSPNet.forward

    def counting(self, t, species, pos, cell, *arguments, **options):
        trained = torch.is_grad_enabled() and self.coord_out.weight.requires_grad
        counts["backward" if trained else "forward"] += len(cell)
        return forward(self, t, species, pos, cell, *arguments, **options)

    monkeypatch.setattr(CSPNet, "forward", counting)
    # Policies that training leaves alike are evaluated once; here each of them is.
    names = map(str, itertools.count())
    monkeypatch.setattr(base, "fingerprint", lambda *parts: next(names))
    return counts


# --------------------------------------------------------------------------------------------------
# The presets
# --------------------------------------------------------------------------------------------------


def test_presets_name_what_the_paper_used():
    annealing = experiments.resolve("annealing", "paper")
    energy = experiments.resolve("energy", "paper")
    assert annealing.checkpoint == "omatg/MP-20-CSP/Linear-ODE"
    assert energy.checkpoint == "omatg/MP-20-CSP/Trig-SDE-Gamma"
    assert (energy.potential, energy.dataset, annealing.dataset) == ("mace-mpa-0", "mp-20", "mp-20")
    score, velocity = (energy.config(name, 0) for name in ("score-based", "velocity-based"))
    assert (score.group_size, score.n_groups, score.n_ppo_epochs) == (64, 16, 4)
    assert (score.grpo.clip_eps, velocity.grpo.clip_eps) == (0.2567, 0.2812)
    assert (score.grpo.kl_weight, velocity.grpo.kl_weight) == (1e-5, 1e-3)
    assert (score.grpo.distillation_weight, velocity.grpo.distillation_weight) == (3e-5, 0.0)


def test_sweeps_of_the_paper_count_grid_points(tmp_path):
    preset = experiments.resolve("sweep", "paper")
    for policy, n_steps in (("annealing", 99), ("velocity", 49), ("score", 49)):
        experiment = experiments.SweepExperiment(
            policy, None, "prototypes", preset, out_dir=tmp_path / policy
        )
        assert experiment.objective.grpo["n_steps"] == n_steps
    preset = experiments.resolve("sweep", "paper", n_steps=7)
    experiment = experiments.SweepExperiment(
        "score", None, "prototypes", preset, out_dir=tmp_path / "given"
    )
    assert experiment.objective.grpo["n_steps"] == 7
    with pytest.raises(ValueError, match="steps_of"):
        replace(preset, steps_of={"score": 0})


def test_what_is_given_comes_before_the_preset():
    assert experiments.resolve("annealing", "paper", checkpoint="a", dataset="b").checkpoint == "a"
    given = experiments.resolve("energy", "paper", dataset="b", potential="chgnet")
    assert (given.dataset, given.potential) == ("b", "chgnet")
    assert given.checkpoint == presets("energy")["paper"].checkpoint


def test_a_folder_has_a_file_per_split(placed):
    train, validation, test = load_splits(placed / "mp-20", progress=False)
    assert (len(train), len(validation), len(test)) == (40, 6, 14)
    assert [split.split for split in (train, validation, test)] == ["train", "val", "test"]
    (placed / "mp-20" / "val.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"no val in .*mp-20. Place the files train\.csv"):
        load_splits("mp-20", progress=False)


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("IRLKIT_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="download omatg/MP-20-CSP/Linear-ODE"):
        make_annealing(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no train, val, test in .*cdvae"):
        load_splits("mp-20")


# --------------------------------------------------------------------------------------------------
# End to end, with the work that was foreseen
# --------------------------------------------------------------------------------------------------


def check_work(experiment, preset, counted):
    experiment.preset = preset
    work = _count_work(experiment)
    assert set(work.index) == set(experiment.seconds), "stages have the names of the estimate"
    for kind in ("forward", "backward"):
        assert work[kind].sum() == counted[kind], kind


def test_velocity_annealing_of_the_paper(placed, counted):
    experiment = make_annealing(placed)
    run_annealing(experiment)
    # Subsets take whole compositions, so they can be larger than asked for.
    n = len(experiment.validation.subset(3))
    preset = replace(
        ANNEALING,
        few_step_sweep=(2, n),
        noise_scan_size=n,
        reference_sweep=tuple(replace(r, n_structures=n) for r in ANNEALING.reference_sweep),
    )
    check_work(experiment, preset, counted)
    claims = experiment.claims()
    assert experiment.write_results(claims)


def check_energy(placed, potential, counted):
    experiment = make_energy(placed, potential)
    run_energy(experiment)
    n = len(experiment.validation.subset(3))
    preset = replace(
        ENERGY,
        reference_sweep=(Rung(2, n, 4),),
        n_relaxed=(2, len(experiment.test.subset(3))),
    )
    check_work(experiment, preset, counted)
    paths = experiment.write_results(experiment.claims())
    assert any(path.name == "results.json" for path in paths)


def test_energy_reinforcement_of_the_paper(placed, counted):
    check_energy(placed, LennardJonesToy(), counted)


@pytest.mark.mace
def test_energy_reinforcement_of_the_paper_with_mace(placed, counted):
    pytest.importorskip("mace")
    elements = [1, 3, 9, 11, 17, 19, 35, 37, 47, 53, 55]
    path = write_mace(placed / "tiny.model", elements)
    check_energy(placed, potentials.get(path, trust=True), counted)


# --------------------------------------------------------------------------------------------------
# Estimates
# --------------------------------------------------------------------------------------------------


def test_estimates_leave_the_experiment_as_it_was(placed):
    experiment = make_energy(placed, LennardJonesToy())
    generator = torch.get_rng_state()
    found = experiments.estimate(experiment)
    assert not any(p.requires_grad for p in experiment.model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert re.match(r"Estimate: about \d+ seconds, \d+% of it for \w+", found), found


def test_a_line_per_stage_says_what_is_left(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("irlkit.lab.experiments._stages.tell_terminal", told.append)
    planned = {"sweep": 10.0, "training": 100.0, "evaluation": 20.0}
    announce(tmp_path, "sweep", 1.0, {}, planned)
    # The sweep took three times as long as expected, and so will the rest.
    announce(tmp_path, "training", 31.0, {"sweep": 30.0}, planned)
    announce(tmp_path, "other", 400.0, {"sweep": 30.0}, {})
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == [line.partition(": ")[2] for line in told]
    assert told[0].endswith(": 1 seconds gone, sweep begins, about 2.2 minutes to go")
    assert told[1].endswith(": 31 seconds gone, training begins, about 6.0 minutes to go")
    assert told[2].endswith(": 6.7 minutes gone, other begins")


def test_more_iterations_are_more_work(placed):
    experiment = make_annealing(placed)
    short = _count_work(experiment)
    experiment.preset = replace(ANNEALING, iterations=40)
    long = _count_work(experiment)
    assert long["forward"].sum() > short["forward"].sum()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(59, "59 seconds"), (90, "1.5 minutes"), (7200, "2.0 hours"), (3 * 86400, "3.0 days")],
)
def test_estimatesin_words(seconds, text):
    assert in_words(seconds) == text


def test_other_experiments_are_refused(placed):
    experiment = make_annealing(placed)
    experiment.preset = object()
    with pytest.raises(ValueError, match="of notebook 03 or 04"):
        experiments.estimate(experiment)
