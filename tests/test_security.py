"""What strangers' files may do: nothing. What the package's own code may do is listed here."""

import ast
import gzip
import hashlib
import importlib.util
import json
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import irlkit
from irlkit import data
from irlkit.data import _cache, _unpickling
from irlkit.flows.schedules import load_annealing
from irlkit.lab import runs
from irlkit.networks.flow_model import FlowModel
from irlkit.networks.omatg import download
from irlkit.potentials import MACEPotential
from tests import fuzz

PACKAGE = Path(irlkit.__file__).parent

# --- what the code does ---

ALLOWED = {
    ("utils/workers.py", "pickle.loads"): "of processes it has started, or was started by",
    ("utils/workers.py", "import cloudpickle"): "writes a function, for those processes",
    ("data/_unpickling.py", "pickle.Unpickler"): "the allow-list itself",
    ("potentials/mace.py", "torch.load without weights_only=True"): "asks for trust=True",
    ("lab/plots/live.py", "import socket"): "finds a free port on this machine",
}
"""Exceptions, by file and what is used: why."""

LOADERS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
NETWORK = {"socket", "urllib", "http", "requests", "httpx", "ftplib", "smtplib", "telnetlib"}
FORBIDDEN = {
    "os.system", "os.popen", "os.startfile", "pty.spawn", "tempfile.mktemp", "pandas.read_pickle",
    "pd.read_pickle", "torch.hub.load", "torch.jit.load", "shutil.unpack_archive", "runpy.run_path",
    "runpy.run_module", "torch.serialization.add_safe_globals", "ssl._create_unverified_context",
}  # fmt: skip


def dotted(node):
    """ "a.b.c" of such an expression, "" of others."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else f"?.{node.attr}"
    return ""


def constant(call, keyword):
    for entry in call.keywords:
        if entry.arg == keyword and isinstance(entry.value, ast.Constant):
            return entry.value.value
    return None


def uses(source):
    """What a module uses that could run code or reach the network."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            for name in [module] if module else [alias.name for alias in node.names]:
                root = name.partition(".")[0]
                # `from pickle import load` would hide the calls below.
                if root in NETWORK or (root in LOADERS and (module or root != "pickle")):
                    found.add(f"import {name}")
                if module and root in ("subprocess", "os", "yaml") and name != "os.path":
                    found.add(f"from {name} import")
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if "http://" in node.value:
                found.add("http://")
            if "exec(" in node.value or "eval(" in node.value:
                found.add("code in a text")
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        if name in ("eval", "exec", "compile", "__import__") or name in FORBIDDEN:
            found.add(name)
        elif name.startswith(("os.exec", "os.spawn", "os.posix_spawn", "marshal.", "shelve.")):
            found.add(name)
        elif name.startswith("pickle.") and not name.startswith("pickle.dump"):
            found.add(name)
        elif name.startswith("subprocess."):
            found.add(name)
        elif name.startswith("yaml.") and name not in ("yaml.safe_load", "yaml.safe_dump"):
            found.add(name)
        elif name == "torch.load" and constant(node, "weights_only") is not True:
            found.add("torch.load without weights_only=True")
        elif name in ("np.load", "numpy.load") and constant(node, "allow_pickle") is not False:
            found.add("np.load without allow_pickle=False")
        elif name.endswith((".extractall", ".read_pickle")):
            found.add(name)
        if constant(node, "shell") or constant(node, "trust_remote_code"):
            found.add("shell=True or trust_remote_code=True")
        if any(keyword.arg == "verify" for keyword in node.keywords):
            found.add("verify=")
    # Pickles that inherit are calls as well.
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            found |= {dotted(b) for b in node.bases if dotted(b).startswith("pickle.")}
    return found


def test_the_package_uses_nothing_that_is_not_listed():
    found = {
        (path.relative_to(PACKAGE).as_posix(), use)
        for path in PACKAGE.rglob("*.py")
        for use in uses(path.read_text(encoding="utf-8"))
    }
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    "line",
    [
        "eval(x)",
        "pickle.loads(x)",
        "from pickle import loads",
        "import dill",
        "import urllib.request",
        "torch.load(x)",
        "torch.load(x, weights_only=flag)",
        "np.load(x)",
        "np.load(x, allow_pickle=True)",
        "pd.read_pickle(x)",
        "yaml.load(x)",
        "yaml.unsafe_load(x)",
        "from yaml import load",
        "subprocess.run(x, shell=True)",
        "anything(x, shell=True)",
        "os.system(x)",
        "archive.extractall()",
        "get('http://example.org')",
        "client.get(url, verify=False)",
        "class A(pickle.Unpickler): pass",
    ],
)
def test_what_is_not_listed_is_seen(line):
    assert uses(line)


