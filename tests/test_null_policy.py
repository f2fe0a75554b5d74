"""Claims of the notebooks with a policy that learned nothing: none holds but what is a guard."""

from dataclasses import replace

import pytest

from irlkit.lab import experiments
from tests import test_experiments as annealing
from tests import test_experiments_energy as energy
from tests import test_experiments_noise as noise
from tests.tiny_experiments import write_files
from tests.toy_potentials import LennardJonesToy


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("IRLKIT_CACHE", str(tmp_path))
    return write_files(tmp_path)


def check(claims, n_measured):
    claimed = [claim for claim in claims if claim.kind != "guard"]
    assert not [claim.claim for claim in claimed if claim.holds]
    controlled = [claim for claim in claims if None not in (claim.control, claim.value)]
    assert len(controlled) >= n_measured
    assert all(claim.value == pytest.approx(claim.control) for claim in controlled)


def test_noise_and_annealing_that_do_nothing(files):
    """Nothing is learned in notebook 02: what it claims of noise and annealing is taken away."""
    preset = replace(noise.TINY, scales=(1e-12, 2e-12), candidates=((0.0, 0.0),))
    experiment = noise.make(files, files / "results", preset)
    experiment.scan()
    experiment.sweep_reference()
    experiment.compare_annealing()
    assert experiment.evaluation["match_rate"].gt(0).any()
    check(experiment.claims(), 8)


@pytest.mark.parametrize("start", ["none", "rule"])
def test_annealing_that_learned_nothing(files, start):
    preset = replace(annealing.TINY, start=start)
    experiment = annealing.make(files, files / "results", preset)
    experiment.sweep_reference()
    experiment.sweep_few_steps()
    experiment.sweep_rule(3, 2)
    experiment.policies = {seed: experiment.policy(seed) for seed in experiment.preset.seeds}
    for schedule in ("none", "handcrafted", "rule", "learned"):
        experiment.evaluate(schedule)
    experiment.evaluate("handcrafted", 3, tuned_at=3)
    experiment.evaluate("rule", 2, tuned_at=2)
    check(experiment.claims(), 8)


def test_policies_that_learned_nothing_of_energies(files):
    preset = replace(energy.TINY, annealing="none", noise_study={})
    experiment = energy.make(files, files / "results", preset, judge=LennardJonesToy(sigma=2.3))
    experiment.sweep_reference()
    experiment.sweep_rule()
    experiment.evaluate_pretrained()
    keys = [(name, seed) for name in preset.policies for seed in preset.seeds]
    experiment.policies = {(name, seed): experiment.policy(name) for name, seed in keys}
    experiment.evaluate_policies()
    experiment.measure_gain()
    claims = experiment.claims()
    assert sum("relaxation" in claim.claim for claim in claims) == 4 * len(preset.policies)
    check(claims, 4)


def test_a_sweep_that_learned_nothing(files):
    preset = replace(
        experiments.presets("sweep")["quick"],
        n_trials=2,
        iterations=1,
        n_groups=1,
        narrowed={"group_size": [2], "n_ppo_epochs": [1]},
        validate_every=1,
        validation_size=4,
        test_size=6,
        rule_size=3,
        seeds=(1, 2),
    )
    experiment = experiments.SweepExperiment(
        "annealing",
        files / "second.safetensors",
        files / "salts.csv",
        preset,
        out_dir=files / "results",
        progress=False,
    )
    experiment.run_sweep()
    experiment.retrain()
    for name, seed in experiment.policies:
        config = experiment.sweep.study.best_trial.params
        trainer = experiment.objective.trainer(config, files / f"{name}_{seed}", seed=seed)
        experiment.policies[name, seed] = trainer.policy
    experiment.evaluate()
    check(experiment.claims(), 2)
    experiment.close()
