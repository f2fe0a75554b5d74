"""The experiment of notebook 06: your model, your formulas, your reward."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from irlkit import data as datasets
from irlkit.crystals import CrystalBatch, validity
from irlkit.data import CrystalDataset
from irlkit.data.writers import write
from irlkit.flows.dynamics import Dynamics
from irlkit.flows.interpolants import Interpolant, LinearPath
from irlkit.flows.schedules import ConstantNoise
from irlkit.lab.experiments.claims import Claim
from irlkit.lab.experiments.presets import choose
from irlkit.networks.flow_model import FlowModel
from irlkit.networks.omatg import load_omatg
from irlkit.networks.omatg.checkpoint import PREFIX
from irlkit.networks.pretrained import load_pretrained
from irlkit.rewards import Reward
from irlkit.rl.config import TrainerConfig
from irlkit.rl.policies import Policy, VelocityPolicy
from irlkit.rl.trainer import GRPOTrainer

NOISE = {"pos": 0.05, "cell": 0.3}
"""Exploration noise: fractions of the cell, and Å."""


@dataclass(frozen=True)
class Size:
    """How much notebook 06 does.

    Attributes:
        n_structures: generated per composition before and after, and in each group of GRPO.
        iterations: of GRPO.
        max_groups: compositions per iteration, at most.
    """

    n_structures: int
    iterations: int
    max_groups: int


SIZES = {"quick": Size(12, 12, 4), "laptop": Size(32, 30, 4), "paper": Size(64, 200, 16)}


def resolve(preset: str, **given: int | None) -> Size:
    """The size of a preset, with what was given instead where it is not None.

    Raises:
        ValueError: no such preset, or a number that is too small.
    """
    size = choose(SIZES, preset, given)
    values = vars(size)
    if values["n_structures"] < 2 or values["iterations"] < 1 or values["max_groups"] < 1:
        raise ValueError(f"at least 2 structures, 1 iteration and 1 group are needed, got {values}")
    return size


# --------------------------------------------------------------------------------------------------
# The model
# --------------------------------------------------------------------------------------------------


def write_omatg(model: FlowModel, folder: str | Path, n_steps: int = 10) -> Path:
    """Write a model as OMatG writes one: a Lightning checkpoint with a YAML configuration.

    The base distribution of cells becomes that of Perov-5, since a configuration can only name
    published ones; samples of the copy differ from the model's by that.

    Args:
        model: With linear interpolants without latent noise (such as "linear-ode").
        folder: Made if it is not there; files of an earlier call are replaced.
        n_steps: Integration steps that the configuration names.

    Returns:
        The folder.

    Raises:
        ValueError: another kind of model.
    """
    import yaml

    for name, periodic in (("pos", True), ("cell", False)):
        found = model.interpolants[name]
        plain = Interpolant(
            LinearPath(), periodic=periodic, center_of_mass_free=found.center_of_mass_free
        )
        if found != plain:
            raise ValueError(
                f"model: the interpolant of {name} must be linear and without latent noise to be "
                f"written here, got {found}"
            )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.yaml").write_text(
        yaml.safe_dump(_omatg_config(model, n_steps), sort_keys=False), encoding="utf-8"
    )
    state = {f"{PREFIX}{k}": v.cpu().clone() for k, v in model.network.state_dict().items()}
    for head in ("coord_out", "lattice_out"):
        # OMatG's network always has a denoiser; that of an ODE is never asked.
        for name in [name for name in state if f".{head}." in name]:
            state.setdefault(name.replace(head, f"{head}_2"), torch.zeros_like(state[name]))
    torch.save({"state_dict": state, "epoch": 0, "global_step": 0}, folder / "model.ckpt")
    return folder


def _omatg_config(model: FlowModel, n_steps: int) -> dict[str, Any]:
    """The configuration of a linear ODE model."""
    sizes = model.network.sizes

    def field(name: str, interpolant: str) -> dict[str, Any]:
        return {
            "class_path": "omg.si.single_stochastic_interpolant.SingleStochasticInterpolant",
            "init_args": {
                "interpolant": f"omg.si.interpolants.{interpolant}",
                "gamma": None,
                "epsilon": None,
                "differential_equation_type": "ODE",
                "integrator_kwargs": {"method": "euler"},
                "velocity_annealing_factor": 0.0,
                "correct_center_of_mass_motion": model.interpolants[name].center_of_mass_free,
            },
        }

    identity = "omg.si.single_stochastic_interpolant_identity.SingleStochasticInterpolantIdentity"
    interpolants = [
        {"class_path": identity},
        field("pos", "PeriodicLinearInterpolant"),
        field("cell", "LinearInterpolant"),
    ]
    encoder = {
        "hidden_dim": sizes["hidden_dim"],
        "num_layers": sizes["n_layers"],
        "num_freqs": sizes["n_freqs"],
        "max_atoms": sizes["n_species"],
    }
    return {
        "model": {
            "si": {
                "class_path": "omg.si.stochastic_interpolants.StochasticInterpolants",
                "init_args": {
                    "stochastic_interpolants": interpolants,
                    "data_fields": ["species", "pos", "cell"],
                    "integration_time_steps": n_steps + 1,
                },
            },
            "sampler": {
                "class_path": "omg.sampler.IndependentSampler",
                "init_args": {
                    "cell_distribution": {
                        "class_path": "omg.sampler.cell_distributions.InformedLatticeDistribution",
                        "init_args": {"dataset_name": "perov_5"},
                    }
                },
            },
            "model": {
                "class_path": "omg.model.model.Model",
                "init_args": {
                    "encoder": {
                        "class_path": "omg.model.encoders.cspnet_full.CSPNetFull",
                        "init_args": encoder,
                    },
                    "head": "omg.model.heads.pass_through.PassThrough",
                    "time_embedder": {
                        "class_path": "omg.model.model_utils.SinusoidalTimeEmbeddings",
                        "init_args": {"dim": sizes["time_dim"]},
                    },
                },
            },
        }
    }


def load_model(
    checkpoint: str | Path | None,
    config: str | Path | None = None,
    *,
    out_dir: str | Path,
    device: str | torch.device = "cpu",
) -> tuple[FlowModel, str]:
    """Your model, or a small one in OMatG's format that is made here.

    Args:
        checkpoint: whatever ``load_pretrained`` takes; None: "linear-ode" of the package, written
            to `out_dir` as OMatG would have and loaded from there.
        config: the configuration of an OMatG checkpoint, where it is not beside it.
        out_dir: folder for results.
        device: of the network.

    Returns:
        The model, frozen, and where it is from.

    Raises:
        FileNotFoundError: no such file; see ``load_pretrained`` and ``load_omatg``.
        ValueError: a configuration without a checkpoint, or files that cannot be used.
    """
    if checkpoint is None:
        if config is not None:
            raise ValueError(f"config {str(config)!r} needs the checkpoint that it belongs to")
        checkpoint = write_omatg(load_pretrained("linear-ode"), Path(out_dir) / "model")
    model = (
        load_pretrained(checkpoint, device)
        if config is None
        else load_omatg(checkpoint, config, device=device)
    )
    return model.requires_grad_(False), str(checkpoint)


# --------------------------------------------------------------------------------------------------
# Generation and training
# --------------------------------------------------------------------------------------------------


def generate(
    model: FlowModel,
    compositions: CrystalDataset,
    size: Size,
    n_steps: int,
    seed: int = 0,
    policy: Policy | None = None,
    max_batch: int | None = 64,
) -> CrystalBatch:
    """`size.n_structures` structures of each composition, adjacent, on the CPU.

    Args:
        model: the pretrained model; base samples are its own, of the seed.
        compositions: what to generate.
        size: how many.
        n_steps: integration steps.
        seed: of the base samples.
        policy: generate with what was trained; None: with the model.
        max_batch: structures per network call.
    """
    many = compositions.batch.repeat(size.n_structures).to(model.device)
    x_0 = model.sample_base(many, torch.Generator().manual_seed(seed))
    dynamics = Dynamics(model) if policy is None else policy.deploy()
    generator = torch.Generator().manual_seed(seed + 1)
    return dynamics.generate(many, n_steps, generator=generator, x_0=x_0, max_batch=max_batch).to(
        "cpu"
    )


def make_trainer(
    model: FlowModel,
    compositions: CrystalDataset,
    reward: Reward,
    size: Size,
    n_steps: int,
    seed: int = 0,
    **settings: Any,
) -> GRPOTrainer:
    """A trainer of the velocities of positions and cell (Eq. 13); ``run`` it as long as you like.

    Args:
        model: pretrained; stays as it is.
        compositions: to train on.
        reward: of the structures.
        size: group size and number of groups.
        n_steps: integration steps.
        seed: of everything random.
        **settings: further ones of ``TrainerConfig``, or others in place of those chosen here.
    """
    noise = {field: ConstantNoise(scale) for field, scale in NOISE.items()}
    config = {
        "n_groups": min(size.max_groups, len(compositions)),
        "group_size": size.n_structures,
        "n_steps": n_steps,
        "n_ppo_epochs": 2,
        "clip_eps": 0.2,
        "learning_rate": 3e-4,
        "kl_weight": 1e-4,
        "max_minibatch": 640,
        "max_batch": 64,
    }
    policy = VelocityPolicy(model, noise)
    chosen = TrainerConfig.from_settings({**config, **settings}, seed)
    return GRPOTrainer(policy, reward, compositions, chosen)


# --------------------------------------------------------------------------------------------------
# Results
# --------------------------------------------------------------------------------------------------


def structure_table(
    compositions: CrystalDataset, size: Size, rewards: Mapping[str, torch.Tensor]
) -> pd.DataFrame:
    """A row per structure, one set after the other.

    Args:
        compositions: what was generated.
        size: how many of each.
        rewards: set ("before", "after") -> rewards, shape (compositions * n_structures,).

    Returns:
        Columns material_id, formula, set, reward.
    """
    formulas = np.repeat(np.array(compositions.table["formula"], dtype=object), size.n_structures)
    known = compositions.table["material_id"].astype(str)
    if known.duplicated().any():  # A formula that was listed twice.
        known = known + "-" + pd.Series(range(1, len(known) + 1)).astype(str)
    ids = np.repeat(known.to_numpy(dtype=object), size.n_structures)
    numbers = np.tile(np.arange(size.n_structures), len(compositions))
    parts = []
    for name, values in rewards.items():
        names = [f"{entry}-{name}-{n:03d}" for entry, n in zip(ids, numbers, strict=True)]
        columns = {"material_id": names, "formula": formulas, "set": name}
        parts.append(pd.DataFrame({**columns, "reward": np.asarray(values, dtype=float)}))
    return pd.concat(parts, ignore_index=True)


def reward_table(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and best reward per formula, before and after, for people."""
    groups = table.groupby(["formula", "set"], sort=False)
    columns = {name: ("reward", name) for name in ("size", "mean", "max")}
    return groups.agg(**columns).round(3).rename(columns={"size": "structures", "max": "best"})


