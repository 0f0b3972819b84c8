"""The ablation's main plot: accuracy of every row with its interval, a panel an IPC, the baseline as a line."""

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ims3_ray.jobs.ablate.comparison import Cell, Comparison
from ims3_ray.report import svg
from ims3_ray.report.inputs import shortened
from ims3_ray.report.plots import WIDTH
from ims3_ray.report.svg import DISTILLED, INK, MUTED, PAPER, RANDOM

ROW_HEIGHT, PANEL_EDGE = 30, 74  # pixels
MAX_COLUMNS = 3


def accuracy_panels(comparison: Comparison) -> Markup:
    """Dots: means, filled where they differ from the baseline by more than the noise; bars: 95 % intervals."""
    columns = 2 if len(comparison.ipcs) in (2, 4) else min(MAX_COLUMNS, len(comparison.ipcs))
    lines = -(-len(comparison.ipcs) // columns)
    drawing = svg.figure(WIDTH, lines * (PANEL_EDGE + ROW_HEIGHT * len(comparison.rows)))
    drawing.get_layout_engine().set(hspace=0.06, wspace=0.03)
    for place, ipc in enumerate(comparison.ipcs):
        axes = drawing.add_subplot(lines, columns, place + 1)
        svg.style(axes, grid="x", title=f"{ipc} image{'' if ipc == 1 else 's'} a class")
        _panel(axes, comparison, ipc)
        names = [shortened(name, 28) for name in comparison.rows] if place % columns == 0 else []
        axes.set_yticks(range(len(names)), names, parse_math=False)
        axes.tick_params(axis="y", labelsize=13, labelcolor=INK, pad=10)
        axes.set_ylim(len(comparison.rows) - 0.4, -0.6)
    return svg.to_svg(drawing, "ablation", "Accuracy of every row with its 95 % interval, by images a class")


def _panel(axes: Axes, comparison: Comparison, ipc: int) -> None:
    baseline = comparison.cells[comparison.baseline, ipc].accuracy
    if baseline:
        axes.axvline(baseline.mean, color=MUTED, linewidth=1.4, zorder=1)
    for row, name in enumerate(comparison.rows):
        cell = comparison.cells[name, ipc]
        if cell.accuracy is None:
            axes.text(
                0.02,
                row,
                "no result",
                color=MUTED,
                fontsize=12,
                va="center",
                transform=axes.get_yaxis_transform(),
            )
            continue
        _row(
            axes,
            row,
            cell,
            INK if name == comparison.baseline else RANDOM if name in comparison.real else DISTILLED,
        )
    axes.margins(x=0.06)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=(1, 2, 5, 10)))


def _row(axes: Axes, row: int, cell: Cell, colour: str) -> None:
    mean, interval = cell.accuracy.mean, cell.accuracy.interval
    if interval is not None:
        ends = [mean - interval, mean + interval]
        axes.plot(ends, [row, row], color=colour, linewidth=4, alpha=0.35, solid_capstyle="round")
    is_filled = colour == INK or (cell.difference is not None and cell.difference.larger_than_noise)
    edge = {
        "markerfacecolor": colour if is_filled else PAPER,
        "markeredgecolor": colour,
        "markeredgewidth": 2,
    }
    axes.plot(mean, row, "o", markersize=9, **edge)
