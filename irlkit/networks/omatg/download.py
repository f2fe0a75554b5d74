"""Fetch published models: ``irlkit download omatg/MP-20-CSP/Linear-ODE``.

Nothing else in the package downloads a model. The files go to the cache of `huggingface_hub`; files
placed by hand go to `local_folder`, which is looked at first.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from irlkit.utils.checks import checked

HOST = "https://huggingface.co"
ORGANISATIONS = {"omatg": "OMatG"}
"""Who publishes the models of each family of names."""

PATTERNS = ("*.ckpt", "*.yaml", "*.yml")


def local_folder(name: str) -> Path:
    """Return where a model may be placed by hand: in `$IRLKIT_CACHE` or `~/.cache/irlkit`."""
    return Path(os.environ.get("IRLKIT_CACHE") or "~/.cache/irlkit").expanduser() / name


def find_downloaded(name: str) -> Path:
    """Return the folder with a model's checkpoint and configuration; no network is asked.

    Args:
        name: such as "omatg/MP-20-CSP/Linear-ODE".

    Raises:
        FileNotFoundError: the model has not been downloaded; the message says how to get it.
        ValueError: not a name of that form.
    """
    repository, folder = _split(name)
    found = _complete(local_folder(name)) or _in_hub_cache(repository, folder)
    if found is None:
        raise FileNotFoundError(
            f"{name} has not been downloaded. Run "
            f"`irlkit download {name}`, or " + _by_hand(name, repository, folder)
        )
    return found


@checked
def download(name: str) -> Path:
    """Download a published model, unless it is there, and print one line that says so.

    Args:
        name: such as "omatg/MP-20-CSP/Linear-ODE".

    Returns:
        The folder with its checkpoint and configuration, for `irlkit.load_omatg`.

    Raises:
        ConnectionError: there is no connection, the server has no such model, or a file is not
            the one whose checksum the server has given; the message says what to place where.
        ImportError: huggingface_hub is not installed.
        ValueError: not a name of that form.
    """
    repository, folder = _split(name)
    placed = _complete(local_folder(name))
    if placed is not None:
        print(f"{name}: already in {placed}, nothing downloaded")
        return placed
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            "downloading needs huggingface_hub: pip install 'irlkit[download]', or "
            + _by_hand(name, repository, folder)
        ) from error
    from huggingface_hub.constants import HF_HUB_CACHE

    cached = _in_hub_cache(repository, folder)
    if cached is not None:
        print(f"{name}: already in {cached}, nothing downloaded")
        return cached
    print(f"{name}: downloading from {HOST}/{repository}, folder {folder}, to {HF_HUB_CACHE}")
    try:
        snapshot = huggingface_hub.snapshot_download(
            repository, allow_patterns=[f"{folder}/{pattern}" for pattern in PATTERNS]
        )
    # Each version of the client, and of the HTTP library below it, raises errors of its own.
    except Exception as error:
        raise ConnectionError(
            f"cannot download {name} ({type(error).__name__}: {str(error).splitlines()[0]}). "
            "Without a connection, " + _by_hand(name, repository, folder)
        ) from error
    found = _complete(Path(snapshot) / folder)
    if found is None:
        raise ConnectionError(
            f"{HOST}/{repository} has no folder {folder!r} with a checkpoint and a configuration; "
            "look at its list of files for the model's name"
        )
    for pattern in PATTERNS:
        for file in found.glob(pattern):
            _verify(file)
    return found


def _verify(file: Path) -> None:
    """Compare a file with its checksum.

    The cache of huggingface_hub keeps a file under the checksum that the server has given (SHA-256
    of large files, git's SHA-1 of small ones), and links to it; the client itself compares sizes.

    Raises:
        ConnectionError: they differ; the file is removed.
    """
    blob = file.resolve()
    kinds = {64: "sha256", 40: "sha1"}
    if not re.fullmatch(r"[0-9a-f]+", blob.name) or len(blob.name) not in kinds:
        return  # Where there are no links, files have their own names.
    digest = hashlib.new(kinds[len(blob.name)])
    if digest.name == "sha1":
        digest.update(f"blob {blob.stat().st_size}\0".encode())
    with blob.open("rb") as content:
        while part := content.read(1 << 20):
            digest.update(part)
    if digest.hexdigest() != blob.name:
        file.unlink()
        blob.unlink(missing_ok=True)
        raise ConnectionError(
            f"{file.name} was not what the server has announced ({digest.name} "
            f"{digest.hexdigest()}, expected {blob.name}), and was removed; download it again"
        )


def _split(name: str) -> tuple[str, str]:
    """Repository and folder of a model's name."""
    match = re.fullmatch(r"([\w.-]+)/([\w.-]+)/([\w.-]+)", name)
    if match is None or match[1] not in ORGANISATIONS or ".." in name:
        raise ValueError(
            "name: expected omatg/<repository>/<model>, such as omatg/MP-20-CSP/Linear-ODE, "
            f"got {name!r}"
        )
    return f"{ORGANISATIONS[match[1]]}/{match[2]}", match[3]


def _complete(folder: Path) -> Path | None:
    """The folder if it holds a checkpoint and a configuration."""
    checkpoint, *configurations = (any(folder.glob(pattern)) for pattern in PATTERNS)
    return folder if checkpoint and any(configurations) else None


def _in_hub_cache(repository: str, folder: str) -> Path | None:
    """The model's folder in the cache of huggingface_hub, if it is installed and has it."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return None
    snapshots = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "snapshots"
    present = [path for path in snapshots.glob(f"*/{folder}") if _complete(path)]
    return max(present, key=lambda path: path.stat().st_mtime, default=None)


def _by_hand(name: str, repository: str, folder: str) -> str:
    return (
        f"on a machine with a connection open {HOST}/{repository}/tree/main/{folder}, download the "
        f"checkpoint (.ckpt) and the configuration (.yaml), and place both in {local_folder(name)}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Download the named models and return the exit status."""
    parser = argparse.ArgumentParser(prog="irlkit download", description=__doc__)
    parser.add_argument("name", nargs="+", help="such as omatg/MP-20-CSP/Linear-ODE")
    for name in parser.parse_args(arguments).name:
        try:
            folder = download(name)
        except (ConnectionError, ImportError, ValueError) as error:
            print(error, file=sys.stderr)
            return 1
        print(f'{folder}: load it with irlkit.load_omatg("{name}")')
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
