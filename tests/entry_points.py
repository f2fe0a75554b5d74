"""A valid, tiny call of every public entry point, and why some have none."""

import importlib
from functools import cached_property, partial

import numpy as np
import pandas as pd
import torch
from optuna.distributions import CategoricalDistribution

from irlkit import data, pretraining, rewards
from irlkit.crystals import CrystalBatch
from irlkit.data.readers import RawRecords
from irlkit.evaluate import diversity, metrics
from irlkit.evaluate.hull import Hull
from irlkit.flows import interpolants, schedules
from irlkit.flows.constraints import Constraints
from irlkit.lab import experiments, plots, sweeps, teaching
from irlkit.lab.experiments import Rung
from irlkit.networks import omatg
from irlkit.networks.autoencoder import Autoencoder
from irlkit.networks.latent_diffusion import DiffusionTransformer, LatentDiffusion
from irlkit.rl import grpo, policies, trainer
from tests.test_discrete import tiny_model
from tests.tiny_experiments import write_files
from tests.tiny_omatg import write_model
from tests.toy_potentials import LennardJonesToy, volume_per_atom
from tests.toys import ToyModel, flow_model, trainer_config
from tests.toys import crystals as toys

MODULES = {
    module.rpartition(".")[2]: f"irlkit.{module}".removesuffix(".irlkit")
    for module in (
        "irlkit crystals crystals.compositions crystals.validity "
        "flows.base_distribution flows.constraints flows.discrete flows.dynamics "
        "flows.interpolants flows.schedules "
        "networks.composition networks.cspnet networks.flow_model networks.omatg "
        "networks.omatg.download "
        "networks.pretrained "
        "evaluate.amd evaluate.denovo evaluate.diversity evaluate.evidence evaluate.hull "
        "evaluate.matcher evaluate.metrics evaluate.matching evaluate.novelty "
        "potentials data data.writers rewards pretraining "
        "rl.config rl.grpo rl.policies rl.rollout rl.trainer rl.update rl "
        "lab.diagnostics lab.experiments lab.plots lab.runs lab.sweeps "
        "lab.teaching lab.train lab.widgets"
    ).split()
}
"""Short name -> module. Modules without a list of names have all that they define."""


class Objective:
    """Of a sweep."""

    def describe(self):
        return {"toy": 1}

    def __call__(self, config, folder, report):
        report(1, 0.5)


class Kit:
    """What calls need, made once. Calls change none of it but what `fresh` makes."""

    def __init__(self, folder):
        self.folder = folder

    @cached_property
    def files(self):
        return write_files(self.folder)

    @cached_property
    def omatg(self):
        return write_model(self.folder / "omatg")

    @cached_property
    def batch(self):
        return toys((2, 1), torch.float32)

    @cached_property
    def carbon(self):
        return CrystalBatch.from_formulas(["C2"])

    @cached_property
    def hull(self):
        return Hull({"C": -9.0}, self.potential.name)

    @cached_property
    def one(self):
        return self.batch[0]

    @cached_property
    def states(self):
        return [self.one, self.one.replace(pos=self.one.pos * 0.5)]

    @cached_property
    def dataset(self):
        formulas = self.batch.reduced_formulas()
        n_atoms = self.batch.n_atoms.numpy()
        table = pd.DataFrame({"material_id": ["a", "b"], "formula": formulas, "n_atoms": n_atoms})
        return data.CrystalDataset("toy", "test", self.batch, table)

    @cached_property
    def salts(self):
        with_cache = dict(cache=False, progress=False)
        return data.load(self.files / "salts.csv", **with_cache).select(range(4))

    @cached_property
    def model(self):
        return flow_model()

    @cached_property
    def denovo(self):
        return tiny_model().float()

    @cached_property
    def latent(self):
        network = DiffusionTransformer(8, 4, 8, 1, 1)
        return LatentDiffusion(Autoencoder(8, 1, 1), network)

    @cached_property
    def toy(self):
        toy = ToyModel(dtype=torch.float32)
        toy.device = torch.device("cpu")
        return toy

    @cached_property
    def policy(self):
        return policies.AnnealingPolicy(self.toy)

    @cached_property
    def config(self):
        return trainer_config(n_groups=1, group_size=2, n_steps=2, n_ppo_epochs=1)

    @cached_property
    def noise(self):
        return {"pos": schedules.ConstantNoise(0.1)}

    @cached_property
    def potential(self):
        return LennardJonesToy()

    @cached_property
    def pool(self):
        return metrics.MatchPool(0)

    @cached_property
    def trainer(self):
        made = trainer.GRPOTrainer(self.policy, volume_per_atom, self.batch, self.config)
        made.run(3, progress=False)
        return made

    @cached_property
    def history(self):
        return self.trainer.history.assign(seed=0)

    @property
    def draws(self):
        return torch.Generator().manual_seed(0)

    @cached_property
    def flow(self):
        return teaching.PlaneFlow(interpolants.Interpolant())

    @cached_property
    def points(self):
        return torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2)

    @cached_property
    def x_0(self):
        return self.batch.pos.double()

    @cached_property
    def trials(self):
        rows = {"pos": [1.0, 2.0], "cell": [0.0, 1.0], "crmse": [0.3, 0.2], "value": [1.0, 2.0]}
        return pd.DataFrame({**rows, "number": [0, 1], "state": "complete"})

    @cached_property
    def evaluation(self):
        rows = {"schedule": "none", "n_steps": [5, 10], "seed": 0, "metre": 0.5, "crmse": 0.3}
        return pd.DataFrame({**rows, "noise": [0.0, 0.1], "match_rate": 0.5, "rmse": 0.1})

    @cached_property
    def curves(self):
        rows = {"schedule": "learned", "tuned_at": np.nan, "seed": 0, "n_steps": 10}
        return pd.DataFrame({**rows, "field": ["pos", "cell"], "t": 0.5, "factor": 1.0})

    @cached_property
    def space(self):
        return sweeps.SearchSpace("annealing", {"n_ppo_epochs": CategoricalDistribution((1, 2))})

    @cached_property
    def sweep(self):
        return sweeps.Sweep(self.folder / "sweep", self.space, {"toy": 1})

    @cached_property
    def saved_model(self):
        self.model.save(self.folder / "saved.safetensors")
        return self.folder / "saved.safetensors"

    @cached_property
    def saved_policy(self):
        policies.VelocityPolicy(self.model).save(self.folder / "policy.safetensors")
        return self.folder / "policy.safetensors"

    @cached_property
    def saved_annealing(self):
        schedules.save_annealing(schedules.LinearAnnealing(), self.folder / "annealing")
        return self.folder / "annealing"

    @cached_property
    def energies(self):
        return self.potential(self.batch)


