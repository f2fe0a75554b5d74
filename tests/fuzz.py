"""Mutated files for every reader and loader: `python -m tests.fuzz 20000`.

Each case is a file that was valid and of which a seeded generator changed bytes, numbers, words or
lines: those of the file, or ("-inner") those of what a container holds, whose sizes and checksums
are then right again. It is read in another process, which a crash may end and a hang may stop;
there, everything that starts a program, connects to a socket or writes a file elsewhere is
reported. What may happen: the file is read (records that are broken are skipped and counted), or a
`ValueError` or `FileNotFoundError` says what is wrong. Everything else is a finding.
"""

import argparse
import collections
import contextlib
import gzip
import io
import json
import os
import pickle
import random
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

SECONDS = 10.0
"""More is a hang."""
MEMORY = 8 << 30
"""Address space of the process that reads; more is an error there."""
GROWTH = 1 << 20
"""KiB by which one case may raise the most memory that the process ever had."""
DOCUMENTED = (ValueError, FileNotFoundError)
WATCHED = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "socket.bind",
    "ctypes.dlopen",
    "os.remove",
    "os.rename",
    "shutil.rmtree",
    "webbrowser.open",
)
TOKENS = (
    "nan", "-inf", "1e308", "1e-308", "-1", "0", "4", "99999999", "9" * 30, "0x10", "None", "[]",
    "{}", '"', "'", "\n", "\t", ",", "loop_", "data_", "_cell_length_a 1e200", "&a", "*a", "<<: *a",
    "!!python/object/apply:os.system ['touch TRACE']", "__import__('os').system('touch TRACE')",
    "cos\nsystem\n(S'touch TRACE'\ntR.", "Xx", "Fm-3m", "x,y,z", "\ufeff", "\u0000", "²",
    "{{7*7}}", "../../etc/passwd", "%s%n", "(" * 50, "[" * 2000,
)  # fmt: skip


# --- what is mutated ---


def seeds(folder):
    """Valid files of every kind: name of the target -> content."""
    import numpy as np
    import pandas as pd
    import torch
    from pymatgen.core import Lattice, Structure

    from irlkit.crystals import CrystalBatch
    from irlkit.data import writers
    from irlkit.flows._plain import to_plain
    from irlkit.flows.schedules import ANNEALINGS, LearnedAnnealing, save_annealing
    from tests.toys import flow_model

    matrix = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    structures = [
        Structure(Lattice(matrix * a), names, [[0, 0, 0], [0.5, 0.5, 0.52]])
        for a, names in ((5.6, ["Na", "Cl"]), (4.2, ["Mg", "O"]), (6.6, ["K", "Br"]))
    ]
    files = {}
    files["cif"] = structures[0].to(fmt="cif").encode()
    files["cif-symmetry"] = structures[0].to(fmt="cif", filename="", symprec=0.1).encode()
    files["poscar"] = structures[0].to(fmt="poscar").encode()
    texts = [s.to(fmt="cif") for s in structures]
    texts[2] = json.dumps(structures[2].as_dict())
    table = pd.DataFrame({"material_id": list("abc"), "cif": texts, "split": ["train"] * 3})
    files["csv"] = table.to_csv(index=False).encode()
    files["csv.gz"] = gzip.compress(files["csv"], mtime=0)
    files["parquet"] = table.to_parquet()
    batch = CrystalBatch.from_structures(structures)
    for suffix in ("extxyz", "parquet"):
        written = writers.write(folder / f"seed.{suffix}", batch, provenance={"seed": 0})
        files["parquet-arrays" if suffix == "parquet" else suffix] = written.read_bytes()
    files["txt"] = b"NaCl\nCaTiO3 2\n# comment\nMg2SiO4,4\n"
    files["table"] = b"material_id,energy\nsalt,1.5\nother,nan\n"
    record = {
        "pos": torch.tensor(structures[0].cart_coords),
        "cell": torch.tensor(structures[0].lattice.matrix),
        "atomic_numbers": torch.tensor(structures[0].atomic_numbers, dtype=torch.int32),
        "ids": "a",
        "energy": np.float64(1.5),
    }
    for protocol in (0, 2, 4):
        files[f"pickle-{protocol}"] = pickle.dumps(record, protocol)
    try:
        import lmdb
    except ImportError:
        pass
    else:
        path = folder / "seed.lmdb"
        with (
            lmdb.open(str(path), subdir=False, map_size=1 << 20, lock=False) as environment,
            environment.begin(write=True) as transaction,
        ):
            # The last one is longer than a page.
            for i in range(40):
                more = {"note": "x" * 9000} if i == 39 else {}
                transaction.put(str(i).encode(), pickle.dumps({**record, **more}))
        files["lmdb"] = path.read_bytes()
        files["lmdb-record"] = pickle.dumps(record)
    model = flow_model()
    model.save(folder / "model.safetensors")
    files["model"] = (folder / "model.safetensors").read_bytes()
    save_annealing(LearnedAnnealing(8, 1), folder / "annealing.safetensors", {"a": 1})
    files["annealing"] = (folder / "annealing.safetensors").read_bytes()
    files["annealing-json"] = json.dumps(to_plain(LearnedAnnealing(4, 1), ANNEALINGS)).encode()
    state = {f"model.encoder.{k}": v for k, v in model.network.state_dict().items()}
    buffer = io.BytesIO()
    content = {"state_dict": state, "epoch": 1, "global_step": 2, "path": Path("x")}
    torch.save(content, buffer)
    files["ckpt"] = buffer.getvalue()
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    files["ckpt-old"] = buffer.getvalue()
    files["yaml"] = CONFIG.encode()
    trainer = _trainer(folder / "run")
    trainer.run(1, progress=False)
    files["grpo"] = (folder / "run" / "checkpoint.pt").read_bytes()
    files["dynamics"] = (folder / "run" / "best.safetensors").read_bytes()
    files["history"] = (folder / "run" / "history.parquet").read_bytes()
    buffer = io.BytesIO()
    state = _pretraining()
    files["pretraining"] = state.to_bytes()
    files["cache"] = _cache_entry(folder, files["csv"])
    for target in CONTAINERS:
        files[f"{target}-inner"] = files[target]
    return files


