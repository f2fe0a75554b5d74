"""Published OMatG models: a Lightning checkpoint and its YAML configuration become a `FlowModel`.

Neither Lightning, torch-scatter nor OMatG is needed. Checkpoints are pickles; they are read with
torch's weights-only reader, which executes nothing.

| OMatG's configuration | here |
|---|---|
| `stochastic_interpolants` | `FlowModel.interpolants` |
| `sampler` | `FlowModel.base` |
| `encoder`, `time_embedder` | sizes of `FlowModel.network` |
| `epsilon`, `integration_time_steps`, ... | `FlowModel.info["omatg"]` |
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from irlkit.base_distribution import BaseDistribution
from irlkit.cspnet import CSPNet, NetworkOutput
from irlkit.interpolants import (
    EPSILONS,
    EncoderDecoderGamma,
    EncoderDecoderPath,
    Interpolant,
    LinearPath,
    SqrtGamma,
    TrigonometricPath,
    VarianceExplodingPath,
    VariancePreservingPath,
    build_named,
    named,
)
from irlkit.model import FlowModel

if TYPE_CHECKING:
    from irlkit.crystals import CrystalBatch
    from irlkit.schedules import LinearAnnealing

FIELDS = ("pos", "cell")
PREFIX = "model.encoder."

NETWORK_DEFAULTS = {"hidden_dim": 512, "num_layers": 6, "num_freqs": 128, "max_atoms": 100}
"""Sizes of OMatG's `CSPNetFull` where a configuration names none."""

NETWORK_FIXED = {
    "act_fn": "silu",
    "dis_emb": "sin",
    "edge_style": "fc",
    "ln": True,
    "ip": True,
    "smooth": False,
    "pred_scalar": False,
    "prop": False,
}
"""Arguments of `CSPNetFull` with the only value that there is here."""

NETWORK_IGNORED = {"latent_dim", "cutoff", "max_neighbors", "pred_type"}
"""Arguments of `CSPNetFull` that mean nothing for fully connected atoms of fixed species."""

# DiffCSP's network makes so many layers before OMatG's replaces them.
N_PLACEHOLDER_LAYERS = 4


# --------------------------------------------------------------------------------------------------
# Configuration
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OMatGConfig:
    """What a configuration says about a model.

    Attributes:
        network: Arguments of `CSPNet`, except for the denoiser.
        interpolants: Of "pos" and "cell".
        base: Base distribution.
        settings: Plain data, kept as `FlowModel.info["omatg"]`: `n_steps`; per field `annealing`
            (slope of 1 + s t in generation), `differential_equation` ("ODE" or "SDE") and `epsilon`
            (None for an ODE); `pairing` (base positions are permuted towards the data in
            training), `loss_weights` and `dataset`.
    """

    network: dict[str, int]
    interpolants: dict[str, Interpolant]
    base: BaseDistribution
    settings: dict[str, Any]


def read_config(config: str | os.PathLike[str] | Mapping[str, Any]) -> OMatGConfig:
    """Read a configuration in OMatG's YAML schema.

    Args:
        config: YAML file, or its content as a mapping.

    Raises:
        FileNotFoundError: no such file.
        ImportError: PyYAML is not installed.
        ValueError: the file is not YAML of plain data; an entry is missing; or the model needs
            what is not supported, which is named.
    """
    if isinstance(config, Mapping):
        content: Any = config
        source = "config"
    else:
        content = _read_yaml(Path(config))
        source = str(config)
    try:
        return _parse(content)
    except _Unsupported as error:
        raise ValueError(f"{source}: {error}") from error
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"{source} is not a configuration of an OMatG model ({type(error).__name__}: {error})"
        ) from error


def _read_yaml(path: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ImportError(
            "reading an OMatG configuration needs PyYAML: pip install pyyaml"
        ) from error
    if not path.is_file():
        raise FileNotFoundError(f"config: no configuration file at {path}")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"config: {path} is not YAML of plain data: {error}") from error


class _Unsupported(Exception):
    """Something in a configuration that this package does not do, in words."""


def _component(entry: Any) -> tuple[str, dict[str, Any]]:
    """Class name (without its module) and arguments of an entry of the configuration."""
    if isinstance(entry, str):
        return entry.rpartition(".")[2], {}
    arguments = dict(entry.get("init_args") or {})
    return str(entry["class_path"]).rpartition(".")[2], arguments


