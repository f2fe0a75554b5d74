"""Draw the pages' pictures from figures that notebooks have written: ``python docs/draw.py``.

Needs playwright (extra ``browser``) and a Chromium on the PATH. See docs/README.md.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

PICTURES = {
    "00": "best",
    "01": "fields",
    "02": "metrics",
    "03": "energies",
    "04": "metrics",
    "05": "trials",
    "06": "best",
}
"""Notebook -> name of its main figure."""
OTHERS = {"03_long": "validation", "08_gpaw": "gpaw"}
"""Folder of results -> name of a figure that is not the notebook's main one."""
WIDTH, MAX_BYTES, N_COLORS = 900, 80_000, 64
HERE = Path(__file__).parent / "pictures"
# Software rendering: there may be no graphics card.
ARGUMENTS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader"]
ARGUMENTS += ["--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
_SET_UP = """async width => {
    const figure = document.querySelector('.plotly-graph-div');
    const controls = {sliders: [], updatemenus: [], width, paper_bgcolor: 'white'};
    await Plotly.relayout(figure, controls);
    await new Promise(resolve => setTimeout(resolve, 1500));
}"""


def draw(source: Path, target: Path) -> None:
    """Draw a figure of a notebook as a small PNG.

    Args:
        source: HTML file with one plotly figure.
        target: PNG to write.
    """
    from PIL import Image
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": WIDTH + 40, "height": 900})
        page.set_default_timeout(180_000)
        page.goto(source.resolve().as_uri())
        page.wait_for_selector(".plotly-graph-div .main-svg")
        page.evaluate(_SET_UP, WIDTH)
        png = page.locator(".plotly-graph-div").first.screenshot()
        browser.close()
    image = Image.open(io.BytesIO(png)).convert("RGB").quantize(N_COLORS)
    target.parent.mkdir(parents=True, exist_ok=True)
    image.save(target, optimize=True)
    size = target.stat().st_size
    print(f"{target} ({size / 1000:.0f} kB)")
    if size > MAX_BYTES:
        raise SystemExit(f"{target} is larger than {MAX_BYTES} bytes; use a smaller figure")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names",
        nargs="*",
        help="folders of results, such as 04 or 04_perov_5; default: one per notebook",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of results")
    options = parser.parse_args()
    for name in options.names or PICTURES:
        source = options.runs / name / "figures" / f"{OTHERS.get(name) or PICTURES[name[:2]]}.html"
        if source.is_file():
            draw(source, HERE / f"{name}.png")
        else:
            print(f"{source} is missing; run notebook {name[:2]}")


if __name__ == "__main__":
    main()