def _cache_entry(folder, table):
    from irlkit import data

    (folder / "cached.csv").write_bytes(table)
    with contextlib.ExitStack() as stack:
        place = folder / "cache"
        before = os.environ.get("IRLKIT_CACHE")
        stack.callback(_set_cache, before)
        _set_cache(str(place))
        data.load(folder / "cached.csv", progress=False)
    (entry,) = place.glob("*.npz")
    return entry.read_bytes()


def _set_cache(value):
    if value is None:
        os.environ.pop("IRLKIT_CACHE", None)
    else:
        os.environ["IRLKIT_CACHE"] = value


CONFIG = """
model:
  si:
    class_path: omg.si.stochastic_interpolants.StochasticInterpolants
    init_args:
      stochastic_interpolants:
        - class_path: omg.si.x.SingleStochasticInterpolantIdentity
        - &field
          class_path: omg.si.single_stochastic_interpolant.SingleStochasticInterpolant
          init_args:
            interpolant: omg.si.interpolants.PeriodicLinearInterpolant
            differential_equation_type: ODE
            integrator_kwargs: {method: euler}
        - class_path: omg.si.single_stochastic_interpolant.SingleStochasticInterpolant
          init_args:
            interpolant: omg.si.interpolants.LinearInterpolant
            differential_equation_type: ODE
            integrator_kwargs: {method: euler}
      data_fields: [species, pos, cell]
      integration_time_steps: 5
  sampler:
    class_path: omg.sampler.IndependentSampler
    init_args:
      pos_distribution: omg.sampler.x.UniformPositionDistribution
      cell_distribution:
        class_path: omg.sampler.x.InformedLatticeDistribution
        init_args: {dataset_name: perov_5}
      species_distribution: omg.sampler.x.MirrorSpecies
  model:
    class_path: omg.model.model.Model
    init_args:
      encoder:
        class_path: omg.model.encoders.cspnet_full.CSPNetFull
        init_args: {hidden_dim: 16, num_layers: 2, num_freqs: 3}
      head: omg.model.heads.pass_through.PassThrough
      time_embedder:
        class_path: omg.x.SinusoidalTimeEmbeddings
        init_args: {dim: 8}
"""


def _trainer(folder):
    import torch

    from irlkit.flows.schedules import ConstantNoise
    from irlkit.rl.policies import VelocityPolicy
    from irlkit.rl.trainer import GRPOTrainer
    from tests.toys import crystals, flow_model, trainer_config, volume_reward

    data = crystals((2, 1), dtype=torch.float32)
    policy = VelocityPolicy(flow_model(), {"cell": ConstantNoise(0.1)})
    config = trainer_config(n_groups=1, group_size=2, n_steps=2, n_ppo_epochs=1)
    return GRPOTrainer(policy, volume_reward, data, config, validation=data, out_dir=folder)


