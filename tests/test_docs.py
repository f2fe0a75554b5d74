"""Pages say what is there: links, names, headings, defaults, commands and examples."""

import ast
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
import torch

from irlkit.__main__ import main
from irlkit.lab import experiments, notebooks
from irlkit.lab.experiments import Rung
from irlkit.rl import rollout
from tests.tiny_experiments import write_files

WITHOUT_ACTIONS = {"train", "pretrain", "download", "prototypes"}
ROOT = Path(__file__).parents[1]
CARDS = [ROOT / "benchmarks" / "README.md", *(ROOT / "irlkit").rglob("README.md")]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md"), *CARDS])
INDEX = (ROOT / "docs" / "paper_index.md").read_text(encoding="utf-8")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def names_in(text: str) -> set[str]:
    """The package's names between single backticks, without arguments."""
    return {found.rstrip(".") for found in re.findall(r"`(irlkit\.[\w.]+)[`(]", text)}


def look_up(name: str) -> object:
    """What a dotted name stands for; a parameter or field stands for its default."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        break
    for part in parts[n:]:
        if hasattr(found, part):
            found = getattr(found, part)
        elif is_dataclass(found) and part in {field.name for field in fields(found)}:
            found = next(field.default for field in fields(found) if field.name == part)
        else:
            found = inspect.signature(found).parameters[part].default
    return found


@each_page
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    local = [target for target in targets if "://" not in target]
    missing = [t for t in local if not (page.parent / t.split("#")[0]).exists()]
    assert not missing


@each_page
def test_names_exist(page):
    for name in names_in(page.read_text(encoding="utf-8")):
        look_up(name)


@each_page
def test_commands_exist(page):
    """Commands of the package, with the subcommand if there is one."""
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"-m irlkit\.[\w.]+", text), "say irlkit COMMAND"
    code = re.findall(r"```bash\n(.*?)```", text, re.S) + re.findall(r"`(irlkit [^`]*)`", text)
    for name, word in re.findall(r"\birlkit (\w+)(?: ([a-z]+)\b)?", "\n".join(code)):
        with pytest.raises(SystemExit) as ended:
            main([name, *([word] if word and name not in WITHOUT_ACTIONS else []), "--help"])
        assert ended.value.code == 0, (name, word)
    for script in re.findall(r"python (\w+/\w+\.py)", text):
        assert (ROOT / script).is_file()


def test_the_index_points_to_headings():
    links = re.findall(r"\[(\d\d)\]\(\.\./notebooks/(\w+\.ipynb)\) · ([^;|,]+)", INDEX)
    assert len(links) > 10
    for number, file, heading in links:
        assert file.startswith(number)
        cells = notebooks.read_notebook(ROOT / "notebooks" / file)["cells"]
        lines = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        assert re.search(rf"^## \d+\. {re.escape(heading.strip())}", lines, re.M), (file, heading)


def test_the_index_has_all_of_the_paper():
    first_cells = [line.split("|")[1] for line in INDEX.splitlines() if line.startswith("| ")]
    equations = {int(n) for cell in first_cells for n in re.findall(r"\((\d+)\)", cell)}
    assert equations == set(range(1, 16))
    assert {f"Fig. {n}" for n in range(1, 9)} <= {cell.strip() for cell in first_cells}
    assert {*"ABCDEFGH", "Table 1"} <= {cell.strip() for cell in first_cells}


def test_the_index_has_the_defaults_of_the_code():
    rows = re.findall(r"^\| `(irlkit\.[\w.]+)` \| `([^`]+)` \|", INDEX, re.M)
    assert len(rows) > 30
    wrong = {name: value for name, value in rows if look_up(name) != ast.literal_eval(value)}
    assert not wrong


def test_what_is_not_there_is_noticed():
    with pytest.raises((AttributeError, KeyError)):
        look_up("irlkit.rl.grpo.GRPOConfig.no_such_field")
    with pytest.raises((AttributeError, KeyError, TypeError)):
        look_up("irlkit.rl.grpo.no_such_function")


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len([line for line in source.splitlines() if line and "import" not in line]) <= 10
    monkeypatch.chdir(tmp_path)
    # A part of the test split: the example itself takes all of it.
    source = source.replace('split="test")', 'split="test").subset(6)')
    exec(compile(source, "README.md", "exec"), {})
    assert "metre" in capsys.readouterr().out
    assert (tmp_path / "first.cif").read_text().startswith("#")


def test_pictures_are_small():
    pictures = sorted((ROOT / "docs" / "pictures").glob("*.png"))
    assert pictures
    assert max(picture.stat().st_size for picture in pictures) < 80_000
    assert sum(picture.stat().st_size for picture in pictures) < 500_000


def solutions(name: str) -> list[str]:
    """Code in the hidden solutions of a notebook's exercises."""
    cells = notebooks.read_notebook(notebooks.find(name))["cells"]
    texts = ["".join(c["source"]) for c in cells if str(c.get("id")).startswith("exercise-")]
    assert all("<details><summary>Solution</summary>\n\n" in text for text in texts)
    assert all(text.rstrip().endswith("</details>") for text in texts)
    return [code for text in texts for code in re.findall(r"```python\n(.*?)```", text, re.S)]


