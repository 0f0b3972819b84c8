"""The sweep's heat maps: two fields, a map an IPC, in each cell the best of the finished trials."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from ims3_ray.report import svg
from ims3_ray.report.inputs import shortened
from ims3_ray.report.svg import DISTILLED, GRID, INK, WIDTH

from .plots import field_title
from .results import IPC, Axis, Results, ipc_of, is_number, metric_name, short
from .trial_state import Trial

USUAL_PAIR = ("select.alpha", "select.beta")
BINS = 6  # of a range
MOST_MAPS = 4  # the largest IPCs
CELL_HEIGHT = 46  # pixels
TINT = (0.06, 0.55)  # opacity of the lowest and of the highest cell: text stays legible on it, light or dark


def heat_pair(results: Results) -> tuple[str, str] | None:
    """α and β where both are swept, else the first two fields of numbers but IPC; None for fewer."""
    numbers = [field for field, axis in results.axes.items() if axis.is_number and field != IPC]
    if set(USUAL_PAIR) <= set(numbers):
        return USUAL_PAIR
    return (numbers[0], numbers[1]) if len(numbers) > 1 else None


def heat_maps(results: Results) -> Markup | None:
    """In each cell the best of the finished trials, and the mean and number of them."""
    pair = heat_pair(results)
    if pair is None or not results.finished:
        return None
    ipcs = results.finished_ipcs[-MOST_MAPS:] or [None]
    columns = min(2, len(ipcs))
    lines = -(-len(ipcs) // columns)
    across, down = (_Cells(results, results.axes[field]) for field in pair)
    titles = [field_title(field) for field in pair]
    drawing = svg.figure(WIDTH, lines * (CELL_HEIGHT * down.count + 84), hspace=0.06, wspace=0.04)
    for place, ipc in enumerate(ipcs, start=1):
        axes = drawing.add_subplot(lines, columns, place)
        title = "" if ipc is None else f"{short(ipc)} image{'' if ipc == 1 else 's'} a class"
        svg.style(axes, title=title, x=titles[0], y=titles[1])
        axes.grid(False)
        trials = [trial for trial in results.finished if ipc is None or ipc_of(trial) == ipc]
        _map(axes, results, trials, across, down)
    return svg.to_svg(drawing, "heat", f"{metric_name(results.objective)} over {titles[0]} and {titles[1]}")


class _Cells:
    """A field's values as cells: one a listed value, or `BINS` between the ends of a range."""

    def __init__(self, results: Results, axis: Axis):
        self._axis = axis
        values = {v for trial in results.finished if is_number(v := trial.values.get(axis.field))}
        is_binned = not axis.labels and axis.low < axis.high and len(values) > 1
        self.count = len(axis.labels) or (BINS if is_binned else 1)

    def of(self, trial: Trial) -> int | None:
        given = trial.values.get(self._axis.field)
        place, share = self._axis.place(given), self._axis.share(given)
        if place is None or share is None:
            return None
        return int(place) if self._axis.labels else min(int(share * self.count), self.count - 1)

    def ticks(self) -> tuple[list[float], list[str]]:
        """At the middle of a listed value's cell; at the edges of bins."""
        labels, low, high = self._axis.labels, self._axis.low, self._axis.high
        if labels:
            return list(range(self.count)), [shortened(name, 10) for name in labels.values()]
        shares = np.linspace(0, 1, self.count + 1)
        edges = low * (high / low) ** shares if self._axis.is_log else low + (high - low) * shares
        return list(np.arange(self.count + 1) - 0.5), [f"{edge:.3g}" for edge in edges]


def _map(axes: Axes, results: Results, trials: Sequence[Trial], across: _Cells, down: _Cells) -> None:
    cells: dict[tuple[int | None, int | None], list[float]] = {}
    for trial in trials:
        cells.setdefault((across.of(trial), down.of(trial)), []).append(results.score(trial))
    tops = [max(scores) for place, scores in cells.items() if None not in place]
    low, high = min(tops, default=0), max(tops, default=0)
    for column, row in product(range(across.count), range(down.count)):
        scores = cells.get((column, row))
        if not scores:
            _box(axes, column, row, facecolor="none", edgecolor=GRID, linewidth=1)
            continue
        top = max(scores)
        strength = (top - low) / (high - low) if high > low else 1.0
        _box(axes, column, row, facecolor=DISTILLED, alpha=TINT[0] + strength * (TINT[1] - TINT[0]))
        if top == high:
            _box(axes, column, row, facecolor="none", edgecolor=INK, linewidth=2)
        many = len(scores) > 1
        style = {"ha": "center", "weight": "bold", "fontsize": 13}
        svg.label(axes, column, row + 0.17 * many, results.in_words(top), **style)
        if many:
            mean = results.in_words(float(np.mean(scores)))
            svg.label(axes, column, row - 0.22, f"{mean} · {len(scores)}", ha="center", fontsize=10.5)
    for edge, cells_of in ((axes.xaxis, across), (axes.yaxis, down)):
        edge.set_ticks(*cells_of.ticks(), parse_math=False)
    axes.set(xlim=(-0.52, across.count - 0.48), ylim=(-0.52, down.count - 0.48))


def _box(axes: Axes, column: int, row: int, **style: Any) -> None:
    axes.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, **style))