def _pretraining():
    from irlkit.pretraining import PretrainingConfig, _State
    from tests.toys import flow_model

    config = PretrainingConfig(kind="trig-sde-gamma", hidden_dim=16, n_layers=2, iterations=4)
    return _State(flow_model(), config, 8)


CONTAINERS = {
    "csv.gz": "gzip",
    "parquet": "parquet",
    "parquet-arrays": "parquet",
    "model": "safetensors",
    "annealing": "safetensors",
    "dynamics": "safetensors",
    "ckpt": "zip",
    "grpo": "zip",
    "pretraining": "zip",
    "cache": "zip",
}
"""Targets whose content is mutated, too: how it is packed."""


# --- how it is mutated ---


def mutate(data, draws):
    """A few changes of bytes, numbers, words and lines, in a file's own terms where it has any."""
    data = bytearray(data)
    for _ in range(draws.choice((1, 1, 1, 2, 4, 16))):
        if not data:
            break
        at = draws.randrange(len(data))
        kind = draws.randrange(9)
        if kind == 0:
            data[at] ^= 1 << draws.randrange(8)
        elif kind == 1:
            data[at] = draws.randrange(256)
        elif kind == 2:
            del data[at : at + draws.choice((1, 4, 50, len(data)))]
        elif kind == 3:
            length = draws.choice((1, 8, 200))
            data[at:at] = data[at : at + length] * draws.choice((1, 3, 20))
        elif kind == 4:
            other = draws.randrange(len(data))
            piece = data[other : other + draws.choice((4, 40))]
            data[at : at + len(piece)] = piece
        elif kind == 5:
            data[at:at] = draws.choice(TOKENS).encode()
        elif kind == 6:
            value = draws.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, len(data)))
            width = draws.choice((2, 4, 8))
            data[at : at + width] = (value & (2 ** (8 * width) - 1)).to_bytes(width, "little")
        elif kind == 7:
            numbers = list(re.finditer(rb"-?\d+\.?\d*", bytes(data[:20000])))
            if numbers:
                found = draws.choice(numbers)
                data[found.start() : found.end()] = draws.choice(TOKENS[:10]).encode()
        else:
            lines = bytes(data).split(b"\n")
            i, j = draws.randrange(len(lines)), draws.randrange(len(lines))
            lines[i], lines[j] = lines[j], lines[draws.choice((i, j))]
            data = bytearray(b"\n".join(lines))
    return bytes(data)


def mutate_inside(target, data, draws):
    """What a container holds is mutated, and packed so that its sizes and checksums are right."""
    kind = CONTAINERS[target.removesuffix("-inner")]
    if kind == "gzip":
        return gzip.compress(mutate(gzip.decompress(data), draws), mtime=0)
    if kind == "safetensors":
        end = 8 + int.from_bytes(data[:8], "little")
        header = mutate(data[8:end], draws)
        header += b" " * (-len(header) % 8)
        return len(header).to_bytes(8, "little") + header + data[end:]
    if kind == "zip":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        # Most members are numbers; the one that says what they are is damaged more often.
        telling = [name for name in members if name.endswith((".pkl", "table.npy"))]
        chosen = draws.choice([draws.choice(telling), draws.choice(list(members))])
        members[chosen] = mutate(members[chosen], draws)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return buffer.getvalue()
    import pandas as pd

    table = pd.read_parquet(io.BytesIO(data)).astype(object)
    row, column = draws.randrange(len(table)), draws.choice(list(table.columns))
    table.at[row, column] = _mutate_value(table.at[row, column], draws)
    try:
        return table.to_parquet()
    except (ValueError, TypeError, ArithmeticError):  # a value that parquet cannot hold
        return mutate(data, draws)