PRESET = experiments.presets("annealing")["quick"]
NOISE = {"pos": 0.1, "cell": 0.1}
LINEAR = schedules.LinearAnnealing(1.0, 0.5)


def entries(kit):
    """Name -> (entry point, keyword arguments). A method is named by its class."""
    k = kit
    one, batch, dataset, toy = k.one, k.batch, k.dataset, k.toy
    n_atoms = batch.n_atoms
    tensors = dict(species=batch.species, pos=batch.pos, cell=batch.cell, n_atoms=n_atoms)
    source = dict(checkpoint=k.files / "model.safetensors", dataset=k.files / "salts.csv")
    where = dict(device="cpu", out_dir="results", progress=False)
    arrays = dict(species=[[1]], pos=[np.zeros((1, 3))], cell=[np.eye(3)])
    table = {
        # --- irlkit ---
        "irlkit.CrystalBatch": tensors,
        "irlkit.FlowModel": dict(
            network=k.model.network,
            interpolants=k.model.interpolants,
            base=k.model.base,
            info={},
            species=None,
        ),
        "irlkit.load_pretrained": dict(name_or_path="linear-ode", device="cpu"),
        "irlkit.load_omatg": dict(
            checkpoint=k.omatg / "model.ckpt",
            config=k.omatg / "train.yaml",
            device="cpu",
            dtype=torch.float32,
        ),
        "crystals.CrystalBatch.select": (batch.select, dict(index=0)),
        "crystals.CrystalBatch.repeat": (batch.repeat, dict(k=2)),
        "crystals.CrystalBatch.concatenate": dict(batches=[batch, one]),
        "crystals.CrystalBatch.to": (batch.to, dict(device="cpu", dtype=torch.float64)),
        "crystals.CrystalBatch.replace": (batch.replace, dict(pos=batch.pos, cell=batch.cell)),
        "crystals.CrystalBatch.from_arrays": {**arrays, "dtype": torch.float64},
        "crystals.CrystalBatch.from_formulas": dict(formulas=["NaCl"], dtype=torch.float32),
        "crystals.CrystalBatch.from_structures": dict(
            structures=batch.to_structures(), dtype=torch.float32
        ),
        "crystals.CrystalBatch.from_ase": dict(atoms=batch.to_ase(), dtype=torch.float32),
        "flow_model.FlowModel.prepare": (
            k.denovo.prepare,
            dict(
                batch=n_atoms,
                constraints=Constraints(elements=["Na"]),
                given=torch.zeros_like(batch.species),
            ),
        ),
        "flow_model.FlowModel.gamma": (k.model.gamma, dict(field="pos", t=torch.tensor(0.5))),
        "flow_model.FlowModel.sample_base": (
            k.model.sample_base,
            dict(batch=batch, generator=k.draws),
        ),
        "flow_model.FlowModel.save": (k.model.save, dict(path="a.safetensors")),
        "flow_model.FlowModel.load": dict(path=k.saved_model, device="cpu"),
        "pretrained.pretrained_names": {},
        # --- training, policies, generation ---
        "trainer.GRPOTrainer": dict(
            policy=k.policy,
            reward=volume_per_atom,
            dataset=batch,
            config=k.config,
            validation=one,
            validation_reward=volume_per_atom,
            out_dir="run",
            resume=False,
        ),
        "trainer.GRPOTrainer.run": (
            k.trainer.run,
            dict(iterations=3, progress=False, callbacks=[]),
        ),
        "trainer.GRPOTrainer.validate": (
            trainer.GRPOTrainer(
                k.policy, volume_per_atom, batch, k.config, validation=one
            ).validate,
            dict(seed=1),
        ),
        "policies.AnnealingPolicy": dict(
            model=toy, annealing=schedules.LearnedAnnealing(4, 1), noise=k.noise, ref_noise=k.noise
        ),
        "policies.FewStepPolicy": dict(
            model=toy,
            noise=k.noise,
            ref_noise=k.noise,
            annealing=LINEAR,
            references=None,
            guide_steps=2,
            shares=(0.0, 1.0),
            noise_share=0.5,
            max_distance=0.25,
        ),
        "policies.StateAnnealingPolicy": dict(
            model=toy, annealing=schedules.StateAnnealing(), noise=k.noise, ref_noise=k.noise
        ),
        "policies.VelocityPolicy": dict(
            model=toy, noise=k.noise, ref_noise=k.noise, annealing=LINEAR, process=None
        ),
        "policies.LatentPolicy": dict(
            model=k.latent, eta=0.5, reduction="sum", reference="rollout", renoised=3
        ),
        "policies.SpeciesPolicy": dict(
            model=k.denovo,
            noise=k.noise,
            ref_noise=k.noise,
            annealing=LINEAR,
            constraints=Constraints(elements=["Na"]),
        ),
        "constraints.Constraints": dict(
            elements=["Na", "Cl"],
            exclude=["O"],
            chemical_system=None,
            formula="NaCl",
            fractions=None,
            sites=[("Na", (0.0, 0.0, 0.0))],
        ),
        "discrete.DiscreteFlow": dict(
            base="mask", noise=0.1, temperature=1.0, elements=(11, 17), final_window=0.0
        ),
        "policies.ScorePolicy": dict(model=toy, noise=k.noise, ref_noise=k.noise, annealing=LINEAR),
        "dynamics.Dynamics": dict(
            model=toy, annealing=LINEAR, noise=k.noise, kind="ode", constraints=None
        ),
        "policies.load_dynamics": dict(path=k.saved_policy, model=k.model),
        "policies.AnnealingPolicy.save": (k.policy.save, dict(path="a", metadata={"a": 1})),
        "policies.VelocityPolicy.save": (
            policies.VelocityPolicy(k.model).save,
            dict(path="a", metadata={"a": 1}),
        ),
        "dynamics.Dynamics.generate": (
            k.policy.deploy().generate,
            dict(
                batch=batch,
                n_steps=2,
                generator=k.draws,
                x_0=batch,
                max_batch=2,
                record=[],
                progress=False,
            ),
        ),
        "rollout.rollout": dict(
            policy=k.policy,
            x_0=batch,
            n_steps=2,
            generator=k.draws,
            record_states=True,
            max_batch=2,
        ),
        "rollout.generate": dict(
            policy=k.policy, request=one, n_steps=2, generator=k.draws, max_batch=None
        ),
        "grpo.group_advantages": dict(rewards=torch.tensor([1.0, 2.0]), group_size=2, kind="ranks"),
        "grpo.check_group_size": dict(group_size=2),
        "grpo.GRPOConfig": vars(grpo.GRPOConfig()),
        "config.TrainerConfig": vars(trainer_config()),
        "update.PolicyUpdate": dict(
            policy=k.policy,
            optimizer=torch.optim.Adam(k.policy.parameters()),
            config=k.config,
            generator=k.draws,
        ),
        "diagnostics.judge": dict(history=k.history, config=k.config),
        "diversity.fingerprints": dict(batch=batch, n_neighbours=4),
        "diversity.count_distinct": dict(
            prints=diversity.fingerprints(batch), group_size=2, tolerance=0.08
        ),
        "diversity.composition_diversity": dict(batch=batch, weights=np.ones((2, len(batch)))),
        # --- rewards, potentials, metrics ---
        "rewards.CRMSEReward": dict(dataset=dataset, pool=0, stol=0.5, ltol=0.3, angle_tol=10.0),
        "rewards.CompositeReward": dict(
            parts={"a": volume_per_atom}, weights={"a": 1.0}, normalized=("a",)
        ),
        "rewards.CreativityReward": dict(training_set=dataset, bounded=False, n_workers=0),
        "rewards.CreativityReward.__call__": (
            rewards.CreativityReward(dataset),
            dict(batch=batch),
        ),
        "rewards.StabilityReward": dict(
            hull=k.hull, potential=k.potential, limit=1.0, relax_steps=1
        ),
        "rewards.StabilityReward.__call__": (
            rewards.StabilityReward(k.hull, k.potential),
            dict(batch=batch),
        ),
        "rewards.StabilityReward.check": (
            rewards.StabilityReward(k.hull, k.potential).check,
            dict(compositions=k.carbon),
        ),
        "rewards.DiversityReward": dict(reference=dataset, features="composition", size=2, seed=0),
        "rewards.DiversityReward.__call__": (
            rewards.DiversityReward(dataset),
            dict(batch=batch),
        ),
        "rewards.BandGapReward": dict(target=3.0),
        "rewards.BandGapReward.__call__": (rewards.BandGapReward(3.0), dict(batch=batch)),
        "rewards.ValidCompositionReward.__call__": (
            rewards.ValidCompositionReward(),
            dict(batch=batch),
        ),
        "rewards.ValidCompositionReward": {},
        "rewards.CompoundReward": dict(least_elements=2),
        "rewards.CompoundReward.__call__": (rewards.CompoundReward(), dict(batch=batch)),
        "rewards.GatedReward": dict(
            reward=lambda batch: batch.n_atoms, gate=rewards.CompoundReward(), least=-1.0
        ),
        "rewards.RareFormulaReward": dict(free=1, most=2),
        "rewards.RareFormulaReward.__call__": (rewards.RareFormulaReward(), dict(batch=batch)),
        "rewards.creativity_and_stability": dict(
            training_set=dataset,
            hull=k.hull,
            potential=k.potential,
            without=("structure",),
            bounded=True,
            relax_steps=0,
            least_elements=2,
        ),
        "rewards.band_gap_and_diversity": dict(training_set=dataset, target=3.0),
        "hull.Hull": dict(
            energies={"C": -9.0},
            potential="toy",
            virtual={"C": 0.0},
            surveyed=("C",),
            strict=True,
        ),
        "hull.Hull.prototypes": dict(
            completed=False, without=("Na-Cl",), strict=True, potential="7net-0"
        ),
        "hull.Hull.from_entries": dict(
            entries=[{"formula_pretty": "C", "energy_per_atom": -9.0}], potential="toy"
        ),
        "hull.Hull.check": (k.hull.check, dict(batch=k.carbon)),
        "hull.Hull.energy_above_hull": (
            k.hull.energy_above_hull,
            dict(batch=k.carbon, energies=[0.0]),
        ),
        "composition.load": dict(name="band-gap"),
        "rewards.EnergyReward": dict(
            potential=k.potential, group_size=2, penalty=3.0, clip=3.0, references=k.salts
        ),
        "rewards.FunctionReward": dict(
            function=volume_per_atom, on_failure=0.0, timeout=1.0, n_workers=0
        ),
        "rewards.RayReward": dict(
            factory=partial(rewards.FunctionReward, volume_per_atom),
            n_workers=1,
            cpus=1.0,
            gpus=0.0,
            address="auto",
            parts_per_worker=1,
            on_failure=0.0,
        ),
        "rewards.RewardResult": dict(values=torch.zeros(2).double(), info={"a": np.zeros(2)}),
        "rewards.SymmetryReward": dict(kind="not_triclinic", symprec=0.1, angle_tolerance=5.0),
        "rewards.as_reward": dict(reward=volume_per_atom),
        "rewards.SymmetryReward.__call__": (
            rewards.SymmetryReward("not_triclinic"),
            dict(batch=batch),
        ),
        "rewards.CRMSEReward.__call__": (rewards.CRMSEReward(dataset, k.pool), dict(batch=batch)),
        "rewards.EnergyReward.__call__": (rewards.EnergyReward(k.potential), dict(batch=batch)),
        "rewards.FunctionReward.__call__": (
            rewards.FunctionReward(volume_per_atom),
            dict(batch=batch),
        ),
        "rewards.CompositeReward.__call__": (
            rewards.CompositeReward({"a": volume_per_atom}),
            dict(batch=batch),
        ),
        "rewards.CRMSEReward.check": (
            rewards.CRMSEReward(dataset, k.pool).check,
            dict(compositions=batch),
        ),
        "rewards.EnergyReward.check": (
            rewards.EnergyReward(k.potential).check,
            dict(compositions=batch),
        ),
        "potentials.ASEPotential": dict(
            factory=LennardJonesToy, arguments={}, name="toy", n_workers=1, timeout=1.0
        ),
        "potentials.CHGNetPotential": dict(model="0.3.0", device="cpu", dtype=torch.float32),
        "potentials.MACEPotential": dict(
            model="mace-mpa-0",
            path=None,
            trust=False,
            download=False,
            device="cpu",
            dtype=torch.float64,
            head=None,
            max_edges=None,
        ),
        "potentials.SevenNetPotential": dict(model="7net-0", device="cpu", dtype=torch.float32),
        "potentials.get": dict(potential=k.potential),
        "potentials.relax": dict(
            batch=batch,
            potential=k.potential,
            max_steps=2,
            force_tolerance=0.1,
            cell=True,
            max_batch=1,
            progress=False,
        ),
        "potentials.Potential.__call__": (
            k.potential,
            dict(batch=batch, forces=False, stress=True),
        ),
        "metrics.MatchPool": dict(n_workers=0, timeout=1.0, stol=0.5, ltol=0.3, angle_tol=10.0),
        "metrics.MatchPool.prepare": (k.pool.prepare, dict(references=batch)),
        "metrics.MatchPool.match": (
            k.pool.match,
            dict(generated=batch, references=k.pool.prepare(batch), pairs=[(0, 0), (1, 1)]),
        ),
        "metrics.MatchPool.rmsd": (
            k.pool.rmsd,
            dict(generated=batch, references=batch, pairs=[(0, 0), (1, 1)]),
        ),
        "evidence.Bootstrap": dict(compositions=["a"], generator=None, n_samples=2),
        "evidence.Estimate": dict(value=1.0, low=0.0, high=2.0),
        "evidence.spread_of_seeds": dict(values=np.ones((2, 2))),
        "amd.amd": dict(batch=batch, k=3),
        "amd.amd_distance": dict(a=torch.ones(2, 3), b=torch.ones(3)),
        "novelty.KnownStructures": dict(known=dataset, k=3),
        "novelty.is_valid_composition": dict(structures=batch),
        "novelty.is_unique": dict(structures=batch, pool=k.pool),
        "denovo.denovo": dict(
            structures=batch,
            training_set=dataset,
            potential=LennardJonesToy(),
            hull=None,
            judge=None,
            judge_hull=None,
            relax=True,
            max_steps=1,
            max_batch=2,
            pool=k.pool,
            progress=False,
        ),
        "metrics.evaluate": dict(generated=batch, references=dataset, pool=k.pool),
        "metrics.evaluate_energies": dict(
            generated=batch,
            references=batch,
            potential=k.potential,
            reference_energies=k.potential(batch),
        ),
        "validity.check": dict(batch=batch, min_volume=0.1, min_distance=0.5, min_polar_sine=0.001),
        # --- schedules ---
        "schedules.ConstantNoise": dict(scale=0.1),
        "schedules.SquareRootNoise": dict(scale=0.1, offset=0.02),
        "schedules.ScaledNoise": dict(noise=schedules.ConstantNoise(0.1), factor=2.0),
        "schedules.LearnedNoise": dict(
            base=schedules.ConstantNoise(0.1),
            hidden_dim=4,
            n_hidden_layers=1,
            floor=0.1,
            generator=k.draws,
        ),
        "schedules.LearnedAnnealing": dict(
            hidden_dim=4,
            n_hidden_layers=1,
            shared_trunk=True,
            condition_on_dt=False,
            positive=True,
            rule=schedules.EndpointAnnealing(4.0, 1.2),
            n_frequencies=1,
            generator=k.draws,
        ),
        "schedules.LinearAnnealing": dict(pos=1.0, cell=0.5),
        "schedules.EndpointAnnealing": dict(pos=8.0, cell=1.1),
        "schedules.StateAnnealing": dict(
            rule=LINEAR, hidden_dim=4, n_hidden_layers=1, generator=k.draws
        ),
        "schedules.NoAnnealing": {},
        "schedules.ControlPointAnnealing": dict(pos=(0.0, 1.0), cell=(0.0, 1.0)),
        "schedules.ControlPointNoise": dict(values=(0.0, 1.0)),
        "schedules.check_n_steps": dict(n_steps=2),
        "schedules.time_grid": dict(n_steps=2, dtype=torch.float64, device="cpu"),
        "schedules.load_annealing": dict(path=k.saved_annealing),
        "schedules.read_annealing_metadata": dict(path=k.saved_annealing),
        "schedules.save_annealing": dict(annealing=LINEAR, path="a", metadata={"a": 1}),
        # --- interpolants and lessons ---
        "interpolants.EncoderDecoderPath": dict(switch_time=0.5, power=1.0),
        "interpolants.VariancePreservingPath": dict(
            schedule="linear", beta_min=0.1, beta_max=20.0, offset=0.008
        ),
        "interpolants.VarianceExplodingPath": dict(sigma_min=0.005, sigma_max=0.5),
        "interpolants.SqrtGamma": dict(a=0.1),
        "interpolants.EncoderDecoderGamma": dict(a=0.1, switch_time=0.5, power=1.0),
        "interpolants.ConstantEpsilon": dict(c=1.0),
        "interpolants.VanishingEpsilon": dict(c=1.0, mu=0.1, sigma=0.1),
        "interpolants.Interpolant": dict(
            path=interpolants.LinearPath(),
            gamma=interpolants.SqrtGamma(0.1),
            periodic=True,
            center_of_mass_free=True,
            one_sided=False,
            trained_heads=("velocity",),
        ),
        "base_distribution.BaseDistribution": dict(
            log_length_mean=(1.0,) * 3,
            log_length_std=(0.1,) * 3,
            normal_pos=None,
            normal_cell=None,
            n_atoms=(0.5, 0.5),
        ),
        "teaching.PlaneFlow": dict(interpolant=interpolants.Interpolant(), n_modes=3, spread=0.1),
        "teaching.integrate": dict(
            velocity=k.flow.velocity,
            x_0=k.points,
            n_steps=2,
            denoiser=None,
            gamma=None,
            noise=schedules.ConstantNoise(0.1),
            generator=k.draws,
        ),
        "teaching.PlaneNetwork": dict(generator=k.draws, width=4),
        "teaching.train_velocity": dict(flow=k.flow, iterations=2, generator=k.draws, batch=4),
        "teaching.velocity_loss": dict(
            flow=k.flow, velocity=k.flow.velocity, generator=k.draws, n=4, n_times=4
        ),
        "teaching.distance_to_modes": dict(flow=k.flow, points=k.points),
        "teaching.PlaneFlow.sample_base": (k.flow.sample_base, dict(n=3, generator=k.draws)),
        "teaching.PlaneFlow.sample_data": (k.flow.sample_data, dict(n=3, generator=k.draws)),
        # --- data ---
        "data.CrystalDataset": dict(
            name="toy",
            split="test",
            batch=batch,
            table=dataset.table,
            skipped=(),
            has_structures=True,
        ),
        "data.CrystalDataset.select": (dataset.select, dict(index=[0])),
        "data.CrystalDataset.subset": (dataset.subset, dict(size=1, seed=0)),
        "data.CrystalDataset.references_of": (
            dataset.references_of,
            dict(formulas=batch.reduced_formulas()),
        ),
        "data.RawRecords": dict(payloads=[], table=pd.DataFrame()),
        "data.Skipped": dict(record="a", reason="b"),
        "data.load_parts": dict(
            source=k.files / "salts.csv",
            split=None,
            max_atoms=None,
            niggli=True,
            dtype=torch.float32,
        ),
        "data.from_formulas": dict(
            formulas=["NaCl"], z=1, max_atoms=20, name="a", dtype=torch.float32
        ),
        "data.load": dict(
            source=["NaCl"],
            split=None,
            max_atoms=20,
            z=None,
            niggli=True,
            cache=False,
            progress=False,
            dtype=torch.float32,
        ),
        "data.register_reader": dict(extension=".xyzzy", reader=lambda path: RawRecords([], [])),
        "compositions.element_counts": dict(batch=batch),
        "compositions.from_formula": dict(
            formula="NaCl", n_formula_units=1, max_atoms=20, dtype=torch.float32
        ),
        "writers.write": dict(
            path="a.extxyz", structures=batch, table=dataset.table, provenance={"a": 1}
        ),
        "writers.write_trajectory": dict(
            path="a.extxyz", states=k.states, structure=0, times=[0.0, 1.0], provenance={"a": 1}
        ),
        # --- networks and pretraining ---
        "cspnet.CSPNet": dict(
            hidden_dim=4,
            n_layers=1,
            n_freqs=2,
            time_dim=4,
            n_species=100,
            species_head=True,
            mask_token=True,
            denoiser=True,
        ),
        "pretraining.PretrainingConfig": vars(pretraining.PretrainingConfig()),
        "pretraining.pretrain": dict(
            dataset=dataset,
            config=pretraining.PretrainingConfig(
                hidden_dim=4,
                n_layers=1,
                n_freqs=2,
                time_dim=4,
                iterations=1,
                batch_size=2,
                validate_every=1,
            ),
            validation=dataset,
            evaluate=None,
            out_dir=None,
            device="cpu",
            info={},
            progress=False,
        ),
        "pretraining.metre_evaluation": dict(validation=dataset, n_structures=2, n_steps=2, seed=0),
        # --- published models ---
        "omatg.dynamics_of": dict(model=irlkit_omatg(k)),
        "omatg.read_checkpoint": dict(path=k.omatg / "model.ckpt"),
        "omatg.read_config": dict(config=k.omatg / "train.yaml"),
        # --- runs and sweeps ---
        "sweeps.SearchSpace": dict(
            policy="annealing",
            parameters=dict(k.space.parameters),
            fixed={"n_groups": 2},
            start=({"n_ppo_epochs": 1},),
        ),
        "sweeps.PolicyObjective": vars(sweeps.PolicyObjective(k.space)),
        "sweeps.Sweep": dict(path=k.folder / "new", space=k.space, objective={}, seed=0),
        "sweeps.open_study": dict(path=k.sweep.path),
        "sweeps.run_optuna": dict(
            sweep=k.sweep,
            objective=Objective(),
            n_trials=1,
            prune=False,
            progress=False,
        ),
        "sweeps.run_ray": dict(
            sweep=k.sweep,
            objective=Objective(),
            n_trials=1,
            n_workers=1,
            cpus_per_trial=1.0,
            gpus_per_trial=0.0,
            address="auto",
            prune=False,
        ),
        # --- experiments ---
        "experiments.Claim": vars(experiments.Claim.check("a", 1.0, ">= 1")),
        "experiments.Claim.check": dict(
            claim="a", value=1.0, target=">= 1", kind="claim", control=None
        ),
        "experiments.claims_table": dict(claims=[experiments.Claim.check("a", 1.0, ">= 1")]),
        "experiments.AnnealingPreset": vars(PRESET),
        "experiments.NoisePreset": vars(experiments.presets("noise")["quick"]),
        "experiments.EnergyPreset": vars(experiments.presets("energy")["quick"]),
        "experiments.SweepPreset": vars(experiments.presets("sweep")["quick"]),
        "experiments.Variant": dict(
            policy="velocity",
            noise="medium",
            ref_noise=None,
            noise_offset=0.0,
            grpo={},
            n_seeds=1,
        ),
        "experiments.Rung": vars(Rung(1, 2, 3)),
        "experiments.presets": dict(kind="noise"),
        "experiments.resolve": dict(kind="energy", preset="quick"),
        "experiments.VelocityAnnealing": dict(**source, preset=PRESET, **where),
        "experiments.NoiseSchedules": dict(
            **source,
            preset=experiments.presets("noise")["quick"],
            velocity_checkpoint=k.files / "second.safetensors",
            potential=k.potential,
            **where,
        ),
        "experiments.EnergyReinforcement": dict(
            **source, preset=experiments.presets("energy")["quick"], potential=k.potential, **where
        ),
        "experiments.SweepExperiment": dict(
            policy="annealing",
            **source,
            preset=experiments.presets("sweep")["quick"],
            reward="crmse",
            potential="chgnet",
            backend="optuna",
            **where,
        ),
        # --- figures ---
        "plots.annealing_schedules": dict(curves=k.curves, few=10),
        "plots.densities": dict(sets={"a": k.points}),
        "plots.distributions": dict(
            values={"a": [1.0, 2.0]}, label="x", n_bins=3, marks={"b": 1.5}
        ),
        "plots.flow": dict(
            panels={"a": torch.stack([k.points, k.points])}, times=[0.0, 1.0], target=k.points
        ),
        "plots.group": dict(rewards=[0.1, 0.3], advantages=[-1.0, 1.0]),
        "plots.group_advantages": dict(rewards=[1.0, 2.0], group_size=2, names=["NaCl"]),
        "plots.group_trajectories": dict(
            states=[state.repeat(2) for state in k.states],
            advantages=[1.0, -1.0],
            max_members=2,
            title="a",
            colors="distinct",
        ),
        "plots.grpo_diagnostics": dict(history=k.history),
        "plots.interpolant_coefficients": dict(
            interpolants={"a": interpolants.Interpolant()}, n_points=5
        ),
        "plots.line_with_band": dict(
            table=k.evaluation,
            x="n_steps",
            y="metre",
            name="a",
            color="#123456",
            legend=True,
            dash="dot",
        ),
        "plots.loss_curve": dict(
            history=pd.DataFrame({"iteration": [1, 2], "loss": [2.0, 1.0]}), floor=0.5, smooth=2
        ),
        "plots.metrics_vs_noise": dict(
            evaluation=k.evaluation,
            metrics=("rmse",),
            noise="noise",
            group="schedule",
            labels={"rmse": "a"},
        ),
        "plots.metrics_vs_steps": dict(evaluation=k.evaluation, metrics=("metre",), mark=5),
        "plots.minimum_distances": dict(sets={"a": k.states}, times=[0.0, 1.0]),
        "plots.noise_schedules": dict(
            schedules={"a": schedules.ConstantNoise(0.1)}, label="a", n_points=5
        ),
        "plots.pair_distribution": dict(sets={"a": one}, r_max=4.0, n_bins=8),
        "plots.parallel_coordinates": dict(
            trials=k.trials,
            parameters=["pos", "cell"],
            value="value",
            label="a",
            logarithmic=["pos"],
        ),
        "plots.parameter_importance": dict(importance=pd.Series({"a": 0.4, "b": 0.6})),
        "plots.periodic_table": dict(values={"H": 1.0}, label="a", counts={"H": 2}),
        "plots.reward_against": dict(
            table=k.evaluation, x="metre", y="crmse", label_x="a", label_y="b"
        ),
        "plots.schedule_and_structures": dict(
            t=np.array([0.0, 0.5]),
            curves={"pos": np.ones(2), "cell": np.ones(2)},
            table=pd.DataFrame({"formula": ["NaCl"], "rmsd": [0.1]}),
            stol=0.5,
            label="a",
            crystal=one,
            number=0,
        ),
        "plots.structure": dict(
            crystal=one, bonds=False, polyhedra=False, title="a", colors="jmol"
        ),
        "plots.structures": dict(
            panels=[one],
            bonds=False,
            polyhedra=False,
            columns=1,
            title="a",
            energies=[-1.0],
            colors="vesta",
        ),
        "plots.style": dict(figure=plots.densities({"a": k.points}), height=300, legend_below=True),
        "plots.sweep_results": dict(trials=k.trials, metric="crmse", targets={"a": 0.1}),
        "plots.sweep_trials": dict(
            trials=k.trials,
            value="value",
            parameters=["pos"],
            maximize=True,
            label="a",
            logarithmic=["pos"],
        ),
        "plots.training_curves": dict(history=k.history, label="a", group="seed"),
        "plots.trajectories": dict(panels={"a": k.states}, title="a", colors="vesta"),
        "plots.trajectory_and_curves": dict(
            states=k.states,
            curves={"a": [1.0, 2.0]},
            label="a",
            times=[0.0, 1.0],
            reference=one,
            title="a",
            colors="vesta",
        ),
        "plots.velocity_field": dict(
            fields={"a": k.flow.velocity}, times=[0.5], data=k.points, extent=3.0, n=2
        ),
        # --- widgets ---
        "widgets.ScheduleExplorer": dict(
            model=toy,
            dataset=dataset,
            schedules={"a": LINEAR},
            n_steps=2,
            n_points=2,
            seed=0,
            max_factor=5.0,
            step_counts=(2, 4),
        ),
        "widgets.NoiseExplorer": dict(
            model=toy,
            dataset=dataset,
            schedules={"a": {f: schedules.ConstantNoise(0.1) for f in ("pos", "cell")}},
            n_steps=2,
            n_points=2,
            seed=0,
            max_factor=5.0,
            step_counts=(2, 4),
        ),
        "widgets.TrainingDashboard": dict(trainer=k.trainer, iterations=3, seconds=1.0, label="a"),
        "widgets.TrajectoryExplorer": dict(
            model=toy,
            compositions=batch,
            schedules={"a": LINEAR},
            reward=volume_per_atom,
            n_steps=2,
            seed=0,
            label="a",
        ),
    }
    return {
        name: value if isinstance(value, tuple) else (_find(name), value)
        for name, value in table.items()
    }


