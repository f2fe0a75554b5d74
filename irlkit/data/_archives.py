"""Readers of many structures in one file: zip archives, and JSON of pymatgen's structures."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from irlkit.data import _text
from irlkit.data._files import file_name, is_structure_file, read_frames, read_text
from irlkit.data._tables import STRUCTURE_COLUMNS
from irlkit.data._text import BROKEN, Unusable, open_text, without_compression
from irlkit.data.readers import Malformed, RawRecords, chunked, register_reader, scalars

Records = Iterator[tuple[Any, dict[str, Any]]]

MAX_JSON = 1 << 30
"""Most characters of a JSON text that is read at once; lines of `.jsonl` are read one by one."""

MAX_RATIO = 200
"""Members of an archive that are compressed more than this are no structures: text becomes some ten
times smaller."""

_NO_MEMBER = (*BROKEN, Unusable, zipfile.BadZipFile, NotImplementedError, RuntimeError)
"""What reading a member raises that is damaged, encrypted or compressed in another way."""


def read_json(path: Path) -> Iterator[RawRecords]:
    """Read structures as pymatgen's `as_dict` gives them.

    One, a list, a dictionary by name, a pandas table (`orient="split"` or "records"), or one per
    line. An entry is the structure itself or CIF text, or holds it as `structure` or `cif`, with
    numbers and text beside it, which are the table.

    Raises:
        ValueError: the file cannot be read, or is no JSON.
    """
    lines = without_compression(path.name).lower().endswith("l")
    try:
        with open_text(path) as file:
            yield from chunked((_read_lines if lines else _read_json)(file))
    except (*BROKEN, Unusable) as error:
        raise ValueError(f"cannot read {path} as JSON: {error}") from error


def _read_json(file: IO[str]) -> Records:
    text = file.read(MAX_JSON + 1)
    if len(text) > MAX_JSON:
        raise Unusable(f"it is longer than {MAX_JSON} characters: write a line per structure")
    try:
        content = _text.read_json(text)
    except (ValueError, RecursionError) as error:
        if "Extra data" not in str(error):
            raise Unusable(f"it is no JSON ({error})") from None
        yield from _read_lines(iter(text.split("\n")))  # type: ignore[arg-type]
        return
    if isinstance(content, dict) and {"columns", "data"} <= content.keys():
        try:
            content = [dict(zip(content["columns"], row, strict=False)) for row in content["data"]]
        except TypeError as error:
            raise Unusable(f"its columns and data make no table ({error})") from None
    if isinstance(content, dict) and not {"lattice", *STRUCTURE_COLUMNS} & content.keys():
        for name, entry in content.items():
            payload, row = _entry(entry)
            yield payload, {"material_id": name} | row
        return
    yield from map(_entry, content if isinstance(content, list) else [content])


def _read_lines(file: IO[str]) -> Records:
    for line in file:
        if not line.strip():
            continue
        try:
            yield _entry(_text.read_json(line))
        except (ValueError, RecursionError) as error:
            yield Malformed(f"its line is no JSON ({error})"), {}


def _entry(entry: Any) -> tuple[Any, dict[str, Any]]:
    """Payload and entries of the table of one structure."""
    if isinstance(entry, str) or (isinstance(entry, dict) and "lattice" in entry):
        return entry, {}
    if not isinstance(entry, dict):
        return Malformed(f"it is {str(entry)[:40]!r}, neither a dictionary nor text"), {}
    row = scalars((key, value) for key, value in entry.items() if key not in STRUCTURE_COLUMNS)
    payload = next((entry[key] for key in STRUCTURE_COLUMNS if entry.get(key)), None)
    if payload is None:
        return Malformed(f"a dictionary with the keys {list(entry)[:6]} has no structure"), row
    return payload, row


def read_zip(path: Path) -> Iterator[RawRecords]:
    """Read an archive of CIF and POSCAR files, extended XYZ and JSON, in the order in it.

    Nothing is unpacked to the disk. Members of other kinds, damaged or encrypted ones, and those
    that are compressed as no text is, are records that cannot be read.

    Raises:
        ValueError: the file is no zip archive, or has no such member.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not _is_hidden(m)]
            if not any(_reader_of(Path(m.filename)) for m in members):
                names = [m.filename[:40] for m in members[:5]]
                raise Unusable(f"it holds neither CIF, POSCAR, extended XYZ nor JSON, but {names}")
            names = [file_name(Path(m.filename)) for m in members]
            often = Counter(names)
            records = (
                record
                for member, name in zip(members, names, strict=True)
                for record in _read_member(
                    archive, member, name if often[name] == 1 else member.filename
                )
            )
            yield from chunked(records)
    except (*BROKEN, Unusable, zipfile.BadZipFile) as error:
        raise ValueError(f"cannot read {path} as a zip archive: {error}") from error


def _is_hidden(member: zipfile.ZipInfo) -> bool:
    """Whether it is a folder, or something that a file manager put beside the files."""
    parts = PurePosixPath(member.filename).parts
    return member.is_dir() or "__MACOSX" in parts or parts[-1].startswith(".")


def _reader_of(path: Path) -> Callable[[IO[str], dict[str, Any]], Records] | None:
    """Reads an open member, given what its records share."""
    if is_structure_file(path):
        return lambda file, row: read_text(file, path, row)
    endings = {
        (".xyz", ".extxyz"): read_frames,
        (".json",): _read_json,
        (".jsonl", ".ndjson"): _read_lines,
    }
    name = without_compression(path.name).lower()
    many = next((reader for ending, reader in endings.items() if name.endswith(ending)), None)
    return None if many is None else partial(_numbered, many)


def _numbered(reader: Callable[[IO[str]], Records], file: IO[str], row: dict[str, Any]) -> Records:
    for i, (payload, entries) in enumerate(reader(file)):
        yield payload, {"material_id": f"{row['material_id']}-{i}"} | entries


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> Records:
    reader, row = _reader_of(Path(member.filename)), {"material_id": name}
    if reader is None:
        yield Malformed("it is none of CIF, POSCAR, extended XYZ and JSON"), row
        return
    if member.file_size > MAX_RATIO * max(member.compress_size, 1000):
        yield Malformed(f"it is compressed more than {MAX_RATIO} times"), row
        return
    try:
        with archive.open(member) as stream, open_text(stream) as file:
            yield from reader(file, row)
    except _NO_MEMBER as error:
        yield Malformed(f"it cannot be read: {error}"), row


register_reader(".zip", read_zip)
for _ending in (".json", ".jsonl", ".ndjson"):
    register_reader(_ending, read_json)
