"""Training a policy with GRPO: iterate, validate, keep the best, stop and resume."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.grpo import GRPOConfig, group_advantages
from irlkit.policies import Policy
from irlkit.progress import progress_bar
from irlkit.rewards import as_reward
from irlkit.sampler import rollout
from irlkit.system import write_atomically
from irlkit.updates import PolicyUpdate

if TYPE_CHECKING:
    from irlkit.datasets import CrystalDataset
    from irlkit.rewards import RewardResult

CHECKPOINT = "checkpoint.pt"
_FORMAT = "irlkit-grpo-checkpoint"


class NonFiniteRewardError(ValueError):
    """A reward was nan or infinite; nothing was learned from that iteration.

    Attributes:
        structures: the structures in question.
        paths: their files, empty where the trainer has no folder.
    """

    def __init__(self, message: str, structures: CrystalBatch, paths: list[Path]) -> None:
        super().__init__(message)
        self.structures = structures
        self.paths = paths


class GRPOTrainer:
    """Trains a policy on the compositions of a data set.

    Each iteration draws compositions, generates a group of structures for each with the policy,
    scores them, and takes ``n_ppo_epochs`` gradient steps. Whatever ends an iteration early (an
    interrupt, an error in the reward) leaves the trainer as it was after the last complete one.

    Args:
        policy: trained in place.
        reward: structures -> ``RewardResult``, one value per structure, higher is better; or a
            function that returns numbers, for which see ``FunctionReward``. If it has a method
            ``check``, that is asked whether it can judge the compositions.
        dataset: compositions to train on; its structures are not used.
        config: settings.
        validation: compositions to validate on; None means no validation and no best policy.
        validation_reward: judges the validation; None takes ``reward``.
        out_dir: folder for the checkpoint, history and best policy; None writes nothing.
        resume: continue from the checkpoint in ``out_dir`` if there is one. The run then ends with
            the same bits as one that was never stopped (on a CPU). Without it, a run starts anew
            and overwrites what is there.

    Raises:
        ValueError: no compositions, some that the reward cannot judge, ``resume`` without
            ``out_dir``, or a checkpoint that is not one of this run.
    """

    def __init__(
        self,
        policy: Policy,
        reward: Callable[[CrystalBatch], RewardResult],
        dataset: CrystalDataset | CrystalBatch,
        config: GRPOConfig | None = None,
        *,
        validation: CrystalDataset | CrystalBatch | None = None,
        validation_reward: Callable[[CrystalBatch], RewardResult] | None = None,
        out_dir: str | Path | None = None,
        resume: bool = False,
    ) -> None:
        self.policy = policy
        self.reward = as_reward(reward)
        self.validation_reward = (
            self.reward if validation_reward is None else as_reward(validation_reward)
        )
        self.config = GRPOConfig() if config is None else config
        self.out_dir = None if out_dir is None else Path(out_dir)
        parameter = next(policy.parameters())
        self._device = parameter.device
        self.compositions = _compositions("dataset", dataset, parameter)
        self.validation = None
        if validation is not None:
            self.validation = _compositions("validation", validation, parameter)
            self.validation = self.validation[: self.config.validation_size]
        for judge, batch in (
            (self.reward, self.compositions),
            (self.validation_reward, self.validation),
        ):
            if batch is not None and hasattr(judge, "check"):
                judge.check(batch)
        self.optimizer = torch.optim.Adam(policy.parameters(), lr=self.config.learning_rate)
        # On the CPU, so that data, base samples and noise are the same on every device.
        self._generator = torch.Generator().manual_seed(self.config.seed)
        self._update = PolicyUpdate(policy, self.optimizer, self.config, self._generator)
        self.average: dict[str, Tensor] | None = None
        if self.config.average_decay is not None:
            self.average = {name: p.detach().clone() for name, p in policy.named_parameters()}
        self.iteration = 0
        # Only for those who look at the checkpoint: how far the run is.
        self._planned: int | None = self.config.iterations
        self.best: dict[str, Any] | None = None
        self._history: list[dict[str, float]] = []
        if resume:
            if self.out_dir is None:
                raise ValueError("resume=True needs out_dir, the folder of the run to continue")
            if (self.out_dir / CHECKPOINT).exists():
                self.load_checkpoint(self.out_dir / CHECKPOINT)

    # ----------------------------------------------------------------------------------------------

    @property
    def history(self) -> pd.DataFrame:
        """One row per iteration; row 0 is the validation before the first.

        Columns: iteration, n_steps, reward (mean), reward_std, group_std (mean of the groups'
        standard deviations), validation_reward (nan where there was none), clip_fraction (mean over
        fields), per field the terms of ``grpo_loss``, grad_norm, info_* (means of the reward's own
        information), validation_info_* (the same of the validation reward), and the seconds of
        rollout, reward and update.
        """
        return pd.DataFrame(self._history)

    def run(self, iterations: int | None = None, progress: bool = True) -> pd.DataFrame:
        """Train until ``iterations`` are done in total, those before a resume included.

        Args:
            iterations: total number of iterations; None takes the planned number of the
                configuration.
            progress: show a bar with reward and clip fraction.

        Returns:
            The history; after a KeyboardInterrupt, what there is of it.

        Raises:
            ValueError: ``iterations`` is negative.
            NonFiniteRewardError: a reward is nan or infinite.
        """
        iterations = self.config.iterations if iterations is None else iterations
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
            raise ValueError(f"iterations must be a non-negative integer, got {iterations!r}")
        self._planned = iterations
        complete = self._state()
        bar = progress_bar(
            total=iterations, initial=self.iteration, disable=not progress, unit="it"
        )
        try:
            if not self._history and self.validation is not None:
                self._record({"iteration": 0, **self._validate_and_keep_best()})
                complete = self._finish_iteration()
            while self.iteration < iterations:
                row = self._iterate()
                self.iteration += 1
                row["validation_reward"] = math.nan
                if self.validation is not None and self.iteration % self.config.validate_every == 0:
                    row |= self._validate_and_keep_best()
                self._record({"iteration": self.iteration, **row})
                complete = self._finish_iteration()
                bar.update()
                shown = {"reward": row["reward"], "clip": row["clip_fraction"]}
                if self.best is not None:
                    shown["best"] = self.best["validation_reward"]
                bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()})
        except KeyboardInterrupt:
            self._restore(complete)
        except BaseException:
            self._restore(complete)
            raise
        finally:
            bar.close()
            self._write_history()
        return self.history

    def validate(self, seed: int | None = None) -> float:
        """Mean reward of what the policy (its average, if kept) generates as it is deployed.

        Args:
            seed: of the base samples; None takes that of the configuration.

        Raises:
            ValueError: the trainer has no validation set.
            NonFiniteRewardError: a reward is nan or infinite.
        """
        if self.validation is None:
            raise ValueError("validation was not given to the trainer")
        return self._validate(self.config.validation_seed if seed is None else seed)[0]

    def _validate(self, seed: int) -> tuple[float, dict[str, float]]:
        """Mean reward, and the means of the reward's information."""
        rewards, infos = [], []
        with self.averaged():
            dynamics = self.policy.deploy()
            for n_steps in self.config.validation_step_choices:
                generated = dynamics.generate(
                    self.validation,
                    n_steps,
                    generator=torch.Generator().manual_seed(seed),
                    max_batch=self.config.max_batch,
                )
                values, info = self._score(self.validation_reward, generated)
                rewards.append(values.mean())
                infos.append(info)
        means = {f"validation_{k}": float(np.mean([i[k] for i in infos])) for k in infos[0]}
        return float(torch.stack(rewards).mean()), means

    @contextlib.contextmanager
    def averaged(self) -> Iterator[Policy]:
        """The policy with its averaged parameters, where an average is kept.

        After the block it has the parameters back that are being trained.
        """
        if self.average is None:
            yield self.policy
            return
        trained = {name: p.detach().clone() for name, p in self.policy.named_parameters()}
        try:
            self._set_parameters(self.average)
            yield self.policy
        finally:
            self._set_parameters(trained)

    @torch.no_grad()
    def _set_parameters(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.policy.named_parameters():
            parameter.copy_(values[name])

    def restore_best(self) -> Policy:
        """Give the policy the weights with the best validation reward, and return it.

        Raises:
            ValueError: there was no validation yet.
        """
        if self.best is None:
            raise ValueError("there is no best policy yet: give a validation set and call run")
        self.policy.load_state_dict(self.best["policy"])
        self.policy.noise_scale = dict(self.best["noise_scale"])
        return self.policy

    # ----------------------------------------------------------------------------------------------

    def _iterate(self) -> dict[str, float]:
        config = self.config
        started = time.perf_counter()
        learning_rate = config.learning_rate_at(self.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self._set_noise_scale(self.iteration)
        choices = config.step_choices
        n_steps = choices[self._draw(len(choices), 1)[0]]
        groups = self.compositions[self._draw(len(self.compositions), config.n_groups)]
        with torch.no_grad():
            if config.shared_x_0:
                x_0 = self.policy.model.sample_base(groups, self._generator)
                x_0 = x_0.repeat(config.group_size)
            else:
                x_0 = self.policy.model.sample_base(
                    groups.repeat(config.group_size), self._generator
                )
        trajectory = rollout(self.policy, x_0, n_steps, self._generator, max_batch=config.max_batch)
        rolled_out = time.perf_counter()
        rewards, info = self._score(self.reward, trajectory.final)
        scored = time.perf_counter()
        update = self._update(trajectory, group_advantages(rewards, config.group_size))
        self._update_average()
        groupwise = rewards.reshape(-1, config.group_size)
        return {
            "n_steps": n_steps,
            "reward": float(rewards.mean()),
            "reward_std": float(rewards.std(correction=0)),
            "group_std": float(groupwise.std(dim=1, correction=0).mean()),
            **update,
            "learning_rate": learning_rate,
            **{f"{f}_noise_scale": self.policy.noise_scale[f] for f in self.policy.fields},
            **info,
            "rollout_seconds": rolled_out - started,
            "reward_seconds": scored - rolled_out,
            "update_seconds": time.perf_counter() - scored,
        }

    def _set_noise_scale(self, iteration: int) -> None:
        self.policy.noise_scale = self.config.noise_scale_at(iteration)

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average is not None:
            stays = self.config.average_decay_at(self.iteration)
            # New tensors: the states of earlier iterations hold the old ones.
            self.average = {
                name: self.average[name].lerp(parameter, 1.0 - stays)
                for name, parameter in self.policy.named_parameters()
            }

    def _draw(self, n: int, count: int) -> Tensor:
        """Indices below n, without repetition where there are enough."""
        if count <= n:
            return torch.randperm(n, generator=self._generator)[:count]
        return torch.randint(n, (count,), generator=self._generator)

    def _score(
        self, reward: Callable[[CrystalBatch], RewardResult], structures: CrystalBatch
    ) -> tuple[Tensor, dict[str, float]]:
        """Checked rewards (float64, on the CPU) and the means of the reward's information."""
        result = reward(structures)
        values = torch.as_tensor(result.values, dtype=torch.float64, device="cpu")
        if values.shape != (len(structures),):
            raise ValueError(
                f"reward must return one value per structure, shape ({len(structures)},), "
                f"got {tuple(values.shape)}"
            )
        if not values.isfinite().all():
            self._raise_non_finite(structures, values)
        means = {}
        for name, array in (result.info or {}).items():
            array = np.asarray(array)
            if array.dtype.kind in "biuf":
                finite = array[np.isfinite(array)]
                means[f"info_{name}"] = float(finite.mean()) if len(finite) else math.nan
        return values, means

    def _raise_non_finite(self, structures: CrystalBatch, values: Tensor) -> None:
        bad = (~values.isfinite()).nonzero().flatten()
        culprits = structures[bad.to(structures.device)]
        paths = []
        if self.out_dir is not None:
            paths = _save_cifs(
                culprits, self.out_dir / "non_finite_rewards", f"iteration_{self.iteration + 1:05d}"
            )
        formulas = culprits.formulas()
        shown = [
            f"structure {int(i)} ({formula}): {float(values[i])}"
            for i, formula in zip(bad[:8], formulas, strict=False)
        ]
        where = f"saved in {paths[0].parent}" if paths else "give out_dir to have them saved"
        raise NonFiniteRewardError(
            f"reward is not finite for {len(bad)} of {len(values)} structures after iteration "
            f"{self.iteration}: {'; '.join(shown)}{' ...' if len(bad) > 8 else ''} ({where})",
            culprits,
            paths,
        )

    def _validate_and_keep_best(self) -> dict[str, float]:
        reward, info = self._validate(self.config.validation_seed)
        if self.best is None or reward > self.best["validation_reward"]:
            with self.averaged():
                self.best = {
                    "validation_reward": reward,
                    "iteration": self.iteration,
                    "noise_scale": dict(self.policy.noise_scale),
                    "policy": copy.deepcopy(self.policy.state_dict()),
                }
                if self.out_dir is not None:
                    self.policy.save(
                        self.out_dir / "best.safetensors",
                        {"validation_reward": reward, "iteration": self.iteration},
                    )
        return {"validation_reward": reward, **info}

    # ----------------------------------------------------------------------------------------------

    def _record(self, row: Mapping[str, float]) -> None:
        self._history.append(dict(row))

    def _finish_iteration(self) -> dict[str, Any]:
        """Write the checkpoint; returns the state, to which a failing iteration goes back."""
        state = self._state()
        if self.out_dir is not None:
            buffer = io.BytesIO()
            torch.save(state, buffer)
            write_atomically(self.out_dir / CHECKPOINT, buffer.getvalue())
            if self.iteration % self.config.validate_every == 0:
                self._write_history()
        return state

    def _write_history(self) -> None:
        if self.out_dir is not None and self._history:
            data = self.history.to_parquet(index=False)
            write_atomically(self.out_dir / "history.parquet", data)

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with."""
        digest = hashlib.sha256()
        for batch in (self.compositions, self.validation):
            if batch is not None:
                digest.update(batch.species.cpu().numpy().tobytes())
                digest.update(batch.n_atoms.cpu().numpy().tobytes())
        return {
            "policy": type(self.policy).__name__,
            "noise": f"{self.policy.noise} {self.policy.ref_noise}",
            "data": digest.hexdigest(),
            "config": json.dumps(self.config.to_dict(), sort_keys=True),
        }

    def _state(self) -> dict[str, Any]:
        """All that a run consists of, apart from what later iterations will change.

        Rows of the history and the best policy are never changed once they are there.
        """
        return {
            "format": _FORMAT,
            "identity": self._identity(),
            "iteration": self.iteration,
            "planned": self._planned,
            "policy": copy.deepcopy(self.policy.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "generator": self._generator.get_state(),
            "history": list(self._history),
            "best": self.best,
            "average": self.average,
            "max_minibatch": self._update.max_minibatch,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        # Copied: the optimizer would go on in the tensors it is given.
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self._generator.set_state(state["generator"].cpu())
        self.iteration = state["iteration"]
        self._history = list(state["history"])
        self.best = state["best"]
        self.average = state["average"]
        self._update.max_minibatch = state["max_minibatch"]
        self._set_noise_scale(max(self.iteration - 1, 0))

    def load_checkpoint(self, path: str | Path) -> None:
        """Continue from a checkpoint of the same run.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is no checkpoint of this trainer, or one of another policy, data
                set or configuration (the message says what differs).
        """
        path = Path(path)
        wrong = f"{path} is not a checkpoint of GRPOTrainer"
        try:
            state = torch.load(path, map_location=self._device, weights_only=True)
        except FileNotFoundError:
            raise
        except Exception as error:  # a damaged file can make torch.load raise nearly anything
            raise ValueError(f"{wrong}: it cannot be read ({type(error).__name__})") from error
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            raise ValueError(f"{wrong}: it carries no '{_FORMAT}' mark")
        for name, ours in self._identity().items():
            theirs = state["identity"].get(name)
            if name == "config" and isinstance(theirs, str):
                # A setting that is younger than the checkpoint had the effect of its default.
                settings = {**GRPOConfig().to_dict(), **json.loads(theirs)}
                theirs = json.dumps(settings, sort_keys=True)
            if theirs != ours:
                raise ValueError(
                    f"{path} belongs to another run: its {name} is {theirs}, here it is {ours}; "
                    "take another out_dir or the same settings"
                )
        state = {"average": None, "max_minibatch": self.config.max_minibatch, **state}
        if state["best"] is not None:
            state["best"].setdefault("noise_scale", dict(self.policy.noise_scale))
        try:
            self._restore(state)
        except (RuntimeError, KeyError, ValueError) as error:
            raise ValueError(f"{path} does not fit this policy: {error}") from error


def _compositions(
    name: str, data: CrystalDataset | CrystalBatch, parameter: Tensor
) -> CrystalBatch:
    batch = data if isinstance(data, CrystalBatch) else data.batch
    if not len(batch):
        raise ValueError(f"{name} must hold at least one composition, got none")
    return batch.to(parameter.device, parameter.dtype)


def _save_cifs(batch: CrystalBatch, folder: Path, stem: str) -> list[Path]:
    """One CIF per structure; the plain numbers as JSON where no CIF can be written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, crystal in enumerate(batch):
        path = folder / f"{stem}_{i:03d}.cif"
        try:
            crystal.to_structures()[0].to(str(path), fmt="cif")
        except Exception:  # whatever a degenerate cell does to the CIF writer
            path = path.with_suffix(".json")
            fields = ("species", "pos", "cell")
            path.write_text(json.dumps({f: getattr(crystal, f).tolist() for f in fields}))
        paths.append(path)
    return paths
