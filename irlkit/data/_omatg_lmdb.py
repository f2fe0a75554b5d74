"""Reader of OMatG's LMDB files, which needs no other package; writing them is left to OMatG.

An LMDB file is a tree of pages, all checked before any is followed: the library itself trusts its
files, so that a damaged one ends the process.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from irlkit.data._text import Unusable, check_head
from irlkit.data._unpickling import loads
from irlkit.data.readers import (
    ID_COLUMNS,
    Arrays,
    Malformed,
    RawRecords,
    chunked,
    register_reader,
    scalars,
)

ARRAYS = ("atomic_numbers", "pos", "cell")
MAGIC = 0xBEEFC0DE
BRANCH, LEAF, OVERFLOW, META = 1, 2, 4, 8
BIG_VALUE = 1
NO_PAGE = 2**64 - 1
HEADER = 16
MAX_KEY = 511
MAX_DEPTH = 32


def read_lmdb(path: Path) -> Iterator[RawRecords]:
    """Read OMatG's LMDB files (or folders with `data.mdb`), record by record.

    A record is a pickled dictionary of the tensors `pos` (Cartesian, Å), `cell` (Å) and
    `atomic_numbers`; with `pos_is_fractional`, `pos` is fractional. Other numbers and strings go to
    the table. Pickles execute nothing: a record with anything else in it is skipped.

    Raises:
        ValueError: the file is not an LMDB file, is truncated or damaged.
    """
    file = path / "data.mdb" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{path} is a folder without data.mdb")
    try:
        with file.open("rb") as stream:
            check_head(stream.read(64))
    except Unusable as error:
        raise ValueError(f"cannot read {file} as an LMDB file: {error}") from error
    if file.stat().st_size < HEADER + 136:
        raise ValueError(f"cannot read {file} as an LMDB file: it has too few bytes")
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            values = sorted(_Tree(file, data).values(), key=lambda value: _order(value[0]))
        except struct.error as error:
            raise ValueError(f"{file} is damaged: a page is cut off") from error
        yield from chunked(_read_record(key, data[at : at + n]) for key, at, n in values)


def _order(key: bytes) -> tuple[int, bytes]:
    """Numbers in order of size, before other keys."""
    return (len(key.lstrip(b"0")) if key.isdigit() else 1 << 30, key.lstrip(b"0") or key)


def _read_record(key: bytes, data: bytes) -> tuple[Any, dict[str, Any]]:
    """Payload and entries of the table."""
    row: dict[str, Any] = {}
    try:
        record = loads(data)
        if not isinstance(record, dict) or not set(ARRAYS) <= set(record):
            found = sorted(map(str, record)) if isinstance(record, dict) else type(record).__name__
            raise ValueError(f"it must be a dictionary with {list(ARRAYS)}, found {found}")
        is_fractional = bool(record.pop("pos_is_fractional", False))
        row = scalars(
            (name, value.numpy() if isinstance(value, Tensor) else value)
            for name, value in record.items()
            if name not in ARRAYS
        )
        species, pos, cell = (np.asarray(record[name], dtype=np.float64) for name in ARRAYS)
        payload: Any = Arrays(species, pos, cell, cartesian=not is_fractional)
    # What a strange record makes of this, such as a number beyond all types.
    except Exception as error:
        payload = Malformed(str(error))
    if not any(name in row for name in ID_COLUMNS):
        row["material_id"] = key.decode(errors="replace")
    return payload, row


class _Meta(NamedTuple):
    """What one of the two first pages says."""

    page_size: int
    flags: int
    depth: int
    root: int
    last: int
    transaction: int


class _Tree:
    """The pages of a file, every one of which is checked before it is followed."""

    def __init__(self, file: Path, data: mmap.mmap) -> None:
        self.file, self.data, self.size = file, data, len(data)
        self.seen: set[int] = set()

    def fail(self, what: str) -> ValueError:
        return ValueError(f"{self.file} is damaged: {what}")

    def values(self) -> Iterator[tuple[bytes, int, int]]:
        """Yield key, beginning and length of each value of the main table."""
        first = self._meta(0)
        self.page_size = first.page_size
        if self.page_size not in (1 << k for k in range(8, 17)):
            raise ValueError(f"cannot read {self.file} as an LMDB file: page size {self.page_size}")
        if self.size < 2 * self.page_size:
            raise ValueError(f"{self.file} is truncated: it has {self.size} bytes")
        metas = [first, self._meta(self.page_size)]
        for meta in metas:
            if meta.flags & 0x7FFF:
                raise self.fail("its table is not a plain one")
            if (needed := (meta.last + 1) * self.page_size) > self.size:
                raise ValueError(
                    f"{self.file} is truncated: it has {self.size} bytes, its index asks for "
                    f"{needed}"
                )
            if meta.depth > MAX_DEPTH or (meta.depth == 0) != (meta.root == NO_PAGE):
                raise self.fail(f"its tree is {meta.depth} pages deep")
        newest = max(metas, key=lambda meta: meta.transaction)
        self.last = newest.last
        if newest.depth:
            yield from self._walk(newest.root, newest.depth)

    def _meta(self, at: int) -> _Meta:
        (flags,) = struct.unpack_from("<H", self.data, at + 10)
        magic, version = struct.unpack_from("<II", self.data, at + HEADER)
        if magic != MAGIC or not flags & META or version != 1:
            raise ValueError(f"cannot read {self.file} as an LMDB file: it does not begin like one")
        (page_size,) = struct.unpack_from("<I", self.data, at + HEADER + 24)
        table = struct.unpack_from("<HH", self.data, at + HEADER + 76)
        return _Meta(page_size, *table, *struct.unpack_from("<QQQ", self.data, at + HEADER + 112))

    def _page(self, number: int, kind: int) -> int:
        """Where a page of a kind begins."""
        if not 2 <= number <= self.last:
            raise self.fail(f"it points to page {number} of {self.last + 1}")
        if number in self.seen:
            raise self.fail(f"page {number} is used twice")
        self.seen.add(number)
        at = number * self.page_size
        stored, _, flags = struct.unpack_from("<QHH", self.data, at)
        # Pages that were changed in the last transaction carry one more mark.
        if stored != number or flags & ~0x10 != kind:
            raise self.fail(f"page {number} is not what it should be")
        return at

    def _walk(self, number: int, depth: int) -> Iterator[tuple[bytes, int, int]]:
        leaf = depth == 1
        at = self._page(number, LEAF if leaf else BRANCH)
        lower, upper = struct.unpack_from("<HH", self.data, at + 12)
        count = (lower - HEADER) // 2
        least = 1 if leaf else 2
        if not HEADER + 2 * least <= lower <= upper <= self.page_size or lower % 2:
            raise self.fail(f"page {number} has no room for its entries")
        for offset in struct.unpack_from(f"<{count}H", self.data, at + HEADER):
            if not upper <= offset <= self.page_size - 8 or offset % 2:
                raise self.fail(f"an entry of page {number} is outside it")
            low, high, flags, key_size = struct.unpack_from("<HHHH", self.data, at + offset)
            end = offset + 8 + key_size
            if end > self.page_size or key_size > MAX_KEY:
                raise self.fail(f"a key of page {number} is too long")
            size = low | high << 16
            if not leaf:
                yield from self._walk(size | flags << 32, depth - 1)
                continue
            begin, room = at + end, self.page_size - end
            if flags == BIG_VALUE and end + 8 <= self.page_size:
                (first,) = struct.unpack_from("<Q", self.data, begin)
                begin = self._page(first, OVERFLOW)
                (n_pages,) = struct.unpack_from("<I", self.data, begin + 12)
                begin, room = begin + HEADER, n_pages * self.page_size - HEADER
                if first + n_pages - 1 > self.last:
                    raise self.fail(f"a value of page {number} is too long")
            elif flags:
                raise self.fail(f"an entry of page {number} is not a plain value")
            if size > room:
                raise self.fail(f"a value of page {number} is too long")
            yield self.data[at + end - key_size : at + end], begin, size


register_reader(".lmdb", read_lmdb)