def _make(kinds: Mapping[str, Any], entry: Any, what: str) -> Any:
    """The object that an entry stands for; its arguments must be those of our class."""
    name, arguments = _component(entry)
    if name not in kinds:
        raise _Unsupported(f"{what} {name} is not supported; supported are {', '.join(kinds)}")
    # YAML takes 5e-2, without a point in it, for text.
    arguments = {key: _number(value) for key, value in arguments.items()}
    try:
        return kinds[name](**arguments)
    except TypeError as error:
        raise _Unsupported(f"{what} {name} with arguments {arguments}: {error}") from error


def _number(value: Any) -> Any:
    """A number written as text as a number, everything else as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _variance_preserving(tau: Any = "TauConstantSchedule") -> VariancePreservingPath:
    def linear(beta_min: float, beta_max: float) -> VariancePreservingPath:
        return VariancePreservingPath("linear", beta_min=beta_min, beta_max=beta_max)

    def cosine(offset: float = 0.008) -> VariancePreservingPath:
        return VariancePreservingPath("cosine", offset=offset)

    kinds = {
        "TauConstantSchedule": VariancePreservingPath,
        "TauLinearSchedule": linear,
        "TauCosineSchedule": cosine,
    }
    return _make(kinds, tau, "tau")


def _variance_exploding(sigma: Any) -> VarianceExplodingPath:
    return _make({"GeometricSigma": VarianceExplodingPath}, sigma, "sigma")


PATHS = {
    "LinearInterpolant": LinearPath,
    "TrigonometricInterpolant": TrigonometricPath,
    "EncoderDecoderInterpolant": EncoderDecoderPath,
    "ScoreBasedDiffusionModelInterpolantVP": _variance_preserving,
    "ScoreBasedDiffusionModelInterpolantVE": _variance_exploding,
}
"""Path of each of OMatG's interpolants; each has a twin named Periodic...."""

GAMMAS = {"LatentGammaSqrt": SqrtGamma, "LatentGammaEncoderDecoder": EncoderDecoderGamma}


def _parse(content: Mapping[str, Any]) -> OMatGConfig:
    model = content["model"]
    _, si = _component(model["si"])
    fields = list(si.get("data_fields") or ["species", *FIELDS])
    entries = dict(zip(fields, si["stochastic_interpolants"], strict=False))
    missing = [name for name in ("species", *FIELDS) if name not in entries]
    if missing:
        raise _Unsupported(f"no stochastic interpolant for {missing}, found {sorted(entries)}")
    species, _ = _component(entries["species"])
    if species != "SingleStochasticInterpolantIdentity":
        raise _Unsupported(
            f"{species} makes this a model for de novo generation, whose species change; supported "
            "is crystal structure prediction (SingleStochasticInterpolantIdentity for species)"
        )
    parsed = {name: _parse_field(name, entries[name]) for name in FIELDS}
    n_times = int(si["integration_time_steps"])
    if n_times < 2:
        raise _Unsupported(f"integration_time_steps must be at least 2, got {n_times}")
    for name in FIELDS:
        _warn_about_integrator(name, parsed[name][1], 0.998 / (n_times - 1))
    settings = {
        "n_steps": n_times - 1,
        "annealing": {name: entry["annealing"] for name, (_, entry) in parsed.items()},
        "differential_equation": {name: entry["equation"] for name, (_, entry) in parsed.items()},
        "epsilon": {name: entry["epsilon"] for name, (_, entry) in parsed.items()},
        "pairing": bool(model.get("use_min_perm_dist", False)),
        "loss_weights": dict(model.get("relative_si_costs") or {}),
        "dataset": model.get("dataset_name"),
    }
    return OMatGConfig(
        network=_parse_network(model["model"]),
        interpolants={name: interpolant for name, (interpolant, _) in parsed.items()},
        base=_parse_base(model["sampler"]),
        settings=settings,
    )


