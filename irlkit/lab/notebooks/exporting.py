"""An executed notebook as one HTML file that needs no network."""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path
from typing import Any

from irlkit.lab.notebooks.running import find
from irlkit.lab.notebooks.stripping import read_notebook, title_of
from irlkit.utils.checks import checked

PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
MAX_SIZE = 8_000_000
"""Bytes that an exported file should stay below, to be sent by mail."""
_MATH = re.compile(
    r"\$\$(?P<block>.+?)\$\$|(?<![\\$])\$(?P<inline>(?:[^$\n]|\n(?!\s*\n))+?)\$(?!\d)", re.DOTALL
)
_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
_REMOTE = re.compile(r'<script[^>]*\bsrc="https?://[^"]*"[^>]*>\s*</script>')


@checked
def export(name: str | Path, output: str | Path | None = None) -> Path:
    """Write an executed notebook as HTML with its figures alive.

    plotly's script is embedded once; formulas become MathML where latex2mathml is installed;
    widgets, which need a kernel, are replaced by what they say in plain text.

    Args:
        name: an executed notebook, or a name of ``find``, whose result is sought in ``runs/``.
        output: file to write; None: beside the executed notebook.

    Raises:
        ImportError: nbconvert is missing.
        ValueError: no such notebook, or it was not executed.
    """
    try:
        from nbconvert import HTMLExporter
    except ImportError as error:
        raise ImportError(
            'nbconvert is missing; install it with pip install "irlkit[notebooks]"'
        ) from error
    import nbformat

    source = _executed(name)
    notebook = nbformat.read(source, as_version=4)
    n_figures = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = _to_mathml(cell["source"])
        for out in cell.get("outputs", ()):
            data = out.get("data", {})
            if PLOTLY in data:
                out["data"] = {"text/html": _figure(data[PLOTLY], n_figures)}
                n_figures += 1
            elif WIDGET in data:
                out["data"] = {"text/plain": data.get("text/plain", "")}
    notebook["metadata"].pop("widgets", None)
    exporter = HTMLExporter(template_name="lab", exclude_input_prompt=True)
    exporter.exclude_output_prompt = True
    html, _ = exporter.from_notebook_node(
        notebook, {"metadata": {"name": title_of(notebook, source.stem)}}
    )
    html = _REMOTE.sub("", html)
    if n_figures:
        from plotly.offline import get_plotlyjs

        script = f"<script>{get_plotlyjs()}</script>"
        html = html.replace("</head>", f"{script}</head>", 1)
    target = source.with_suffix(".html") if output is None else Path(output)
    target.write_text(html, encoding="utf-8")
    return target


def _executed(name: str | Path) -> Path:
    """Return the notebook itself if it has outputs, else the one of its name in runs/."""
    source = find(name)
    candidates = [source, Path("runs") / source.name]
    for path in candidates:
        if path.is_file() and any(c.get("outputs") for c in read_notebook(path)["cells"]):
            return path
    raise ValueError(
        f"{source} was not executed, and there is no result of it in runs/; run it first: "
        f"irlkit notebooks run {source}"
    )


def _figure(figure: dict[str, Any], number: int) -> str:
    """Write a plotly figure as HTML that expects plotly's script in the page."""
    layout = dict(figure.get("layout", {}))
    height = layout.get("height", 450)
    # "</" would end the script wherever it stands in a text.
    parts = {
        "data": figure.get("data", []),
        "layout": layout,
        "config": {"responsive": True, **figure.get("config", {})},
        "frames": figure.get("frames") or [],
    }
    text = json.dumps(parts, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    return (
        f'<div id="figure-{number}" class="irlkit-figure" style="height:{height}px"></div>'
        f'<script>(function(){{var f={text};Plotly.newPlot("figure-{number}",f.data,f.layout,'
        f"f.config).then(function(g){{if(f.frames.length)Plotly.addFrames(g,f.frames);}});}})();"
        "</script>"
    )


def _to_mathml(text: str) -> str:
    """Return Markdown with its formulas as MathML, which browsers draw without a script."""
    try:
        from latex2mathml.converter import convert
    except ImportError:
        return text

    def replace(match: re.Match[str]) -> str:
        block = match["block"]
        try:
            formula = convert((block or match["inline"]).strip(), "block" if block else "inline")
        except Exception:  # whatever TeX it does not know stays TeX
            return f"<code>{escape(match[0])}</code>"
        style = "text-align:center;margin:1em 0"
        return f'\n\n<div style="{style}">{formula}</div>\n\n' if block else formula

    parts = _CODE.split(text)
    return "".join(part if part.startswith("`") else _MATH.sub(replace, part) for part in parts)
