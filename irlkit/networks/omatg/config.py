"""Configurations in OMatG's YAML schema."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from irlkit.flows.base_distribution import BaseDistribution
from irlkit.flows.interpolants import (
    EPSILONS,
    EncoderDecoderGamma,
    EncoderDecoderPath,
    Interpolant,
    LinearPath,
    SqrtGamma,
    TrigonometricPath,
    VarianceExplodingPath,
    VariancePreservingPath,
    named,
)
from irlkit.utils.checks import checked

FIELDS = ("pos", "cell")

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

NETWORK_IGNORED = {
    "latent_dim",
    "cutoff",
    "max_neighbors",
    "pred_type",
    "am_hidden_dim",
    "prop_embed_dim",
}
"""Arguments of `CSPNetFull` that mean nothing for fully connected atoms of fixed species."""


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


@checked
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


MAX_BYTES, MAX_ENTRIES = 1 << 20, 100_000
"""Of a configuration file; known ones have a hundredth."""


def _read_yaml(path: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ImportError(
            "reading an OMatG configuration needs PyYAML: pip install pyyaml"
        ) from error
    if not path.is_file():
        raise FileNotFoundError(f"config: no configuration file at {path}")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"config: {path} is larger than {MAX_BYTES} bytes")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"config: {path} is not YAML of plain data: {error}") from error
    # Aliases of aliases make a few lines grow without end, at the latest in an error message.
    stack, n_entries = [content], 0
    while stack:
        entry = stack.pop()
        stack += entry.values() if isinstance(entry, dict) else entry if _is_list(entry) else ()
        n_entries += 1
        if n_entries > MAX_ENTRIES:
            raise ValueError(f"config: {path} has more than {MAX_ENTRIES} entries")
    return content


def _is_list(entry: Any) -> bool:
    return isinstance(entry, list | tuple | set)


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
            stacklevel=7,
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
