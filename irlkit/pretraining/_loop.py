"""The loop of pretraining: optimiser, averaged weights, checkpoints from which it continues."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from irlkit.crystals import CrystalBatch
from irlkit.data import CrystalDataset
from irlkit.utils.checks import check_count, check_finite
from irlkit.utils.foreign import load_plain
from irlkit.utils.packing import pack, unpack
from irlkit.utils.system import FileWriter, check_writable, remove_leftovers, write_atomically

CHECKPOINT = "checkpoint.pt"
FORMAT = "irlkit-pretraining-checkpoint"
_WITH_STATE = ("model", "average", "optimizer")
_PLAIN = ("iteration", "seconds", "history")
_FREE = ("validate_every", "checkpoint_every")
"""Settings that may change when a run continues."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Settings of any training; see a subclass for those of its network and losses.

    Attributes:
        iterations: optimiser steps.
        batch_size: structures per step.
        learning_rate: peak of AdamW's learning rate, which then follows a half cosine to zero.
        weight_decay: of AdamW.
        warmup: steps of linear increase to the peak.
        ema_decay: decay of the exponential moving average of the weights, per step.
        max_grad_norm: gradient-norm clip.
        validate_every: steps between validations.
        checkpoint_every: steps between checkpoints: so many are repeated after a kill.
        seed: of weights, data order and draws.
    """

    iterations: int = 20_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 300
    ema_decay: float = 0.9995
    max_grad_norm: float = 1.0
    validate_every: int = 1000
    checkpoint_every: int = 1
    seed: int = 0

    _sizes: ClassVar[tuple[str, ...]] = ()
    _weights: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        counts = ("iterations", "batch_size", "validate_every", "checkpoint_every")
        for name in (*counts, *self._sizes):
            check_count(name, getattr(self, name))
        check_count("warmup", self.warmup, least=0)
        for name in ("learning_rate", "max_grad_norm"):
            check_finite(name, getattr(self, name), above=0)
        for name in ("weight_decay", "ema_decay", *self._weights):
            check_finite(name, getattr(self, name), least=0)
        if self.ema_decay >= 1:
            raise ValueError(f"ema_decay must be below 1, got {self.ema_decay}")


class TrainingState:
    """All that changes during training, and its checkpoint file.

    A kind of training defines `losses`.

    Args:
        model: to be trained.
        config: settings.
        n_train: number of training structures.

    Attributes:
        about: what else must be the same for a run to continue, such as a digest of its data.
    """

    def __init__(self, model: nn.Module, config: LoopConfig, n_train: int) -> None:
        self.config: Any = config
        self.model: Any = model
        self.average: Any = copy.deepcopy(model).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.generator = torch.Generator().manual_seed(config.seed)
        self.iteration = 0
        self.seconds = 0.0
        self.order = torch.empty(0, dtype=torch.long)
        self.n_train = n_train
        self.history: list[dict[str, float]] = []
        self.about: dict[str, str] = {}

    def losses(
        self, model: Any, batch: CrystalBatch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the losses of a model, scalars with gradient; "loss" is their weighted sum."""
        raise NotImplementedError

    @torch.no_grad()
    def validation_losses(self, batch: CrystalBatch, draws: int = 4) -> dict[str, float]:
        """Return those of the averaged model, at draws that are the same at every call."""
        generator = torch.Generator().manual_seed(self.config.seed + 1)
        sums: dict[str, float] = {}
        for _ in range(draws):
            for name, value in self.losses(self.average, batch, generator).items():
                sums[name] = sums.get(name, 0.0) + float(value) / draws
        return {f"validation_{name}": value for name, value in sums.items()}

    def next_indices(self) -> Tensor:
        """Return indices of a minibatch, shape (batch_size,); an order is drawn per epoch."""
        size = min(self.config.batch_size, self.n_train)
        while len(self.order) < size:
            epoch = torch.randperm(self.n_train, generator=self.generator)
            self.order = torch.cat([self.order, epoch])
        indices, self.order = self.order[:size], self.order[size:]
        return indices

    def learning_rate(self) -> float:
        """Return that of a linear warm-up, then half a cosine to zero."""
        config = self.config
        rise = min(1.0, (self.iteration + 1) / max(config.warmup, 1))
        cosine = 0.5 * (1 + math.cos(math.pi * self.iteration / config.iterations))
        return config.learning_rate * rise * cosine

    def step(self, batch: CrystalBatch) -> dict[str, float]:
        """Take one optimiser step and return its losses."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        losses = self.losses(self.model, batch, self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
        if not bool(torch.isfinite(norm)):
            raise FloatingPointError(
                f"iteration {self.iteration}: the gradient is not finite; start anew with a lower "
                f"learning_rate (now {config.learning_rate})"
            )
        self.optimizer.step()
        # Early averages follow the weights closely, else the random start would stay in them.
        decay = min(config.ema_decay, (1 + self.iteration) / (10 + self.iteration))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.model.parameters()), 1 - decay
            )
        self.iteration += 1
        return {name: float(value.detach()) for name, value in losses.items()}

    def record(self, row: Mapping[str, float], folder: Path | None) -> None:
        """Add a row to the history; in a folder, write it and the averaged model."""
        self.history.append({"iteration": self.iteration, "seconds": self.seconds, **row})
        if folder is not None:
            history = pd.DataFrame(self.history).to_parquet(index=False)
            write_atomically(folder / "history.parquet", history)
            self.average.save(folder / "model.safetensors")

    def to_bytes(self) -> bytes:
        """Return the content of the checkpoint file."""
        modules = {name: getattr(self, name).state_dict() for name in _WITH_STATE}
        draws = {"generator": self.generator.get_state(), "order": self.order}
        state, tensors = pack({**modules, **draws})
        content = {"format": FORMAT, "config": asdict(self.config), "about": self.about}
        content |= {name: getattr(self, name) for name in _PLAIN}
        buffer = io.BytesIO()
        torch.save({**content, "state": state, "tensors": tensors}, buffer)
        return buffer.getvalue()

    def load(self, path: Path) -> None:
        """Continue from a checkpoint, if there is one.

        Raises:
            ValueError: the file is not a checkpoint, or belongs to other settings.
        """
        if not path.exists():
            return
        ours = asdict(self.config)
        try:
            content = load_plain(path)
            if content["format"] != FORMAT:
                raise ValueError("it lacks the mark")
            config = content["config"]
            different = [k for k in ours if k not in _FREE and config.get(k) != ours[k]]
            if different:
                raise ValueError(f"it belongs to a run with other settings, {different}")
            about = {**self.about, **content.get("about", {})}  # Older ones do not say.
            if others := [name for name, of in about.items() if self.about.get(name) != of]:
                raise ValueError(f"it belongs to a run with another {' and '.join(others)}")
            stored = unpack(content["state"], content["tensors"])
            for name in _WITH_STATE:
                getattr(self, name).load_state_dict(stored[name])
            self.generator.set_state(stored["generator"])
            self.order = stored["order"]
            for name in _PLAIN:
                setattr(self, name, content[name])
        except Exception as error:  # a damaged file can make torch raise nearly anything
            raise ValueError(
                f"out_dir: {path} is not a pretraining checkpoint of this run "
                f"({type(error).__name__}: {error}); choose another out_dir, or delete it"
            ) from error


def digest(tensors: Iterable[Tensor]) -> str:
    """Return what tells tensors apart from others."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def check_dataset(dataset: CrystalDataset) -> None:
    """Raise a ValueError unless there is something to learn from."""
    if len(dataset) < 2:
        raise ValueError(f"dataset: training needs two structures or more, got {len(dataset)}")


