"""Plot of coverage by density of the real images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes

from ims3_ray.evaluation.results import YARDSTICKS
from ims3_ray.method.coverage import Values

from . import svg
from .inputs import shortened
from .plots import spread
from .svg import CLASS_COLOURS, GRID, PERCENT, WIDTH

LABEL_HEIGHT, FRAME_HEIGHT = 19, 80  # pixels of a line's label, and of the frame around the axes


@dataclass(frozen=True)
class Line:
    """Coverage of a set by tenth of the real images, densest first. References are dashed."""

    name: str
    values: Sequence[float]
    colour: str
    is_reference: bool = False


def by_decile(
    coverage: Mapping[str, Values], title: Callable[[str], str], colours: Mapping[str, str]
) -> Markup | None:
    """Coverage against the density of the real images, a labelled line per set; None if no set has deciles.

    The colour of a set is that of `colours` or of its place; YARDSTICKS are dashed.
    """
    lines = []
    for place, (name, values) in enumerate(coverage.items()):
        if isinstance(deciles := values.get("deciles"), list):
            colour = colours.get(name, CLASS_COLOURS[place % len(CLASS_COLOURS)])
            lines.append(Line(title(name), deciles, colour, is_reference=name in YARDSTICKS))
    if not lines:
        return None
    drawing, axes, height = _figure(len(lines))
    svg.style(axes, x="tenths of the real images of a class, from the densest region to the sparsest")
    for line in lines:
        tenths = range(1, len(line.values) + 1)
        dash, width = ((0, (4, 3)), 1.8) if line.is_reference else ("-", 2.4)
        axes.plot(tenths, line.values, color=line.colour, linestyle=dash, linewidth=width)
        axes.plot(tenths, line.values, "o", color=line.colour, markersize=4.5)
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_xticks(range(1, max(len(line.values) for line in lines) + 1))
    axes.margins(x=0.02)
    ends = [(len(line.values), line.values[-1], line.name, line.colour) for line in lines]
    _name(axes, ends, height)
    return svg.to_svg(drawing, "deciles", "Coverage of real images by their density, from dense to sparse")


def _figure(names: int) -> tuple[svg.Figure, Axes, int]:
    """A figure with room for `names` labels, its axes, and its height in pixels."""
    height = max(340, FRAME_HEIGHT + round(1.25 * LABEL_HEIGHT * names))
    drawing = svg.figure(WIDTH, height)
    return drawing, drawing.add_subplot(), height


def _name(axes: Axes, points: Sequence[tuple[float, float, str, str]], height: int) -> None:
    """Label each point (x, y, name, colour) at the right edge, without overlaps, linked by a thin line."""
    (low, high), edge = axes.get_ylim(), axes.get_xlim()[1]
    heights = spread([y for _, y, _, _ in points], (high - low) * LABEL_HEIGHT / (height - FRAME_HEIGHT))
    for (x, y, name, colour), at in zip(points, heights, strict=True):
        axes.plot([x, edge], [y, at], color=GRID, linewidth=1.2, zorder=1, clip_on=False)
        svg.label(axes, edge, at, shortened(name, 28), colour, offset=(8, 0), fontsize=13)
    axes.set_xlim(right=edge)
    axes.set_ylim(low, high)
