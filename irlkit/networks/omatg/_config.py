"""Configurations in OMatG's YAML schema."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from irlkit.flows._plain import to_plain
from irlkit.flows.base_distribution import BaseDistribution
from irlkit.flows.discrete import DiscreteFlow
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
)
from irlkit.utils.checks import checked

FIELDS = ("pos", "cell")

NETWORK_SIZES = {
    "hidden_dim": ("hidden_dim", 512),
    "num_layers": ("n_layers", 6),
    "num_freqs": ("n_freqs", 128),
    "max_atoms": ("n_species", 100),
}
"""Sizes of OMatG's `CSPNetFull`: their names here, and what they are where none is named."""

NETWORK_FIXED = {
    **{"act_fn": "silu", "dis_emb": "sin", "edge_style": "fc", "ln": True, "ip": True},
    **{"smooth": False, "pred_scalar": False, "prop": False},
}
"""Arguments of `CSPNetFull` with the only value that there is here."""

NETWORK_IGNORED = (
    *("latent_dim", "cutoff", "max_neighbors", "pred_type"),
    *("am_hidden_dim", "prop_embed_dim"),
)
"""Arguments of `CSPNetFull` that mean nothing for fully connected atoms of fixed species."""


@dataclass(frozen=True)
class OMatGConfig:
    """What a configuration says about a model.

    Attributes:
        network: arguments of `CSPNet`, except for the denoiser.
        interpolants: of "pos" and "cell".
        base: base distribution.
        species: flow of the species, in models for de novo generation.
        settings: plain data, kept as `FlowModel.info["omatg"]`: `n_steps`; per field `annealing`
            (slope of 1 + s t in generation), `differential_equation` ("ODE" or "SDE") and `epsilon`
            (None for an ODE); `pairing` (base positions are permuted towards the data in
            training), `loss_weights` and `dataset`.
    """

    network: dict[str, Any]
    interpolants: dict[str, Interpolant]
    base: BaseDistribution
    species: DiscreteFlow | None
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
    content: Any = config if isinstance(config, Mapping) else _read_yaml(Path(config))
    source = "config" if isinstance(config, Mapping) else str(config)
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
        parts = entry.values() if isinstance(entry, dict) else entry
        stack += parts if isinstance(entry, dict | list | tuple | set) else ()
        n_entries += 1
        if n_entries > MAX_ENTRIES:
            raise ValueError(f"config: {path} has more than {MAX_ENTRIES} entries")
    return content


class _Unsupported(Exception):
    """Something in a configuration that this package does not do, in words."""


def _component(entry: Any, what: str = "", *supported: str) -> tuple[str, dict[str, Any]]:
    """Class name (without its module) and arguments of an entry; of one of the supported classes.

    The arguments are those of the entry, or none where it is a class alone.
    """
    path = entry if isinstance(entry, str) else str(entry["class_path"])
    name = path.rpartition(".")[2]
    if supported and name not in supported:
        raise _Unsupported(f"{what} {name} is not supported; supported are {', '.join(supported)}")
    return name, {} if isinstance(entry, str) else dict(entry.get("init_args") or {})


def _make(kinds: Mapping[str, Any], entry: Any, what: str) -> Any:
    """The object that an entry stands for; its arguments must be those of our class."""
    name, arguments = _component(entry, what, *kinds)
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


TAUS = {
    "TauConstantSchedule": VariancePreservingPath,
    "TauLinearSchedule": lambda beta_min, beta_max: VariancePreservingPath(
        "linear", beta_min=beta_min, beta_max=beta_max
    ),
    "TauCosineSchedule": lambda offset=0.008: VariancePreservingPath("cosine", offset=offset),
}
PATHS = {
    "LinearInterpolant": LinearPath,
    "TrigonometricInterpolant": TrigonometricPath,
    "EncoderDecoderInterpolant": EncoderDecoderPath,
    "ScoreBasedDiffusionModelInterpolantVP": lambda tau="TauConstantSchedule": _make(
        TAUS, tau, "tau"
    ),
    "ScoreBasedDiffusionModelInterpolantVE": lambda sigma: _make(
        {"GeometricSigma": VarianceExplodingPath}, sigma, "sigma"
    ),
}
"""Path of each of OMatG's interpolants; each has a twin named Periodic...."""