def run(
    state: TrainingState,
    dataset: CrystalDataset,
    name: str,
    *,
    validation: CrystalDataset | None = None,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    out_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    info: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Any:
    """Train until all iterations are done or somebody interrupts; see `pretrain`.

    Args:
        state: of the training, on the device.
        dataset: training structures.
        name: what is trained, for the progress bar.
        validation, evaluate, out_dir, device, info, progress: see `pretrain`.

    Returns:
        The averaged model with its `info`.
    """
    config = state.config
    data = dataset.batch.standard_orientation().to(device)
    held_out = None if validation is None else validation.batch.standard_orientation().to(device)
    folder = None if out_dir is None else Path(out_dir)
    batch = dataset.batch
    state.about["dataset"] = digest([batch.n_atoms, batch.species, batch.pos, batch.cell])
    if folder is not None:
        check_writable(folder)
        remove_leftovers(folder)
        state.load(folder / CHECKPOINT)

    def validate(values: Mapping[str, float]) -> None:
        losses = {} if held_out is None else state.validation_losses(held_out)
        state.record({**values, **losses, **(evaluate(state.average) if evaluate else {})}, folder)

    try:
        _train(state, data, validate, folder, progress, name)
    except KeyboardInterrupt:
        advice = ""
        if folder is not None:
            state.load(folder / CHECKPOINT)
            kept = (folder / CHECKPOINT).exists()
            advice = "; the same call " + (
                "continues" if kept else "begins anew, without checkpoint"
            )
        warnings.warn(
            f"stopped after {state.iteration} of {config.iterations} iterations{advice}",
            stacklevel=5,
        )
    model = state.average
    model.info = {
        **getattr(model, "info", {}),
        **dict(info or {}),
        "dataset": dataset.name,
        "n_train": len(dataset),
        "seen": dataset.limits(),
        "iterations": state.iteration,
        "training_seconds": round(state.seconds, 1),
        "config": asdict(config),
        "history": json.loads(json.dumps(state.history[-1:])),
    }
    if folder is not None:
        model.save(folder / "model.safetensors")
    return model


def _train(
    state: TrainingState,
    data: CrystalBatch,
    validate: Callable[[Mapping[str, float]], None],
    folder: Path | None,
    progress: bool,
    name: str,
) -> None:
    """Take the iterations that are left, with checkpoints if there is a folder."""
    config = state.config
    options = dict(desc=f"pretraining {name}", disable=not progress, mininterval=1.0)
    bar = tqdm(total=config.iterations, initial=state.iteration, **options)
    started = time.monotonic() - state.seconds
    mean_loss = None
    with bar, FileWriter() as writer:
        while state.iteration < config.iterations:
            values = state.step(data.select(state.next_indices().to(data.device)))
            loss = values["loss"]
            mean_loss = loss if mean_loss is None else 0.98 * mean_loss + 0.02 * loss
            bar.update()
            if state.iteration % 50 == 0:
                bar.set_postfix(loss=f"{mean_loss:.4f}")
            state.seconds = time.monotonic() - started
            if state.iteration % config.validate_every == 0 or state.iteration == config.iterations:
                validate(values)
            last = state.iteration == config.iterations
            if folder is not None and (last or state.iteration % config.checkpoint_every == 0):
                writer.write(folder / CHECKPOINT, state.to_bytes())
