"""The Gymnasium environment: an episode fills the sites of one skeleton."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from irlkit.crystals import CrystalBatch
from irlkit.envs._graphs import N_GAUSSIANS, Graphs
from irlkit.envs._site_filling import MODES
from irlkit.envs.evaluation import Evaluator, PropertyReward
from irlkit.envs.skeletons import Elements, Skeletons, _symbols_of, atomic_numbers
from irlkit.utils.checks import checked


class _Sites:
    """What single and vector environments share: b skeletons that are being filled."""

    @checked
    def __init__(
        self,
        n: int,
        property: Any,
        target: float,
        skeletons: Any,
        elements: Elements,
        mode: str,
        backend: Any,
        cache: Any,
        max_elements: int | None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
        if max_elements is not None and max_elements < 1:
            raise ValueError(f"max_elements must be at least 1 or None, got {max_elements}")
        self.skeletons = Skeletons.get(skeletons)
        self.numbers = atomic_numbers(elements)
        self.symbols = _symbols_of(self.numbers)
        self.mode, self.max_elements = mode, max_elements
        evaluator = property
        self._owns_evaluator = not isinstance(property, Evaluator)
        if not isinstance(property, Evaluator):
            evaluator = Evaluator(property, backend, cache)
        evaluator.backend.check(self.symbols)
        self.reward = PropertyReward(evaluator, target)
        self.graphs = Graphs.of(self.skeletons)
        sites = int(self.skeletons.n_atoms.max())
        self.skeleton = np.zeros(n, dtype=np.int64)
        self.species = np.zeros((n, sites), dtype=np.int64)
        self.order = np.zeros((n, sites), dtype=np.int64)
        self.step = np.full(n, -1, dtype=np.int64)  # Not begun.
        self.fixed = self._fixed()

    def _fixed(self) -> dict[str, np.ndarray]:
        """The observations of each skeleton that no action changes."""
        n_sites = self.species.shape[1]
        n_atoms = self.skeletons.n_atoms
        pos = np.zeros((len(n_atoms), n_sites, 3), dtype=np.float32)
        mask = (np.arange(n_sites) < n_atoms[:, None]).astype(np.int8)
        pos[mask == 1] = self.skeletons.crystals.pos.numpy() % 1.0
        return {
            "mask": mask,
            "pos": pos,
            "cell": self.skeletons.crystals.cell.numpy().astype(np.float32),
            "edges": self.graphs.edges,
            "distances": self.graphs.distances,
            "space_group": np.array(self.skeletons.space_groups, dtype=np.int64),
        }

    def space(self) -> spaces.Dict:
        n_sites, m = self.species.shape[1], self.graphs.edges.shape[1]
        return spaces.Dict(
            {
                "skeleton": spaces.Discrete(len(self.skeletons)),
                "space_group": spaces.Discrete(231),
                "focus": spaces.Discrete(n_sites),
                "species": spaces.MultiDiscrete([len(self.numbers) + 1] * n_sites),
                "mask": spaces.MultiBinary(n_sites),
                "pos": spaces.Box(0.0, 1.0, (n_sites, 3), np.float32),
                "cell": spaces.Box(-np.inf, np.inf, (3, 3), np.float32),
                "edges": spaces.Box(-1, n_sites - 1, (m, 2), np.int64),
                "distances": spaces.Box(0.0, np.inf, (m,), np.float32),
                "target": spaces.Box(0.0, np.inf, (1,), np.float32),
            }
        )

    def begin(self, rows: np.ndarray, rng: np.random.Generator, options: dict[str, Any]) -> None:
        """Start episodes with another skeleton and order each."""
        for i in rows.tolist():
            s = int(rng.integers(len(self.skeletons)))
            if options.get("skeleton") is not None:
                if options["skeleton"] not in self.skeletons.names:
                    raise ValueError(
                        f"options['skeleton'] must be one of {self.skeletons.names}, "
                        f"got {options['skeleton']!r}"
                    )
                s = self.skeletons.names.index(options["skeleton"])
            n = int(self.skeletons.n_atoms[s])
            order = rng.permutation(n)
            if options.get("order") is not None:
                order = np.asarray(options["order"])
                if sorted(order.tolist()) != list(range(n)):
                    raise ValueError(f"options['order'] must be the sites 0 to {n - 1}, each once")
            self.skeleton[i], self.step[i] = s, 0
            self.order[i], self.order[i, :n] = 0, order
            self.species[i] = 0
            if self.mode == "substitution":
                self.species[i, :n] = 1 + rng.integers(len(self.numbers), size=n)

    def place(self, rows: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Fill the sites in turn; returns which of the rows are full."""
        if (self.step[rows] < 0).any():
            raise ValueError("no episode has begun: call reset before step")
        self.species[rows, self.order[rows, self.step[rows]]] = actions + 1
        self.step[rows] += 1
        return self.step[rows] == self.skeletons.n_atoms[self.skeleton[rows]]

    def focus(self) -> np.ndarray:
        """The sites in turn, or the last of those that are full."""
        last = self.skeletons.n_atoms[self.skeleton] - 1
        return self.order[np.arange(len(self.step)), np.minimum(self.step, last)]

    def observe(self) -> dict[str, np.ndarray]:
        n = len(self.step)
        return {
            "skeleton": self.skeleton.copy(),
            "focus": self.focus(),
            "species": self.species.copy(),
            "target": np.full((n, 1), self.reward.target, dtype=np.float32),
            **{name: values[self.skeleton] for name, values in self.fixed.items()},
        }

    def action_mask(self) -> np.ndarray:
        """Which elements may be placed, int8, (b, elements)."""
        n, m = len(self.step), len(self.numbers)
        mask = np.ones((n, m), dtype=np.int8)
        if self.max_elements is not None:
            # Random elements at sites that are still to be filled do not count.
            placed = np.arange(self.order.shape[1]) < self.step[:, None]
            chosen = np.take_along_axis(self.species, self.order, 1) * placed
            there = np.zeros((n, m + 1), dtype=bool)
            there[np.arange(n)[:, None], chosen] = True
            there = there[:, 1:]
            full = there.sum(1) >= self.max_elements
            mask[full] = there[full]
        return mask

    def crystals(self, rows: np.ndarray) -> CrystalBatch:
        species = self.species[rows]
        numbers = np.where(species > 0, self.numbers[species - 1], 0)
        return self.skeletons.filled(self.skeleton[rows], numbers)

    def judge(self, rows: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Rewards of full skeletons, in one batch, and what else is known of each."""
        crystals = self.crystals(rows)
        result = self.reward(crystals)
        words = [("value", "value"), ("failed", "failed"), ("reason", "error")]
        words += [("seconds", "seconds"), ("cached", "cached")]
        formulas = crystals.reduced_formulas()
        known = [{ours: result.info[name][i] for ours, name in words} for i in range(len(rows))]
        for i, entry in enumerate(known):
            entry |= {
                "formula": formulas[i],
                "skeleton": self.skeletons.names[self.skeleton[rows[i]]],
            }
        return result.values.numpy(), known

    def text(self, i: int = 0) -> str:
        s = self.skeleton[i]
        n = int(self.skeletons.n_atoms[s])
        sites = [self.symbols[z - 1] if z else "_" for z in self.species[i, :n]]
        if self.step[i] < n:
            site = self.focus()[i]
            sites[site] = f"[{sites[site]}]"
        return f"{self.skeletons.names[s]}: {' '.join(sites)}"

    def close(self) -> None:
        """Close the evaluator, unless it was given."""
        if self._owns_evaluator:
            self.reward.evaluator.close()


class _Judging:
    """What has sites that are judged when they are full."""

    _sites: _Sites

    @property
    def evaluator(self) -> Evaluator:
        """What evaluates the fillings, with its counts."""
        return self._sites.reward.evaluator


class CrystalGym(_Judging, gymnasium.Env):
    """Fills the sites of a skeleton; the reward comes with the last one.

    Observations are a dictionary of padded arrays, or Gymnasium's graph. `info` holds
    `action_mask`, and at the end `value`, `failed`, `reason`, `seconds`, `cached`, `formula` and
    `skeleton`. Options of `reset`: `skeleton` (a name) and `order` (its sites).

    Args:
        property: "density", "bulk_modulus", "band_gap", a property or an `Evaluator`.
        target: of its value.
        skeletons: as for `Skeletons.get`; each episode draws one.
        elements: "small", "medium", "large", or symbols.
        mode: "completion" of empty sites, or "substitution" of random elements.
        backend: as for `get_backend`.
        cache: file of the evaluations; None: of this environment.
        max_elements: different elements in a filling, at most, for the action mask.
        observation: "arrays" or "graph".
        render_mode: "ansi" (one line), "crystal" (a pymatgen structure) or None.

    Raises:
        ValueError: an argument is out of its range, in words.
        ImportError: the backend is not installed.
    """

    metadata = {"render_modes": ["ansi", "crystal"], "render_fps": 4}  # noqa: RUF012

    def __init__(
        self,
        property: Any = "density",
        target: float = 3.0,
        skeletons: Any = "all",
        elements: Elements = "small",
        mode: str = "completion",
        backend: Any = "chgnet",
        cache: Any = None,
        max_elements: int | None = None,
        observation: str = "arrays",
        render_mode: str | None = None,
    ) -> None:
        if observation not in ("arrays", "graph"):
            raise ValueError(f"observation must be 'arrays' or 'graph', got {observation!r}")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(
                f"render_mode must be one of {self.metadata['render_modes']} or None, "
                f"got {render_mode!r}"
            )
        self._sites = _Sites(
            1, property, target, skeletons, elements, mode, backend, cache, max_elements
        )
        self.render_mode, self._graph = render_mode, observation == "graph"
        self.action_space = spaces.Discrete(len(self._sites.numbers))
        self.observation_space: Any = self._sites.space()
        if self._graph:
            # One-hot elements (the first: empty), whether it is the site in turn, the target.
            width = len(self._sites.numbers) + 3
            self.observation_space = spaces.Graph(
                spaces.Box(0.0, np.inf, (width,), np.float32),
                spaces.Box(0.0, 1.0, (N_GAUSSIANS,), np.float32),
            )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self._sites.begin(np.zeros(1, dtype=int), self.np_random, options or {})
        return self._observation(), {"action_mask": self._sites.action_mask()[0]}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Fill the site in turn.

        Raises:
            ValueError: no such action, or the skeleton is full.
        """
        chosen = np.asarray(action)
        whole = chosen.shape == () and chosen.dtype.kind in "iu"
        if not whole or not self.action_space.contains(np.int64(chosen)):
            raise ValueError(
                f"action must be a whole number from 0 to {len(self._sites.numbers) - 1}, got "
                f"{action!r}"
            )
        sites, rows = self._sites, np.zeros(1, dtype=int)
        if sites.step[0] >= sites.skeletons.n_atoms[sites.skeleton[0]]:
            raise ValueError("the skeleton is full: call reset before step")
        full = bool(sites.place(rows, chosen[None])[0])
        reward, info = 0.0, {"action_mask": sites.action_mask()[0]}
        if full:
            rewards, known = sites.judge(rows)
            reward = float(rewards[0])
            info |= known[0]
        return self._observation(), reward, full, False, info

    def crystal(self) -> CrystalBatch:
        """Return the filled skeleton.

        Raises:
            ValueError: a site is empty.
        """
        sites = self._sites
        n = sites.skeletons.n_atoms[sites.skeleton[0]]
        if (sites.species[0, :n] == 0).any():
            raise ValueError("the skeleton has empty sites: step until the episode has ended")
        return sites.crystals(np.zeros(1, dtype=int))

    def render(self) -> Any:
        """Return the sites in one line ("ansi"), or the pymatgen structure ("crystal").

        Empty sites of the structure hold the dummy species X; `irlkit.lab.plots` draws it.
        """
        if self.render_mode != "crystal":
            return self._sites.text()
        from pymatgen.core import DummySpecies, Element, Structure

        sites = self._sites
        empty = sites.skeletons.crystals[int(sites.skeleton[0])].to_structures()[0]
        filled = [
            Element(sites.symbols[z - 1]) if z else DummySpecies("X")
            for z in sites.species[0, : len(empty)]
        ]
        return Structure(empty.lattice, filled, empty.frac_coords)

    def _observation(self) -> Any:
        sites = self._sites
        if not self._graph:
            return {
                name: np.int64(x[0]) if x.ndim == 1 else x[0] for name, x in sites.observe().items()
            }
        s = int(sites.skeleton[0])
        n = int(sites.skeletons.n_atoms[s])
        width = len(sites.numbers) + 1
        nodes = np.zeros((n, width + 2), dtype=np.float32)
        nodes[np.arange(n), sites.species[0, :n]] = 1
        nodes[sites.focus()[0], width] = 1
        nodes[:, width + 1] = sites.reward.target
        real = sites.graphs.edges[s, :, 0] >= 0
        return spaces.GraphInstance(
            nodes, sites.graphs.gaussians[s, real], sites.graphs.edges[s, real]
        )

    def close(self) -> None:
        """Close the evaluator, unless it was given."""
        self._sites.close()


class CrystalGymVector(_Judging, VectorEnv):
    """Many `CrystalGym`s at once; fillings that end in one step are evaluated in one batch.

    Args:
        num_envs: how many.
        options: as for `CrystalGym`, without `observation` and `render_mode`.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        property: Any = "density",
        target: float = 3.0,
        skeletons: Any = "all",
        elements: Elements = "small",
        mode: str = "completion",
        backend: Any = "chgnet",
        cache: Any = None,
        max_elements: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.num_envs, self.render_mode = num_envs, render_mode
        self._sites = _Sites(
            num_envs, property, target, skeletons, elements, mode, backend, cache, max_elements
        )
        self.single_observation_space = self._sites.space()
        self.single_action_space = spaces.Discrete(len(self._sites.numbers))
        batched = gymnasium.vector.utils.batch_space
        self.observation_space = batched(self.single_observation_space, num_envs)
        self.action_space = batched(self.single_action_space, num_envs)
        self._full = np.zeros(num_envs, dtype=bool)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in each."""
        super().reset(seed=seed)
        self._sites.begin(np.arange(self.num_envs), self.np_random, options or {})
        self._full[:] = False
        return self._sites.observe(), {"action_mask": self._sites.action_mask()}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Fill a site in each; those that were full begin anew instead.

        Raises:
            ValueError: other actions than one of the elements' numbers per environment.
        """
        sites, chosen = self._sites, np.asarray(actions)
        n = len(sites.numbers)
        fits = chosen.shape == (self.num_envs,) and chosen.dtype.kind in "iu"
        if not fits or not ((0 <= chosen) & (chosen < n)).all():
            raise ValueError(
                f"actions must be {self.num_envs} whole numbers from 0 to {n - 1}, got {actions!r}"
            )
        ended = np.flatnonzero(self._full)
        going = np.flatnonzero(~self._full)
        sites.begin(ended, self.np_random, {})
        rewards = np.zeros(self.num_envs)
        self._full = np.zeros(self.num_envs, dtype=bool)
        self._full[going] = sites.place(going, chosen[going])
        info: dict[str, Any] = {"action_mask": sites.action_mask()}
        rows = np.flatnonzero(self._full)
        if len(rows):
            rewards[rows], known = sites.judge(rows)
            for i, entry in zip(rows.tolist(), known, strict=True):
                info = self._add_info(info, entry, i)
        never = np.zeros(self.num_envs, dtype=bool)
        return sites.observe(), rewards, self._full.copy(), never, info

    def close_extras(self, **kwargs: Any) -> None:
        """Close the evaluator, unless it was given."""
        self._sites.close()
