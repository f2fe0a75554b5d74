"""The search spaces of the paper's Appendix F, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pandas as pd

from irlkit.rl.config import TrainerConfig
from irlkit.rl.grpo import NORMALIZATIONS
from irlkit.utils.checks import checked

POLICIES = ("annealing", "velocity", "score")
_ANNEALING_NAMES = ("hidden_dim", "n_hidden_layers", "shared_trunk")
_POS_WEIGHT = "pos_policy_weight"
_GRPO_NAMES = tuple(TrainerConfig().to_settings())


@checked
@dataclass(frozen=True)
class Choice:
    """A parameter that takes one of some values, all equally likely at first.

    Attributes:
        name: of the parameter.
        values: numbers, texts or truth values, all different.
    """

    name: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not len(self.values) or len(set(map(repr, self.values))) < len(self.values):
            raise ValueError(
                f"values of {self.name!r} must be different and at least one, got {self.values!r}"
            )

    def check(self, value: Any) -> None:
        """Raises a ValueError unless the value is one of the choices."""
        # Compared with the type: True is 1 for Python, but not the same setting.
        if not any(type(value) is type(v) and value == v for v in self.values):
            raise ValueError(f"{self.name} must be one of {self.values}, got {value!r}")

    def nearest(self, value: Any) -> Any:
        """The choice that is equal or, among numbers, closest; else the first."""
        for v in self.values:
            if type(value) is type(v) and value == v:
                return v
        numbers = [v for v in self.values if isinstance(v, int | float) and not isinstance(v, bool)]
        if isinstance(value, bool | str) or not numbers:
            return self.values[0]
        return min(numbers, key=lambda v: abs(v - value))


@checked
@dataclass(frozen=True)
class Uniform:
    """A number between two bounds, uniform in itself or in its logarithm.

    Attributes:
        name: of the parameter.
        low, high: bounds, both included.
        log: uniform in the logarithm; bounds are then positive.
    """

    name: str
    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        ok = math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high
        if not ok or (self.log and self.low <= 0):
            raise ValueError(
                f"{self.name!r} needs low < high{', both positive' if self.log else ''}, "
                f"got {self.low!r} and {self.high!r}"
            )

    def check(self, value: Any) -> None:
        """Raises a ValueError unless the value is a number within the bounds."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not self.low <= value <= self.high:
            raise ValueError(
                f"{self.name} must be a number from {self.low} to {self.high}, got {value!r}"
            )

    def nearest(self, value: float) -> float:
        """The number, moved into the bounds."""
        return min(max(value, self.low), self.high)


Parameter = Choice | Uniform


