"""The command lines of the package: ``irlkit COMMAND ...`` or ``python -m irlkit COMMAND ...``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "generate": ("irlkit.lab.generate", "generate, relax and rank structures of formulas"),
    "evaluate": ("irlkit.evaluate.__main__", "validity, novelty and stability of any structures"),
    "notebooks": ("irlkit.lab.notebooks.__main__", "run, export, serve, copy or strip notebooks"),
    "runs": ("irlkit.lab.runs", "list what runs have left in a folder, and how far they got"),
    "sweeps": ("irlkit.lab.sweeps.__main__", "seek hyperparameters, and show what was found"),
    "train": ("irlkit.lab.train", "train an annealing with GRPO, on one machine or several"),
    "pretrain": ("irlkit.pretraining.__main__", "train a flow model on a data set"),
    "download": ("irlkit.networks.omatg.download", "fetch published models"),
    "prototypes": ("irlkit.lab.prototypes.generate", "make an embedded data set again"),
}
"""Name -> module, whose ``main`` takes the arguments after the name, and what it does."""


def main(arguments: Sequence[str] | None = None) -> int | None:
    """Run the command that the first argument names; return its exit status (None: success)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="irlkit", description="irlkit COMMAND --help says more of a command."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, text) in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    # The rest is the command's own: its module is imported only now.
    module, _ = COMMANDS[parser.parse_args(given[:1]).command]
    return importlib.import_module(module).main(given[1:])


if __name__ == "__main__":
    sys.exit(main())