def _parse_field(name: str, entry: Any) -> tuple[Interpolant, dict[str, Any]]:
    """Interpolant of a field and how the field is generated."""
    kind, arguments = _component(entry)
    if kind not in ("SingleStochasticInterpolant", "SingleStochasticInterpolantOS"):
        raise _Unsupported(
            f"{kind} for {name} is not supported; supported are SingleStochasticInterpolant and "
            "SingleStochasticInterpolantOS"
        )
    one_sided = kind.endswith("OS")
    path_name, path_arguments = _component(arguments["interpolant"])
    periodic = path_name.startswith("Periodic")
    if periodic != (name == "pos"):
        raise _Unsupported(
            f"{path_name} for {name} is not supported: fractional coordinates need a periodic "
            "interpolant, lattice vectors one that is not"
        )
    path_name = path_name.removeprefix("Periodic")
    path = _make(
        PATHS, {"class_path": path_name, "init_args": path_arguments}, f"interpolant of {name}:"
    )
    gamma = arguments.get("gamma")
    equation = str(arguments["differential_equation_type"]).upper()
    if equation not in ("ODE", "SDE"):
        raise _Unsupported(f"differential_equation_type {equation} for {name} is not supported")
    epsilon = arguments.get("epsilon")
    if (epsilon is None) != (equation == "ODE"):
        raise _Unsupported(f"epsilon for {name} must be given for an SDE, and only for an SDE")
    if one_sided and not arguments.get("predict_velocity", True):
        heads: tuple[str, ...] = ("denoiser",)
    else:
        # What an ODE does not use was not trained, whether there is latent noise or not.
        heads = ("velocity",) if equation == "ODE" else ("velocity", "denoiser")
    if equation == "SDE" and gamma is None and not one_sided:
        raise _Unsupported(f"gamma for {name}: an SDE needs latent noise")
    usual = ("velocity",) if gamma is None else ("velocity", "denoiser")
    interpolant = Interpolant(
        path=path,
        gamma=None if gamma is None else _make(GAMMAS, gamma, f"gamma of {name}:"),
        periodic=periodic,
        center_of_mass_free=bool(arguments.get("correct_center_of_mass_motion", False)),
        one_sided=one_sided,
        trained_heads=None if heads == usual else heads,
    )
    made = None if epsilon is None else _make(EPSILONS, epsilon, f"epsilon of {name}:")
    return interpolant, {
        "annealing": float(arguments.get("velocity_annealing_factor") or 0.0),
        "equation": equation,
        "epsilon": None if made is None else named(made),
        "integrator": dict(arguments.get("integrator_kwargs") or {}),
    }


def _warn_about_integrator(name: str, entry: Mapping[str, Any], dt: float) -> None:
    """Say so where OMatG would not take one Euler step per interval of the time grid."""
    integrator = entry["integrator"]
    method = integrator.get("method", "dopri5" if entry["equation"] == "ODE" else "srk")
    substeps = dt / float(integrator.get("dt", dt)) if entry["equation"] == "SDE" else 1.0
    if method != "euler" or substeps > 1.01:
        warnings.warn(
            f"OMatG would integrate {name} with the method {method!r}"
            + (f" in {substeps:.1f} steps per interval" if substeps > 1.01 else "")
            + "; here every interval of the time grid is one Euler step",
            stacklevel=5,
        )


def _parse_base(entry: Any) -> BaseDistribution:
    """Base distribution of a sampler, in the present and the first form of the schema."""
    kind, arguments = _component(entry)
    if kind not in ("IndependentSampler", "SampleFromRNG"):
        raise _Unsupported(f"sampler {kind} is not supported; supported is IndependentSampler")
    pos = arguments.get("pos_distribution")
    pos_kind, pos_arguments = (
        ("UniformPositionDistribution", {}) if pos is None else _component(pos)
    )
    if pos_kind not in ("UniformPositionDistribution", "NormalPositionDistribution"):
        raise _Unsupported(
            f"pos_distribution {pos_kind} is not supported; supported are "
            "UniformPositionDistribution and NormalPositionDistribution"
        )
    normal_pos = _loc_and_scale(pos_arguments) if pos_kind.startswith("Normal") else None
    cell_kind, cell_arguments = _component(arguments["cell_distribution"])
    if cell_kind == "NormalCellDistribution":
        return BaseDistribution(normal_pos=normal_pos, normal_cell=_loc_and_scale(cell_arguments))
    if cell_kind != "InformedLatticeDistribution":
        raise _Unsupported(
            f"cell_distribution {cell_kind} is not supported; supported are "
            "InformedLatticeDistribution and NormalCellDistribution"
        )
    dataset = str(cell_arguments["dataset_name"])
    informed = BaseDistribution.informed("perov_5" if dataset == "perov" else dataset)
    return replace(informed, normal_pos=normal_pos)