SPECIES: dict[str, tuple[Literal["mask", "uniform"], str]] = {
    "DiscreteFlowMatchingMask": ("mask", "MaskSpeciesDistribution"),
    "DiscreteFlowMatchingUniform": ("uniform", "UniformSpeciesDistribution"),
}
"""Base of OMatG's flows of species, and the distribution that goes with it."""

KINDS = ("SingleStochasticInterpolant", "SingleStochasticInterpolantOS")
GAMMAS = {"LatentGammaSqrt": SqrtGamma, "LatentGammaEncoderDecoder": EncoderDecoderGamma}


def _parse(content: Mapping[str, Any]) -> OMatGConfig:
    model = content["model"]
    _, si = _component(model["si"])
    fields = list(si.get("data_fields") or ["species", *FIELDS])
    entries = dict(zip(fields, si["stochastic_interpolants"], strict=False))
    missing = [name for name in ("species", *FIELDS) if name not in entries]
    if missing:
        raise _Unsupported(f"no stochastic interpolant for {missing}, found {sorted(entries)}")
    species = _parse_species(entries["species"], model["sampler"])
    n_times = int(si["integration_time_steps"])
    if n_times < 2:
        raise _Unsupported(f"integration_time_steps must be at least 2, got {n_times}")
    interpolants, generation = {}, {}
    for name in FIELDS:
        kind, arguments = _component(entries[name], f"{name}:", *KINDS)
        interpolants[name] = _parse_interpolant(name, arguments, kind.endswith("OS"))
        generation[name] = _parse_generation(name, arguments, 0.998 / (n_times - 1))
    settings = {
        "n_steps": n_times - 1,
        **{key: {name: generation[name][key] for name in FIELDS} for key in generation["pos"]},
        "pairing": bool(model.get("use_min_perm_dist", False)),
        "loss_weights": dict(model.get("relative_si_costs") or {}),
        "dataset": model.get("dataset_name"),
    }
    network: dict[str, Any] = _parse_network(model["model"])
    if species is not None:
        network |= {"species_head": True, "mask_token": species.base == "mask"}
    return OMatGConfig(network, interpolants, _parse_base(model["sampler"]), species, settings)


def _parse_species(entry: Any, sampler: Any) -> DiscreteFlow | None:
    """Flow of the species; None where they are given."""
    identity = "SingleStochasticInterpolantIdentity"
    kind, arguments = _component(entry, "species:", identity, *SPECIES)
    if kind == identity:
        return None
    base, expected = SPECIES[kind]
    _, given = _component(sampler)
    distribution, of_distribution = _component(
        given.get("species_distribution") or expected, "species_distribution", expected
    )
    if of_distribution:
        raise _Unsupported(f"species_distribution {distribution} with {of_distribution}")
    if unknown := sorted(set(arguments) - {"noise"}):
        raise _Unsupported(f"arguments {unknown} of {kind} are not supported")
    # The reference unmasks all atoms in each step that ends so close to the last time.
    return DiscreteFlow(base, _number(arguments.get("noise", 0.0)), final_window=5e-3)


def _parse_interpolant(name: str, arguments: Mapping[str, Any], one_sided: bool) -> Interpolant:
    kind, path_arguments = _component(arguments["interpolant"])
    periodic = kind.startswith("Periodic")
    if periodic != (name == "pos"):
        raise _Unsupported(
            f"{kind} for {name} is not supported: fractional coordinates need a periodic "
            "interpolant, lattice vectors one that is not"
        )
    entry = {"class_path": kind.removeprefix("Periodic"), "init_args": path_arguments}
    gamma = arguments.get("gamma")
    equation = str(arguments["differential_equation_type"]).upper()
    if equation not in ("ODE", "SDE"):
        raise _Unsupported(f"differential_equation_type {equation} for {name} is not supported")
    if equation == "SDE" and gamma is None and not one_sided:
        raise _Unsupported(f"gamma for {name}: an SDE needs latent noise")
    if one_sided and not arguments.get("predict_velocity", True):
        heads: tuple[str, ...] = ("denoiser",)
    else:
        # What an ODE does not use was not trained, whether there is latent noise or not.
        heads = ("velocity",) if equation == "ODE" else ("velocity", "denoiser")
    usual = ("velocity",) if gamma is None else ("velocity", "denoiser")
    return Interpolant(
        path=_make(PATHS, entry, f"interpolant of {name}:"),
        gamma=None if gamma is None else _make(GAMMAS, gamma, f"gamma of {name}:"),
        periodic=periodic,
        center_of_mass_free=bool(arguments.get("correct_center_of_mass_motion", False)),
        one_sided=one_sided,
        trained_heads=None if heads == usual else heads,
    )


