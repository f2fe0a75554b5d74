"""Training a policy with GRPO: iterate, validate, keep the best, stop and resume."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.data import CrystalDataset
from irlkit.rewards import Reward, RewardResult, as_reward
from irlkit.rl import _checkpoints as checkpoints
from irlkit.rl import _scoring as scoring
from irlkit.rl._averaging import ParameterAverage
from irlkit.rl._checkpoints import CHECKPOINT
from irlkit.rl._communicator import Communicator
from irlkit.rl._imitation import Imitation
from irlkit.rl._memory import halve_until_it_fits
from irlkit.rl._replay import Replay
from irlkit.rl._reporting import Callback, Report
from irlkit.rl._scoring import NonFiniteRewardError, RewardFunction, check_groups, check_overlap
from irlkit.rl.config import TrainerConfig
from irlkit.rl.grpo import group_advantages
from irlkit.rl.policies.base import Policy
from irlkit.rl.process import Requests, State, _requests_of
from irlkit.rl.rollout import generate, rollout
from irlkit.rl.trajectory import Trajectory
from irlkit.rl.update import PolicyUpdate
from irlkit.utils.checks import checked
from irlkit.utils.settings import torch_settings
from irlkit.utils.system import check_writable, remove_leftovers, write_atomically

__all__ = ["CHECKPOINT", "GRPOTrainer", "NonFiniteRewardError"]

T = TypeVar("T")


class GRPOTrainer:
    """Trains a policy on requests, such as the compositions of a data set.

    Each iteration draws requests, generates a group of structures for each with the policy,
    scores them, and takes ``n_ppo_epochs`` gradient steps. Structures that are not finite numbers
    are judged by the reward, saved and counted; where the update would need their numbers, they are
    left out of it. Whatever ends an iteration early (an
    interrupt, an error in the reward) leaves the trainer as it was after the last complete one.

    Args:
        policy: trained in place.
        reward: structures -> ``RewardResult`` or one number per structure, higher is better; any
            function will do. A ``Reward`` can refuse the requests (``check``) or the group size. An
            error in it ends the run, which can be continued; ``FunctionReward`` says what is done
            about functions that fail or hang. A value that is not finite is an error, unless the
            reward has a number ``on_non_finite`` to take its place.
        dataset: what to train on: compositions (whose structures are not used), or what else the
            policy's process takes.
        config: settings.
        validation: what to validate on; None means no validation and no best policy.
        validation_reward: judges the validation; None takes ``reward``.
        out_dir: folder for the checkpoint, history and best policy; None writes nothing.
        resume: continue from the checkpoint in ``out_dir`` if there is one. The run then ends with
            the same bits as one that was never stopped (on a CPU). Without it, a run starts anew
            and overwrites what is there.
        communicator: the other processes that train the policy, with the same arguments; None:
            there are none. Ranks but the first ignore ``out_dir`` and begin with what that has.

    Raises:
        ValueError: nothing to train on, requests that the reward cannot judge, ``resume`` without
            ``out_dir``, groups that cannot be shared, or a checkpoint that is not one of this run.
    """

    @checked
    @torch_settings(plain=True)
    def __init__(
        self,
        policy: Policy,
        reward: RewardFunction,
        dataset: CrystalDataset | Requests,
        config: TrainerConfig | None = None,
        *,
        validation: CrystalDataset | Requests | None = None,
        validation_reward: RewardFunction | None = None,
        out_dir: str | Path | None = None,
        resume: bool = False,
        communicator: Communicator | None = None,
    ) -> None:
        self.communicator = Communicator() if communicator is None else communicator
        if self.communicator.rank:
            out_dir, resume = None, False
        self.policy = policy
        self.reward = as_reward(reward)
        self.validation_reward = (
            self.reward if validation_reward is None else as_reward(validation_reward)
        )
        self.config = TrainerConfig() if config is None else config
        self.config._check_fields(policy.process.field_names)
        self.communicator.check(self.config)
        self.out_dir = None if out_dir is None else Path(out_dir)
        parameter = next(policy.parameters())
        self._device = parameter.device
        self.requests = _requests_of("dataset", dataset, parameter)
        self.validation: Requests | None = None
        if validation is not None:
            self.validation = _requests_of("validation", validation, parameter)
            self.validation = self.validation[: self.config.validation_size]
        judged = (self.reward, self.requests), (self.validation_reward, self.validation)
        for asked, batch in judged:
            if isinstance(batch, CrystalBatch):
                asked.check(batch)
        check_groups(self.reward, self.config.group_size)
        if self.config.overlap_rewards:
            check_overlap(self.reward)
        self.optimizer = torch.optim.Adam(policy.parameters(), lr=self.config.learning_rate)
        # On the CPU, so that data, base samples and noise are the same on every device.
        self._generator = torch.Generator().manual_seed(self.config.seed)
        self._update = PolicyUpdate(
            policy, self.optimizer, self.config, self._generator, self.communicator
        )
        self._replay = Replay(self.config.replay, self.config.replay_kept)
        self._imitation = Imitation(policy, self.config)
        self.max_batch = self.config.max_batch
        averaging = self.config.average_decay is not None
        self._average = ParameterAverage(policy) if averaging else None
        self.iteration = 0
        # Only for those who look at the checkpoint: how far the run is.
        self._planned: int | None = self.config.iterations
        self.best: dict[str, Any] | None = None
        self._history: list[dict[str, float]] = []
        if resume:
            if self.out_dir is None:
                raise ValueError("resume=True needs out_dir, the folder of the run to continue")
            remove_leftovers(self.out_dir)
            if (self.out_dir / CHECKPOINT).exists():
                self.load_checkpoint(self.out_dir / CHECKPOINT)
        if self.communicator.size > 1:
            self._restore(self.communicator.broadcast(self._state()))

    # ----------------------------------------------------------------------------------------------

    @property
    def history(self) -> pd.DataFrame:
        """One row per iteration; row 0 is the validation before the first.

        Columns: iteration, n_steps, reward (mean), reward_std, validation_reward (nan where there
        was none), those of the groups (group_std, flat_groups,
        valid, distinct), non_finite (structures), those of
        ``PolicyUpdate`` (with the terms of ``grpo_loss`` per field), learning_rate, noise_scale of
        each field, info_* (means of the reward's own information), validation_info_* (the same of
        the validation reward), and the seconds of rollout, reward and update.
        """
        return pd.DataFrame(self._history)

    @checked
    @torch_settings(plain=True)
    def run(
        self,
        iterations: int | None = None,
        progress: bool = True,
        callbacks: Sequence[Callback] = (),
    ) -> pd.DataFrame:
        """Train until ``iterations`` are done in total, those before a resume included.

        Args:
            iterations: total number of iterations; None takes the planned number of the
                configuration.
            progress: show a bar with reward and clip fraction.
            callbacks: each is called with every new row of the history, on the first rank alone and
                once the row is safe; an error in one ends the run, which can be continued.

        Returns:
            The history; after a KeyboardInterrupt, what there is of it.

        Raises:
            ValueError: ``iterations`` is negative.
            NonFiniteRewardError: a reward is nan or infinite.
            OSError: ``out_dir`` cannot be written to.
        """
        iterations = self.config.iterations if iterations is None else iterations
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
            raise ValueError(f"iterations must be a non-negative integer, got {iterations!r}")
        if self.out_dir is not None:
            check_writable(self.out_dir)
        self._planned = iterations
        complete = self._state()
        told = () if self.communicator.rank else callbacks
        report = Report(iterations, self.iteration, progress, told)
        try:
            if not self._history and self.validation is not None:
                complete = self._finish_iteration(0, self._validate_and_keep_best())
                report(self._history[-1], self.best)
            while self.iteration < iterations:
                row = self._iterate()
                self.iteration += 1
                row["validation_reward"] = math.nan
                if self.validation is not None and self.iteration % self.config.validate_every == 0:
                    row |= self._validate_and_keep_best()
                complete = self._finish_iteration(self.iteration, row)
                report(self._history[-1], self.best)
        except KeyboardInterrupt:
            self._restore(complete)
        except BaseException:
            self._restore(complete)
            with contextlib.suppress(OSError):  # such as the error that is on its way
                self._write_history()
            raise
        finally:
            report.close()
        self._write_history()
        return self.history

    @checked
    @torch_settings(plain=True)
    def validate(self, seed: int | None = None) -> float:
        """Return the mean reward of what the policy (its average, if kept) generates when deployed.

        Args:
            seed: of the base samples; None takes that of the configuration.

        Raises:
            ValueError: the trainer has no validation set.
            NonFiniteRewardError: a reward is nan or infinite.
        """
        if self.validation is None:
            raise ValueError("validation was not given to the trainer")
        return self._validate(self.config.validation_seed if seed is None else int(seed))[0]

    def _validate(self, seed: int) -> tuple[float, dict[str, float]]:
        """Mean reward, and the means of the reward's information."""
        mine = None
        if self.communicator.rank == 0:
            found = [self._validate_at(n, seed) for n in self.config.validation_step_choices]
            infos = [info for _, info in found]
            means = {f"validation_{k}": float(np.mean([i[k] for i in infos])) for k in infos[0]}
            mine = float(torch.stack([reward for reward, _ in found]).mean()), means
        return self.communicator.broadcast(mine)

    def _validate_at(self, n_steps: int, seed: int) -> tuple[Tensor, dict[str, float]]:
        """The same with one number of steps."""
        requests = self.validation
        assert requests is not None

        def attempt(limit: int | None) -> CrystalBatch:
            draws = torch.Generator().manual_seed(seed)
            return generate(self.policy, requests, n_steps, generator=draws, max_batch=limit)

        with self.averaged():
            generated = self._within_memory(attempt, len(requests))
            when = f"validation after iteration {self.iteration:05d}"
            values, info = self._score(self.validation_reward, generated, when)
        return values.mean(), info

    @contextlib.contextmanager
    def averaged(self) -> Iterator[Policy]:
        """Give the policy its averaged parameters for a block, where an average is kept.

        After the block it has the parameters back that are being trained.
        """
        with contextlib.nullcontext() if self._average is None else self._average.applied():
            yield self.policy

    @property
    def average(self) -> dict[str, Tensor] | None:
        """Name -> averaged parameter, of the parameter's shape; None where no average is kept."""
        return None if self._average is None else self._average.values

    def restore_best(self) -> Policy:
        """Give the policy the weights with the best validation reward, and return it.

        Raises:
            ValueError: there was no validation yet.
        """
        if self.best is None:
            raise ValueError("there is no best policy yet: give a validation set and call run")
        self.policy.load_state_dict(self.best["policy"])
        self.policy.noise_scale = dict(self.best["noise_scale"])
        if self._average is not None:
            self._average.restart()
        return self.policy

    # ----------------------------------------------------------------------------------------------

    def _iterate(self) -> dict[str, float]:
        config = self.config
        started = time.perf_counter()
        learning_rate = config.learning_rate_at(self.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self._set_noise_scale(self.iteration)
        n_steps, x_0, requests = self._draw_start()
        x_0, draws = self.communicator.share(x_0, self._generator)
        trajectory, answer, usable, n_bad, rolled_out = self._roll_out(x_0, n_steps, draws)
        asked = {"group_size": config.group_size, "answer": answer}
        when = f"iteration {self.iteration + 1:05d}"
        rewards, info = self._score(self.reward, trajectory.final, when, **asked)
        scored = time.perf_counter()
        advantages = group_advantages(rewards, config.group_size, config.grpo.advantages)
        statistics = scoring.group_statistics(trajectory.final, rewards.numpy(), config.group_size)
        trajectory = self.policy.retrace(trajectory, draws)
        if not bool(usable.all()):
            trajectory = trajectory.select(usable.nonzero().flatten())
        good = usable.cpu()
        learned = trajectory, advantages[good], rewards[good]
        if config.imitation_weight:
            again = self._imitation(*learned, requests[good], self.iteration)
            learned = *again, learned[2]
        update = self._update(*self._replay(*learned, self._generator))
        if self._average is not None:
            self._average.update(config._average_decay_at(self.iteration))
        return self.communicator.average_row(
            {
                "n_steps": n_steps,
                "reward": float(rewards.mean()),
                "reward_std": float(rewards.std(correction=0)),
                **statistics,
                "non_finite": n_bad,
                **update,
                "learning_rate": learning_rate,
                **{f"{f}_noise_scale": self.policy.noise_scale[f] for f in self.policy.fields},
                **info,
                "rollout_seconds": rolled_out - started,
                "reward_seconds": scored - rolled_out,
                "update_seconds": time.perf_counter() - scored,
            }
        )

    def _draw_start(self) -> tuple[int, State, Tensor]:
        """A number of steps, the state from which the groups start, and each one's request."""
        config, process = self.config, self.policy.process
        choices = config.step_choices
        n_steps = choices[self._draw(len(choices), 1)[0]]
        drawn, size = self._draw(len(self.requests), config.n_groups), config.group_size
        groups = self.requests[drawn]
        with torch.no_grad():
            if config.shared_x_0:
                x_0 = process.initial(groups, self._generator).repeat(size)
            else:
                x_0 = process.initial(groups.repeat(size), self._generator)
        return n_steps, x_0, drawn.repeat_interleave(size)

    def _roll_out(
        self, x_0: State, n_steps: int, draws: Any
    ) -> tuple[Trajectory, RewardResult | None, Tensor, int, float]:
        """A trajectory, its rewards where they are known, what is usable, and when it was there."""
        parts = None
        if self.config.overlap_rewards:
            parts = scoring.RewardsInParts(self.reward, self.config.group_size)

        def attempt(limit: int | None) -> Trajectory:
            if parts is not None:
                parts.restart()
            on_part = None if parts is None else parts.add
            return rollout(self.policy, x_0, n_steps, draws, max_batch=limit, on_part=on_part)

        try:
            trajectory = self._within_memory(attempt, len(x_0))
            rolled_out = time.perf_counter()
            usable, n_bad = scoring.usable(
                trajectory, self.policy.process, x_0, self.out_dir, self.iteration + 1
            )
            answer = None if parts is None else parts.answer()
        finally:
            if parts is not None:
                parts.close()
        return trajectory, answer, usable, n_bad, rolled_out

    def _set_noise_scale(self, iteration: int) -> None:
        names = self.policy.process.field_names
        self.policy.noise_scale = self.config.noise_scale_at(iteration, names)

    def _within_memory(self, generate: Callable[[int | None], T], n_structures: int) -> T:
        """Generate with max_batch, halved until it fits in the memory of the device."""
        generator = self._generator.get_state()

        def attempt(limit: int | None) -> T:
            self._generator.set_state(generator)
            return generate(limit)

        result, self.max_batch = halve_until_it_fits(
            attempt, self.max_batch, n_structures, "max_batch", "structures"
        )
        return result

    def _draw(self, n: int, count: int) -> Tensor:
        """Indices below n, without repetition where there are enough."""
        if count <= n:
            return torch.randperm(n, generator=self._generator)[:count]
        return torch.randint(n, (count,), generator=self._generator)

    def _score(
        self, reward: Reward, structures: CrystalBatch, when: str, **options: Any
    ) -> tuple[Tensor, dict[str, float]]:
        """Checked rewards (float64, on the CPU) and the means of the reward's information."""
        folder = None if self.out_dir is None else self.out_dir / "non_finite_rewards"
        result = scoring.score(reward, structures, folder, when, **options)
        return result.values, scoring.means(result.info)

    def _validate_and_keep_best(self) -> dict[str, float]:
        reward, info = self._validate(self.config.validation_seed)
        if self.best is None or reward > self.best["validation_reward"]:
            with self.averaged():
                about = {"validation_reward": reward, "iteration": self.iteration}
                weights = copy.deepcopy(self.policy.state_dict())
                noise_scale = dict(self.policy.noise_scale)
                self.best = {**about, "noise_scale": noise_scale, "policy": weights}
                if self.out_dir is not None:
                    self.policy.save(self.out_dir / "best.safetensors", about)
        return {"validation_reward": reward, **info}

    # ----------------------------------------------------------------------------------------------

    def _finish_iteration(self, iteration: int, row: Mapping[str, float]) -> dict[str, Any]:
        """Write the checkpoint; returns the state, to which a failing iteration goes back."""
        self._history.append({"iteration": iteration, **row})
        state = self._state()
        if self.out_dir is not None:
            checkpoints.write_checkpoint(self.out_dir / CHECKPOINT, state)
            if self.iteration % self.config.validate_every == 0:
                self._write_history()
        return state

    def _write_history(self) -> None:
        if self.out_dir is not None and self._history:
            data = self.history.to_parquet(index=False)
            write_atomically(self.out_dir / "history.parquet", data)

    @cached_property
    def _identity(self) -> dict[str, str]:
        """What a checkpoint must agree with."""
        data = checkpoints.request_digest(self.requests, self.validation)
        return checkpoints.identity_of(
            self.policy.identity(), self.reward.energies(), data, self.config
        )

    def _state(self) -> dict[str, Any]:
        """All that a run consists of, apart from what later iterations will change.

        Rows of the history and the best policy are never changed once they are there.
        """
        return {
            "identity": self._identity,
            "iteration": self.iteration,
            "planned": self._planned,
            "policy": copy.deepcopy(self.policy.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "generator": self._generator.get_state(),
            "history": list(self._history),
            "best": self.best,
            "average": self.average,
            "replay": self._replay.state(),
            "imitation": self._imitation.state(),
            "max_minibatch": self._update.max_minibatch,
            "max_batch": self.max_batch,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        # Copied: the optimizer would go on in the tensors it is given.
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self._generator.set_state(state["generator"].cpu())
        self.iteration = state["iteration"]
        self._history = list(state["history"])
        self.best = state["best"]
        if self._average is not None:
            self._average.values = dict(state["average"])
        self._replay.restore(state["replay"])
        self._imitation.restore(state["imitation"])
        self._update.max_minibatch = state["max_minibatch"]
        self.max_batch = state["max_batch"]
        self._set_noise_scale(max(self.iteration - 1, 0))

    def load_checkpoint(self, path: str | Path) -> None:
        """Continue from a checkpoint of the same run.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is no checkpoint of this trainer, or one of another policy, data
                set or configuration (the message says what differs).
        """
        state = checkpoints.read_checkpoint(path, self._identity, self._device)
        # What younger versions have added.
        bounds = {"max_minibatch": self.config.max_minibatch, "max_batch": self.config.max_batch}
        state = {"average": None, "replay": {}, "imitation": {}, **bounds, **state}
        try:
            if state["best"] is not None:
                state["best"].setdefault("noise_scale", dict(self.policy.noise_scale))
            self._restore(state)
        except Exception as error:  # what is missing or of another kind fails in its own way
            raise ValueError(
                f"{path} does not fit this policy: {type(error).__name__}: {error}"
            ) from error
