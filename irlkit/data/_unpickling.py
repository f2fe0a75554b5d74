"""Records that are pickles, read without executing anything in them.

A pickle is a program: it may name any function and call it. Here the only names that it may use are
those below, and each of them leads to a function of this module that makes plain data. Everything
else is refused by name. `torch.load(weights_only=True)` does the same and takes half a millisecond
for a tensor in the form in which these records hold them, this a small part of it.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

MAX_SHARED = 16
"""Most references to lists and tuples that a record holds already."""

MAX_MEMO = 1_000_000
"""Largest number by which a pickle refers to an object."""

_HARMLESS = {
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "GLOBAL", "STACK_GLOBAL",
    "REDUCE",
}  # fmt: skip
"""Operations of a pickle that make something without parts."""

TORCH_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
"""First object of torch's older file format, in which a tensor inside a pickle is stored."""


def loads(data: bytes) -> Any:
    """Return what a pickle holds: tensors, numbers, strings, lists, tuples, dictionaries, None.

    Raises:
        ValueError: the pickle is broken, or holds anything else, which is named.
    """
    try:
        return _Unpickler(data, _ALLOWED).load()
    except _Refused as error:
        raise ValueError(f"refused: {error}") from error
    # A broken pickle can raise almost anything.
    except Exception as error:
        raise ValueError(
            f"the record is not a readable pickle ({type(error).__name__}: {error})"
        ) from error


class _Refused(Exception):
    """A record holds something that is not read, in words."""


class _Callable:
    """A function that a pickle may call, and that it cannot change."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise _Refused("the record changes what it must only call")

    def __setstate__(self, state: Any) -> None:
        raise _Refused("the record changes what it must only call")


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes | io.BytesIO, allowed: dict[tuple[str, str], Any]) -> None:
        file = io.BytesIO(data) if isinstance(data, bytes) else data
        _check_sharing(file)
        super().__init__(file)
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise _Refused(
                f"it holds {module}.{name}, and only tensors, numbers, strings, lists and "
                "dictionaries are read"
            )
        return self._allowed[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("it refers to objects outside the record")


def _check_sharing(file: io.BytesIO) -> None:
    """Refuses a pickle whose tuples or lists hold others several times, level upon level.

    A hundred bytes then make what takes for ever to hash or to copy. Text and what the allowed
    functions return may be referred to as often as one likes. Leaves the file where it was.
    """
    start = file.tell()
    memo: dict[int, bool] = {}
    shared, harmless = 0, False
    argument: Any
    for operation, argument, _ in pickletools.genops(file):
        name = operation.name
        if name == "MEMOIZE":
            memo[len(memo)] = harmless
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            if argument > MAX_MEMO:  # Room would be made for all numbers up to it.
                raise _Refused(f"it numbers an object {argument}")
            memo[argument] = harmless
        elif name == "DUP" or (name.endswith("GET") and not memo.get(argument, False)):
            shared += 1
        harmless = name in _HARMLESS
    if shared > MAX_SHARED:
        raise _Refused(f"it refers to {shared} of its lists and tuples again")
    file.seek(start)


class _StorageUnpickler(_Unpickler):
    """Reads the description of a tensor's storage."""

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, _, _, count, *_ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise _Refused(f"unknown storage {kind!r}")
        return dtype, int(count)


_heads: list[bytes] = []
"""How tensors that were read began."""


def _load_storage(data: bytes) -> Tensor:
    """The numbers of a storage, shape (count,), from torch's older file format.

    It is a sequence of pickles (magic number, version, byte order and sizes, description, keys),
    the number of elements as a 64-bit integer, and the elements.
    """
    file = io.BytesIO(data)
    # The first three are those of any other tensor.
    head = next((head for head in _heads if data.startswith(head)), b"")
    file.seek(len(head))
    if not head:
        magic, version, system = (_Unpickler(file, {}).load() for _ in range(3))
        if magic != TORCH_MAGIC_NUMBER or version != 1001:
            raise _Refused("a tensor is not in the format of torch.save")
        if system.get("little_endian") != (sys.byteorder == "little"):
            raise _Refused("a tensor was stored with another byte order")
        if len(_heads) < 4:
            _heads.append(data[: file.tell()])
    dtype, count = _StorageUnpickler(file, _STORAGES).load()
    _Unpickler(file, {}).load()
    (stored,) = struct.unpack("<q", file.read(8))
    if stored != count or count < 0:
        raise _Refused("a tensor's number of elements is stored inconsistently")
    if count == 0:
        return torch.zeros(0, dtype=dtype)
    # A copy: torch warns of memory that cannot be written to.
    return torch.frombuffer(bytearray(file.read()), dtype=dtype, count=count)


def _rebuild_tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    """A view of a storage; torch refuses one that reaches beyond it."""
    return storage.as_strided(size, stride, offset)


class _NumberType:
    """NumPy's dtype of one number."""

    __slots__ = ("code", "order")

    def __init__(self, code: str, *_: Any) -> None:
        if code not in _NUMBERS:
            raise _Refused(f"a NumPy object of type {code!r}")
        self.code = code
        self.order = "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"


_NUMBERS = {
    "f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b",
    "u8": "Q", "u4": "I", "u2": "H", "u1": "B", "b1": "?",
}  # fmt: skip
"""Codes of NumPy's numbers and of the same in `struct`."""


def _number(kind: _NumberType, data: bytes) -> float | int | bool:
    (value,) = struct.unpack(kind.order + _NUMBERS[kind.code], data)
    return value


def _ordered_dict(*items: Any) -> dict[Any, Any]:
    return dict(*items)


def _encode(text: str, encoding: str) -> bytes:
    """Bytes, as protocols before the third store them."""
    if encoding != "latin1":
        raise _Refused(f"bytes are encoded as {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _Callable(_encode),
    ("torch._utils", "_rebuild_tensor_v2"): _Callable(_rebuild_tensor),
    ("torch.storage", "_load_from_bytes"): _Callable(_load_storage),
    ("collections", "OrderedDict"): _Callable(_ordered_dict),
    ("numpy", "dtype"): _Callable(_NumberType),
    ("numpy.core.multiarray", "scalar"): _Callable(_number),
    ("numpy._core.multiarray", "scalar"): _Callable(_number),
}
_STORAGES: dict[tuple[str, str], Any] = {
    ("torch", name): dtype for name, dtype in STORAGE_DTYPES.items()
}
