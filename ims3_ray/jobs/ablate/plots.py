"""The main plot: every row's accuracy with its interval, a panel an IPC, the baseline as a line."""

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ims3_ray.report import svg
from ims3_ray.report.inputs import shortened
from ims3_ray.report.svg import DISTILLED, INK, MUTED, PAPER, PERCENT, RANDOM, WIDTH

from .comparison import Comparison

ROW_HEIGHT, PANEL_EDGE = 30, 74  # pixels


def accuracy_panels(comparison: Comparison) -> Markup:
    """Dots: means, filled where clearly different from the baseline; bars: 95 % intervals."""
    lines, columns = svg.panels(len(comparison.ipcs))
    height = lines * (PANEL_EDGE + ROW_HEIGHT * len(comparison.rows))
    drawing = svg.figure(WIDTH, height, hspace=0.06, wspace=0.03)
    for place, ipc in enumerate(comparison.ipcs):
        axes = drawing.add_subplot(lines, columns, place + 1)
        svg.style(axes, grid="x", title=f"{ipc} image{'' if ipc == 1 else 's'} a class")
        _panel(axes, comparison, ipc)
        names = [shortened(name, 28) for name in comparison.rows] if place % columns == 0 else []
        svg.name_rows(axes, names, size=13, pad=10)
        axes.set_ylim(len(comparison.rows) - 0.4, -0.6)
    return svg.to_svg(drawing, "ablation", "Accuracy of every row with its 95 % interval, by images a class")


def _panel(axes: Axes, comparison: Comparison, ipc: int) -> None:
    axes.axvline(
        comparison.cells[comparison.baseline, ipc].accuracy.mean, color=MUTED, linewidth=1.4, zorder=1
    )
    for row, name in enumerate(comparison.rows):
        cell, is_baseline = comparison.cells[name, ipc], name == comparison.baseline
        mean, interval = cell.accuracy.mean, cell.accuracy.interval
        colour = INK if is_baseline else RANDOM if name in comparison.real else DISTILLED
        if interval is not None:
            ends = [mean - interval, mean + interval]
            axes.plot(ends, [row, row], color=colour, linewidth=4, alpha=0.35, solid_capstyle="round")
        fill = colour if is_baseline or cell.is_clear else PAPER
        edge = {"markerfacecolor": fill, "markeredgecolor": colour, "markeredgewidth": 2}
        axes.plot(mean, row, "o", markersize=9, **edge)
    axes.margins(x=0.06)
    axes.xaxis.set_major_formatter(PERCENT)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=(1, 2, 5, 10)))
