"""What files are that are none of ours, by their first bytes."""

from __future__ import annotations

import codecs
import pickle
import re
from pathlib import Path
from typing import Any

_SIGNATURES = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: run git lfs pull",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"<?xml": "XML",
    b"%pdf": "a PDF",
    b"\x89hdf": "an HDF5 file",
    b"sqlite format": "a database",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"pk\x03\x04": "a zip archive: unpack it",
}
"""In lower case."""


def recognise(head: bytes | Path, *, but: str = "") -> str:
    r"""Say what something is by its first bytes; nothing if they are of no kind known here.

    Args:
        head: at least 64 bytes, where there are as many, or the file itself.
        but: what it may be, such as "a zip archive", which is then not said.

    >>> recognise(b"\n<!DOCTYPE html>")
    'a web page'
    """
    if isinstance(head, Path):
        with head.open("rb") as file:
            head = file.read(64)
    if not head:
        return "an empty file"
    start = head.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    found = next((words for s, words in _SIGNATURES.items() if start.startswith(s)), "")
    return "" if but and found.startswith(but) else found


def load_tensors(path: Path) -> tuple[str, dict[str, Any]]:
    """Read a safetensors file of this package: its header, as JSON, and its tensors by name.

    Raises:
        ValueError: what the file is instead, in words.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            header = (file.metadata() or {}).get("irlkit", "{}")
            return header, {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        words = recognise(path)
        raise ValueError(f"it is {words}" if words else str(error)) from error


def load_plain(path: Path, device: Any = "cpu") -> Any:
    """Load tensors and plain data that `torch.save` wrote; nothing of the file is executed.

    Args:
        path: the file.
        device: where tensors are put.

    Raises:
        FileNotFoundError: no such file.
        ValueError: what the file is instead, or the object in it that is refused, in words.
    """
    import torch

    try:
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise
    # A damaged file can raise nearly anything, and torch's own words advise to execute it.
    except Exception as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        words = recognise(path, but="a zip archive")
        if refused and isinstance(error, pickle.UnpicklingError):
            words = f"{refused[1]} in it is neither a tensor nor plain data and was not loaded"
        elif words:
            words = f"it is {words}"
        elif "TorchScript" in str(error):
            words = "it is a compiled model"
        else:
            words = f"it is damaged or of another kind ({type(error).__name__})"
        raise ValueError(words) from None
