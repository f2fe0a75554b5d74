"""Training of flow models: velocity loss (Eq. 2), denoiser loss (Eq. 5), EMA, checkpoints."""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.flows.base_distribution import BaseDistribution
from irlkit.flows.interpolants import (
    T_MAX,
    T_MIN,
    Interpolant,
    LinearPath,
    SqrtGamma,
    TrigonometricPath,
    center,
    pair_with_data,
)
from irlkit.networks.cspnet import CSPNet
from irlkit.networks.flow_model import FlowModel
from irlkit.rl._checkpoints import CHECKPOINT, pack, unpack
from irlkit.utils.checks import check_count, checked, is_number
from irlkit.utils.system import FileWriter, check_writable, remove_leftovers, write_atomically

if TYPE_CHECKING:
    from irlkit.data import CrystalDataset

FORMAT = "irlkit-pretraining-checkpoint"

#: Interpolants of the two kinds of model that the package ships; gamma is that of OMatG's
#: Trig-SDE-Gamma.
KINDS: dict[str, dict[str, Interpolant]] = {
    "linear-ode": {
        "pos": Interpolant(LinearPath(), periodic=True, center_of_mass_free=True),
        "cell": Interpolant(LinearPath()),
    },
    "trig-sde-gamma": {
        "pos": Interpolant(
            TrigonometricPath(),
            SqrtGamma(0.049242906),
            periodic=True,
            center_of_mass_free=True,
        ),
        "cell": Interpolant(TrigonometricPath()),
    },
}


@dataclass(frozen=True)
class PretrainingConfig:
    """Settings of `pretrain`.

    Attributes:
        kind: "linear-ode" or "trig-sde-gamma".
        hidden_dim: Channels of the network.
        n_layers: Layers of the network.
        n_freqs: Frequencies of the pair features.
        time_dim: Size of the time embedding.
        iterations: Optimiser steps.
        batch_size: Structures per step.
        learning_rate: Peak of AdamW's learning rate, which then follows a half cosine to zero.
        weight_decay: Of AdamW.
        warmup: Steps of linear increase to the peak.
        ema_decay: Decay of the exponential moving average of the weights, per step.
        max_grad_norm: Gradient-norm clip.
        cell_weight: Weight of the cell's losses against the positions'.
        denoiser_weight: Weight of the denoiser's losses against the velocities'.
        pairing: Shift and reorder base positions towards the data (`pair_with_data`).
        validate_every: Steps between validations.
        seed: Of weights, data order and draws.
    """

    kind: str = "linear-ode"
    hidden_dim: int = 128
    n_layers: int = 4
    n_freqs: int = 16
    time_dim: int = 128
    iterations: int = 45_000
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    warmup: int = 500
    ema_decay: float = 0.9995
    max_grad_norm: float = 1.0
    cell_weight: float = 0.02
    denoiser_weight: float = 0.1
    pairing: bool = True
    validate_every: int = 2500
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in KINDS:
            raise ValueError(f"kind: expected one of {sorted(KINDS)}, got {self.kind!r}")
        positive = ("iterations", "batch_size", "validate_every", "learning_rate", "max_grad_norm")
        for name in positive:
            if not is_number(getattr(self, name)) or not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        for name in ("warmup", "weight_decay", "cell_weight", "denoiser_weight"):
            if not is_number(getattr(self, name)) or not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected zero or more, got {getattr(self, name)}")
        if not is_number(self.ema_decay) or not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: expected a number in [0, 1), got {self.ema_decay}")
        sizes = ("hidden_dim", "n_layers", "n_freqs", "time_dim")
        for name in ("iterations", "batch_size", "validate_every", "warmup", "seed", *sizes):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{name}: expected a whole number, got {value!r}")
        if not isinstance(self.pairing, bool):
            raise ValueError(f"pairing: expected True or False, got {self.pairing!r}")


@dataclass(frozen=True)
class Losses:
    """Mean squared errors per field; the denoiser's only for fields with latent noise."""

    velocity: dict[str, Tensor]
    denoiser: dict[str, Tensor]

    def total(self, config: PretrainingConfig) -> Tensor:
        """Weighted sum."""
        weights = {"pos": 1.0, "cell": config.cell_weight}
        loss = sum(weights[name] * value for name, value in self.velocity.items())
        for name, value in self.denoiser.items():
            loss = loss + config.denoiser_weight * weights[name] * value
        return loss  # type: ignore[return-value]