def _parse_generation(name: str, arguments: Mapping[str, Any], dt: float) -> dict[str, Any]:
    """How a field is generated; a warning where OMatG would not take one Euler step per `dt`."""
    equation = str(arguments["differential_equation_type"]).upper()
    epsilon = arguments.get("epsilon")
    if (epsilon is None) != (equation == "ODE"):
        raise _Unsupported(f"epsilon for {name} must be given for an SDE, and only for an SDE")
    integrator = dict(arguments.get("integrator_kwargs") or {})
    method = integrator.get("method", "dopri5" if equation == "ODE" else "srk")
    substeps = dt / float(integrator.get("dt", dt)) if equation == "SDE" else 1.0
    if method != "euler" or substeps > 1.01:
        warnings.warn(
            f"OMatG would integrate {name} with the method {method!r}"
            + (f" in {substeps:.1f} steps per interval" if substeps > 1.01 else "")
            + "; here every interval of the time grid is one Euler step",
            stacklevel=6,
        )
    made = None if epsilon is None else _make(EPSILONS, epsilon, f"epsilon of {name}:")
    return {
        "annealing": float(arguments.get("velocity_annealing_factor") or 0.0),
        "differential_equation": equation,
        "epsilon": None if made is None else to_plain(made, EPSILONS),
    }


def _parse_base(entry: Any) -> BaseDistribution:
    """Base distribution of a sampler, in the present and the first form of the schema."""
    _, arguments = _component(entry, "sampler", "IndependentSampler", "SampleFromRNG")
    uniform, normal = "UniformPositionDistribution", "NormalPositionDistribution"
    kind, given = _component(
        arguments.get("pos_distribution") or uniform, "pos_distribution", uniform, normal
    )
    normal_pos = _loc_and_scale(given) if kind == normal else None
    informed, normal = "InformedLatticeDistribution", "NormalCellDistribution"
    kind, given = _component(arguments["cell_distribution"], "cell_distribution", informed, normal)
    if kind == normal:
        return BaseDistribution(normal_pos=normal_pos, normal_cell=_loc_and_scale(given))
    dataset = str(given["dataset_name"])
    base = BaseDistribution.informed("perov_5" if dataset == "perov" else dataset)
    return replace(base, normal_pos=normal_pos)


def _loc_and_scale(arguments: Mapping[str, Any]) -> tuple[float, float]:
    return float(arguments.get("loc", 0.0)), float(arguments.get("scale", 1.0))


def _parse_network(entry: Any) -> dict[str, int]:
    """Arguments of `CSPNet`."""
    _, arguments = _component(entry)
    _, encoder = _component(arguments["encoder"], "encoder", "CSPNetFull")
    _component(arguments.get("head") or "PassThrough", "head", "PassThrough")
    _, embedder = _component(
        arguments["time_embedder"], "time_embedder", "SinusoidalTimeEmbeddings"
    )
    for extra in ("prop_embedder", "property_embedder"):
        if arguments.get(extra):
            raise _Unsupported(f"{extra}: guidance by properties is not supported")
    for name, value in encoder.items():
        if name in NETWORK_FIXED and value != NETWORK_FIXED[name]:
            raise _Unsupported(
                f"{name}={value!r} of CSPNetFull is not supported; supported is "
                f"{NETWORK_FIXED[name]!r}"
            )
        if name not in {*NETWORK_FIXED, *NETWORK_IGNORED, *NETWORK_SIZES}:
            raise _Unsupported(f"argument {name}={value!r} of CSPNetFull is not supported")
    sizes = {
        ours: int(encoder.get(name, default)) for name, (ours, default) in NETWORK_SIZES.items()
    }
    return {**sizes, "time_dim": int(embedder["dim"])}
