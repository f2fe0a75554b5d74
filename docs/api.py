"""Write the API reference from the docstrings: ``python docs/api.py site``.

pdoc follows ``__all__``, which leaves out modules; so all of them are named here.
"""

from __future__ import annotations

import argparse
import pkgutil
import warnings
from pathlib import Path

import irlkit


def modules() -> list[str]:
    """Names of all public modules of the package."""
    found = pkgutil.walk_packages(irlkit.__path__, "irlkit.")
    names = [module.name for module in found]
    return ["irlkit", *(name for name in names if not any(p[0] == "_" for p in name.split(".")))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("site"))
    folder = parser.parse_args().folder
    try:
        import pdoc
    except ImportError as error:
        raise SystemExit('pdoc is missing; install it with pip install -e ".[docs]"') from error
    # Of packages that modules import; functions that share the name of their module; and names that
    # are imported for type checkers alone, which pdoc then shows as they are written.
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.filterwarnings("ignore", "(?s)The module specification .* already been added")
    warnings.filterwarnings("ignore", "Error parsing type annotation")
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc(*modules(), output_directory=folder)
    print(folder / "index.html")


if __name__ == "__main__":
    main()