@checked
def interpolant_losses(
    model: FlowModel,
    x_1: CrystalBatch,
    generator: torch.Generator,
    *,
    pairing: bool = True,
) -> Losses:
    """Losses (2) and (5) at one stratified random time per structure.

    With latent noise both signs of z are evaluated at the same draw (antithetic pairs), which
    keeps the variance of the loss finite where the derivative of gamma diverges.

    Args:
        model: Trained model.
        x_1: Data, cells in the standard orientation.
        generator: Draws times, base samples and latent noise; on the CPU.
        pairing: Pair base positions with the data (`interpolants.pair_with_data`).

    Returns:
        Losses with gradients.
    """
    if not len(x_1):
        raise ValueError("x_1 must hold at least one structure, got none")
    device, dtype = x_1.device, x_1.dtype
    size = len(x_1.n_atoms)
    strata = (torch.arange(size) + torch.rand(size, generator=generator)) / size
    strata = strata[torch.randperm(size, generator=generator)]
    t = (T_MIN + (T_MAX - T_MIN) * strata).to(device, dtype)
    x_0 = model.sample_base(x_1, generator)
    data = {"pos": x_1.pos, "cell": x_1.cell}
    base = {"pos": x_0.pos, "cell": x_0.cell}
    if pairing:
        base["pos"] = pair_with_data(base["pos"], data["pos"], x_1.species, x_1.batch, x_1.n_atoms)
    times = {"pos": t[x_1.batch][:, None], "cell": t[:, None, None]}
    noise = {
        name: torch.randn(data[name].shape, generator=generator).to(device, dtype)
        for name, entry in model.interpolants.items()
        if entry.gamma is not None
    }
    conditioning = model.prepare(x_1)
    signs = (1.0, -1.0) if noise else (1.0,)
    velocity = {name: t.new_zeros(()) for name in data}
    denoiser = {name: t.new_zeros(()) for name in noise}
    heads = ("velocity", "denoiser") if noise else ("velocity",)
    for sign in signs:
        states, targets = {}, {}
        for name, interpolant in model.interpolants.items():
            z = sign * noise[name] if name in noise else None
            sample = interpolant.sample(times[name], base[name], data[name], z)
            states[name], targets[name] = sample.x_t, sample.target
            if interpolant.center_of_mass_free:
                targets[name] = center(targets[name], x_1.batch, x_1.n_atoms)
        output = model.velocity(t, states["pos"], states["cell"], conditioning, heads)
        for name in data:
            error = (output.velocity[name] - targets[name]).square().mean()
            velocity[name] = velocity[name] + error / len(signs)
        for name, z in noise.items():
            error = (output.denoiser[name] - sign * z).square().mean()
            denoiser[name] = denoiser[name] + error / len(signs)
    return Losses(velocity, denoiser)