def _loc_and_scale(arguments: Mapping[str, Any]) -> tuple[float, float]:
    return float(arguments.get("loc", 0.0)), float(arguments.get("scale", 1.0))


def _parse_network(entry: Any) -> dict[str, int]:
    """Arguments of `CSPNet`."""
    _, arguments = _component(entry)
    kind, encoder = _component(arguments["encoder"])
    if kind != "CSPNetFull":
        raise _Unsupported(f"encoder {kind} is not supported; supported is CSPNetFull")
    head, _ = _component(arguments.get("head") or "PassThrough")
    if head != "PassThrough":
        raise _Unsupported(f"head {head} is not supported; supported is PassThrough")
    for extra in ("prop_embedder", "property_embedder"):
        if arguments.get(extra):
            raise _Unsupported(f"{extra}: guidance by properties is not supported")
    for name, value in encoder.items():
        if name in NETWORK_FIXED and value != NETWORK_FIXED[name]:
            raise _Unsupported(
                f"{name}={value!r} of CSPNetFull is not supported; supported is "
                f"{NETWORK_FIXED[name]!r}"
            )
        if name not in {*NETWORK_FIXED, *NETWORK_IGNORED, *NETWORK_DEFAULTS}:
            raise _Unsupported(f"argument {name}={value!r} of CSPNetFull is not supported")
    sizes = {name: int(encoder.get(name, value)) for name, value in NETWORK_DEFAULTS.items()}
    embedder, embedder_arguments = _component(arguments["time_embedder"])
    if embedder != "SinusoidalTimeEmbeddings":
        raise _Unsupported(
            f"time_embedder {embedder} is not supported; supported is SinusoidalTimeEmbeddings"
        )
    return {
        "hidden_dim": sizes["hidden_dim"],
        "n_layers": sizes["num_layers"],
        "n_freqs": sizes["num_freqs"],
        "n_species": sizes["max_atoms"],
        "time_dim": int(embedder_arguments["dim"]),
    }


# --------------------------------------------------------------------------------------------------
# Checkpoint
# --------------------------------------------------------------------------------------------------


class _PlainDict(dict):
    """Stands in for Lightning's dictionary with attributes, which is not looked at."""

    def __setstate__(self, state: Any) -> None:
        """Drop the attributes."""


def _allowed_classes() -> list[Any]:
    """What a Lightning checkpoint may hold besides tensors and plain data; none of it acts."""
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(kind)) for kind in (bool, np.int32, np.int64, np.float32, np.float64)]
    return [
        (_PlainDict, "lightning.fabric.utilities.data.AttributeDict"),
        (_PlainDict, "lightning_fabric.utilities.data.AttributeDict"),
        (_PlainDict, "pytorch_lightning.utilities.parsing.AttributeDict"),
        (str, "pathlib.PosixPath"),
        (str, "pathlib.WindowsPath"),
        (str, "pathlib._local.PosixPath"),
        PosixPath,
        np.dtype,
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        *dtypes,
    ]


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a Lightning checkpoint without executing anything in it.

    Args:
        path: File made by `torch.save`.

    Returns:
        Its content; `state_dict` is a mapping from names to tensors on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no checkpoint, is broken, or holds an object that is not plain data,
            which is named.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"checkpoint: no file at {source}")
    try:
        with torch.serialization.safe_globals(_allowed_classes()):
            content = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        reason = (
            f"it holds {refused[1]}, which is neither a tensor nor plain data and was not loaded"
            if refused
            else str(error).splitlines()[0]
        )
        raise ValueError(f"checkpoint: {source} is refused: {reason}") from error
    # A broken file can raise almost anything.
    except Exception as error:
        raise ValueError(f"checkpoint: {source} cannot be read as a checkpoint: {error}") from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"checkpoint: {source} has no state_dict of tensors, found {found}")
    return content


