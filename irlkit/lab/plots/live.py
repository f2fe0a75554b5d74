"""crystal-toolkit's own component, live, for whoever asks for it."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from irlkit.lab.plots._geometry import Crystal, to_structure
from irlkit.utils.checks import checked

_DISPLAY_HOOKS = ("_ipython_display_", "_repr_mimebundle_", "display_json", "to_plotly_json")


@checked
def crystal_toolkit_view(crystal: Crystal, height: int = 600) -> None:
    """Show crystal-toolkit's component; starts a web server on this machine.

    It needs the kernel and a browser on one machine, and leaves nothing in a saved notebook: use
    ``structure`` for a figure that stays.

    Args:
        crystal: a batch of one structure, or a pymatgen structure.
        height: in pixels.

    Raises:
        ImportError: crystal-toolkit is not installed, or does not fit the installed pymatgen.
        RuntimeError: this is not a notebook, where the server would block for ever.
        ValueError: ``crystal`` is not one structure.
    """
    structure = to_structure(crystal)
    if _import_crystal_toolkit() is None:
        raise ImportError(
            "crystal-toolkit cannot be imported here; install irlkit[notebooks], which pins the "
            "pymatgen and flask-caching that it works with"
        )
    from irlkit.utils.progress import in_notebook

    if not in_notebook():
        raise RuntimeError("crystal_toolkit_view works in a notebook only; use plots.structure")
    import socket

    import crystal_toolkit.helpers.layouts as ctl
    from crystal_toolkit.components.structure import StructureMoleculeComponent
    from crystal_toolkit.core.plugin import CrystalToolkitPlugin
    from dash import Dash

    layout = ctl.Block([StructureMoleculeComponent(structure).layout()])
    app = Dash(plugins=[CrystalToolkitPlugin(layout=layout)])
    # A port of its own: on a fixed one, all views would show the last structure.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app.run(host="127.0.0.1", port=port, jupyter_mode="inline", jupyter_height=height)


def _import_crystal_toolkit() -> Any:
    """Return crystal-toolkit without its changes to how pymatgen's objects are displayed, or None.

    Its import makes every structure that ends a notebook's cell start a web server. Where somebody
    imported it before, that stays as they have it.
    """
    if "crystal_toolkit" in sys.modules:
        return sys.modules["crystal_toolkit"]
    try:
        from monty.json import MSONable

        before = {name: vars(MSONable).get(name) for name in _DISPLAY_HOOKS}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import crystal_toolkit
    except (ImportError, AttributeError):  # not there, or not fitting the pymatgen that is
        return None
    for name, method in before.items():
        if method is not None:
            setattr(MSONable, name, method)
        elif name in vars(MSONable):
            delattr(MSONable, name)
    return crystal_toolkit
