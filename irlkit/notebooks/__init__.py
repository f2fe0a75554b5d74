"""Notebooks: run, export, copy and strip them; see ``python -m irlkit.notebooks --help``."""

from irlkit.notebooks.cli import main
from irlkit.notebooks.exporting import export
from irlkit.notebooks.running import copy, find, run
from irlkit.notebooks.stripping import read_notebook, strip, to_text

__all__ = ["copy", "export", "find", "main", "read_notebook", "run", "strip", "to_text"]