def network_weights(state: Mapping[str, Tensor], network: CSPNet) -> dict[str, Tensor]:
    """Tensors for a network, checked against its sizes.

    Args:
        state: State dictionary of an OMatG checkpoint.
        network: With denoiser, of the sizes that a configuration asks for.

    Raises:
        ValueError: a tensor is missing, has another shape, or belongs to nothing.
    """
    weights = {
        name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)
    }
    if not weights:
        raise ValueError(
            f"checkpoint: no tensor is named {PREFIX}...; found {sorted(state)[:3]}. It must be "
            "one of an OMatG model with the encoder CSPNetFull"
        )
    expected = network.state_dict()
    problems = []
    for name, value in expected.items():
        if name not in weights:
            problems.append(f"{PREFIX}{name} is missing")
        elif weights[name].shape != value.shape:
            problems.append(
                f"{PREFIX}{name} has shape {tuple(weights[name].shape)}, the configuration asks "
                f"for {tuple(value.shape)}"
            )
    for name, value in weights.items():
        if name in expected or name.startswith("type_out"):
            continue
        layer = re.match(r"csp_layer_(\d+)\.(.*)", name)
        if layer and network.n_layers <= int(layer[1]) < N_PLACEHOLDER_LAYERS:
            used = weights.get(f"csp_layer_0.{layer[2]}")
            if used is None or used.shape != value.shape or "edge_mlp" not in name:
                continue
        problems.append(f"{PREFIX}{name} belongs to nothing that the configuration asks for")
    for name in state:
        if name.startswith("model.") and not name.startswith(PREFIX):
            problems.append(f"{name} is of a part that is not supported")
    if problems:
        shown = "; ".join(problems[:4]) + (
            f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        )
        raise ValueError(
            f"checkpoint and config do not fit each other: {shown}. The configuration's sizes are "
            f"{network.sizes}, the checkpoint's {_sizes_of(weights)}"
        )
    return {name: weights[name] for name in expected}


