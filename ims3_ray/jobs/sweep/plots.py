"""The sweep's plots of dots: its objective against IPC, against each other swept field, and one objective
against another.

A dot is a trial, filled where it finished and a ring where it was stopped early; its colour is its IPC.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis as Edge
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ims3_ray.report import svg
from ims3_ray.report.inputs import shortened
from ims3_ray.report.plots import WIDTH
from ims3_ray.report.svg import CLASS_COLOURS, DISTILLED, INK, PAPER

from .trials import ACCURACY, IPC, MOST_TOLD, STOPPED, SUBGROUPS, Axis, Sweep, Trial, metric_name

PANEL_HEIGHT, MAX_COLUMNS, LETTER = 270, 3, 7.5  # pixels; a letter of a tick's label is so wide
DODGE = 0.32  # how far to either side trials of one listed value are laid out, in distances between values
GREEK = {"select.alpha": "α", "select.beta": "β", SUBGROUPS: "G"}
_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:g} %")


def ipc_colours(sweep: Sweep) -> dict[Any, str]:
    """A colour an IPC; none where IPC is not swept, or over more values than colours can tell."""
    return dict(zip(sweep.ipcs, CLASS_COLOURS, strict=False)) if len(sweep.ipcs) <= MOST_TOLD else {}


def colour_of(colours: Mapping[Any, str], trial: Trial) -> str:
    return colours.get(trial.values.get(IPC), DISTILLED)


def field_title(field: str) -> str:
    return f"{shortened(field, 34)}, {GREEK[field]}" if field in GREEK else shortened(field, 34)


def by_ipc(sweep: Sweep) -> Markup | None:
    """The objective of every trial at its IPC with its interval, the best of each listed IPC named."""
    if IPC not in sweep.axes or not sweep.scored:
        return None
    drawing = svg.figure(WIDTH, 400)
    axes = drawing.add_subplot()
    svg.style(axes, grid="y", x="images a class")
    axis, best = sweep.axes[IPC], sweep.marked
    for place, (ipc, trials) in enumerate(_grouped(sweep, axis).items()):
        colour = CLASS_COLOURS[place % len(CLASS_COLOURS)] if len(sweep.ipcs) <= MOST_TOLD else DISTILLED
        xs = dict(zip((t.number for t in trials), _dodged(axis.place(ipc), len(trials), axis), strict=True))
        for trial in trials:
            if (interval := sweep.interval(trial)) is not None and trial.status != STOPPED:
                ends = sweep.score(trial) - interval, sweep.score(trial) + interval
                weight = (3.5, 0.7) if trial.number in best else (2, 0.25)
                axes.vlines(xs[trial.number], *ends, color=colour, linewidth=weight[0], alpha=weight[1])
        _dots(axes, sweep, trials, [xs[trial.number] for trial in trials], colour)
        for trial in trials:
            if trial.number in best and axis.listed:
                _name_best(axes, sweep, trial, xs[trial.number])
    _finish(axes.xaxis, axis, WIDTH)
    axes.margins(y=0.12)
    _figures(axes.yaxis, sweep.objective, ticks=8)
    return svg.to_svg(drawing, "by-ipc", f"{metric_name(sweep.objective)} of every trial by images a class")


def _name_best(axes: Axes, sweep: Sweep, trial: Trial, x: float) -> None:
    score = sweep.score(trial)
    text = f"{100 * score:.1f} %" if sweep.objective == ACCURACY else f"{score:.3f}"
    where = {
        "xytext": (0, 18),
        "textcoords": "offset points",
        "ha": "center",
        "fontsize": 13,
        "weight": "bold",
    }
    svg.label(
        axes, x, score + (sweep.interval(trial) or 0), f"{text} · trial {trial.number}", halo=True, **where
    )


def _grouped(sweep: Sweep, axis: Axis) -> dict[Any, list[Trial]]:
    """Trials with a score by IPC, the smallest first."""
    shown = [trial for trial in sweep.trials if sweep.objective in trial.metrics]
    return {
        ipc: [t for t in shown if t.values.get(IPC) == ipc]
        for ipc in sweep.ipcs
        if axis.place(ipc) is not None
    }


def _dodged(at: float, number: int, axis: Axis) -> np.ndarray:
    """Side by side about a listed value; on a range of values, upon each other."""
    width = DODGE if axis.listed and number > 1 else 0.0
    return at + np.linspace(-width, width, number)


def field_panels(sweep: Sweep) -> Markup | None:
    """A panel a swept field but IPC: the objective against the field's value, a dash at the mean of each
    listed one.
    """
    fields = sorted((field for field in sweep.axes if field != IPC), key=lambda field: field != SUBGROUPS)
    if not fields or not sweep.scored:
        return None
    columns = 2 if len(fields) in (2, 4) else min(MAX_COLUMNS, len(fields))
    lines = -(-len(fields) // columns)
    drawing = svg.figure(WIDTH, lines * PANEL_HEIGHT)
    drawing.get_layout_engine().set(hspace=0.08, wspace=0.04)
    first = None
    for place, field in enumerate(fields):
        axes = drawing.add_subplot(lines, columns, place + 1, sharey=first)
        first = first or axes
        svg.style(axes, grid="y", title=field_title(field))
        _field_panel(axes, sweep, sweep.axes[field])
        _finish(axes.xaxis, sweep.axes[field], WIDTH / columns)
        if place % columns:
            axes.tick_params(axis="y", labelleft=False)
    _figures(first.yaxis, sweep.objective)
    return svg.to_svg(
        drawing, "fields", f"{metric_name(sweep.objective)} of every trial against each swept field"
    )


def _field_panel(axes: Axes, sweep: Sweep, axis: Axis) -> None:
    colours = ipc_colours(sweep)
    groups = [colour_of(colours, trial) for trial in sweep.trials]
    order = list(dict.fromkeys([*colours.values(), *groups]))
    for place, colour in enumerate(order):
        trials = [
            trial
            for trial, theirs in zip(sweep.trials, groups, strict=True)
            if theirs == colour
            and sweep.objective in trial.metrics
            and axis.place(trial.values.get(axis.field)) is not None
        ]
        aside = (place - (len(order) - 1) / 2) * 2 * DODGE / len(order) if axis.listed else 0.0
        xs = np.array([axis.place(trial.values.get(axis.field)) + aside for trial in trials])
        _dots(axes, sweep, trials, xs, colour)
        if axis.listed:
            _means(axes, sweep, trials, xs, colour, half=DODGE / len(order))


def _means(
    axes: Axes, sweep: Sweep, trials: Sequence[Trial], xs: np.ndarray, colour: str, *, half: float
) -> None:
    """A dash at the mean of the finished trials at each place that has two of them or more."""
    finished = np.array([trial.status != STOPPED for trial in trials], bool)
    scores = np.array([sweep.score(trial) for trial in trials])
    for x in np.unique(xs[finished]) if len(xs) else ():
        here = finished & (xs == x)
        if here.sum() > 1:
            axes.hlines(scores[here].mean(), x - half, x + half, color=colour, linewidth=2.5)


def _dots(axes: Axes, sweep: Sweep, trials: Sequence[Trial], xs: Iterable[float], colour: str) -> None:
    placed = [(trial, x) for trial, x in zip(trials, xs, strict=True)]
    kinds = (  # which, their size, filling, edge and its width
        (lambda trial: trial.status == STOPPED, 6, "none", colour, 1.4),
        (lambda trial: trial.status != STOPPED, 8, colour, PAPER, 1),
        (lambda trial: trial.number in sweep.marked, 11, colour, INK, 2.2),
    )
    for is_one, size, fill, edge, width in kinds:
        points = np.reshape([(x, sweep.score(trial)) for trial, x in placed if is_one(trial)], (-1, 2))
        style = {"markerfacecolor": fill, "markeredgecolor": edge, "markeredgewidth": width}
        axes.plot(*points.T, "o", markersize=size, **style)


def pareto(sweep: Sweep) -> Markup | None:
    """The first objective against each other one; trials on the front are named, and joined where there are
    two.
    """
    others = sweep.objectives[1:]
    shown = [trial for trial in sweep.finished if all(name in trial.metrics for name in sweep.objectives)]
    if not others or not shown:
        return None
    drawing = svg.figure(WIDTH, 420)
    front = [sweep.by_number[number] for number in sweep.document["pareto"]]
    for place, name in enumerate(others[:MAX_COLUMNS], start=1):
        axes = drawing.add_subplot(1, min(len(others), MAX_COLUMNS), place)
        svg.style(
            axes, x=metric_name(name).lower(), y=metric_name(sweep.objective).lower() if place == 1 else ""
        )
        points = {trial.number: (trial.metrics[name], sweep.score(trial)) for trial in shown}
        if len(others) == 1:
            line = np.array(
                sorted(points[trial.number] for trial in front if trial.number in points)
            ).reshape(-1, 2)
            axes.plot(*line.T, color=INK, linewidth=1.6, drawstyle="steps-pre", zorder=1)
        colours, on_front = ipc_colours(sweep), {trial.number for trial in front}
        for trial in shown:
            is_front = trial.number in on_front
            style = (
                {"markersize": 10, "markeredgecolor": INK}
                if is_front
                else {"markersize": 8, "markeredgecolor": PAPER}
            )
            axes.plot(
                *points[trial.number],
                "o",
                color=colour_of(colours, trial),
                alpha=1 if is_front else 0.55,
                **style,
            )
            if is_front:
                where = {"xytext": (9, 9), "textcoords": "offset points"}
                svg.label(axes, *points[trial.number], str(trial.number), halo=True, weight="bold", **where)
        axes.margins(0.08)
        _figures(axes.xaxis, name)
        _figures(axes.yaxis, sweep.objective)
    return svg.to_svg(drawing, "pareto", "Trials by their objectives, the Pareto front marked")


def _figures(edge: Edge, metric: str, *, ticks: int = 5) -> None:
    """Ticks of a metric's figures: percent for the accuracy, plain for the others."""
    edge.set_major_locator(MaxNLocator(ticks, steps=(1, 2, 5, 10)))
    edge.set_major_formatter(_PERCENT if metric == ACCURACY else FuncFormatter(lambda found, _: f"{found:g}"))


def _finish(edge: Edge, axis: Axis, width: float) -> None:
    """Ticks of a field's values; labels are cut to the room between them, `width` pixels in all."""
    if axis.listed:
        room = max(4, int(width * 0.85 / len(axis.listed) / LETTER))
        edge.set_ticks(
            range(len(axis.listed)), [shortened(name, room) for name in axis.labels], parse_math=False
        )
        edge.axes.set_xlim(-0.6, len(axis.listed) - 0.4)
        return
    if axis.is_log:
        edge.axes.set_xscale("log")
        edge.set_major_locator(LogLocator(subs=(1,) if axis.high > 100 * axis.low else (1, 2, 5)))
        edge.set_major_formatter("{x:g}")
        edge.set_minor_locator(NullLocator())
    else:
        edge.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
    edge.axes.margins(x=0.05)
