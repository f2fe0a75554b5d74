"""A look at the pages of an LMDB file before the library follows them.

The library trusts its files: a page that points outside the file, or that is not what its parent
says, ends the process. Here every page of the tree is checked first; values are not read.
"""

from __future__ import annotations

import mmap
import struct
import sys
from pathlib import Path

MAGIC = 0xBEEFC0DE
BRANCH, LEAF, OVERFLOW, META = 1, 2, 4, 8
BIG_VALUE = 1
NO_PAGE = 2**64 - 1
HEADER = 16
MAX_KEY = 511
MAX_DEPTH = 32


def check_pages(file: Path) -> None:
    """Raise a ValueError if LMDB could leave the file when it walks through its main table.

    Args:
        file: the data file itself.

    Raises:
        ValueError: the file is no LMDB file, is truncated or damaged.
    """
    if sys.byteorder != "little":  # files are in the byte order of the machine
        return
    size = file.stat().st_size
    if size < HEADER + 136:
        raise ValueError(f"cannot read {file} as an LMDB file: it has only {size} bytes")
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            _Tree(file, data, size).check()
        except struct.error as error:
            raise ValueError(f"{file} is damaged: a page is cut off") from error


class _Tree:
    def __init__(self, file: Path, data: mmap.mmap, size: int) -> None:
        self.file, self.data, self.size = file, data, size
        self.seen: set[int] = set()

    def fail(self, what: str) -> ValueError:
        return ValueError(f"{self.file} is damaged: {what}")

    def check(self) -> None:
        page_size = self._meta(0)[0]
        if page_size not in (1 << k for k in range(8, 17)):
            raise ValueError(f"cannot read {self.file} as an LMDB file: page size {page_size}")
        self.page_size = page_size
        if self.size < 2 * page_size:
            raise ValueError(
                f"{self.file} is truncated: it has {self.size} bytes, two pages have "
                f"{2 * page_size}"
            )
        metas = [self._meta(0), self._meta(page_size)]
        for _, _, flags, depth, root, last, _ in metas:
            if flags & 0x7FFF:
                raise self.fail("its table is not a plain one")
            # The library can fall back on the older one.
            needed = (last + 1) * page_size
            if needed > self.size:
                raise ValueError(
                    f"{self.file} is truncated: it has {self.size} bytes, its index asks for "
                    f"{needed}"
                )
            if depth > MAX_DEPTH or (depth == 0) != (root == NO_PAGE):
                raise self.fail(f"its tree is {depth} pages deep")
        _, _, _, depth, root, self.last, _ = max(metas, key=lambda meta: meta[6])
        if depth:
            self._walk(root, depth)

    def _meta(self, at: int) -> tuple[int, int, int, int, int, int, int]:
        """Page size, map size, table's flags, depth and root, last page, transaction."""
        (flags,) = struct.unpack_from("<H", self.data, at + 10)
        magic, version = struct.unpack_from("<II", self.data, at + HEADER)
        if magic != MAGIC or not flags & META or version != 1:
            raise ValueError(f"cannot read {self.file} as an LMDB file: it does not begin like one")
        (map_size,) = struct.unpack_from("<Q", self.data, at + HEADER + 16)
        (page_size,) = struct.unpack_from("<I", self.data, at + HEADER + 24)
        table_flags, depth = struct.unpack_from("<HH", self.data, at + HEADER + 76)
        root, last, transaction = struct.unpack_from("<QQQ", self.data, at + HEADER + 112)
        return page_size, map_size, table_flags, depth, root, last, transaction

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

    def _walk(self, number: int, depth: int) -> None:
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
            value = low | high << 16
            if not leaf:
                self._walk(value | flags << 32, depth - 1)
            elif flags == 0:
                if end + value > self.page_size:
                    raise self.fail(f"a value of page {number} is too long")
            elif flags == BIG_VALUE and end + 8 <= self.page_size:
                (first,) = struct.unpack_from("<Q", self.data, at + end)
                begin = self._page(first, OVERFLOW)
                (n_pages,) = struct.unpack_from("<I", self.data, begin + 12)
                room = n_pages * self.page_size - HEADER
                if value > room or first + n_pages - 1 > self.last:
                    raise self.fail(f"a value of page {number} is too long")
            else:
                raise self.fail(f"an entry of page {number} is not a plain value")
