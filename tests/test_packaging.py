"""The package's own files agree with one another."""

import re
import socket
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch

import irlkit
import irlkit.data
from irlkit.__main__ import COMMANDS, main
from irlkit.evaluate import metrics
from irlkit.flows.dynamics import Dynamics

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def test_version_is_the_same_everywhere():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert irlkit.__version__ == PROJECT["version"]
    assert re.search(r"^## (\S+)", changelog, re.MULTILINE)[1] == PROJECT["version"]


def test_environment_file_installs_the_package_on_the_oldest_python():
    yaml = pytest.importorskip("yaml")
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == PROJECT["name"]
    assert environment["channels"] == ["conda-forge"]
    python, pip, through_pip = environment["dependencies"]
    assert PROJECT["requires-python"] == python.replace("python=", ">=")
    # Everything else has its version in pyproject.toml, so nothing else may stand here.
    assert pip == "pip"
    (requirement,) = through_pip["pip"]
    extras = re.fullmatch(r"-e \.\[([a-z,]+)\]", requirement)[1].split(",")
    assert set(extras) == {"notebooks", "test"} <= set(EXTRAS)


def test_readme_opens_with_two_commands_that_exist():
    main_job, tests = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)[:2]
    minimum = PROJECT["requires-python"].removeprefix(">=")
    for command, extra in ((main_job, "notebooks"), (tests, "test")):
        assert command.startswith(f"python{minimum} -m venv .venv && . .venv/bin/activate && ")
        assert f'pip install -e ".[{extra}]" &&' in command
    notebook = re.search(r"papermill (\S+) ", main_job)[1]
    assert (ROOT / notebook).is_file()
    assert tests.rstrip().endswith("&& pytest")


def test_readme_commands_have_arguments_that_exist(monkeypatch):
    """The command lines and notebook parameters of the README's blocks are parsed, not run."""
    from irlkit.pretraining import __main__ as pretraining

    class Parsed(Exception):
        pass

    def load(name, split):
        raise Parsed(name)

    monkeypatch.setattr(pretraining, "load", load)
    commands = README.replace("\\\n", " ")
    (arguments,) = re.findall(r"irlkit pretrain (.*?) &&", commands)
    with pytest.raises(Parsed, match="perov_5"):
        main(["pretrain", *arguments.split()])
    notebook = (ROOT / "notebooks" / "04_velocity_annealing.ipynb").read_text(encoding="utf-8")
    named = re.findall(r" -p (\w+) ", " ".join(re.findall(r"papermill notebooks.*", commands)))
    assert {"dataset", "checkpoint", "out_dir"} <= set(named)
    assert all(f'"{name} = ' in notebook for name in named)


def test_readme_links_to_files_that_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert links and not missing


def test_extra_all_holds_all_extras():
    (requirement,) = EXTRAS["all"]
    named = re.fullmatch(r"irlkit\[([a-z,]+)\]", requirement)[1].split(",")
    # What has to be compiled is asked for by name.
    assert sorted([*named, "all", "dft"]) == sorted(EXTRAS)


def test_each_command_is_listed_and_says_what_it_takes(capsys):
    assert PROJECT["scripts"] == {"irlkit": "irlkit.__main__:main"}
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    listed = capsys.readouterr().out
    assert ended.value.code == 0
    for name, (_, text) in COMMANDS.items():
        assert name in listed and text in listed
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0 and f"usage: irlkit {name} " in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["fly"], ["runs", "fly"]])
def test_what_is_no_command_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and "usage: irlkit" in capsys.readouterr().err


def test_commands_give_their_exit_status(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["runs", "list", str(tmp_path / "nowhere")]) == 1
    assert main(["notebooks", "check", str(tmp_path / "no.ipynb")]) == 1
    assert "no.ipynb" in capsys.readouterr().err


def test_a_command_imports_no_other():
    code = "import sys; from irlkit.__main__ import main\ntry: main(['runs', '--help'])\n"
    code += "except SystemExit: print([m for m in sys.modules if m.startswith('irlkit.lab')])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "'irlkit.lab.runs'" in ended.stdout.splitlines()[-1], ended.stderr
    assert "notebooks" not in ended.stdout.splitlines()[-1]


def test_jupyterlab_does_not_ask_to_be_built(tmp_path, monkeypatch):
    config = pytest.importorskip("jupyterlab_server.config")
    build = pytest.importorskip("hatchling.build")
    monkeypatch.chdir(ROOT)
    wheel = zipfile.ZipFile(tmp_path / build.build_wheel(str(tmp_path)))
    prefix = f"irlkit-{irlkit.__version__}.data/data/"
    wheel.extractall(tmp_path, [name for name in wheel.namelist() if name.startswith(prefix)])
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", str(tmp_path / prefix / "etc" / "jupyter"))
    assert config.get_page_config([])["buildCheck"] is False


def test_wheel_holds_every_file_of_the_package(tmp_path, monkeypatch):
    build = pytest.importorskip("hatchling.build")
    monkeypatch.chdir(ROOT)
    wheel = build.build_wheel(str(tmp_path))
    packed = set(zipfile.ZipFile(tmp_path / wheel).namelist())
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "irlkit").rglob("*")
        if path.is_file() and path.suffix not in {".pyc", ".pyo"}
    }
    assert "irlkit/py.typed" in files
    assert files <= packed
    assert any(name.endswith("licenses/LICENSE") for name in packed)


def test_what_is_in_the_box_needs_no_network(monkeypatch):
    def refuse(*arguments, **names):
        raise OSError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    test = irlkit.data.load("prototypes", split="test").subset(4)
    model = irlkit.load_pretrained("linear-ode")
    generator = torch.Generator().manual_seed(0)
    generated = Dynamics(model).generate(test.batch, 3, generator=generator)
    with metrics.MatchPool(1) as pool:
        assert metrics.evaluate(generated, test, pool).n_structures == len(test)


def test_import_loads_no_heavy_optional_package():
    heavy = "{'mace', 'chgnet', 'crystal_toolkit', 'plotly', 'IPython'}"
    code = f"import sys, irlkit; print(sorted({heavy} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (loaded.returncode, loaded.stdout.strip()) == (0, "[]"), loaded.stderr
