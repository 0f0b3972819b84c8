"""The sweep's plots of fields together: heat maps of two, parallel coordinates of all, and the trials'
learning curves.
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from ims3_ray.report import svg
from ims3_ray.report.inputs import shortened
from ims3_ray.report.plots import WIDTH
from ims3_ray.report.svg import DISTILLED, GRID, INK, MUTED

from .plots import colour_of, field_title, ipc_colours
from .trials import ACCURACY, FINISHED, IPC, STOPPED, Axis, Sweep, Trial, is_number, metric_name, short

USUAL_PAIR = ("select.alpha", "select.beta")
BINS = 6  # of a range, in a heat map
MOST_MAPS = 4  # heat maps, the largest IPCs
CELL_HEIGHT = 46  # pixels
TINT = (0.06, 0.55)  # opacity of the lowest and of the highest cell: text stays legible on it, light or dark
STRONG = 0.25  # share of an IPC's trials that parallel coordinates draw strongly
_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:g} %")


def heat_pair(sweep: Sweep) -> tuple[str, str] | None:
    """α and β where both are swept, else the first two fields of numbers but IPC; None where there are not
    two.
    """
    numbers = [field for field, axis in sweep.axes.items() if axis.is_number and field != IPC]
    if set(USUAL_PAIR) <= set(numbers):
        return USUAL_PAIR
    return (numbers[0], numbers[1]) if len(numbers) > 1 else None


def heat_maps(sweep: Sweep) -> Markup | None:
    """A map an IPC: in each cell of two fields the best of the finished trials, and the mean and number of
    them.
    """
    pair = heat_pair(sweep)
    if pair is None or not sweep.scored:
        return None
    ipcs = sweep.scored_ipcs[-MOST_MAPS:] or [None]
    columns = min(2, len(ipcs))
    lines = -(-len(ipcs) // columns)
    across, down = (_Cells(sweep, sweep.axes[field]) for field in pair)
    drawing = svg.figure(WIDTH, lines * (CELL_HEIGHT * down.number + 84))
    drawing.get_layout_engine().set(hspace=0.06, wspace=0.04)
    for place, ipc in enumerate(ipcs, start=1):
        axes = drawing.add_subplot(lines, columns, place)
        title = "" if ipc is None else f"{short(ipc)} image{'' if ipc == 1 else 's'} a class"
        svg.style(axes, title=title, x=field_title(pair[0]), y=field_title(pair[1]))
        axes.grid(False)
        trials = [trial for trial in sweep.scored if ipc is None or trial.values.get(IPC) == ipc]
        _map(axes, sweep, trials, across, down, room=WIDTH * 0.85 / columns / across.number)
    return svg.to_svg(
        drawing,
        "heat",
        f"{metric_name(sweep.objective)} over {field_title(pair[0])} and {field_title(pair[1])}",
    )


class _Cells:
    """A field's values as cells: one a listed value, or `BINS` between the ends of a range."""

    def __init__(self, sweep: Sweep, axis: Axis):
        self.axis = axis
        had = {trial.values[axis.field] for trial in sweep.scored if is_number(trial.values.get(axis.field))}
        self.is_binned = not axis.listed and axis.low < axis.high and len(had) > 1
        self.number = len(axis.listed) or (BINS if self.is_binned else 1)

    def of(self, trial: Trial) -> int | None:
        given = trial.values.get(self.axis.field)
        if self.axis.place(given) is None:
            return None
        if self.axis.listed:
            return int(self.axis.place(given))
        return min(int(self.axis.share(given) * self.number), self.number - 1) if self.is_binned else 0

    def ticks(self) -> tuple[list[float], list[str]]:
        """At the middle of a listed value's cell; at the edges of bins."""
        if self.axis.listed:
            return list(range(self.number)), [shortened(name, 10) for name in self.axis.labels]
        shares, low, high = np.linspace(0, 1, self.number + 1), self.axis.low, self.axis.high
        edges = low * (high / low) ** shares if self.axis.is_log else low + (high - low) * shares
        return list(np.arange(self.number + 1) - 0.5), [f"{edge:.3g}" for edge in edges]


