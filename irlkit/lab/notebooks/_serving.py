"""Notebooks as pages for a class, above all 04's explorer without the notebook's training."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

EXPLORER = Path(__file__).with_name("explorer.ipynb")
"""The notebook of the explorer's page."""
_REMOTE = re.compile(r'<link[^>]*\bhref="https?://[^"]*"[^>]*>')


def serve(page: Path, port: int = 8866, host: str = "127.0.0.1", ready: int = 0) -> None:
    """Serve a notebook with Voila until it is ended; each visitor has a kernel that executes it.

    Args:
        page: of ``prepare_page``.
        port: of the page.
        host: address to listen at; "0.0.0.0" for the whole network.
        ready: so many kernels have executed it before their visitors come.

    Raises:
        ImportError: Voila is missing.
    """
    try:
        from voila.app import Voila
    except ImportError as error:
        raise ImportError(
            'voila is missing; install it with pip install "irlkit[voila]"'
        ) from error

    options = {
        "Voila.open_browser": False,
        "Voila.port": port,
        "Voila.ip": host,
        "VoilaConfiguration.preheat_kernel": ready > 0,
        "VoilaConfiguration.default_pool_size": ready,
        # A cell may take longer than the half minute that Voila grants.
        "VoilaExecutor.timeout": 600,
        # Kernels of pages that were closed without a word, such as a laptop's lid.
        "MappingKernelManager.cull_idle_timeout": 300,
        "MappingKernelManager.cull_interval": 60,
    }
    with tempfile.TemporaryDirectory(prefix="irlkit-page-") as folder:
        _write_templates(Path(folder))
        places = (folder, os.environ.get("JUPYTER_PATH", ""))
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, places))
        # Kernels share the cores: threads of one would wait for those of another.
        os.environ["OMP_NUM_THREADS"] = "1"
        Voila.launch_instance([str(page), *(f"--{k}={v}" for k, v in options.items())])


def _write_templates(folder: Path) -> None:
    """Copy Voila's templates without style sheets from the network, which a page would wait for.

    What they hold are icons, which no explorer has.
    """
    from jupyter_core.paths import jupyter_path

    for name in ("lab/index.html.j2", "base/page.html"):
        places = (Path(place) / name for place in jupyter_path("voila", "templates"))
        original = next(path for path in places if path.is_file())
        target = folder / "voila" / "templates" / name
        target.parent.mkdir(parents=True)
        text = _REMOTE.sub("", original.read_text(encoding="utf-8"))
        target.write_text(text, encoding="utf-8")
