"""Command line: ``python -m irlkit.lab.notebooks run|export|serve|copy|list|strip|check``."""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from irlkit.lab.notebooks import exporting, running, serving
from irlkit.lab.notebooks.stripping import read_notebook, strip, to_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (``check``: 1 if a notebook is unstripped)."""
    options = _parser().parse_args(arguments)
    if options.action in ("strip", "check"):
        return _strip(options.action, options.paths)
    try:
        actions = {"run": _run, "export": _export, "serve": _serve, "copy": _copy, "list": _list}
        return actions[options.action](options)
    except (ImportError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m irlkit.lab.notebooks")
    actions = parser.add_subparsers(dest="action", required=True)
    run = actions.add_parser("run", help="execute a notebook with papermill")
    run.add_argument("name", help='"04", a name, or the path of a notebook')
    _add_parameters(run)
    run.add_argument("-o", "--output", type=Path, help="default: runs/ and the notebook's name")
    run.add_argument("--open", action="store_true", help="open the result in JupyterLab")
    run.add_argument("--export", action="store_true", help="also write the result as HTML")
    export = actions.add_parser("export", help="write an executed notebook as one HTML file")
    export.add_argument("name", help="an executed notebook, or a name as for run")
    export.add_argument("-o", "--output", type=Path, help="default: beside the notebook")
    serve = actions.add_parser("serve", help="serve 04's explorer as a page with Voila")
    serve.add_argument("name", nargs="?", help="a whole notebook, executed for each visitor")
    serve.add_argument("--results", type=Path, help="out_dir of 04; default: those in the package")
    _add_parameters(serve)
    serve.add_argument("--port", type=int, default=8866)
    serve.add_argument("--host", default="127.0.0.1", help="0.0.0.0: for the whole network")
    copy = actions.add_parser("copy", help="copy the notebooks of the package")
    copy.add_argument("target", type=Path, nargs="?", default=Path(), help="folder")
    copy.add_argument("--force", action="store_true", help="overwrite what is there")
    actions.add_parser("list", help="names and parameters of the notebooks")
    for name, text in (
        ("strip", "remove outputs and volatile metadata in place"),
        ("check", "say which notebooks strip would change"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("paths", nargs="*", type=Path, help="default: notebooks/*.ipynb")
    return parser


def _add_parameters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", help="quick, laptop or paper; 03 also: long")
    parser.add_argument(
        "-p",
        "--parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="set a parameter of the notebook; may be repeated",
    )


def _value(text: str) -> Any:
    """A parameter as Python reads it, or else as text; also "true", "null" and the like."""
    plain = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in plain:
        return plain[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _parameters(options: argparse.Namespace) -> dict[str, Any]:
    parameters = {name: _value(text) for name, text in options.parameter}
    if options.preset is not None:
        parameters["preset"] = options.preset
    return parameters


def _run(options: argparse.Namespace) -> int:
    parameters = _parameters(options)
    source = running.find(options.name)
    output = Path("runs") / source.name if options.output is None else options.output
    try:
        running.run(source, parameters, output)
    except Exception as error:
        if type(error).__name__ != "PapermillExecutionError":
            raise
        print(f"{error}\nThe notebook up to there is in {output}", file=sys.stderr)
        return 1
    print(output)
    if options.export:
        _write_html(output, None)
    if options.open:
        command = [sys.executable, "-m", "jupyterlab", str(output)]
        return subprocess.run(command, check=False).returncode
    return 0


def _serve(options: argparse.Namespace) -> int:
    parameters = _parameters(options)
    if options.name is None:
        if parameters:
            raise ValueError("parameters are those of a notebook; name one, such as serve 04")
        return serving.serve_explorer(options.results, options.port, options.host)
    if options.results is not None:
        raise ValueError("--results is for the explorer; leave out the name of the notebook")
    if "preset" in running.parameters_of(running.find(options.name)):
        parameters.setdefault("preset", "quick")
    page = running.prepare_page(options.name, parameters)
    return serving.serve_page(page, options.port, options.host)


def _export(options: argparse.Namespace) -> int:
    _write_html(options.name, options.output)
    return 0


def _write_html(name: str | Path, output: Path | None) -> None:
    path = exporting.export(name, output)
    size = path.stat().st_size
    print(f"{path} ({size / 1e6:.1f} MB)")
    if size > exporting.MAX_SIZE:
        print("larger than usual: some figure holds many points", file=sys.stderr)


def _copy(options: argparse.Namespace) -> int:
    for path in running.copy(options.target, options.force):
        print(path)
    return 0


def _list(options: argparse.Namespace) -> int:
    for path in sorted(running.folder().glob("*.ipynb")):
        print(f"{path.stem}: {', '.join(running.parameters_of(path))}")
    return 0


def _strip(action: str, paths: Sequence[Path]) -> int:
    status = 0
    for path in paths or sorted(Path("notebooks").glob("*.ipynb")):
        try:
            text = to_text(strip(read_notebook(path)))
        except ValueError as error:
            print(error, file=sys.stderr)
            status = 1
            continue
        if text == path.read_text(encoding="utf-8"):
            continue
        if action == "strip":
            path.write_text(text, encoding="utf-8")
            print(f"stripped {path}")
        else:
            print(
                f"{path}: not stripped; run python -m irlkit.lab.notebooks strip", file=sys.stderr
            )
            status = 1
    return status
