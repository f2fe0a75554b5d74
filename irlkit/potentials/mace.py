"""MACE models for whole batches (Batatia et al., 2022, 2025)."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.potentials._mace_contraction import use_polynomials
from irlkit.potentials._neighbors import Neighbors
from irlkit.potentials.base import BatchedPotential, Computed, check_elements
from irlkit.utils.checks import checked
from irlkit.utils.foreign import recognise
from irlkit.utils.settings import torch_settings

_FORCE_PICKLES = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_MAX_EDGES = 1 << 17
"""On a GPU."""

_MAX_CPU_NUMBERS = 1 << 17
"""Edges times channels on a CPU: what is larger leaves the caches, and takes twice as long."""

MAX_STRUCTURE_EDGES = 1 << 16
"""Edges of a structure above which it counts as failed: far denser than any crystal."""


class MACEPotential(BatchedPotential):
    """A MACE model: a published foundation model or one of your own.

    All structures of a batch go through the model together, up to a number of edges that bounds
    the memory. Forces are computed only if asked for. Structures with more than
    `MAX_STRUCTURE_EDGES` edges count as failed.

    Args:
        model: Name of a foundation model: "mace-mpa-0" (the paper's), or any key of
            `mace.calculators.foundations_models.mace_mp_urls`, such as "medium-0b3".
        path: A local `.model` file, which is taken instead. Results then name the file and the
            hash of its content, since nothing else says what it is.
        trust: Allow to load `path`. A `.model` file is a pickle, which runs what code it holds.
        download: Allow to download the foundation model to MACE's cache folder where it is
            missing. Without it, no connection is opened.
        device: Where to compute, such as "cpu" or "cuda".
        dtype: Of all numbers, torch.float64 (as in the paper) or torch.float32 (about twice as
            fast).
        head: Which of a model's heads to take, for models that have several.
        max_edges: Directed pairs of neighbours that go through the model together; None for a
            number that stays in the caches of a CPU (1,024 with the 128 channels of "mace-mpa-0")
            and takes about 8 GB of a GPU.

    Raises:
        ValueError: an unknown model or head, another dtype, a path without `trust`, or a file that
            is no MACE model, such as a checkpoint of a training.
        FileNotFoundError: the file is missing; the message says where it was looked for.
        ImportError: mace-torch is not installed, or what the model was saved with.
    """

    @checked
    @torch_settings(plain=True)
    def __init__(
        self,
        model: str = "mace-mpa-0",
        path: str | os.PathLike[str] | None = None,
        *,
        trust: bool = False,
        download: bool = False,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float64,
        head: str | None = None,
        max_edges: int | None = None,
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        if max_edges is not None and max_edges < 1:
            raise ValueError(f"max_edges must be at least 1 or None, got {max_edges}")
        if path is None:
            file, self.name = _foundation_file(model, download), model
        else:
            file = Path(path).expanduser()
            if not file.is_file():
                raise FileNotFoundError(
                    f"no MACE model at {file}; path must be a local .model file, "
                    "or be left out for a foundation model by name"
                )
            if not trust:
                raise ValueError(
                    f"{file} is a pickle: loading it runs whatever code it holds. "
                    "Pass trust=True if you know where the file comes from"
                )
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            self.name = f"mace:{file.stem}-{digest[:8]}"
        self.device = torch.device(device)
        self.dtype = dtype
        with _mace():
            loaded = _load(file, self.device)
            use_polynomials(loaded)
        self._model = loaded.to(device=self.device, dtype=dtype).eval().requires_grad_(False)
        self._cutoff = float(self._model.r_max)
        self._max_cost = max_edges or _MAX_EDGES
        if max_edges is None and self.device.type == "cpu":
            self._max_cost = max(_MAX_CPU_NUMBERS // _channels(self._model), 1)
        self._numbers = self._model.atomic_numbers.cpu()
        self._column = torch.full((int(self._numbers.max()) + 1,), -1, device=self.device)
        self._column[self._numbers] = torch.arange(len(self._numbers), device=self.device)
        self._head = _head_number(list(getattr(self._model, "heads", None) or ["Default"]), head)
        if head is not None:
            self.name = f"{self.name}/{head}"

    def check(self, compositions: CrystalBatch) -> None:
        """Raise a ValueError that names elements that the model was not trained on."""
        check_elements(self.name, compositions, self._numbers)

    def _costs(
        self, batch: CrystalBatch, neighbors: Neighbors
    ) -> tuple[Tensor, Tensor, dict[int, str]]:
        n_edges = 2 * torch.bincount(batch.batch[neighbors.first], minlength=len(batch))
        reasons = {
            i: f"too dense: {int(n_edges[i])} edges, more than {MAX_STRUCTURE_EDGES}"
            for i in (n_edges > MAX_STRUCTURE_EDGES).nonzero().flatten().tolist()
        }
        # An isolated atom has no edges but takes memory as well.
        return n_edges + batch.n_atoms, torch.zeros_like(n_edges), reasons

    def _energies(
        self, batch: CrystalBatch, neighbors: Neighbors, forces: bool, stress: bool
    ) -> Computed:
        output = self._model(
            self._graph(batch, neighbors), compute_force=forces, compute_stress=stress
        )
        return Computed(
            output["energy"].detach().double() / batch.n_atoms,
            output["forces"].detach().double() if forces else None,
            output["stress"].detach().double() if stress else None,
        )

    def _graph(self, batch: CrystalBatch, pairs: Neighbors) -> dict[str, Tensor]:
        """A batch as MACE models take it: each pair in both directions."""
        cell = batch.cell.to(self.dtype)
        first, second = pairs.first, pairs.second
        unit_shifts = torch.cat([pairs.shift, -pairs.shift])
        edges = torch.stack([torch.cat([first, second]), torch.cat([second, first])])
        shifts = torch.einsum("pi,pij->pj", unit_shifts, batch.cell[batch.batch[edges[0]]])
        positions = torch.einsum("ni,nij->nj", batch.pos, batch.cell[batch.batch])
        return {
            "positions": positions.to(self.dtype),
            "node_attrs": torch.nn.functional.one_hot(
                self._column[batch.species], len(self._numbers)
            ).to(self.dtype),
            "edge_index": edges,
            "shifts": shifts.to(self.dtype),
            "unit_shifts": unit_shifts.to(self.dtype),
            "cell": cell.reshape(-1, 3),
            "batch": batch.batch,
            "ptr": torch.nn.functional.pad(batch.n_atoms.cumsum(0), (1, 0)),
            "head": torch.full((len(batch),), self._head, device=self.device),
        }


@contextmanager
def _mace() -> Iterator[None]:
    """Import mace, and keeps to this block what it does to the whole process.

    mace sets an environment variable that lets every torch.load of the process run pickled code;
    its e3nn needs that while it is imported. (mace's own calculators need it as well: whoever uses
    them next to this module sets the variable.) The import also warns of what nobody can change.
    """
    before = os.environ.get(_FORCE_PICKLES)
    dtype = torch.get_default_dtype()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                import mace.modules  # noqa: F401
            except ImportError as error:
                raise ImportError(
                    "MACE models need the package mace-torch; run: pip install 'irlkit[mace]'"
                ) from error
            yield
    finally:
        torch.set_default_dtype(dtype)
        if before is None:
            os.environ.pop(_FORCE_PICKLES, None)
        else:
            os.environ[_FORCE_PICKLES] = before


def _load(file: Path, device: torch.device) -> Any:
    """The model of a file; raises a ValueError in words for what is none."""
    wrong = f"path: {file} is not a MACE model"
    if words := recognise(file, but="a zip archive"):
        raise ValueError(f"{wrong}: it is {words}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(file, map_location=device, weights_only=False)
    except (AttributeError, ImportError) as error:
        raise ImportError(
            f"path: {file} needs what is not installed here ({error}); install that, or save the "
            "model without it"
        ) from error
    except Exception as error:  # a damaged file can make torch.load raise nearly anything
        words = f"it is damaged or of another kind ({type(error).__name__})"
        raise ValueError(f"{wrong}: {words}; copy it once more") from error
    if isinstance(loaded, torch.jit.ScriptModule):
        words = "it is a compiled one, for LAMMPS or other programs; give the file it was made of"
    elif isinstance(loaded, Mapping):
        words = f"it holds {', '.join(map(repr, list(loaded)[:3]))}, ...: weights or a checkpoint "
        words += "of a training; give the .model file that the training wrote at its end"
    elif not all(hasattr(loaded, name) for name in ("r_max", "atomic_numbers", "modules")):
        words = f"it holds a {type(loaded).__name__}"
    else:
        return loaded
    raise ValueError(f"{wrong}: {words}")


def _foundation_file(model: str, download: bool) -> Path:
    """The file of a foundation model in MACE's cache folder, downloaded if that is allowed."""
    with _mace():
        from mace.calculators import foundations_models
        from mace.tools.utils import get_cache_dir

        key = {"mace-mpa-0": "medium-mpa-0"}.get(model, model)
        urls = foundations_models.mace_mp_urls
        if key not in urls:
            raise ValueError(
                f"unknown MACE model {model!r}; known: {', '.join(sorted(['mace-mpa-0', *urls]))}. "
                "For a file of your own, give its path as path"
            )
        # mace keeps the file under the address's last part, without other characters.
        name = "".join(c for c in urls[key].rsplit("/", 1)[-1] if c.isalnum() or c == "_")
        file = Path(get_cache_dir()) / name
        if file.is_file():
            return file
        missing = (
            f"the file {name} of the MACE model {model!r} is not in the cache folder "
            f"{file.parent}. Pass download=True to fetch it from {urls[key]}, or "
            "path=... (with trust=True) for a copy of it anywhere else"
        )
        if not download:
            raise FileNotFoundError(missing)
        try:
            return Path(foundations_models.download_mace_mp_checkpoint(key))
        except Exception as error:
            raise FileNotFoundError(f"the download failed ({error}): {missing}") from error


def _channels(model: torch.nn.Module) -> int:
    """Channels of a model's features; those of the published ones where it does not say."""
    try:
        return int(model.node_embedding.linear.irreps_out.dim)  # type: ignore
    except AttributeError:
        return 128


def _head_number(heads: list[str], head: str | None) -> int:
    if head is None:
        if len(heads) == 1:
            return 0
        defaults = [i for i, name in enumerate(heads) if name.lower() == "default"]
        if defaults:
            return defaults[0]
    if head not in heads:
        raise ValueError(f"head must be one of the model's heads {heads}, got {head!r}")
    return heads.index(head)