def test_ordinary_lines_are_not():
    assert not uses("model.eval(); pickle.dumps(x); yaml.safe_load(x); re.compile(x)")
    assert not uses("torch.load(x, weights_only=True); np.load(x, allow_pickle=False)")


# --- what files do ---


class Touches:
    """Makes a file when it is unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def grpo(path):
    fuzz._trainer(None).load_checkpoint(path)


def omatg(path):
    path.with_suffix(".yaml").write_text(fuzz.CONFIG)
    irlkit.load_omatg(path, path.with_suffix(".yaml"))


def folder_of_a_run(path):
    path.rename(path.with_name("checkpoint.pt"))
    runs.main(["show", str(path.parent)])
    raise ValueError(runs.read(path.parent).problems)


PICKLES = {
    "GRPO": ("a.pt", grpo),
    "pretraining": ("a.pt", lambda path: fuzz._pretraining().load(path)),
    "OMatG": ("a.ckpt", omatg),
    "OMatG by name": ("a.ckpt", irlkit.load_pretrained),
    "run": ("a.pt", folder_of_a_run),
    "MACE": ("a.model", lambda path: MACEPotential(path=path)),
    "flow model": ("a.safetensors", FlowModel.load),
    "annealing": ("a.safetensors", load_annealing),
    "LMDB": ("a.lmdb", lambda path: data.load(path, cache=False)),
    "parquet": ("a.parquet", lambda path: data.load(path, cache=False)),
    "CSV": ("a.csv", lambda path: data.load(path, cache=False)),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", PICKLES)
def test_no_loader_runs_a_pickle(kind, zipped, tmp_path, monkeypatch):
    # A variable by which users of mace allow torch.load to run pickles has no say here.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    name, loader = PICKLES[kind]
    trace, path = tmp_path / "trace", tmp_path / name
    content = {"state_dict": Touches(trace), "config": {}, "iteration": 1, "format": "x"}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises((ValueError, FileNotFoundError)):
        loader(path)
    assert not trace.exists()


def test_what_the_pickle_would_have_done(tmp_path):
    pickle.loads(pickle.dumps(Touches(tmp_path / "trace")))
    assert (tmp_path / "trace").exists()


def test_the_cache_unpickles_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("IRLKIT_CACHE", str(tmp_path))
    array = np.array([Touches(tmp_path / "trace")], dtype=object)
    np.savez(tmp_path / "entry.npz", species=array)
    with pytest.warns(UserWarning, match="cannot read the cache"):
        assert _cache.read("entry") is None
    assert not (tmp_path / "trace").exists()


CIF = """data_x
_cell_length_a 4
_cell_length_b 4
_cell_length_c 4
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
{}
loop_
_atom_site_label
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
H1 0 0 0
"""
CALL = "__import__('os').system('touch {}')"
ESCAPE = "[d for d in ().__class__.__mro__[1].__getattribute__(*[().__class__.__mro__[1]]+['__sub'+"
ESCAPE += (
    "'classes__'])() if d.__name__ == 'BuiltinImporter'][0].load_module('os').system('touch {}')"
)
TEXTS = {
    "symmetry operation": ("a.cif", CIF.format("_symmetry_equiv_pos_as_xyz\n \"" + CALL + '"')),
    "magnetic transformation": (
        "a.mcif.cif",
        CIF.format(
            '_space_group_magn.transform_BNS_Pp_abc "a,b,' + ESCAPE + ';0,0,0"\n'
            "_space_group_magn.number_BNS 62.448\n_space_group_magn.name_BNS \"P n' m a'\""
        ),
    ),
    "YAML tag": ("a.yaml", "model: !!python/object/apply:os.system ['touch {}']\n"),
    "dictionary": ("a.csv", 'cif\n"{{\'a\': ' + CALL + '}}"\n'),
    "MSON": (
        "a.csv",
        'cif\n"' + json.dumps({"@module": "os", "@class": "system", "command": "touch {}"})
        .replace("{", "{{").replace("}", "}}").replace("{{}}", "{}").replace('"', '""') + '"\n',
    ),
    "formula": ("a.txt", CALL + "\n"),
    "extended XYZ": ("a.xyz", '1\nLattice="4 0 0 0 4 0 0 0 4" a="_JSON ' + CALL + '"\nH 0 0 0\n'),
    "CSV formula": ("a.csv", "cif,e\n=cmd|'touch {}'!A0,1\n"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TEXTS)
def test_no_text_is_evaluated(kind, tmp_path):
    name, text = TEXTS[kind]
    trace, path = tmp_path / "trace", tmp_path / name
    path.write_text(text.replace("{}", str(trace)).replace("{{", "{").replace("}}", "}"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if name == "a.yaml":
                (tmp_path / "a.ckpt").write_bytes(b"")
                irlkit.load_omatg(tmp_path / "a.ckpt", path)
            else:
                data.load(path, cache=False, progress=False)
        except ValueError:
            pass
    assert not trace.exists()


# --- small files that ask for much ---

DEEP = "[" * 20_000 + "]" * 20_000
ALIASES = "a0: &a0 [x, x, x]\n" + "".join(
    f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)
)


def safetensors(header):
    data = json.dumps({"__metadata__": {"irlkit": header}}).encode()
    return len(data).to_bytes(8, "little") + data


GREEDY = {
    "nested YAML": ("a.yaml", "model: " + "[" * 2000, "not YAML of plain data"),
    "aliases of aliases": (
        "a.yaml",
        ALIASES + fuzz.CONFIG.replace("perov_5", "*a59"),
        "more than 100000 entries",
    ),
    "large YAML": ("a.yaml", "# " + "x" * (1 << 20), "larger than 1048576 bytes"),
    "nested header": ("a.safetensors", safetensors(DEEP), "not a model of this package"),
    "many columns": ("a.csv", "," * 5000 + "cif\n", "has 5001 columns, more than 5000"),
    "a long text": ("a.csv.gz", gzip.compress(b"cif\n" + b"a" * 10_000_001), "its text is longer"),
    "many columns of atoms": (
        "a.xyz",
        '1\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:9999999999:pos:R:3\nH 0 0 0\n',
        "more than 999 columns",
    ),
    "a long formula": ("a.txt", "H99999999999\n", "gave a composition"),
}


@pytest.mark.parametrize("kind", GREEDY)
def test_small_files_that_ask_for_much_are_refused(kind, tmp_path):
    name, content, message = GREEDY[kind]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        if path.suffix == ".yaml":
            (tmp_path / "a.ckpt").write_bytes(b"")
            irlkit.networks.omatg._config.read_config(path)
        elif path.suffix == ".safetensors":
            FlowModel.load(path)
        else:
            data.load(path, cache=False, progress=False)


def test_pickles_that_share_tuples_level_upon_level_are_refused():
    doubled = b"2\x86" * 60
    memo = b"".join(b"q%ch%ch%c\x86" % (i, i, i) for i in range(60))
    for attack in (doubled, memo, b"N0".join([doubled, b""])):
        # As the key of a dictionary, whose hash would take 2^60 steps.
        with pytest.raises(ValueError, match=r"refers to \d+ of its lists and tuples again"):
            _unpickling.loads(b"}N" + attack + b"Ns.")


def test_pickles_that_ask_for_room_are_refused():
    with pytest.raises(ValueError, match="numbers an object 2147483647"):
        _unpickling.loads(b"Nr\xff\xff\xff\x7f.")


def test_numbers_and_names_may_be_shared():
    dtype = np.dtype("f8")
    record = {f"name {i}": np.float64(i) for i in range(50)}
    record |= {f"tensor {i}": torch.zeros(2) for i in range(50)}
    record["names"] = [dtype.name] * 50
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        read = _unpickling.loads(pickle.dumps(record, protocol))
        assert read["name 7"] == 7 and len(read) == 101


def test_numbers_beyond_all_types_skip_their_record(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    good = {"pos": torch.zeros(1, 3), "cell": 4 * torch.eye(3), "atomic_numbers": torch.tensor([1])}
    with (
        lmdb.open(str(tmp_path / "a.lmdb"), subdir=False, map_size=1 << 20) as environment,
        environment.begin(write=True) as transaction,
    ):
        transaction.put(b"0", pickle.dumps(good))
        transaction.put(b"1", pickle.dumps({**good, "pos": [[10**400, 0, 0]]}))
        transaction.put(b"2", pickle.dumps({**good, "energy": 10**40}))
    with pytest.warns(UserWarning, match="1 of 3 records"):
        dataset = data.load(tmp_path / "a.lmdb", cache=False)
    assert dataset.table["material_id"].tolist() == ["0", "2"]


# --- downloads ---


def test_downloads_are_encrypted():
    assert download.HOST.startswith("https://")
    mace = importlib.util.find_spec("mace")
    if mace is not None:
        file = Path(mace.origin).parent / "calculators" / "foundations_models.py"
        assert "https://" in file.read_text() and "http://" not in file.read_text()


@pytest.mark.parametrize("kind", ["sha256", "sha1"])
def test_downloaded_files_are_those_that_were_announced(kind, tmp_path):
    content = b"weights"
    announced = {
        "sha256": hashlib.sha256(content),
        "sha1": hashlib.sha1(b"blob 7\0" + content),
    }[kind].hexdigest()
    blob, link = tmp_path / announced, tmp_path / "model.ckpt"
    blob.write_bytes(content)
    link.symlink_to(blob)
    download._verify(link)
    blob.write_bytes(b"weightz")
    with pytest.raises(ConnectionError, match=rf"model.ckpt was not what .*{kind} .*{announced}"):
        download._verify(link)
    assert not blob.exists() and not link.is_symlink()
