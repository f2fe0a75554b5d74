"""Which fillings of a skeleton are one and the same crystal."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np

from irlkit.crystals import CrystalBatch

_TOLERANCE = 1e-3
"""Of positions that symmetry takes into one another, Å."""


def canonical_keys(batch: CrystalBatch) -> list[tuple[str, str]]:
    """Return, for each crystal, its skeleton's digest and its species up to the symmetry.

    Of all species that the symmetry operations of the empty skeleton turn into one another, the
    alphabetically first stand for all.
    """
    keys: list[tuple[str, str]] = [("", "")] * len(batch)
    rows: dict[tuple[bytes, bytes], list[int]] = {}
    arrays = list(batch._to_arrays())
    for i, (_, pos, cell) in enumerate(arrays):
        # Through float32, so that a crystal has one key in both precisions.
        sites = tuple(np.ascontiguousarray(x, dtype=np.float32).tobytes() for x in (cell, pos))
        rows.setdefault(sites, []).append(i)  # type: ignore[arg-type]
    for sites, members in rows.items():
        digest, permutations = _skeleton(*sites)
        species = np.stack([arrays[i][0] for i in members]).astype(np.uint8)
        n = species.shape[1]
        # Bytes compare alphabetically; none is 0.
        images = np.ascontiguousarray(species[:, permutations]).view(f"S{n}")[..., 0]
        for i, text in zip(members, np.sort(images, axis=1)[:, 0].tolist(), strict=True):
            keys[i] = digest, "-".join(map(str, text))
    return keys


@lru_cache(maxsize=4096)
def _skeleton(cell_bytes: bytes, pos_bytes: bytes) -> tuple[str, np.ndarray]:
    """Digest of a skeleton, and the permutations of its sites, shape (p, n)."""
    import spglib

    cell = np.frombuffer(cell_bytes, dtype=np.float32).reshape(3, 3).astype(np.float64)
    pos = np.frombuffer(pos_bytes, dtype=np.float32).reshape(-1, 3).astype(np.float64)
    rounded = np.round(cell, 4) + 0.0, np.round(pos, 5) % 1.0 + 0.0
    digest = hashlib.sha256(b"".join(x.tobytes() for x in rounded)).hexdigest()[:16]
    identity = np.arange(len(pos))[None]
    symmetry: Any = spglib.get_symmetry
    found = symmetry((cell, pos, np.ones(len(pos), dtype=int)), symprec=_TOLERANCE)
    if found is None:
        return digest, identity
    images = np.einsum("pij,nj->pni", found["rotations"], pos) + found["translations"][:, None]
    difference = images[:, :, None] - pos
    difference -= np.round(difference)
    distance = np.linalg.norm(difference @ cell, axis=-1)
    permutations = distance.argmin(-1)
    matched = (distance.min(-1) < 10 * _TOLERANCE).all(1)
    unique = np.array([len(set(p)) == len(p) for p in permutations.tolist()])
    permutations = permutations[matched & unique]
    return digest, np.unique(np.concatenate([identity, permutations]), axis=0)
