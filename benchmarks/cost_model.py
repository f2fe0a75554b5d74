"""A formula for the time, memory and traffic of a GRPO iteration, fitted here and checked here.

Its constants are fitted to small iterations of a velocity-based policy, one thread per process, and
tried on iterations, larger and smaller, that the fit has not seen. Then it says what more ranks
would do, and what 64 GPUs would, under the assumptions that the options name. See docs/scaling.md.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from scipy.optimize import nnls

from benchmarks.common import parser, process_peak, random_crystals, random_model, report, start
from benchmarks.network import operations
from benchmarks.rl_iteration import volume_reward
from irlkit.networks._pairs import PairTopology
from irlkit.networks.cspnet import CSPNet
from irlkit.rl._communicator import Communicator, DistributedCommunicator
from irlkit.rl.config import TrainerConfig
from irlkit.rl.policies import VelocityPolicy
from irlkit.rl.trainer import GRPOTrainer
from irlkit.utils.draws import standard_normal

DAY = 86400.0
PAPER = {"width": 512, "n_layers": 6, "n_steps": 50, "n_epochs": 4}
PAIR_BYTES = 368
"""What a training pass keeps per edge besides one vector per layer (see README.md)."""


@dataclass(frozen=True)
class Case:
    """A GRPO iteration: B structures, of n atoms each or of MP-20's sizes."""

    n_structures: int
    n_atoms: int | None
    n_steps: int = 2
    width: int = 64
    n_layers: int = 2
    n_epochs: int = 2

    def __str__(self) -> str:
        atoms = self.n_atoms or "2-20"
        return (
            f"{self.width}x{self.n_layers}, {self.n_structures} structures of {atoms} atoms, "
            f"{self.n_steps} steps"
        )

    @property
    def batch_sizes(self) -> torch.Tensor:
        """Atoms of each structure: every composition has two."""
        half = random_crystals(self.n_structures // 2, n_atoms=self.n_atoms)
        return half.n_atoms.repeat_interleave(2)

    @property
    def n_weights(self) -> int:
        """Weights of the network, those of the layers."""
        return self.n_layers * self.width * (6 * self.width + 6 * 128)

    def counts(self, n_ranks: int = 1) -> tuple[float, float, float, int]:
        """Structures, atoms, edges and parts that a rank works on."""
        n_atoms = self.batch_sizes
        n_edges = float(n_atoms.square().sum()) / n_ranks
        parts = len(PairTopology.from_n_atoms(n_atoms).parts)
        return (
            self.n_structures / n_ranks,
            float(n_atoms.sum()) / n_ranks,
            n_edges,
            math.ceil(parts / n_ranks),
        )


# Each of the sizes changes while others stay, so that every term of the formula is seen.
FIT = (
    *(Case(32, 6), Case(128, 6), Case(32, 12), Case(16, 24), Case(8, 40)),
    *(Case(32, 6, width=128), Case(16, 24, width=128), Case(32, 12, width=128, n_layers=4)),
    *(Case(32, 12, n_layers=4), Case(16, 12, width=256), Case(8, 24, width=256, n_layers=3)),
    *(Case(64, None, width=128), Case(8, 4, width=32, n_layers=6), Case(8, 4, width=256)),
)
CHECK = (
    Case(48, 10, 5, 96, 3),
    Case(256, None, 4, 128, 4),
    Case(4, 100, 3, 64, 3),
    Case(16, 8, 2, 384, 3),
    Case(32, None, 2, 512, 6),
)
# Structures, width and layers for the peak memory: those of the fit, then those of the check.
MEMORY = (
    *(Case(64, 16, 2, 128, 4), Case(256, 16, 2, 128, 4), Case(64, 16, 2, 256, 6)),
    *(Case(128, 24, 2, 64, 4), Case(32, 12, 2, 512, 6)),
)
MEMORY_CHECK = (Case(192, 20, 2, 128, 6), Case(96, 14, 3, 320, 4))
TINY = (*(Case(n, 3, width=w, n_layers=1) for n in (2, 4) for w in (8, 16)), Case(2, 6, width=16))
ALL_REDUCE = (10_000, 100_000, 1_000_000, 4_000_000)


# --------------------------------------------------------------------------------------------------
# The formula
# --------------------------------------------------------------------------------------------------

TERMS = (
    "edges x layers x width^2",
    "edges x layers x width",
    "edges",
    "atoms x layers x width^2",
    "parts x layers",
    "weights",
    "one",
)


def passes(case: Case, n_ranks: int = 1) -> np.ndarray:
    """The terms of one evaluation of a network."""
    _, atoms, edges, parts = case.counts(n_ranks)
    width, n_layers = case.width, case.n_layers
    return np.array(
        [
            edges * n_layers * width**2,
            edges * n_layers * width,
            edges,
            atoms * n_layers * width**2,
            parts * n_layers,
            case.n_weights,
            1.0,
        ]
    )


def evaluations(case: Case) -> dict[str, float]:
    """How often a network is evaluated: the frozen and the trained one, and with gradients."""
    return {"rollout": 2 * case.n_steps, "update": case.n_epochs * case.n_steps}


@dataclass(frozen=True)
class Model:
    """The fitted constants.

    Attributes:
        seconds: "rollout" and "update" -> seconds per unit of each of ``TERMS``.
        per_draw: seconds per normal number, of which every rank draws all.
        latency, per_byte: of one all-reduce between neighbours.
    """

    seconds: dict[str, np.ndarray]
    per_draw: float
    latency: float = 0.0
    per_byte: float = 0.0

    def parts(self, case: Case, n_ranks: int = 1) -> dict[str, float]:
        """Seconds of an iteration by what they are spent on."""
        found = {
            name: float(n * passes(case, n_ranks) @ self.seconds[name])
            for name, n in evaluations(case).items()
        }
        if n_ranks > 1:
            found["drawing"] = self.per_draw * draws(case) * (1 - 1 / n_ranks)
            found["all-reduce"] = case.n_epochs * all_reduce(
                4.0 * case.n_weights, n_ranks, self.latency, self.per_byte
            )
        return found


def draws(case: Case) -> float:
    """Normal numbers of an iteration: for positions, cells, and as many for one base sample."""
    structures, atoms, _, _ = case.counts()
    return (case.n_steps + 1) * (3 * atoms + 9 * structures)


def all_reduce(size: float, n_ranks: int, latency: float, per_byte: float) -> float:
    """Seconds of a ring: 2 (R - 1) messages, one after the other, of size / R bytes each."""
    return 2 * (n_ranks - 1) * (latency + per_byte * size / n_ranks)


def traffic(case: Case, n_ranks: int) -> float:
    """Bytes that a rank sends per iteration: the gradients in float32, per update, in a ring."""
    return case.n_epochs * 2 * (n_ranks - 1) / n_ranks * 4.0 * case.n_weights


def memory_terms(case: Case) -> np.ndarray:
    """Bytes of a process: of networks, of one minibatch (a time step), of the trajectory."""
    _, atoms, edges, _ = case.counts()
    state = case.n_steps * 5 * (3 * atoms + 9 * case.n_structures) * 4
    kept = edges * (4 * case.n_layers * case.width + PAIR_BYTES)
    # Two networks, gradients, two moments; what an edge takes while it is worked on.
    at_once = min(edges, 8192 + 400) * 4 * case.width
    return np.array([1e6, 5 * 4.0 * case.n_weights + state, kept, at_once])


# --------------------------------------------------------------------------------------------------
# Measurements
# --------------------------------------------------------------------------------------------------


def make_trainer(
    case: Case, device: torch.device, communicator: Communicator | None = None
) -> GRPOTrainer:
    """A trainer whose iterations are the case's. Groups of two: their size changes no cost."""
    config = TrainerConfig(
        n_groups=case.n_structures // 2,
        group_size=2,
        n_steps=case.n_steps,
        n_ppo_epochs=case.n_epochs,
        learning_rate=1e-5,
        max_minibatch=case.n_structures,
    )
    policy = VelocityPolicy(random_model("linear-ode", case.width, case.n_layers).to(device))
    compositions = random_crystals(case.n_structures // 2, n_atoms=case.n_atoms)
    return GRPOTrainer(policy, volume_reward, compositions, config, communicator=communicator)


def iterate(trainer: GRPOTrainer, clock: str) -> dict[str, float]:
    """Seconds of one more iteration: rollout and update."""
    began = time.process_time()
    trainer.run(trainer.iteration + 1, progress=False)
    spent = time.process_time() - began
    row = trainer.history.iloc[-1]
    # The reward waits for the device.
    rollout = float(row["rollout_seconds"] + row["reward_seconds"])
    update = float(row["update_seconds"])
    share = spent / (rollout + update) if clock == "cpu" else 1.0
    return {"rollout": rollout * share, "update": update * share}


def measure(
    cases: Sequence[Case], device: torch.device, options: Any
) -> dict[Case, dict[str, float]]:
    """Median seconds of all cases, which take turns."""
    samples: dict[Case, list[dict[str, float]]] = {case: [] for case in cases}
    trainers = {case: make_trainer(case, device) for case in cases}
    for case in cases:
        iterate(trainers[case], options.clock)
    began = time.perf_counter()
    for i in range(options.repeats):
        if i and time.perf_counter() - began > options.seconds:
            break
        for case in cases:
            samples[case].append(iterate(trainers[case], options.clock))
    return {
        case: {name: statistics.median(s[name] for s in found) for name in found[0]}
        for case, found in samples.items()
    }


def fit(measured: dict[Case, dict[str, float]], per_draw: float) -> Model:
    """Constants, none negative, with the smallest relative errors."""
    seconds = {}
    for name in ("rollout", "update"):
        target = np.array([found[name] for found in measured.values()])
        rows = np.array([evaluations(case)[name] * passes(case) for case in measured])
        rows = rows / target[:, None]
        scale = rows.max(0)
        seconds[name] = nnls(rows / scale, np.ones(len(rows)))[0] / scale
    return Model(seconds, per_draw)


def drawing_seconds() -> float:
    """Of one normal number, as every rank draws them."""
    generator = torch.Generator().manual_seed(0)
    like = torch.empty(1, 100_000, 3)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        standard_normal(like, generator)
        times.append(time.perf_counter() - began)
    return statistics.median(times) / like.numel()


def peak_memory(case: Case, device: str) -> float:
    """MB that an iteration adds to a process at its peak."""
    torch.set_num_threads(1)
    trainer = make_trainer(case, torch.device(device))
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        trainer.run(1, progress=False)
        return torch.cuda.max_memory_allocated() / 2**20
    before = process_peak()
    trainer.run(1, progress=False)
    return process_peak() - before


def loopback_bytes() -> float | None:
    """Bytes that this machine has sent to itself so far, where the system counts them."""
    try:
        lines = Path("/proc/net/dev").read_text().splitlines()
    except OSError:
        return None
    found = [line.split(":")[1].split() for line in lines if line.strip().startswith("lo:")]
    return float(found[0][8]) if found else None


def work(
    rank: int, n_ranks: int, case: Case, n_times: int, sizes: Sequence[int], folder: str
) -> None:
    """What one rank does: iterations and all-reduces; rank 0 writes what it has seen."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=n_ranks,
        timeout=timedelta(minutes=10),
    )
    trainer = make_trainer(case, torch.device("cpu"), DistributedCommunicator())
    iterate(trainer, "wall")
    dist.barrier()
    before = loopback_bytes()
    seconds = [sum(iterate(trainer, "wall").values()) for _ in range(n_times)]
    dist.barrier()
    after = loopback_bytes()
    times = []
    for size in sizes:
        values = torch.zeros(size)
        dist.all_reduce(values)
        took = []
        for _ in range(7):
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(values)
            took.append(time.perf_counter() - began)
        times.append(statistics.median(took))
    if rank == 0:
        sent = math.nan
        if before is not None and after is not None:
            sent = (after - before) / n_times / n_ranks
        torch.save(
            {"seconds": statistics.median(seconds), "all_reduce": times, "sent": sent},
            Path(folder) / "seen.pt",
        )
    dist.destroy_process_group()


def two_ranks(case: Case, n_times: int, sizes: Sequence[int]) -> dict[str, Any]:
    """What two processes on this machine take, with a thread each."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=work, args=(rank, 2, case, n_times, tuple(sizes), folder))
            for rank in (0, 1)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            raise RuntimeError("a rank failed; its error is above")
        return torch.load(Path(folder) / "seen.pt", weights_only=True)


# --------------------------------------------------------------------------------------------------
# Reports
# --------------------------------------------------------------------------------------------------


def gpu_parts(case: Case, n_ranks: int, options: Any) -> dict[str, float]:
    """Seconds of an iteration on GPUs that were not measured, from the options' assumptions."""
    network = CSPNet(case.width, case.n_layers)
    topology = PairTopology.from_n_atoms(case.batch_sizes)
    needed = operations(network, topology, interpolated=False)
    rate = options.gpu_tflops * 1e12 * options.gpu_share
    floor = options.gpu_kernels * case.n_layers * options.gpu_launch
    # A pass with gradients launches three times as many kernels.
    forward = max(needed["forward"] / n_ranks / rate, floor)
    both = max(needed["forward+backward"] / n_ranks / rate, 3 * floor)
    return {
        "rollout": evaluations(case)["rollout"] * forward,
        "update": evaluations(case)["update"] * both,
        "all-reduce": case.n_epochs
        * all_reduce(
            4.0 * case.n_weights, n_ranks, options.link_latency, 1e-9 / options.link_gbytes
        ),
    }


def extrapolation(model: Model, case: Case, n_ranks: int, options: Any) -> list[dict[str, Any]]:
    """What an iteration takes on many ranks: of this machine's cores, and of assumed GPUs."""
    rows = []
    network = replace(model, latency=options.link_latency, per_byte=1e-9 / options.link_gbytes)
    gpu = gpu_parts(case, n_ranks, options)
    gpu["drawing"] = model.per_draw * draws(case) * (n_ranks > 1)
    for what, parts in (("measured", network.parts(case, n_ranks)), ("assumed GPU", gpu)):
        seconds = sum(parts.values())
        per_day = case.n_structures / seconds * DAY
        rows.append(
            {
                "case": f"extrapolated: {n_ranks} x {what}, {case}",
                "ratio": None,
                "seconds": seconds,
                "share_not_shared": (parts.get("drawing", 0.0) + parts["all-reduce"]) / seconds
                if n_ranks > 1
                else 0.0,
                "mb_sent": traffic(case, n_ranks) / 1e6,
                "million_per_day": per_day / 1e6,
                # Rewards beside the next rollout do not exist: they are waited for.
                "reward_cores": case.n_structures * options.reward_seconds / (0.1 * seconds),
            }
        )
    return rows


def check_rows(model: Model, found: dict[Case, dict[str, float]], what: str) -> list[dict]:
    """Formula against measurement."""
    rows = []
    for case, seconds in found.items():
        expected, total = sum(model.parts(case).values()), sum(seconds.values())
        rows.append(
            {
                "case": f"{what}: {case}",
                "ratio": expected / total,
                "seconds": total,
                "formula_seconds": expected,
            }
        )
    return rows


def memory_rows(cases: Sequence[Case], unseen: Sequence[Case], device: str) -> list[dict]:
    """The same of peak memory; every case in a process of its own."""
    context = multiprocessing.get_context("spawn")
    found = []
    for case in (*cases, *unseen):
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            found.append(pool.submit(peak_memory, case, device).result())
    rows = np.array([memory_terms(case) / 2**20 for case in (*cases, *unseen)])
    target = np.maximum(np.array(found), 1.0)
    n = len(cases)
    constants = nnls(rows[:n] / target[:n, None], np.ones(n))[0]
    return [
        {
            "case": f"memory, {'fitted' if i < n else 'not in the fit'}: {case}",
            "ratio": float(rows[i] @ constants / target[i]),
            "mb": float(target[i]),
            "formula_mb": float(rows[i] @ constants),
        }
        for i, case in enumerate((*cases, *unseen))
    ]


def rank_rows(model: Model, case: Case, sizes: Sequence[int], options: Any) -> tuple[Model, list]:
    """Two processes on this machine against one; the constants of an all-reduce between them."""
    one = sum(measure([case], torch.device("cpu"), options)[case].values())
    two = two_ranks(case, options.repeats, sizes)
    # Time of two ranks: 2 (latency + bytes / 2 x per_byte), with relative errors.
    took = np.array(two["all_reduce"])
    terms = np.array([[2.0, 4.0 * size] for size in sizes]) / took[:, None]
    latency, per_byte = nnls(terms, np.ones(len(sizes)))[0]
    model = replace(model, latency=float(latency), per_byte=float(per_byte))
    expected = sum(model.parts(case).values()) / sum(model.parts(case, 2).values())
    return model, [
        {
            "case": f"two ranks: {case}",
            "ratio": one / two["seconds"],
            "formula_ratio": expected,
            "seconds": two["seconds"],
        },
        {
            "case": "two ranks: bytes sent, formula over loopback counter",
            "ratio": traffic(case, 2) / two["sent"] if two["sent"] > 0 else None,
            "mb_sent": two["sent"] / 1e6,
        },
    ]


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    known = parser(__doc__)
    known.add_argument("--no-memory", action="store_true", help="leave the peak memory out")
    known.add_argument("--no-ranks", action="store_true", help="leave the second process out")
    known.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 64], help="extrapolated to")
    known.add_argument("--structures", type=int, default=16384, help="per iteration, there")
    known.add_argument("--reward-seconds", type=float, default=0.05, help="of a core, a structure")
    known.add_argument("--gpu-tflops", type=float, default=40.0, help="float32 matrix rate")
    known.add_argument("--gpu-share", type=float, default=0.4, help="of it that is reached")
    known.add_argument("--gpu-launch", type=float, default=1e-5, help="seconds per kernel")
    known.add_argument("--gpu-kernels", type=float, default=40, help="per layer, forward")
    known.add_argument("--link-gbytes", type=float, default=10.0, help="GB/s between neighbours")
    known.add_argument("--link-latency", type=float, default=2e-5, help="seconds of a message")
    options = known.parse_args(arguments)
    # A rank of the extrapolation is one core.
    options.threads = options.threads or 1
    device = start(options)
    fitted, unseen, memory, memory_unseen = FIT, CHECK, MEMORY, MEMORY_CHECK
    shared, sizes, paper = replace(FIT[7], n_structures=64), ALL_REDUCE, PAPER
    if options.quick:
        fitted, unseen, memory, memory_unseen = TINY[:4], TINY[4:], TINY[:2], TINY[4:]
        shared, sizes, paper = TINY[3], (10, 100), {**PAPER, "width": 16}
        options.structures = min(options.structures, 64)
    if device.type == "cuda":  # below this, launches are all there is
        fitted, unseen = (
            tuple(replace(case, n_structures=16 * case.n_structures) for case in cases)
            for cases in (fitted, unseen)
        )
    model = fit(measure(fitted, device, options), drawing_seconds())
    # Measured again, with the others: what the machine does meanwhile hits both.
    rows = []
    for what, cases in (("fitted", fitted), ("not in the fit", unseen)):
        rows += check_rows(model, measure(cases, device, options), what)
    errors = [abs(row["ratio"] - 1) for row in rows if row["case"].startswith("not in the fit")]
    rows.append({"case": "largest relative error, not in the fit", "ratio": max(errors)})
    if not options.no_memory:
        rows += memory_rows(memory, memory_unseen, options.device)
    if not options.no_ranks and device.type == "cpu" and dist.is_available():
        model, more = rank_rows(model, shared, sizes, options)
        rows += more
    for name, values in model.seconds.items():
        rows += [
            {"case": f"constant, {name}: {term}", "ratio": None, "seconds": float(value)}
            for term, value in zip(TERMS, values, strict=True)
        ]
    large = Case(options.structures, None, **paper)
    for n_ranks in options.ranks:
        rows += extrapolation(model, large, n_ranks, options)
    report("cost_model", rows, device)


if __name__ == "__main__":
    main()
