"""The search spaces of the paper's Appendix F, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from irlkit.rl.grpo import NORMALIZATIONS
from irlkit.utils.checks import checked

try:
    from optuna.distributions import CategoricalDistribution, FloatDistribution
except ImportError as error:
    raise ImportError(
        "sweeps need Optuna, which is not installed: pip install 'irlkit[notebooks]'"
    ) from error

Distribution = CategoricalDistribution | FloatDistribution

_ANNEALING_NAMES = ("hidden_dim", "n_hidden_layers", "shared_trunk")
_POS_WEIGHT = "pos_policy_weight"


@checked
@dataclass(frozen=True)
class SearchSpace:
    """What a sweep looks for.

    Attributes:
        policy: "annealing", "velocity" or "score".
        parameters: name -> Optuna's distribution of what is varied: settings of GRPO, of
            ``LearnedAnnealing`` and, for an annealing, "pos_policy_weight".
        fixed: settings of the same kinds that are not varied.
        start: configurations to try first, such as published ones.
    """

    policy: str
    parameters: Mapping[str, Distribution]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    start: tuple[Mapping[str, Any], ...] = ()

    @property
    def logarithmic(self) -> tuple[str, ...]:
        """Return the names of the parameters that are searched on a logarithmic scale."""
        return tuple(n for n, d in self.parameters.items() if getattr(d, "log", False))

    def narrowed(
        self, parameters: Mapping[str, Sequence[Any]] | None = None, **fixed: Any
    ) -> SearchSpace:
        """Return the space with other choices or bounds, or settings fixed, for smaller runs.

        >>> space = SPACES["annealing"].narrowed({"group_size": (8, 16)}, n_ppo_epochs=2)
        >>> space.parameters["group_size"].choices, space.fixed
        ((8, 16), {'n_groups': 16, 'n_ppo_epochs': 2})

        Args:
            parameters: name -> new choices, or (low, high) of a number; starts get the nearest.
            **fixed: settings to fix.

        Raises:
            ValueError: there is no such parameter to narrow.
        """
        changed = dict(parameters or {})
        if unknown := sorted(set(changed) - set(self.parameters)):
            raise ValueError(f"parameters: there are {[*self.parameters]} to narrow, got {unknown}")
        kept: dict[str, Distribution] = {}
        for name, old in self.parameters.items():
            if name in fixed:
                continue
            new = changed.get(name)
            if new is None:
                kept[name] = old
            elif isinstance(old, CategoricalDistribution):
                kept[name] = CategoricalDistribution(new)
            elif len(new) == 2:
                kept[name] = FloatDistribution(new[0], new[1], log=old.log)
            else:
                raise ValueError(f"parameters[{name!r}] must be (low, high), got {new!r}")
        start = tuple({n: _nearest(d, config[n]) for n, d in kept.items()} for config in self.start)
        return SearchSpace(self.policy, kept, {**self.fixed, **fixed}, start)

    def split(self, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the settings of GRPO and of ``LearnedAnnealing`` that a configuration means.

        The weight of the positions in a sweep of annealings is relative to a weight of 1 of the
        lattice; both are then rescaled to sum to one (Appendix F).

        >>> SPACES["annealing"].split({"pos_policy_weight": 3.0, "hidden_dim": 32})
        ({'n_groups': 16, 'policy_weight': {'pos': 0.75, 'cell': 0.25}}, {'hidden_dim': 32})
        """
        values = {**self.fixed, **config}
        annealing = {name: values.pop(name) for name in _ANNEALING_NAMES if name in values}
        if _POS_WEIGHT in values:
            pos = values.pop(_POS_WEIGHT)
            values["policy_weight"] = {"pos": pos / (pos + 1.0), "cell": 1.0 / (pos + 1.0)}
        return values, annealing

    def table(self) -> pd.DataFrame:
        """Return the space for people: one row per parameter, with the column values.

        >>> print(SPACES["velocity"].table()["values"]["clip_eps"])
        uniform, 0.05 to 0.3
        """
        values = {name: f"fixed: {value}" for name, value in self.fixed.items()}
        rows = {name: _words(d) for name, d in self.parameters.items()} | values
        return pd.DataFrame({"values": rows}).rename_axis("parameter")


def _words(distribution: Distribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return "one of " + ", ".join(map(str, distribution.choices))
    scale = "log-uniform" if distribution.log else "uniform"
    return f"{scale}, {distribution.low:g} to {distribution.high:g}"


def _nearest(distribution: Distribution, value: Any) -> Any:
    """The value itself where it is possible, else the closest number, else the first choice."""
    if isinstance(distribution, FloatDistribution):
        return min(max(value, distribution.low), distribution.high)
    if value in distribution.choices:
        return value
    if isinstance(value, bool | str):
        return distribution.choices[0]
    return min(distribution.choices, key=lambda choice: abs(choice - value))


# --- Appendix F ---

_SHARED: dict[str, Distribution] = {
    "group_size": CategoricalDistribution((32, 64)),
    "shared_x_0": CategoricalDistribution((True, False)),
}
_ENERGY: dict[str, Distribution] = {
    **_SHARED,
    "n_ppo_epochs": CategoricalDistribution((1, 2, 3, 4)),
    "clip_eps": FloatDistribution(0.05, 0.3),
    "policy_weight": FloatDistribution(0.1, 10.0, log=True),
    "kl_weight": CategoricalDistribution((0.0, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
    "learning_rate": FloatDistribution(1e-5, 1e-3, log=True),
    "normalization": CategoricalDistribution(NORMALIZATIONS),
}
_ANNEALING: dict[str, Distribution] = {
    **_SHARED,
    "n_ppo_epochs": CategoricalDistribution((1, 2, 3, 4, 5)),
    "clip_eps": FloatDistribution(0.1, 0.5),
    _POS_WEIGHT: FloatDistribution(0.01, 100.0, log=True),
    "learning_rate": FloatDistribution(1e-5, 1e-2, log=True),
    "hidden_dim": CategoricalDistribution((32, 64, 128)),
    "n_hidden_layers": CategoricalDistribution((1, 2, 3)),
    "shared_trunk": CategoricalDistribution((True, False)),
}
_DISTILLATION = CategoricalDistribution((0.0, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3))


def _space(policy: str, parameters: dict[str, Distribution], *starts: tuple) -> SearchSpace:
    """A space of Appendix F; starts have their values in the order of the parameters."""
    start = tuple(dict(zip(parameters, values, strict=True)) for values in starts)
    return SearchSpace(policy, parameters, {"n_groups": 16}, start)


SPACES: dict[str, SearchSpace] = {
    space.policy: space
    for space in (
        # It starts from the defaults of this package, the two below from the authors' published
        # settings for MP-20.
        _space("annealing", _ANNEALING, (32, False, 4, 0.3, 1.0, 1e-2, 64, 2, True)),
        _space(
            "velocity",
            _ENERGY,
            (64, False, 4, 0.2812, 2.298, 1e-3, 1.1706e-4, "per_atom_surrogate"),
            (64, False, 3, 0.2293, 5.877, 0.0, 5.111e-5, "none"),
        ),
        _space(
            "score",
            {**_ENERGY, "distillation_weight": _DISTILLATION},
            (64, False, 4, 0.2567, 2.372, 1e-5, 1.3424e-4, "per_atom_surrogate", 3e-5),
        ),
    )
}
