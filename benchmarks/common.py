"""Timing in turns, sizes of structures, and reports."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.flows.base_distribution import BaseDistribution
from irlkit.networks.cspnet import CSPNet
from irlkit.networks.flow_model import FlowModel
from irlkit.pretraining import KINDS
from irlkit.utils.system import available_cores

# Percent of the binary and ternary compounds of MP-20 with 2, 3 ... 20 atoms.
ATOM_PERCENT = (
    *(2.4, 2.7, 18.9, 6.1, 9.7, 2.5, 8.7, 3.5, 5.7, 1.2),
    *(10.8, 2.2, 5.9, 1.2, 6.6, 0.7, 5.0, 0.9, 5.3),
)


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--threads", type=int, help="CPU threads; by default one per core")
    options.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: this process's CPU time, for a busy machine; take --threads 1 with it",
    )
    options.add_argument("--repeats", type=int, default=7, help="of each side, at most")
    options.add_argument(
        "--seconds", type=float, default=60.0, help="no further repeat after these"
    )
    return options


def start(options: argparse.Namespace) -> torch.device:
    """Apply the options to this process."""
    torch.set_num_threads(options.threads or available_cores())
    if options.quick:
        options.repeats, options.seconds = 2, 10.0
    return torch.device(options.device)


def in_turns(
    sides: Mapping[str, Callable[[], Any]],
    device: torch.device,
    repeats: int,
    seconds: float,
    clock: str = "wall",
    warm: bool = False,
    least: int = 1,
) -> dict[str, float]:
    """Median seconds of each side, which take turns, after one unmeasured round.

    Args:
        sides: Name -> what to time.
        device: On CUDA, events on its stream are the clock.
        repeats: Of every side, at most.
        seconds: No further round begins after these.
        clock: "wall" or, of this process on a CPU, "cpu".
        warm: Every side has been run before; the unmeasured round is left out.
        least: Rounds that are made whatever they take.
    """
    for function in sides.values() if not warm else ():
        function()
    samples: dict[str, list[float]] = {name: [] for name in sides}
    began = time.perf_counter()
    for i in range(repeats):
        if i >= least and time.perf_counter() - began > seconds:
            break
        for name, function in sides.items():
            samples[name].append(_seconds(function, device, clock))
    return {name: statistics.median(values) for name, values in samples.items()}


def _seconds(function: Callable[[], Any], device: torch.device, clock: str) -> float:
    if device.type != "cuda":
        now = time.process_time if clock == "cpu" else time.perf_counter
        began = now()
        function()
        return now() - began
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    function()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1000


def process_peak() -> float:
    """Most memory that this process has had so far, MiB."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not what getrusage says, which begins with that of the process that started this one.
        (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def matmul_rate(device: torch.device, width: int, rows: int = 4096, clock: str = "wall") -> float:
    """Floating-point operations per second of (rows, width) @ (width, width) in float32."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(rows, width, generator=generator).to(device)
    b = torch.randn(width, width, generator=generator).to(device)
    out = torch.empty_like(a)
    n = max(int(2e10 / (2 * rows * width**2)), 1)

    def multiply() -> None:
        for _ in range(n):
            torch.mm(a, b, out=out)

    return n * 2 * rows * width**2 / in_turns({"": multiply}, device, 9, 10.0, clock)[""]


def random_crystals(
    n_structures: int, seed: int = 0, n_atoms: int | Sequence[int] | None = None
) -> CrystalBatch:
    """Structures of MP-20's sizes with random species, positions and cells.

    Args:
        n_structures: How many.
        seed: Of everything.
        n_atoms: Of all or of each structure instead of the sizes of MP-20.
    """
    generator = torch.Generator().manual_seed(seed)
    if n_atoms is None:
        drawn = torch.multinomial(
            torch.tensor(ATOM_PERCENT), n_structures, replacement=True, generator=generator
        )
        counts = drawn + 2
    else:
        counts = torch.as_tensor(n_atoms).expand(n_structures).clone()
    n = int(counts.sum())
    species = torch.randint(3, 80, (n,), generator=generator)
    pos = torch.rand(n, 3, generator=generator)
    stretch = 1 + 0.2 * torch.rand(n_structures, 3, 3, generator=generator)
    side = (15.0 * counts).pow(1 / 3)
    cell = side[:, None, None] * (torch.eye(3) * stretch + 0.1 * (1 - torch.eye(3)))
    return CrystalBatch(species, pos, cell, counts)


def random_model(kind: str, width: int, n_layers: int) -> FlowModel:
    """An untrained model of a kind, "linear-ode" or "trig-sde-gamma", whose velocities are small.

    How long a network takes does not depend on its weights, and small velocities keep the
    structures what they are.
    """
    torch.manual_seed(0)
    network = CSPNet(width, n_layers, denoiser=kind == "trig-sde-gamma")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "_out" in name:
                parameter.mul_(0.01)
    base = BaseDistribution((1.6, 1.7, 2.0), (0.2, 0.2, 0.2))
    return FlowModel(network.eval(), KINDS[kind], base)


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Least-squares slope of log(seconds) over log(sizes)."""
    x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (sizes, seconds))
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / x.square().sum())


def relative_difference(value: Tensor, reference: Tensor) -> float:
    """Norm of the difference over the norm of the reference."""
    return float((value - reference).norm() / reference.norm())


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers belong to."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif cpuinfo.is_file():
        models = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    return {
        "device": name,
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def report(benchmark: str, rows: Sequence[Mapping[str, Any]], device: torch.device) -> None:
    """Print the rows as a table, then everything as one line of JSON."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names] + [[_text(row.get(name)) for name in names] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    print(
        json.dumps({"benchmark": benchmark, "machine": machine(device), "results": list(rows)}),
        flush=True,
    )


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