def _mutate_value(value, draws):
    import numpy as np

    if isinstance(value, np.ndarray) and value.dtype == object and len(value):
        rows = list(value)
        i = draws.randrange(len(rows))
        rows[i] = _mutate_value(rows[i], draws)
        return rows
    if isinstance(value, np.ndarray):
        data = mutate(value.tobytes(), draws)
        return np.frombuffer(data[: len(data) // value.itemsize * value.itemsize], value.dtype)
    if isinstance(value, str):
        return mutate(value.encode(), draws).decode(errors="replace")
    return draws.choice([None, float("nan"), -1.0, 1e308, 0.0])


def read(target, content, folder):
    """What reads a file of this target; returns how many records were skipped."""
    from irlkit import data

    def write(name, content=content):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    kind = target.split("-")[0]
    names = {"cif": "a.cif", "poscar": "POSCAR", "parquet": "a.parquet", "extxyz": "a.extxyz"}
    names |= {"csv": "a.csv", "csv.gz": "a.csv.gz", "txt": "a.txt", "lmdb": "a.lmdb"}
    if target == "lmdb-record":
        import lmdb

        path = folder / "record.lmdb"
        with (
            lmdb.open(str(path), subdir=False, map_size=1 << 22, lock=False) as environment,
            environment.begin(write=True) as transaction,
        ):
            transaction.put(b"0", content)
        return len(data.load(path, cache=False, progress=False).skipped)
    if target == "table":
        write("set/salt.cif", SEEDS["cif"])
        write("set/table.csv")
        return len(data.load(folder / "set", cache=False, progress=False).skipped)
    if kind in names:
        path = write(names[kind])
        if kind != "txt" and len(content) % 4 == 0:
            parts = list(data.load_parts(path))
            return sum(len(part.skipped) for part in parts)
        return len(data.load(path, cache=False, progress=False).skipped)
    if kind == "cache":
        from irlkit.data import _cache

        write("entry.npz")
        before = os.environ.get("IRLKIT_CACHE")
        _set_cache(str(folder))
        try:
            entry = _cache.read("entry")
        finally:
            _set_cache(before)
        if entry is None:
            raise ValueError("warned of, and read anew from the file that it is of")
        return 0
    if kind == "pickle":
        from irlkit.data import _unpickling

        _unpickling.loads(content)
    elif kind == "model":
        from irlkit.networks.flow_model import FlowModel

        FlowModel.load(write("a.safetensors"))
    elif target in ("annealing", "annealing-inner"):
        from irlkit.flows.schedules import load_annealing

        load_annealing(write("a.safetensors"))
    elif target == "annealing-json":
        from irlkit.flows._plain import from_plain
        from irlkit.flows.schedules import ANNEALINGS

        from_plain(json.loads(content), ANNEALINGS)
    elif kind == "ckpt":
        from irlkit.networks.omatg import load_omatg

        load_omatg(write("a.ckpt"), write("a.yaml", SEEDS["yaml"]))
    elif kind == "yaml":
        from irlkit.networks.omatg import load_omatg

        load_omatg(write("a.ckpt", SEEDS["ckpt"]), write("a.yaml"))
    elif kind == "grpo":
        FIXED["trainer"].load_checkpoint(write("a.pt"))
    elif kind == "pretraining":
        FIXED["pretraining"].load(write("a.pt"))
    elif kind == "dynamics":
        from irlkit.rl.policies import load_dynamics

        load_dynamics(write("a.safetensors"), FIXED["model"])
    elif kind == "history":
        from irlkit.lab import runs

        write("run/history.parquet")
        write("run/checkpoint.pt", SEEDS["grpo"])
        runs.main(["show", str(folder / "run")])
    else:
        raise KeyError(target)
    return 0


# --- the process that reads ---

SEEDS = {}
FIXED = {}


def damaged(target, draws):
    """The mutated content of a target's file."""
    if target.endswith("-inner"):
        return mutate_inside(target, SEEDS[target], draws)
    content = mutate(SEEDS[target], draws)
    while target.endswith("-json") and not _is_json(content):
        content = mutate(SEEDS[target], draws)
    return content


def _is_json(content):
    try:
        return isinstance(json.loads(content), dict)
    except (ValueError, RecursionError):
        return False


def serve(folder):
    """Read cases, "target seed" per line of standard input; answers are lines of JSON."""
    import resource

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    (folder / "seeds").mkdir(parents=True, exist_ok=True)
    SEEDS.update(seeds(folder / "seeds"))
    from tests.toys import flow_model

    FIXED["trainer"] = _trainer(None)
    FIXED["pretraining"] = _pretraining()
    FIXED["model"] = flow_model()
    place = folder / "case"
    for target, content in SEEDS.items():  # All that is imported late is imported here.
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        read(target, content, place)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    acts = []
    armed = False

    def watch(event, arguments):
        if not armed:
            return
        if event in WATCHED:
            acts.append(f"{event} {arguments!r}"[:200])
        elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            path = arguments[0]
            if isinstance(path, str | bytes | os.PathLike):
                if not os.path.realpath(os.fsdecode(path)).startswith(str(folder)):
                    acts.append(f"open {arguments!r}"[:200])

    sys.addaudithook(watch)
    print(json.dumps({"targets": list(SEEDS)}), file=answers, flush=True)
    for line in sys.stdin:
        target, seed = line.split()
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        trace = folder / "trace"
        draws = random.Random(f"{target} {seed}")
        content = damaged(target, draws).replace(b"TRACE", str(trace).encode())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        acts.clear()
        answer = {"result": "read"}
        armed = True
        started = time.monotonic()
        try:
            if read(target, content, place):
                answer["result"] = "skipped"
        except DOCUMENTED as error:
            answer = {"result": "refused", "error": f"{type(error).__name__}: {error}"[:300]}
        except BaseException as error:
            answer = {"result": "error", "error": f"{type(error).__name__}: {error}"[:300]}
        armed = False
        answer["seconds"] = time.monotonic() - started
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
        if grown > GROWTH:
            answer = {"result": "memory", "error": f"{grown} KiB more: {answer}"}
        if acts or trace.exists():
            answer = {"result": "acted", "error": f"{acts}"}
        print(json.dumps(answer), file=answers, flush=True)


# --- the process that asks ---


@dataclass
class Finding:
    """A case that went wrong: `python -m tests.fuzz --case TARGET SEED` repeats it."""

    target: str
    seed: int
    what: str
    error: str


class Reader:
    """The other process, started anew when lost."""

    def __init__(self, folder):
        self.folder = folder
        self.process = None

    def start(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "IRLKIT_CACHE": str(self.folder)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz", "--serve", str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
            env=environment,
        )
        answer = self.answer(300)
        if answer is None:
            raise RuntimeError("the process that reads did not start")
        return answer["targets"]

    def answer(self, seconds):
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline() if ready else b""
        return json.loads(line) if line else None

    def ask(self, target, seed):
        if self.process is None:
            self.start()
        try:
            self.process.stdin.write(f"{target} {seed}\n".encode())
            self.process.stdin.flush()
            answer = self.answer(SECONDS)
        except BrokenPipeError:
            answer = None
        if answer is not None:
            return answer
        hung = self.process.poll() is None and not self._ended()
        self.stop()
        return {"result": "hang" if hung else "crash", "error": f"status {self.status}"}

    def _ended(self):
        try:
            self.process.wait(0.5)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.status = self.process.wait()
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
            self.process.stdout.close()
            self.process = None


def run(n, first=0, only=None, progress=None, reader=None, stop=None):
    """Counts per target and result, the findings, and the longest time of a case, seconds.

    Refusals are counted by the type of the exception, such as "ValueError". No case begins after
    the time `stop` of the monotonic clock.
    """
    if reader is None:
        with tempfile.TemporaryDirectory() as folder:
            reader = Reader(Path(folder).resolve())
            try:
                return run(n, first, only, progress, reader, stop)
            finally:
                reader.stop()
    counts = collections.defaultdict(collections.Counter)
    findings, longest = [], 0.0
    targets = [t for t in reader.start() if only in (None, t)]
    for i in range(n):
        if stop is not None and time.monotonic() > stop:
            break
        target, seed = targets[i % len(targets)], first + i // len(targets)
        answer = reader.ask(target, seed)
        refused = answer["result"] == "refused"
        counts[target][answer["error"].partition(":")[0] if refused else answer["result"]] += 1
        longest = max(longest, answer.get("seconds", 0.0))
        if answer["result"] not in ("read", "skipped", "refused"):
            findings.append(Finding(target, seed, answer["result"], answer["error"]))
            if progress is not None:
                progress(str(findings[-1]))
        if progress is not None and (i + 1) % 500 == 0:
            progress(f"{i + 1} of {n}: {len(findings)} findings")
    return counts, findings, longest


def main():
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("n", nargs="?", type=int, default=20_000, help="number of inputs")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after these")
    parser.add_argument("--target", help="only this kind of file")
    parser.add_argument("--case", nargs=2, metavar=("TARGET", "SEED"), help="repeat one case")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return 0
    if arguments.case:
        repeat(*arguments.case)
        return 0
    started = time.monotonic()
    counts, findings, longest = run(
        arguments.n,
        arguments.first,
        arguments.target,
        lambda text: print(text, flush=True),
        stop=started + arguments.seconds,
    )
    for target, found in counts.items():
        print(f"{target:16}", dict(found))
    total = sum(counts.values(), collections.Counter())
    print(f"{total.total()} inputs in {time.monotonic() - started:.0f} s: {dict(total)}")
    print(f"longest: {longest:.2f} s; findings: {len(findings)}")
    for finding in findings:
        print(finding)
    return 1 if findings else 0


def repeat(target, seed):
    """One case in this process, with its traceback."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        SEEDS.update(seeds(folder))
        from tests.toys import flow_model

        FIXED.update(trainer=_trainer(None), pretraining=_pretraining(), model=flow_model())
        place = folder / "case"
        place.mkdir()
        print(read(target, damaged(target, random.Random(f"{target} {seed}")), place))


if __name__ == "__main__":
    sys.exit(main())
