"""Notebooks: run, export, copy and strip them; see ``python -m irlkit.lab.notebooks --help``."""

from irlkit.lab.notebooks.cli import main
from irlkit.lab.notebooks.exporting import export
from irlkit.lab.notebooks.running import copy, find, run
from irlkit.lab.notebooks.stripping import read_notebook, strip, to_text

__all__ = ["copy", "export", "find", "main", "read_notebook", "run", "strip", "to_text"]
