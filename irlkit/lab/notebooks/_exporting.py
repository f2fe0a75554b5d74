"""An executed notebook as one HTML file that needs no network."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

from irlkit.lab.notebooks._running import find
from irlkit.lab.notebooks._stripping import read_notebook, title_of

PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
MAX_SIZE = 8_000_000
"""Bytes that an exported file should stay below, to be sent by mail."""
_MATH = re.compile(
    r"\$\$(?P<block>.+?)\$\$|(?<![\\$])\$(?P<inline>(?:[^$\n]|\n(?!\s*\n))+?)\$(?!\d)", re.DOTALL
)
_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
_IN_PAGE = {
    "config": {"responsive": True},
    "full_html": False,
    "include_plotlyjs": False,
    "auto_play": False,
    "validate": False,
}
_REMOTE = re.compile(r'<script[^>]*\bsrc="https?://[^"]*"[^>]*>\s*</script>')


def export(name: str | Path, output: str | Path | None = None) -> Path:
    """Write an executed notebook as HTML with its figures alive.

    plotly's script is embedded once; formulas become MathML where latex2mathml is installed;
    widgets, which need a kernel, are replaced by what they say in plain text.

    Args:
        name: an executed notebook, or a name of ``find``, whose result is sought in ``runs/``.
        output: file to write; None: beside the executed notebook.

    Raises:
        ImportError: nbconvert or plotly is missing.
        ValueError: no such notebook, or it was not executed.
    """
    try:
        import nbformat
        from nbconvert import HTMLExporter
        from plotly.io import to_html
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError(f'{error}; install it with pip install "irlkit[notebooks]"') from error

    source = _executed(name)
    notebook = nbformat.read(source, as_version=4)
    has_figures = False
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = _to_mathml(cell["source"])
        for out in cell.get("outputs", ()):
            data = out.get("data", {})
            if PLOTLY in data:
                height = data[PLOTLY].get("layout", {}).get("height", 450)
                figure = to_html(data[PLOTLY], default_height=f"{height}px", **_IN_PAGE)
                out["data"] = {"text/html": figure}
                has_figures = True
            elif WIDGET in data:
                out["data"] = {"text/plain": data.get("text/plain", "")}
    notebook["metadata"].pop("widgets", None)
    exporter = HTMLExporter(template_name="lab", exclude_input_prompt=True)
    exporter.exclude_output_prompt = True
    title = title_of(notebook, source.stem)
    html, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}})
    html = _REMOTE.sub("", html)
    if has_figures:
        script = f"<script>{get_plotlyjs()}</script>"
        html = html.replace("</head>", f"{script}</head>", 1)
    target = source.with_suffix(".html") if output is None else Path(output)
    target.write_text(html, encoding="utf-8")
    return target


def _executed(name: str | Path) -> Path:
    """Return the notebook itself if it has outputs, else the one of its name in runs/."""
    source = find(name)
    for path in (source, Path("runs") / source.name):
        if path.is_file() and any(c.get("outputs") for c in read_notebook(path)["cells"]):
            return path
    raise ValueError(
        f"{source} was not executed, and there is no result of it in runs/; run it first: "
        f"irlkit notebooks run {source}"
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