def test_solutions_of_notebook_04_run(tmp_path, monkeypatch):
    pd = pytest.importorskip("pandas")
    plots = pytest.importorskip("irlkit.lab.plots")
    files = write_files(tmp_path)
    monkeypatch.setenv("IRLKIT_CACHE", str(tmp_path / "cache"))
    settings = replace(
        experiments.presets("annealing")["quick"],
        checkpoint=str(files / "second.safetensors"),
        dataset=str(files / "salts.csv"),
        n_steps=4,
        step_counts=(4,),
        reference_steps=6,
        test_size=6,
        seeds=(0,),
        iterations=2,
        grpo={"n_groups": 2, "group_size": 3, "validate_every": 1, "validation_size": 4},
        few_step_sweep=(4, 4),
        reference_sweep=(Rung(2, 3, 6),),
        candidates=(),
    )
    experiment = experiments.VelocityAnnealing(
        settings.checkpoint, settings.dataset, settings, out_dir=tmp_path / "out", progress=False
    )
    experiment.sweep_reference()
    experiment.train_schedules()
    experiment.evaluate("learned")
    shown, policy = [], experiment.policy(0)
    request = experiment.train.batch[0].to(experiment.device, experiment.model.dtype)
    start = policy.process.initial(request, torch.Generator().manual_seed(0)).repeat(3)
    names = {
        **{"torch": torch, "rollout": rollout, "x_0": start, "display": shown.append},
        **{"pd": pd, "experiments": experiments, "plots": plots, "experiment": experiment},
        **{"settings": settings, "few": 4, "device": "cpu", "out_dir": str(tmp_path / "out")},
    }
    noise, schedule, steps = (
        _last_value(code.replace("iterations=20", "iterations=2"), names)
        for code in solutions("04")
    )
    assert noise.data, "a figure"
    assert len({trace.name for trace in shown[0].data}) == 3, "a group for each noise"
    assert schedule["share"].iloc[-1] == pytest.approx(schedule["factor"].iloc[-1], rel=0.02)
    assert steps["crmse"].between(0, 0.5).all() and len(steps) == 9


def _last_value(code: str, names: dict[str, object]) -> object:
    """Run code as a cell: the value of its last expression."""
    *body, last = ast.parse(code).body
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


@pytest.mark.slow
def test_the_api_reference_builds(tmp_path):
    pytest.importorskip("pdoc", reason="pdoc is not installed")
    done = subprocess.run(
        [sys.executable, "docs/api.py", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower(), done.stderr
    for page in ("irlkit.html", "irlkit/rl/grpo.html", "irlkit/flows/schedules/annealing.html"):
        assert (tmp_path / page).is_file()