@checked
def build_model(dataset: CrystalDataset, config: PretrainingConfig) -> FlowModel:
    """Untrained model, base distribution fitted to `dataset`, weights seeded by `config.seed`."""
    interpolants = KINDS[config.kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = CSPNet(
            config.hidden_dim,
            config.n_layers,
            config.n_freqs,
            config.time_dim,
            denoiser=any(entry.gamma is not None for entry in interpolants.values()),
        )
    base = BaseDistribution.fit(dataset.batch.cell)
    return FlowModel(network, interpolants, base)


class _State:
    """All that changes during training, and its checkpoint file.

    Args:
        model: To be trained.
        config: Settings.
        n_train: Number of training structures.
    """

    def __init__(self, model: FlowModel, config: PretrainingConfig, n_train: int) -> None:
        self.config = config
        self.model = model
        self.average = copy.deepcopy(model).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.generator = torch.Generator().manual_seed(config.seed)
        self.iteration = 0
        self.seconds = 0.0
        self.order = torch.empty(0, dtype=torch.long)
        self.n_train = n_train
        self.history: list[dict[str, float]] = []

    def next_indices(self) -> Tensor:
        """Indices of the next minibatch; the order is drawn anew once all structures were used."""
        size = min(self.config.batch_size, self.n_train)
        while len(self.order) < size:
            epoch = torch.randperm(self.n_train, generator=self.generator)
            self.order = torch.cat([self.order, epoch])
        indices, self.order = self.order[:size], self.order[size:]
        return indices

    def learning_rate(self) -> float:
        """Linear warm-up, then half a cosine to zero."""
        config = self.config
        rise = min(1.0, (self.iteration + 1) / max(config.warmup, 1))
        cosine = 0.5 * (1 + math.cos(math.pi * self.iteration / config.iterations))
        return config.learning_rate * rise * cosine

    def step(self, batch: CrystalBatch) -> dict[str, float]:
        """One optimiser step; returns its losses."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        losses = interpolant_losses(self.model, batch, self.generator, pairing=config.pairing)
        total = losses.total(config)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
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
        values = {f"velocity_{k}": float(v.detach()) for k, v in losses.velocity.items()}
        values |= {f"denoiser_{k}": float(v.detach()) for k, v in losses.denoiser.items()}
        return values | {"loss": float(total.detach())}

    def to_bytes(self) -> bytes:
        """Content of the checkpoint file."""
        state, tensors = pack(
            {
                "model": self.model.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "generator": self.generator.get_state(),
                "order": self.order,
            }
        )
        content = {
            "format": FORMAT,
            "config": asdict(self.config),
            "iteration": self.iteration,
            "seconds": self.seconds,
            "history": self.history,
            "state": state,
            "tensors": tensors,
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()

    def load(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            ValueError: the file is not a checkpoint, or belongs to other settings.
        """
        try:
            content = torch.load(path, weights_only=True, map_location="cpu")
            if content["format"] != FORMAT:
                raise ValueError("it lacks the mark")
            config = dict(content["config"])
        except Exception as error:  # a damaged file can make torch.load raise nearly anything
            raise ValueError(
                f"out_dir: {path} is not a pretraining checkpoint ({error}); "
                "delete it to start anew"
            ) from error
        ours = asdict(self.config)
        different = [k for k in ours if k != "validate_every" and config.get(k) != ours[k]]
        if different:
            raise ValueError(
                f"out_dir: {path} belongs to a run with other settings ({different}); choose "
                "another out_dir or the same settings"
            )
        try:
            stored = unpack(content["state"], content["tensors"])
            self.model.load_state_dict(stored["model"])
            self.average.load_state_dict(stored["average"])
            self.optimizer.load_state_dict(stored["optimizer"])
            self.generator.set_state(stored["generator"])
            self.order = stored["order"]
            self.iteration = content["iteration"]
            self.seconds = content["seconds"]
            self.history = content["history"]
        except Exception as error:  # what is missing or of another kind fails in its own way
            raise ValueError(
                f"out_dir: {path} does not fit this run ({type(error).__name__}: {error}); "
                "delete it to start anew"
            ) from error


@checked
def pretrain(
    dataset: CrystalDataset,
    config: PretrainingConfig | None = None,
    *,
    validation: CrystalDataset | None = None,
    evaluate: Callable[[FlowModel], Mapping[str, float]] | None = None,
    out_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    info: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> FlowModel:
    """Train a flow model; with `out_dir`, stop and call again to continue.

    Stopped in whatever way, SIGKILL included, it continues from its last checkpoint and ends with
    the bits (on a CPU) of a run that was never stopped. A checkpoint is written after every
    iteration, beside the next one: at most one finished iteration is repeated. After a
    KeyboardInterrupt, the model is returned as it is, with a warning.

    Args:
        dataset: Training structures.
        config: Settings; the defaults are those of the shipped models but for `kind`.
        validation: Structures for the validation loss, at the same draws every time.
        evaluate: Called with the averaged model at each validation; its numbers (for instance
            METRe) enter the history.
        out_dir: Folder for ``checkpoint.pt``, ``model.safetensors`` and ``history.parquet``.
        device: Where to train.
        info: Plain data to keep with the model.
        progress: Show a progress bar.

    Returns:
        The model with averaged weights; its `info` says after how many iterations.

    Raises:
        ValueError: the data set is empty, or `out_dir` holds a checkpoint of other settings.
        OSError: `out_dir` cannot be written to.
        FloatingPointError: a gradient is not finite.
    """
    from tqdm.auto import tqdm

    config = config or PretrainingConfig()
    if len(dataset) < 2:
        raise ValueError(f"dataset: training needs two structures or more, got {len(dataset)}")
    data = dataset.batch.standard_orientation().to(device)
    held_out = None if validation is None else validation.batch.standard_orientation().to(device)
    state = _State(build_model(dataset, config).to(device), config, len(dataset))
    folder = None if out_dir is None else Path(out_dir)
    if folder is not None:
        check_writable(folder)
        remove_leftovers(folder)
        if (folder / CHECKPOINT).exists():
            state.load(folder / CHECKPOINT)
    bar = tqdm(
        total=config.iterations,
        initial=state.iteration,
        desc=f"pretraining {config.kind}",
        disable=not progress,
        mininterval=1.0,
    )
    started = time.monotonic() - state.seconds
    mean_loss = None
    try:
        with bar, FileWriter() as writer:
            while state.iteration < config.iterations:
                values = state.step(data.select(state.next_indices().to(device)))
                mean_loss = (
                    values["loss"]
                    if mean_loss is None
                    else 0.98 * mean_loss + 0.02 * values["loss"]
                )
                bar.update()
                if state.iteration % 50 == 0:
                    bar.set_postfix(loss=f"{mean_loss:.4f}")
                state.seconds = time.monotonic() - started
                if state.iteration % config.validate_every == 0 or (
                    state.iteration == config.iterations
                ):
                    row = {"iteration": state.iteration, "seconds": state.seconds, **values}
                    if held_out is not None:
                        row |= _validation_losses(state.average, held_out, config)
                    if evaluate is not None:
                        row |= dict(evaluate(state.average))
                    state.history.append(row)
                    if folder is not None:
                        history = pd.DataFrame(state.history).to_parquet(index=False)
                        write_atomically(folder / "history.parquet", history)
                        state.average.save(folder / "model.safetensors")
                if folder is not None:
                    writer.write(folder / CHECKPOINT, state.to_bytes())
    except KeyboardInterrupt:
        if folder is not None and (folder / CHECKPOINT).exists():
            state.load(folder / CHECKPOINT)
        advice = "" if folder is None else "; the same call continues"
        warnings.warn(
            f"stopped after {state.iteration} of {config.iterations} iterations{advice}",
            stacklevel=3,
        )
    model = state.average
    model.info = {
        **dict(info or {}),
        "dataset": dataset.name,
        "n_train": len(dataset),
        "iterations": state.iteration,
        "training_seconds": round(state.seconds, 1),
        "config": asdict(config),
        "history": json.loads(json.dumps(state.history[-1:])),
    }
    if folder is not None:
        model.save(folder / "model.safetensors")
    return model


@torch.no_grad()
def _validation_losses(
    model: FlowModel, batch: CrystalBatch, config: PretrainingConfig
) -> dict[str, float]:
    """Losses at draws that are the same at every call."""
    generator = torch.Generator().manual_seed(config.seed + 1)
    draws = 4
    sums: dict[str, float] = {}
    for _ in range(draws):
        losses = interpolant_losses(model, batch, generator, pairing=config.pairing)
        named = {f"validation_velocity_{k}": v for k, v in losses.velocity.items()}
        named |= {f"validation_denoiser_{k}": v for k, v in losses.denoiser.items()}
        named["validation_loss"] = losses.total(config)
        for name, value in named.items():
            sums[name] = sums.get(name, 0.0) + float(value) / draws
    return sums


@checked
def metre_evaluation(
    validation: CrystalDataset, n_structures: int = 256, n_steps: int = 50, seed: int = 0
) -> Callable[[FlowModel], dict[str, float]]:
    """An `evaluate` for `pretrain`: METRe and cRMSE of plain Euler integration.

    Args:
        validation: Reference structures.
        n_structures: About how many of them to use, all polymorphs of each composition.
        n_steps: Integration steps, without annealing.
        seed: Of the base samples, the same at every call.
    """
    check_count("n_structures", n_structures)
    check_count("n_steps", n_steps)
    from irlkit.evaluate.metrics import MatchPool, evaluate
    from irlkit.flows.dynamics import Dynamics

    references = validation.subset(n_structures)

    def compute(model: FlowModel) -> dict[str, float]:
        generator = torch.Generator().manual_seed(seed)
        batch = references.batch.to(model.device)
        generated = Dynamics(model).generate(batch, n_steps, generator=generator).to("cpu")
        with MatchPool(n_workers=0) as pool:
            metrics = evaluate(generated, references, pool)
        return {"validation_metre": metrics.metre, "validation_crmse": metrics.crmse}

    return compute


def main(argv: list[str] | None = None) -> None:
    """Command line: pretrain on a data set or file, with validation, and stop and continue."""
    from irlkit.data import load

    defaults = PretrainingConfig()
    parser = argparse.ArgumentParser(
        prog="python -m irlkit.pretraining",
        description="Pretrain a flow model; started again, it continues.",
    )
    parser.add_argument("--dataset", default="prototypes", help="name, or path of a data file")
    parser.add_argument("--kind", default=defaults.kind, choices=sorted(KINDS))
    parser.add_argument("--out-dir", required=True, type=Path)
    parser.add_argument("--iterations", type=int, default=defaults.iterations)
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size)
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--validate-every", type=int, default=defaults.validate_every)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    validation = load(arguments.dataset, split="val")
    model = pretrain(
        load(arguments.dataset, split="train"),
        PretrainingConfig(
            kind=arguments.kind,
            iterations=arguments.iterations,
            batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            validate_every=arguments.validate_every,
            seed=arguments.seed,
        ),
        validation=validation,
        evaluate=metre_evaluation(validation),
        out_dir=arguments.out_dir,
        device=arguments.device,
    )
    done = model.info["iterations"]
    last = "".join(f", {json.dumps(row)}" for row in model.info["history"])
    print(f"{arguments.out_dir / 'model.safetensors'}: {done} iterations{last}")
    if done < arguments.iterations:
        sys.exit(130)  # interrupted


if __name__ == "__main__":
    main()