def irlkit_omatg(kit):
    return omatg.load_omatg(kit.omatg / "model.ckpt")


def _find(name):
    module, *path = name.split(".")
    found = importlib.import_module(MODULES[module])
    for part in path:
        found = getattr(found, part)
    return found


MISSING = ("mace", "mace.modules", "ray", "sevenn")
"""Packages that the tests take for missing: calls end in an ImportError once all else is right."""

NEED_THEM = (
    "potentials.MACEPotential",
    "potentials.SevenNetPotential",
    "rewards.RayReward",
    "sweeps.run_ray",
)

EXCLUDED = {
    "made by the kit, or called by it at every step": (
        "policies.FieldStep policies.StepInputs policies.evaluate policies.CrystalFlow "
        "policies.DeNovoFlow policies.DenoisedLatents composition.CompositionNetwork "
        "hull.HullResult denovo.DeNovoMetrics "
        "rl.ActionDistribution rl.Categorical rl.Field rl.Gaussian rl.Request rl.State "
        "rl.Trajectory dynamics.advance dynamics.score_factor "
        "policies.Outputs "
        "schedules.annealing_on_grid "
        "grpo.clipped_surrogate grpo.grpo_loss grpo.GRPOLoss "
        "flow_model.Conditioning cspnet.NetworkOutput cspnet.TimeEmbedding "
        "cspnet.CSPLayer interpolants.time_derivative "
        "interpolants.center interpolants.align_translation "
        "interpolants.pair_by_permutation interpolants.pair_with_data "
        "base_distribution.cell_from_parameters "
        "interpolants.InterpolantSample pretraining.build_model "
        "pretraining.interpolant_losses pretraining.total_loss  "
        "validity.reduce_lattices runs.Run diagnostics.Finding "
        "matcher.PreparedStructure matcher.RmsdMatcher"
    ),
    "take what the kit wrote or made": (
        "runs.find runs.table sweeps.importance sweeps.trials_table"
    ),
    "results, which the kit makes": (
        "metrics.EnergyMetrics metrics.Metrics metrics.Matches metrics.References "
        "validity.Validity "
        "potentials.Energies potentials.Relaxation omatg.OMatGConfig trainer.NonFiniteRewardError "
    ),
    "abstract, or a protocol": (
        "interpolants.Path potentials.Potential rewards.Reward policies.Policy "
        "policies.NetworkPolicy policies.FlowPolicy rl.Process dynamics.VelocityField "
        "schedules.Annealing schedules.NoiseSchedule sweeps.Objective"
    ),
    "without arguments": "interpolants.LinearPath interpolants.TrigonometricPath",
    "command lines, which argparse checks": ("runs.main download.main train.main train.train"),
    "runs for minutes, or needs a finished experiment: see test_notebooks and test_experiments": (
        "experiments.estimate"
    ),
    "tested with wrong names in test_properties": (
        "runs.read download.find_downloaded download.download download.local_folder "
        "omatg.find_model omatg.network_weights"
    ),
    "draws in a notebook through crystal-toolkit: see test_plots_structures": (
        "plots.crystal_toolkit_view"
    ),
}