def best_of(table: pd.DataFrame, structures: CrystalBatch, per_formula: int = 4) -> list[int]:
    """Rows of the valid structures with the highest rewards, formula by formula.

    Args:
        table: of ``structure_table``.
        structures: all structures, in its order.
        per_formula: how many of each, at most.

    Raises:
        ValueError: no structure is valid.
    """
    valid = table[validity.check(structures).valid & np.isfinite(table["reward"])]
    if not len(valid):
        raise ValueError(
            f"none of the {len(table)} structures is valid: each has atoms on top of each other "
            "or a broken cell. Is it a trained model, and are there enough integration steps?"
        )
    best = valid.sort_values("reward", ascending=False, kind="stable")
    return [int(row) for row in best.groupby("formula", sort=False).head(per_formula).index]


def write_cifs(
    out_dir: str | Path,
    structures: CrystalBatch,
    table: pd.DataFrame,
    provenance: Mapping[str, Any],
) -> Path:
    """Write CIF files to a new folder, so that those of an earlier run stay what they were.

    Args:
        out_dir: folder for results; the new one is `cifs`, or `cifs-2`, ... in it.
        structures: what to write.
        table: a row per structure.
        provenance: what made them.

    Returns:
        The new folder.
    """
    for number in itertools.count(1):
        folder = Path(out_dir) / ("cifs" if number == 1 else f"cifs-{number}")
        if not folder.exists():
            break
    return write(folder, structures, table, provenance)