@checked
@dataclass(frozen=True)
class SearchSpace:
    """What a sweep looks for.

    Attributes:
        policy: "annealing", "velocity" or "score".
        parameters: what is varied.
        fixed: parameters of the same kind that are not varied.
        start: configurations to try first, such as published ones.

    Raises:
        ValueError: an unknown policy or parameter, two parameters of one name, or a start that
            does not lie in the space.
    """

    policy: str
    parameters: tuple[Parameter, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    start: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"policy must be one of {POLICIES}, got {self.policy!r}")
        if not self.parameters:
            raise ValueError("parameters must hold at least one parameter, got none")
        names = [*self.names, *self.fixed]
        if len(set(names)) < len(names):
            raise ValueError(f"parameters and fixed must have different names, got {names}")
        known = {*_GRPO_NAMES} - {"seed", "validation_seed", "iterations", "validate_every"}
        if self.policy == "annealing":
            known |= {*_ANNEALING_NAMES, _POS_WEIGHT}
        if unknown := sorted(set(names) - known):
            raise ValueError(
                f"parameters and fixed: {unknown} are no settings of a sweep of the policy "
                f"{self.policy}; "
                f"there are {sorted(known)}"
            )
        for config in self.start:
            self.check(config)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the varied parameters."""
        return tuple(p.name for p in self.parameters)

    def __getitem__(self, name: str) -> Parameter:
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        raise KeyError(name)

    @checked
    def check(self, config: Mapping[str, Any]) -> None:
        """Raises a ValueError unless `config` gives each parameter a value that it can take."""
        if set(config) != set(self.names):
            raise ValueError(f"config must name {sorted(self.names)}, got {sorted(config)}")
        for parameter in self.parameters:
            parameter.check(config[parameter.name])

    def narrowed(
        self, parameters: Mapping[str, Sequence[Any]] | None = None, **fixed: Any
    ) -> SearchSpace:
        """The space with other choices or bounds, or with parameters fixed, for smaller runs.

        Args:
            parameters: name -> new choices, or (low, high) of a number.
            **fixed: parameters to fix.

        Returns:
            The new space; its starts have the nearest values that it can have.

        Raises:
            ValueError: there is no such parameter to narrow.
        """
        parameters = dict(parameters or {})
        if unknown := sorted(set(parameters) - set(self.names)):
            raise ValueError(f"parameters: there are {self.names} to narrow, got {unknown}")
        kept: list[Parameter] = []
        for parameter in self.parameters:
            new = parameters.get(parameter.name)
            if parameter.name in fixed:
                continue
            if new is None:
                kept.append(parameter)
            elif isinstance(parameter, Choice):
                kept.append(Choice(parameter.name, tuple(new)))
            elif len(new) == 2:
                kept.append(replace(parameter, low=new[0], high=new[1]))
            else:
                raise ValueError(f"parameters[{parameter.name!r}] must be (low, high), got {new!r}")
        start = tuple({p.name: p.nearest(config[p.name]) for p in kept} for config in self.start)
        return SearchSpace(self.policy, tuple(kept), {**self.fixed, **fixed}, start)

    @checked
    def split(self, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments of ``TrainerConfig`` and of ``LearnedAnnealing`` that a configuration means.

        The weight of the positions in a sweep of annealings is relative to a weight of 1 of the
        lattice; both are then rescaled to sum to one (Appendix F).
        """
        values = {**self.fixed, **config}
        annealing = {name: values.pop(name) for name in _ANNEALING_NAMES if name in values}
        if _POS_WEIGHT in values:
            pos = values.pop(_POS_WEIGHT)
            values["policy_weight"] = {"pos": pos / (pos + 1.0), "cell": 1.0 / (pos + 1.0)}
        return values, annealing

    def table(self) -> pd.DataFrame:
        """The space for people: one row per parameter."""
        rows = []
        for parameter in self.parameters:
            if isinstance(parameter, Choice):
                values = "one of " + ", ".join(map(str, parameter.values))
            else:
                scale = "log-uniform" if parameter.log else "uniform"
                values = f"{scale}, {parameter.low:g} to {parameter.high:g}"
            rows.append((parameter.name, values))
        rows += [(name, f"fixed: {value}") for name, value in self.fixed.items()]
        return pd.DataFrame(rows, columns=["parameter", "values"]).set_index("parameter")

    def to_dict(self) -> dict[str, Any]:
        """The space as JSON can hold it."""
        parameters = [
            {"kind": "choice", "name": p.name, "values": list(p.values)}
            if isinstance(p, Choice)
            else {"kind": "uniform", **asdict(p)}
            for p in self.parameters
        ]
        return {
            "policy": self.policy,
            "parameters": parameters,
            "fixed": dict(self.fixed),
            "start": [dict(config) for config in self.start],
        }

    @classmethod
    @checked
    def from_dict(cls, data: Mapping[str, Any]) -> SearchSpace:
        """The inverse of ``to_dict``.

        Raises:
            ValueError: the data are no search space.
        """
        try:
            parameters: list[Parameter] = []
            for entry in data["parameters"]:
                rest = {name: value for name, value in entry.items() if name != "kind"}
                if entry["kind"] == "choice":
                    parameters.append(Choice(rest["name"], tuple(rest["values"])))
                elif entry["kind"] == "uniform":
                    parameters.append(Uniform(**rest))
                else:
                    raise ValueError(f"unknown kind of parameter {entry['kind']!r}")
            return cls(data["policy"], tuple(parameters), dict(data["fixed"]), tuple(data["start"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"data: not a search space: {type(error).__name__} {error}") from error


# --------------------------------------------------------------------------------------------------
# Appendix F
# --------------------------------------------------------------------------------------------------

_SHARED = (Choice("group_size", (32, 64)), Choice("shared_x_0", (True, False)))
_ENERGY = (
    *_SHARED,
    Choice("n_ppo_epochs", (1, 2, 3, 4)),
    Uniform("clip_eps", 0.05, 0.3),
    Uniform("policy_weight", 0.1, 10.0, log=True),
    Choice("kl_weight", (0.0, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
    Uniform("learning_rate", 1e-5, 1e-3, log=True),
    Choice("normalization", NORMALIZATIONS),
)
_FIXED = {"n_groups": 16}

SPACES: dict[str, SearchSpace] = {
    space.policy: space
    for space in (
        SearchSpace(
            "annealing",
            (
                *_SHARED,
                Choice("n_ppo_epochs", (1, 2, 3, 4, 5)),
                Uniform("clip_eps", 0.1, 0.5),
                Uniform(_POS_WEIGHT, 0.01, 100.0, log=True),
                Uniform("learning_rate", 1e-5, 1e-2, log=True),
                Choice("hidden_dim", (32, 64, 128)),
                Choice("n_hidden_layers", (1, 2, 3)),
                Choice("shared_trunk", (True, False)),
            ),
            _FIXED,
            # The defaults of this package (``TrainerConfig``, ``LearnedAnnealing``).
            start=(
                {
                    "group_size": 32,
                    "shared_x_0": False,
                    "n_ppo_epochs": 4,
                    "clip_eps": 0.3,
                    "pos_policy_weight": 1.0,
                    "learning_rate": 1e-2,
                    "hidden_dim": 64,
                    "n_hidden_layers": 2,
                    "shared_trunk": True,
                },
            ),
        ),
        # The starts of the two below are the authors' published settings for MP-20.
        SearchSpace(
            "velocity",
            _ENERGY,
            _FIXED,
            start=(
                {
                    "group_size": 64,
                    "shared_x_0": False,
                    "n_ppo_epochs": 4,
                    "clip_eps": 0.2812,
                    "policy_weight": 2.298,
                    "kl_weight": 1e-3,
                    "learning_rate": 1.1706e-4,
                    "normalization": "per_atom_surrogate",
                },
                {
                    "group_size": 64,
                    "shared_x_0": False,
                    "n_ppo_epochs": 3,
                    "clip_eps": 0.2293,
                    "policy_weight": 5.877,
                    "kl_weight": 0.0,
                    "learning_rate": 5.111e-5,
                    "normalization": "none",
                },
            ),
        ),
        SearchSpace(
            "score",
            (
                *_ENERGY,
                Choice("distillation_weight", (0.0, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)),
            ),
            _FIXED,
            start=(
                {
                    "group_size": 64,
                    "shared_x_0": False,
                    "n_ppo_epochs": 4,
                    "clip_eps": 0.2567,
                    "policy_weight": 2.372,
                    "kl_weight": 1e-5,
                    "learning_rate": 1.3424e-4,
                    "normalization": "per_atom_surrogate",
                    "distillation_weight": 3e-5,
                },
            ),
        ),
    )
}
