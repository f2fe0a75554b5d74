"""Command line: ``irlkit notebooks run|export|serve|copy|list|strip|check``."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from irlkit.lab.notebooks import _exporting, _running, _serving
from irlkit.lab.notebooks._stripping import read_notebook, strip, to_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status (``check``: 1 if a notebook is unstripped)."""
    options = _parser().parse_args(arguments)
    try:
        return options.action(options) or 0
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="irlkit notebooks")
    actions = parser.add_subparsers(dest="command", required=True)

    def add(name: str, action: Any, text: str) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=text)
        made.set_defaults(action=action)
        return made

    run = add("run", _run, "execute a notebook with papermill")
    run.add_argument("name", help='"04", a name, or the path of a notebook')
    run.add_argument("-o", "--output", type=Path, help="default: runs/ and the notebook's name")
    export = add("export", _export, "write an executed notebook as one HTML file")
    export.add_argument("name", help="an executed notebook, or a name as for run")
    export.add_argument("-o", "--output", type=Path, help="default: beside the notebook")
    serve = add("serve", _serve, "serve 04's explorer as a page with Voila")
    serve.add_argument("name", nargs="?", help="a whole notebook, executed for each visitor")
    serve.add_argument("--results", type=Path, help="out_dir of 04; default: those in the package")
    serve.add_argument("--port", type=int, default=8866)
    serve.add_argument("--host", default="127.0.0.1", help="0.0.0.0: for the whole network")
    serve.add_argument(
        "--ready", type=int, help="kernels that wait for visitors; default: 2, none of a notebook"
    )
    for one in (run, serve):
        one.add_argument("--preset", help="quick, laptop or paper; 03 also: long")
        one.add_argument(
            "-p",
            "--parameter",
            nargs=2,
            action="append",
            default=[],
            metavar=("NAME", "VALUE"),
            help="set a parameter of the notebook; may be repeated",
        )
    copy = add("copy", _copy, "copy the notebooks of the package")
    copy.add_argument("target", type=Path, nargs="?", default=Path(), help="folder")
    copy.add_argument("--force", action="store_true", help="overwrite what is there")
    add("list", _list, "names and parameters of the notebooks")
    for name, text in (
        ("strip", "remove outputs and volatile metadata in place"),
        ("check", "say which notebooks strip would change"),
    ):
        paths = add(name, _strip, text)
        paths.add_argument("paths", nargs="*", type=Path, help="default: notebooks/*.ipynb")
    return parser


def _value(text: str) -> Any:
    """Read a parameter as Python does, or else as text; also "true", "null" and the like."""
    plain = {"true": "True", "false": "False", "none": "None", "null": "None"}
    try:
        return ast.literal_eval(plain.get(text.lower(), text))
    except (ValueError, SyntaxError):
        return text


def _parameters(options: argparse.Namespace) -> dict[str, Any]:
    parameters = {name: _value(text) for name, text in options.parameter}
    return parameters if options.preset is None else {**parameters, "preset": options.preset}


def _run(options: argparse.Namespace) -> None:
    print(_running.run(options.name, _parameters(options), options.output))


def _serve(options: argparse.Namespace) -> None:
    name, parameters, ready = options.name, _parameters(options), options.ready
    if name is None:
        from irlkit.lab.experiments.finished import load_finished

        if parameters:
            raise ValueError("parameters are those of a notebook; name one, such as serve 04")
        load_finished(options.results)  # says what is wrong with it, before anyone comes
        results = options.results
        name = _serving.EXPLORER
        parameters = {"results": None if results is None else str(results.resolve())}
        ready = 2 if ready is None else ready
    elif options.results is not None:
        raise ValueError("--results is for the explorer; leave out the name of the notebook")
    elif "preset" in _running.parameters_of(_running.find(name)):
        parameters.setdefault("preset", "quick")
    page = _running.prepare_page(name, parameters)
    _serving.serve(page, options.port, options.host, ready or 0)


def _export(options: argparse.Namespace) -> None:
    path = _exporting.export(options.name, options.output)
    size = path.stat().st_size
    print(f"{path} ({size / 1e6:.1f} MB)")
    if size > _exporting.MAX_SIZE:
        print("larger than usual: some figure holds many points", file=sys.stderr)


def _copy(options: argparse.Namespace) -> None:
    for path in _running.copy(options.target, options.force):
        print(path)


def _list(options: argparse.Namespace) -> None:
    for path in _running.shipped():
        print(f"{path.stem}: {', '.join(_running.parameters_of(path))}")


def _strip(options: argparse.Namespace) -> int:
    status = 0
    for path in options.paths or sorted(Path("notebooks").glob("*.ipynb")):
        try:
            text = to_text(strip(read_notebook(path)))
        except ValueError as error:
            print(error, file=sys.stderr)
            status = 1
            continue
        if text == path.read_text(encoding="utf-8"):
            continue
        if options.command == "strip":
            path.write_text(text, encoding="utf-8")
            print(f"stripped {path}")
        else:
            print(f"{path}: not stripped; run irlkit notebooks strip", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
