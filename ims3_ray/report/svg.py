"""Convert matplotlib figures to inline SVG that uses the page's CSS colours and keeps text as text.

Figures are drawn in role colours (`INK`, `DISTILLED`, …). `to_svg` replaces each by a CSS variable, so that
one drawing serves light and dark mode. One unit of a figure is one pixel of the page.
"""

import re
import warnings
from collections.abc import Sequence
from io import BytesIO
from typing import Any, Literal

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from .inputs import MAP_CLASSES

# Role colours that occur nowhere else, so that `to_svg` finds them in matplotlib's output.
INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
DISTILLED, RANDOM, FULL, REAL = "#050505", "#060606", "#070707", "#080808"
CLASS_COLOURS = tuple(f"#0a0a{i:02x}" for i in range(MAP_CLASSES))
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    PAPER: "paper",
    DISTILLED: "distilled",
    RANDOM: "random",
    FULL: "full",
    REAL: "real",
    **{colour: f"class-{i}" for i, colour in enumerate(CLASS_COLOURS)},
}
WIDTH = 1000
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:g} %")
_HALO = "halo"  # id of text over data, which gets an outline in the paper's colour


def figure(width: int, height: int, hspace: float = 0.02, wspace: float = 0.02) -> Figure:
    """An empty figure of this size in pixels; uses no global matplotlib state."""
    layout = ConstrainedLayoutEngine(hspace=hspace, wspace=wspace)
    return Figure(figsize=(width / 72, height / 72), dpi=72, layout=layout)


def panels(count: int) -> tuple[int, int]:
    """Rows and columns of a figure with `count` panels."""
    columns = 2 if count in (2, 4) else min(3, count)
    return -(-count // columns), columns


def name_rows(axes: Axes, names: Sequence[str], size: float, pad: float) -> None:
    """Label the rows of a plot, top to bottom."""
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.tick_params(axis="y", labelsize=size, labelcolor=INK, pad=pad)


def style(
    axes: Axes, *, grid: Literal["both", "x", "y"] = "both", title: str = "", x: str = "", y: str = ""
) -> None:
    """Style axes: thin grid behind the data, no frame, labels in the page's ink."""
    axes.set_facecolor("none")
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=MUTED, labelsize=12, length=0, pad=6)
    axes.grid(True, axis=grid, color=GRID, linewidth=1)
    axes.set_axisbelow(True)
    axes.set_xlabel(x, color=MUTED, fontsize=12, labelpad=6)
    axes.set_ylabel(y, color=MUTED, fontsize=12, labelpad=6)
    if title:
        axes.set_title(title, color=INK, fontsize=13, loc="left", pad=10, parse_math=False)


def log_ticks(edge: Axis) -> None:
    """Put plain numbers at 1, 2 and 5 of each decade."""
    edge.set_major_locator(LogLocator(subs=(1, 2, 5)))
    edge.set_minor_locator(NullLocator())
    edge.set_major_formatter("{x:g}")


def label(
    axes: Axes, x: float, y: float, text: str, colour: str = INK, *, halo: bool = False, **look: Any
) -> None:
    """Add literal text at data coordinates: a `$` in a class name starts no formula.

    `offset`, in pixels, moves the text, also beyond the edge of the plot.
    """
    if halo:
        look["gid"] = _HALO
    if offset := look.pop("offset", None):
        look |= {"xytext": offset, "textcoords": "offset points", "annotation_clip": False}
    axes.annotate(text, (x, y), color=colour, parse_math=False, **{"fontsize": 12, "va": "center", **look})


def to_svg(drawing: Figure, name: str, description: str) -> Markup:
    """The figure as inline SVG. `name` makes its ids unique on the page."""
    drawing.patch.set_visible(False)
    buffer = BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser's fonts have more glyphs
        drawing.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="([^"]*)"', lambda m: f'<g class="{_HALO}"' if m[1] == _HALO else "<g", text)
    text = re.sub(r' (x|y|d|transform|points)="([^"<>]*)"', _rounded, text)
    text = re.sub(r"(?<=: )#0[1-9a]0[1-9a][0-9a-f]{2}", _variable, text)
    text = re.sub(r" font-family: [^;\"<>]*;", "", text).replace("xlink:href", "href")
    _, box, _ = re.split(r'viewBox="([-\d. ]+)"', text, maxsplit=1)
    head = f'<svg class="plot" role="img" aria-label="{escape(description)}" viewBox="{box}">'
    return Markup(re.sub(r"^<svg[^>]*>", lambda _: head, text))


def _variable(match: re.Match[str]) -> str:
    return f"var(--{_VARIABLES[match[0]]})" if match[0] in _VARIABLES else match[0]


def _rounded(match: re.Match[str]) -> str:
    numbers = re.sub(r"\d+\.\d+", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), match[2])
    return f' {match[1]}="{" ".join(numbers.split())}"'