def _map(
    axes: Axes, sweep: Sweep, trials: Sequence[Trial], across: _Cells, down: _Cells, *, room: float
) -> None:
    cells: dict[tuple[int, int], list[float]] = {}
    for trial in trials:
        if (place := (across.of(trial), down.of(trial))) and None not in place:
            cells.setdefault(place, []).append(sweep.score(trial))
    tops = {place: max(scores) for place, scores in cells.items()}
    low, high = min(tops.values(), default=0), max(tops.values(), default=0)
    for column, row in product(range(across.number), range(down.number)):
        corner, scores = (column - 0.47, row - 0.47), cells.get((column, row))
        if not scores:
            axes.add_patch(Rectangle(corner, 0.94, 0.94, facecolor="none", edgecolor=GRID, linewidth=1))
            continue
        strength = (max(scores) - low) / (high - low) if high > low else 1.0
        axes.add_patch(
            Rectangle(corner, 0.94, 0.94, facecolor=DISTILLED, alpha=TINT[0] + strength * (TINT[1] - TINT[0]))
        )
        if max(scores) == high:
            axes.add_patch(Rectangle(corner, 0.94, 0.94, facecolor="none", edgecolor=INK, linewidth=2))
        _cell_text(axes, sweep, column, row, scores, is_wide=room > 78)
    for edge, field in ((axes.xaxis, across), (axes.yaxis, down)):
        edge.set_ticks(*field.ticks(), parse_math=False)
    axes.set(xlim=(-0.52, across.number - 0.48), ylim=(-0.52, down.number - 0.48))


def _cell_text(
    axes: Axes, sweep: Sweep, column: int, row: int, scores: Sequence[float], *, is_wide: bool
) -> None:
    many = len(scores) > 1
    svg.label(
        axes, column, row + 0.17 * many, _figure(sweep, max(scores)), ha="center", weight="bold", fontsize=13
    )
    if many:
        mean = _figure(sweep, float(np.mean(scores)))
        text = f"mean {mean} of {len(scores)}" if is_wide else f"{mean} · {len(scores)}"
        svg.label(axes, column, row - 0.22, text, ha="center", fontsize=10.5)


def _figure(sweep: Sweep, score: float) -> str:
    return f"{100 * score:.1f}" if sweep.objective == ACCURACY else f"{score:.3f}"


def parallel(sweep: Sweep) -> Markup | None:
    """A line a finished trial through all swept fields to its objectives; the best quarter of each IPC is
    strong.
    """
    if len(sweep.axes) < 2 or not sweep.scored:
        return None
    names = [*sweep.axes, *sweep.objectives]
    drawing = svg.figure(max(WIDTH, 105 * len(names)), 420)
    axes = drawing.add_subplot()
    svg.style(axes, grid="x")
    ends = {name: _ends(sweep, name) for name in sweep.objectives}
    colours, best = ipc_colours(sweep), sweep.marked
    strong = _strong(sweep)
    kinds = (("weak", 1.2, 0.22), ("strong", 2.0, 0.8), ("best", 4.0, 1.0))
    drawn: dict[str, list[tuple[list, str]]] = {kind: [] for kind, *_ in kinds}
    for trial in sweep.scored:
        shares = [axis.share(trial.values.get(field)) for field, axis in sweep.axes.items()]
        shares += [_between(trial.metrics.get(name), *ends[name]) for name in sweep.objectives]
        line = [(place, share) for place, share in enumerate(shares) if share is not None]
        kind = "best" if trial.number in best else "strong" if trial.number in strong else "weak"
        drawn[kind].append((line, colour_of(colours, trial)))
    for kind, width, alpha in kinds:
        lines, of_lines = [line for line, _ in drawn[kind]], [colour for _, colour in drawn[kind]]
        axes.add_collection(
            LineCollection(lines, colors=of_lines, linewidths=width, alpha=alpha, capstyle="round")
        )
    for place, name in enumerate(names):
        axes.axvline(place, color=MUTED, linewidth=1.2, zorder=1)
        marks = _field_marks(sweep.axes[name]) if name in sweep.axes else _objective_marks(name, *ends[name])
        for share, text in marks:
            where = {"xytext": (6, 0), "textcoords": "offset points", "halo": True, "annotation_clip": False}
            svg.label(axes, place, share, shortened(text, 14), fontsize=11.5, **where)
    heads = [metric_name(name) if name in sweep.objectives else _two_lines(name) for name in names]
    axes.set_xticks(range(len(names)), heads, parse_math=False)
    axes.tick_params(axis="x", labeltop=True, labelbottom=False, labelcolor=INK)
    axes.set(yticks=[], xlim=(-0.1, len(names) - 0.4), ylim=(-0.06, 1.06))
    return svg.to_svg(
        drawing, "parallel", "Parallel coordinates of the trials over all swept fields and the objectives"
    )


