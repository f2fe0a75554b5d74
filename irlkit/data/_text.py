"""Text of any origin: how it is opened and decoded, and what it is not."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from irlkit.utils.foreign import recognise

MAX_CHARACTERS = 10_000_000
"""Most characters of a structure's text; what has more is none."""

BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What reading a file raises that is missing, truncated or damaged."""

COMPRESSED: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
ENDINGS = (".gz", ".bz2", ".xz")


class Unusable(ValueError):
    """Why a record or a file gives no structures, in words."""


def check_head(head: bytes) -> None:
    """Raise an error if something is known by its first bytes and none of our formats."""
    if head and (words := recognise(head)):
        raise Unusable(f"it is {words}")


def open_text(source: Path | IO[bytes], newline: str | None = None) -> IO[str]:
    """Open a text file, compressed or not: UTF-8 or UTF-16 with or without a mark, or Latin-1.

    Args:
        source: The file, or what is open and can be read from its beginning again.
        newline: Of Python's own `open`.

    Raises:
        Unusable: its first bytes are those of something else.
        OSError, EOFError, zlib.error, lzma.LZMAError: it cannot be read.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            head = file.read(8)
    else:
        head = source.read(8)
        source.seek(0)
    opener = next((o for magic, o in COMPRESSED.items() if head.startswith(magic)), None)
    if opener is not None:
        stream = opener(source, "rb")
    else:
        stream = source.open("rb") if isinstance(source, Path) else source
    try:
        head = stream.read(64)
        stream.seek(0)
        check_head(head)
    except BaseException:
        stream.close()
        raise
    return io.TextIOWrapper(stream, _encoding(head), errors="irlkit_latin1", newline=newline)


def _encoding(head: bytes) -> str:
    """What a mark at the beginning says; UTF-32 first, whose mark begins as that of UTF-16 does."""
    for encoding in ("utf-32", "utf-16"):
        name = encoding.upper().replace("-", "")
        if head.startswith((getattr(codecs, f"BOM_{name}_LE"), getattr(codecs, f"BOM_{name}_BE"))):
            return encoding
    return "utf-8-sig"


def without_compression(name: str) -> str:
    """Return a file's name without the ending of a compressed file: "a.cif" of "a.cif.gz"."""
    ending = next((ending for ending in ENDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def shorten(items: Sequence[str], n: int = 5, separator: str = ", ") -> str:
    """Return the first items in a row, and how many more there are: "a, b, and 1 more"."""
    more = f"{separator}and {len(items) - n} more" if len(items) > n else ""
    return separator.join(items[:n]) + more


def decode(data: bytes) -> str:
    """Decode bytes as `open_text` decodes files."""
    check_head(data[:64])
    return data.decode(_encoding(data), errors="irlkit_latin1")


def read_json(text: str) -> Any:
    """Read JSON in which no key of a dictionary stands twice; Python would keep the last one.

    Raises:
        ValueError: it is none, or a key stands twice.
    """
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {max(keys, key=keys.count)!r} stands twice")
    return entries


def _as_latin1(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error("irlkit_latin1", _as_latin1)
