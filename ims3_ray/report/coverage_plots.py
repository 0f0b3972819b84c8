"""Plots of coverage: where in the real data a set has images, and whether it got there by copying."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.ticker import FuncFormatter

from . import svg
from .inputs import shortened
from .plots import WIDTH, spread
from .svg import GRID, INK

_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:g} %")
LABEL_HEIGHT = 19  # pixels that a name beside a line takes


@dataclass(frozen=True)
class Line:
    """A set's coverage by tenth of the real images, densest first. Yardsticks are dashed."""

    name: str
    values: Sequence[float]
    colour: str
    yardstick: bool = False


@dataclass(frozen=True)
class Dot:
    """A set by what it copies and what it covers, both shares."""

    name: str
    copy_rate: float
    low_density_coverage: float
    colour: str


def by_decile(lines: Sequence[Line]) -> Markup | None:
    """Coverage against the density of the real images, a line a set, its name at its end. None without lines."""
    if not lines:
        return None
    height = max(340, 80 + LABEL_HEIGHT * len(lines))
    drawing = svg.figure(WIDTH, height)
    axes = drawing.add_subplot()
    svg.style(axes, x="tenths of the real images of a class, from the densest region to the sparsest")
    for line in lines:
        style = {"linestyle": (0, (4, 3)), "linewidth": 1.8} if line.yardstick else {"linewidth": 2.4}
        axes.plot(range(1, len(line.values) + 1), line.values, color=line.colour, **style)
        axes.plot(range(1, len(line.values) + 1), line.values, "o", color=line.colour, markersize=4.5)
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.yaxis.set_major_formatter(_PERCENT)
    axes.set_xticks(range(1, max(len(line.values) for line in lines) + 1))
    low, high = axes.get_ylim()
    heights = spread([line.values[-1] for line in lines], (high - low) * LABEL_HEIGHT / (height - 80))
    for line, at in zip(lines, heights, strict=True):
        where = {"xytext": (12, 0), "textcoords": "offset points", "annotation_clip": False}
        svg.label(axes, len(line.values), at, shortened(line.name, 28), line.colour, fontsize=13, **where)
    axes.margins(x=0.02)
    return svg.to_svg(drawing, "deciles", "Coverage of real images by their density, from dense to sparse")


def copying(dots: Sequence[Dot]) -> Markup | None:
    """Low-density coverage against the copy rate: high on the left is wanted. None without dots."""
    if not dots:
        return None
    height = max(340, 90 + LABEL_HEIGHT * len(dots))
    drawing = svg.figure(WIDTH, height)
    axes = drawing.add_subplot()
    svg.style(axes, x="copy rate", y="low-density coverage")
    for dot in dots:
        axes.plot(dot.copy_rate, dot.low_density_coverage, "o", color=dot.colour, markersize=10)
    axes.margins(0.08)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_PERCENT)
    (low, high), edge = axes.get_ylim(), axes.get_xlim()[1]
    heights = spread([dot.low_density_coverage for dot in dots], (high - low) * LABEL_HEIGHT / (height - 90))
    for dot, at in zip(dots, heights, strict=True):
        axes.plot([dot.copy_rate, edge], [dot.low_density_coverage, at], color=GRID, linewidth=1.2, zorder=1, clip_on=False)
        where = {"xytext": (8, 0), "textcoords": "offset points", "annotation_clip": False}
        svg.label(axes, edge, at, shortened(dot.name, 28), INK, fontsize=13, **where)
    axes.set_xlim(right=edge)
    axes.set_ylim(low, high)
    return svg.to_svg(drawing, "copying", "Low-density coverage of each row against its copy rate")