def _strong(sweep: Sweep) -> set[int]:
    """Numbers of the best quarter of each IPC's trials, one at least."""
    by_ipc: dict[Any, list[Trial]] = {}
    for trial in sweep.scored:
        by_ipc.setdefault(trial.values.get(IPC), []).append(trial)
    tops = (sorted(t, key=sweep.score, reverse=True)[: math.ceil(STRONG * len(t))] for t in by_ipc.values())
    return {trial.number for top in tops for trial in top}


def _ends(sweep: Sweep, name: str) -> tuple[float, float]:
    found = [trial.metrics[name] for trial in sweep.scored if name in trial.metrics]
    return min(found, default=0.0), max(found, default=0.0)


def _between(given: float | None, low: float, high: float) -> float | None:
    if given is None:
        return None
    return (given - low) / (high - low) if high > low else 0.5


def _field_marks(axis: Axis) -> list[tuple[float, str]]:
    if axis.listed:
        last = max(1, len(axis.listed) - 1)
        return [
            (place / last if len(axis.listed) > 1 else 0.5, name) for place, name in enumerate(axis.labels)
        ]
    return (
        [(0.0, f"{axis.low:.3g}"), (1.0, f"{axis.high:.3g}")]
        if axis.low < axis.high
        else [(0.5, f"{axis.low:.3g}")]
    )


def _objective_marks(name: str, low: float, high: float) -> list[tuple[float, str]]:
    shown = [(0.0, low), (1.0, high)] if high > low else [(0.5, low)]
    return [(share, f"{100 * at:.1f} %" if name == ACCURACY else f"{at:.3f}") for share, at in shown]


def _two_lines(field: str) -> str:
    section, dot, name = field.rpartition(".")
    return f"{shortened(section, 16)}{dot}\n{shortened(name, 16)}" if dot else shortened(field, 16)


def curves(sweep: Sweep) -> Markup | None:
    """Running accuracy of every trial, where some were stopped early: those are drawn strongly to the step of
    their end.
    """
    shown = [trial for trial in sweep.trials if trial.history]
    if not any(trial.status == STOPPED for trial in shown):
        return None
    drawing = svg.figure(WIDTH, 360)
    axes = drawing.add_subplot()
    svg.style(axes, x="training step of the classifier")
    colours, best = ipc_colours(sweep), sweep.marked
    for trial in sorted(shown, key=lambda trial: (trial.number in best, trial.status != FINISHED)):
        steps, scores = np.array(trial.history).T
        colour = colour_of(colours, trial)
        style = {"linewidth": 3.2} if trial.number in best else {"linewidth": 1.3, "alpha": 0.45}
        axes.plot(steps, scores, color=colour, solid_capstyle="round", **style)
        if trial.status != FINISHED:
            axes.plot(steps[-1], scores[-1], "X", color=colour, markersize=7, markeredgewidth=0)
    axes.margins(x=0.02)
    axes.yaxis.set_major_formatter(_PERCENT)
    return svg.to_svg(
        drawing,
        "histories",
        "Running accuracy of the trials, those that were stopped early marked at their end",
    )