def _sizes_of(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Sizes of a network as far as its tensors tell."""
    embedding = weights.get("node_embedding.weight")
    if embedding is None or embedding.ndim != 2:
        return {}
    n_species, hidden_dim = embedding.shape
    sizes = {"hidden_dim": hidden_dim, "n_species": n_species}
    sizes["n_layers"] = len({n.split(".")[0] for n in weights if n.startswith("csp_layer_")})
    edge = weights.get("csp_layer_0.edge_mlp.0.weight")
    if edge is not None:
        sizes["n_freqs"] = (edge.shape[1] - 2 * hidden_dim - 9) // 6
    latent = weights.get("atom_latent_emb.weight")
    if latent is not None:
        sizes["time_dim"] = latent.shape[1] - hidden_dim
    return sizes


def load_omatg(
    checkpoint: str | os.PathLike[str],
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> FlowModel:
    """Load a published OMatG model for crystal structure prediction.

    Args:
        checkpoint: Lightning checkpoint (`.ckpt`); a folder with one; or the name of a downloaded
            model, such as "omatg/MP-20-CSP/Linear-ODE" (see `irlkit.download`).
        config: The YAML configuration that the model was trained with; None takes the one in the
            checkpoint's folder.
        device: Where to put the weights.
        dtype: Of the weights; None keeps the checkpoint's.

    Returns:
        Model in evaluation mode. `info["omatg"]` holds the settings of `OMatGConfig.settings`;
        `generate` integrates with them.

    Raises:
        FileNotFoundError: a file is missing; for the name of a model, how to get it.
        ImportError: PyYAML is not installed.
        ValueError: a file cannot be read or is refused; the configuration needs something that is
            not supported; or configuration and checkpoint do not fit each other. Each is named.
    """
    path = find_model(checkpoint)
    if path.is_dir():
        path = _only(path, ("*.ckpt",), "checkpoint")
    if config is None:
        config = _only(path.parent, ("*.yaml", "*.yml"), "config")
    parsed = read_config(config)
    content = read_checkpoint(path)
    with torch.random.fork_rng(devices=[]):  # the weights that are drawn here are replaced
        network = CSPNet(**parsed.network, denoiser=True)
    weights = network_weights(content["state_dict"], network)
    dtype = dtype or next(iter(weights.values())).dtype
    network.load_state_dict({k: v.to(device, dtype) for k, v in weights.items()}, assign=True)
    settings = {**parsed.settings, "checkpoint": path.name}
    for name in ("epoch", "global_step"):
        if isinstance(content.get(name), int):
            settings[name] = content[name]
    model = FlowModel(
        network,
        parsed.interpolants,
        parsed.base,
        {"name": path.parent.name or path.stem, "source": "OMatG", "omatg": settings},
    )
    return model.eval()


def find_model(name_or_path: str | os.PathLike[str]) -> Path:
    """File or folder of a checkpoint, or of a model that `irlkit.download` has fetched."""
    path = Path(name_or_path).expanduser()
    if path.exists() or not str(name_or_path).startswith("omatg/"):
        return path
    from irlkit.download import find_downloaded

    return find_downloaded(str(name_or_path))


def _only(folder: Path, patterns: tuple[str, ...], what: str) -> Path:
    """The one file in a folder that fits."""
    found = sorted(path for pattern in patterns for path in folder.glob(pattern))
    if len(found) == 1:
        return found[0]
    if not found:
        raise FileNotFoundError(f"{what}: no file {' or '.join(patterns)} in {folder}")
    names = ", ".join(path.name for path in found)
    raise ValueError(f"{what}: name one of the files in {folder}: {names}")


# --------------------------------------------------------------------------------------------------
# Generation
# --------------------------------------------------------------------------------------------------


class _Drift:
    """The drift [1 + s(t)] b - (epsilon / gamma) z of a model's SDE, as a velocity field."""

    def __init__(
        self, model: FlowModel, annealing: LinearAnnealing, epsilons: Mapping[str, Any]
    ) -> None:
        self.model = model
        self.annealing = annealing
        self.epsilons = epsilons

    def prepare(self, batch: CrystalBatch) -> Any:
        return self.model.prepare(batch)

    def sample_base(self, batch: CrystalBatch, generator: torch.Generator) -> CrystalBatch:
        return self.model.sample_base(batch, generator)

    def velocity(self, t: Tensor, pos: Tensor, cell: Tensor, conditioning: Any) -> NetworkOutput:
        output = self.model.velocity(t, pos, cell, conditioning, ("velocity", "denoiser"))
        s = self.annealing(t, t)
        drift = {name: (1 + s[name]) * value for name, value in output.velocity.items()}
        for name, epsilon in self.epsilons.items():
            factor = epsilon(t) / self.model.gamma(name, t)
            drift[name] = drift[name] - factor * output.denoiser[name]
        return NetworkOutput(drift, {})


def annealing_of(model: FlowModel) -> LinearAnnealing:
    """The handcrafted velocity annealing that the configuration of an OMatG model names.

    Raises:
        ValueError: the model has no such settings.
    """
    from irlkit.schedules import LinearAnnealing

    return LinearAnnealing(**_settings(model)["annealing"])


def _settings(model: FlowModel) -> dict[str, Any]:
    if "omatg" not in model.info:
        raise ValueError(
            "model: expected one that load_omatg made (or a copy of it, saved and loaded), "
            f"info has only {sorted(model.info)}"
        )
    return model.info["omatg"]


def generate(
    model: FlowModel,
    batch: CrystalBatch,
    generator: torch.Generator,
    n_steps: int | None = None,
    *,
    x_0: CrystalBatch | None = None,
    max_batch: int | None = None,
    progress: bool = False,
) -> CrystalBatch:
    """Generate one structure per composition as the model's configuration says.

    Fields with an ODE follow Eq. 4, those with an SDE Eq. 7 with sigma^2 = 2 epsilon; the velocity
    is annealed by the configuration's factors in both.

    Args:
        model: From `load_omatg`.
        batch: Compositions; positions and cells are not used.
        generator: Draws the base sample and the noise.
        n_steps: Number of Euler steps; None takes the configuration's.
        x_0: Start here instead of drawing from the base distribution.
        max_batch: Integrate at most so many structures at a time.
        progress: Show a bar.

    Returns:
        Structures, positions in [0, 1).

    Raises:
        ValueError: the model has no settings of OMatG; see `irlkit.sampler.integrate` for more.
    """
    from irlkit.sampler import integrate

    settings = _settings(model)
    annealing = annealing_of(model)
    epsilons = {
        name: build_named(EPSILONS, entry)
        for name, entry in settings["epsilon"].items()
        if entry is not None
    }
    noise = {name: _Noise(epsilon) for name, epsilon in epsilons.items()}
    return integrate(
        _Drift(model, annealing, epsilons) if epsilons else model,
        batch,
        settings["n_steps"] if n_steps is None else n_steps,
        annealing=None if epsilons else annealing,
        noise=noise,
        generator=generator,
        x_0=x_0,
        max_batch=max_batch,
        progress=progress,
    )


@dataclass(frozen=True)
class _Noise:
    """sigma = sqrt(2 epsilon)."""

    epsilon: Any

    def __call__(self, t: Tensor) -> Tensor:
        return torch.sqrt(2 * self.epsilon(t))
