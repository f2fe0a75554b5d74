"""Notebooks: run, export, serve, copy and strip them; see ``irlkit notebooks --help``."""

from irlkit.lab.notebooks.exporting import export
from irlkit.lab.notebooks.running import copy, find, run
from irlkit.lab.notebooks.stripping import read_notebook, strip, to_text

__all__ = ["copy", "export", "find", "read_notebook", "run", "strip", "to_text"]
