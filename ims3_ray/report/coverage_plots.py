"""Plots of coverage: where in the real data a set has images, and whether it got there by copying."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from . import svg
from .inputs import shortened
from .plots import WIDTH, spread
from .svg import GRID, INK

_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:g} %")
# pixels that a name beside a line takes, and that a plot needs about its axes
LABEL_HEIGHT, FRAME_HEIGHT = 19, 80


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
    height = _height(len(lines))
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
    axes.margins(x=0.02)
    ends = [(len(line.values), line.values[-1]) for line in lines]
    _names(axes, ends, [shortened(line.name, 28) for line in lines], [line.colour for line in lines], height)
    return svg.to_svg(drawing, "deciles", "Coverage of real images by their density, from dense to sparse")


def copying(dots: Sequence[Dot]) -> Markup | None:
    """Low-density coverage against the copy rate: high on the left is wanted. None without dots."""
    if not dots:
        return None
    height = _height(len(dots))
    drawing = svg.figure(WIDTH, height)
    axes = drawing.add_subplot()
    svg.style(axes, x="copy rate", y="low-density coverage")
    for dot in dots:
        axes.plot(dot.copy_rate, dot.low_density_coverage, "o", color=dot.colour, markersize=10)
    axes.margins(0.08)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_PERCENT)
    points = [(dot.copy_rate, dot.low_density_coverage) for dot in dots]
    _names(axes, points, [shortened(dot.name, 28) for dot in dots], [INK] * len(dots), height)
    return svg.to_svg(drawing, "copying", "Low-density coverage of each row against its copy rate")


def _height(names: int) -> int:
    """Of a plot in pixels, with room to spare between so many names."""
    return max(340, FRAME_HEIGHT + round(1.25 * LABEL_HEIGHT * names))


def _names(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    colours: Sequence[str],
    height: int,
) -> None:
    """Each name at the right edge, on a thin line from its point, none upon another."""
    (low, high), edge = axes.get_ylim(), axes.get_xlim()[1]
    heights = spread([y for _, y in points], (high - low) * LABEL_HEIGHT / (height - FRAME_HEIGHT))
    for (x, y), at, name, colour in zip(points, heights, names, colours, strict=True):
        axes.plot([x, edge], [y, at], color=GRID, linewidth=1.2, zorder=1, clip_on=False)
        where = {"xytext": (8, 0), "textcoords": "offset points", "annotation_clip": False}
        svg.label(axes, edge, at, name, colour, fontsize=13, **where)
    axes.set_xlim(right=edge)
    axes.set_ylim(low, high)