def share_read_back(folder: str | Path, structures: CrystalBatch) -> float:
    """Share of the structures that a folder of CIF files holds: the same formula and volume.

    Args:
        folder: of ``write_cifs``.
        structures: what was written, in that order.
    """
    read = datasets.load(folder, niggli=False, cache=False, progress=False).batch
    if read.formulas() != structures.formulas():
        return 0.0
    volume = structures.volume.abs().double()
    same = (read.volume.abs().double() - volume).abs() <= 1e-4 * volume
    return float(same.double().mean())


def own_claims(table: pd.DataFrame, read_back: float, n_skipped: int = 0) -> list[Claim]:
    """What should hold; how far a reward rises is the user's business, so that is an aim.

    Args:
        table: of ``structure_table``.
        read_back: of ``share_read_back``.
        n_skipped: formulas that could not be read.
    """
    means = table.groupby("set")["reward"].mean()
    gain = float(means.get("after", math.nan)) - float(means.get("before", math.nan))
    return [
        Claim.check("share of the written CIF files that are read back alike", read_back, ">= 1"),
        Claim.check(
            "share of structures with a reward", float(table["reward"].notna().mean()), ">= 1"
        ),
        Claim.check("formulas that could not be read", n_skipped, "<= 0", required=False),
        Claim.check("mean reward, after minus before", gain, "> 0", required=False),
    ]


def provenance_of(
    model: FlowModel, checkpoint: str, reward: Reward, n_steps: int, seed: int, iterations: int
) -> dict[str, Any]:
    """What each structure file says of how it came about, apart from its set and reward."""
    return {
        "checkpoint": checkpoint,
        "model": str(model.info.get("name", "")),
        "reward": type(reward).__name__,
        "n_steps": n_steps,
        "seed": seed,
        "iterations": iterations,
    }


def summary(table: pd.DataFrame, provenance: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Further entries of results.json: how training went, and what was written."""
    means = table.groupby(["formula", "set"], sort=False)["reward"].mean().reset_index()
    return {
        "training": {
            "iterations": provenance["iterations"],
            "mean_reward": means.to_dict("records"),
        },
        "structures": {"folder": str(folder), "provenance": dict(provenance)},
    }


def panels(structures: CrystalBatch, table: pd.DataFrame, rows: Sequence[int]) -> dict[str, Any]:
    """Title -> structure, for a figure."""
    return {
        f"{table['formula'][row]}, {table['set'][row]}: {table['reward'][row]:.3f}": structures[row]
        for row in rows
    }
