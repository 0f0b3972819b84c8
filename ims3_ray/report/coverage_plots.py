"""Plot of coverage by density of the real images."""

from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup
from matplotlib.axes import Axes

from ims3_ray.evaluation.results import YARDSTICKS
from ims3_ray.method.coverage import Values

from . import svg
from .inputs import shortened
from .plots import spread
from .svg import CLASS_COLOURS, GRID, PERCENT, WIDTH

LABEL_HEIGHT, FRAME_HEIGHT = 19, 80  # pixels of a line's label, and of the frame around the axes


def by_decile(
    coverage: Mapping[str, Values], title: Callable[[str], str], colours: Mapping[str, str]
) -> Markup | None:
    """Coverage against the density of the real images, a labelled line per set; None if no set has deciles.

    The colour of a set is that of `colours` or of its place; YARDSTICKS are dashed.
    """
    deciles = {name: tenths for name, of in coverage.items() if isinstance(tenths := of.get("deciles"), list)}
    if not deciles:
        return None
    height = max(340, FRAME_HEIGHT + round(1.25 * LABEL_HEIGHT * len(deciles)))
    drawing = svg.figure(WIDTH, height)
    axes = drawing.add_subplot()
    svg.style(axes, x="tenths of the real images of a class, from the densest region to the sparsest")
    ends: list[tuple[float, float, str, str]] = []
    for place, name in enumerate(coverage):
        if name in deciles:
            values, colour = deciles[name], colours.get(name, CLASS_COLOURS[place % len(CLASS_COLOURS)])
            dash, width = ((0, (4, 3)), 1.8) if name in YARDSTICKS else ("-", 2.4)
            tenths = range(1, len(values) + 1)
            axes.plot(tenths, values, color=colour, linestyle=dash, linewidth=width)
            axes.plot(tenths, values, "o", color=colour, markersize=4.5)
            ends.append((len(values), values[-1], title(name), colour))
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_xticks(range(1, max(map(len, deciles.values())) + 1))
    axes.margins(x=0.02)
    _name(axes, ends, height)
    return svg.to_svg(drawing, "deciles", "Coverage of real images by their density, from dense to sparse")


def _name(axes: Axes, points: Sequence[tuple[float, float, str, str]], height: int) -> None:
    """Label each point (x, y, name, colour) at the right edge, without overlaps, linked by a thin line."""
    (low, high), edge = axes.get_ylim(), axes.get_xlim()[1]
    heights = spread([y for _, y, _, _ in points], (high - low) * LABEL_HEIGHT / (height - FRAME_HEIGHT))
    for (x, y, name, colour), at in zip(points, heights, strict=True):
        axes.plot([x, edge], [y, at], color=GRID, linewidth=1.2, zorder=1, clip_on=False)
        svg.label(axes, edge, at, shortened(name, 28), colour, offset=(8, 0), fontsize=13)
    axes.set_xlim(right=edge)
    axes.set_ylim(low, high)
