"""Notebooks: run, export, serve, copy and strip them; see ``irlkit notebooks --help``."""

from irlkit.lab.notebooks._exporting import export
from irlkit.lab.notebooks._running import copy, find, run
from irlkit.lab.notebooks._stripping import read_notebook, strip, to_text

__all__ = ["copy", "export", "find", "read_notebook", "run", "strip", "to_text"]
