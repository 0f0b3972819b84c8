"""The sweep's plots of dots: its objective by IPC, by each other swept field, and against other objectives.

A dot is a trial, filled where it finished and a ring where it was stopped early; its colour is its IPC.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis as Edge
from matplotlib.ticker import MaxNLocator

from ims3_ray.report import svg
from ims3_ray.report.inputs import shortened
from ims3_ray.report.svg import CLASS_COLOURS, DISTILLED, INK, PAPER, WIDTH
from ims3_ray.runs.records import STOPPED

from .results import ACCURACY, IPC, MOST_TOLD, SUBGROUPS, Axis, Results, ipc_of, metric_name
from .trial_state import Trial

PANEL_HEIGHT, MAX_COLUMNS, LETTER = 270, 3, 7.5  # pixels; a letter of a tick's label is so wide
DODGE = 0.32  # how far to either side trials of one listed value are laid out, in distances between values
GREEK = {"select.alpha": "α", "select.beta": "β", SUBGROUPS: "G"}


class Shares(MaxNLocator):
    """None below 0 or above 100 %, where an axis has its margins."""

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        return [tick for tick in super().tick_values(vmin, vmax) if -1e-9 < tick < 1 + 1e-9]


def ipc_colours(results: Results) -> dict[object, str]:
    """A colour an IPC; none where IPC is not swept, or over more values than colours can tell."""
    return dict(zip(results.ipcs, CLASS_COLOURS, strict=False)) if len(results.ipcs) <= MOST_TOLD else {}


def field_title(field: str) -> str:
    return f"{shortened(field, 34)}, {GREEK[field]}" if field in GREEK else shortened(field, 34)


def by_ipc(results: Results) -> Markup | None:
    """The objective of every trial at its IPC with its interval, the best of each listed IPC named."""
    if IPC not in results.axes or not results.finished:
        return None
    drawing = svg.figure(WIDTH, 400)
    axes = drawing.add_subplot()
    svg.style(axes, grid="y", x="images a class")
    axis = results.axes[IPC]
    for colour, trials, xs in _groups(results, axis):
        for trial, x in zip(trials, xs, strict=True):
            _name_and_interval(axes, results, trial, x, colour, is_listed=bool(axis.labels))
        _dots(axes, results, trials, xs, colour)
    _value_ticks(axes.xaxis, axis, WIDTH)
    axes.margins(y=0.12)
    _figure_ticks(axes.yaxis, results.objective, most=8)
    return svg.to_svg(drawing, "by-ipc", f"{metric_name(results.objective)} of every trial by images a class")


def _name_and_interval(
    axes: Axes, results: Results, trial: Trial, x: float, colour: str, *, is_listed: bool
) -> None:
    score, interval, is_best = results.score(trial), results.interval(trial), trial in results.best.values()
    top = score
    if interval is not None and trial.state != STOPPED:
        width, alpha = (3.5, 0.7) if is_best else (2, 0.25)
        low, top = max(0.0, score - interval), min(1.0, score + interval)  # few seeds reach beyond
        axes.vlines(x, low, top, color=colour, linewidth=width, alpha=alpha)
    if is_best and is_listed:
        text = f"{results.in_words(score, ' %')} · trial {trial.number}"
        style = {"textcoords": "offset points", "ha": "center", "fontsize": 13, "weight": "bold"}
        svg.label(axes, x, top, text, halo=True, xytext=(0, 18), **style)


def field_panels(results: Results) -> Markup | None:
    """A panel a swept field but IPC: the objective by its value, a dash at the mean of each listed one."""
    fields = sorted((field for field in results.axes if field != IPC), key=lambda field: field != SUBGROUPS)
    if not fields or not results.finished:
        return None
    lines, columns = svg.panels(len(fields))
    drawing = svg.figure(WIDTH, lines * PANEL_HEIGHT, hspace=0.08, wspace=0.04)
    first = None
    for place, field in enumerate(fields):
        axes = drawing.add_subplot(lines, columns, place + 1, sharey=first)
        first, axis = first or axes, results.axes[field]
        svg.style(axes, grid="y", title=field_title(field))
        for colour, trials, xs in _groups(results, axis):
            _dots(axes, results, trials, xs, colour)
            if axis.labels:
                _means(axes, results, trials, xs, colour)
        _value_ticks(axes.xaxis, axis, WIDTH / columns)
        if place % columns:
            axes.tick_params(axis="y", labelleft=False)
        _figure_ticks(axes.yaxis, results.objective)
    title = f"{metric_name(results.objective)} of every trial against each swept field"
    return svg.to_svg(drawing, "fields", title)


def _groups(results: Results, axis: Axis) -> Iterator[tuple[str, list[Trial], np.ndarray]]:
    """Colour, scored trials and where they lie along the axis. About a listed value IPCs stand side by side.

    On the axis of IPC trials do. On a range they lie upon each other.
    """
    colours = ipc_colours(results)
    groups: dict[str, list[tuple[Trial, float]]] = {colour: [] for colour in colours.values()}
    for trial in results.trials:
        group = groups.setdefault(colours.get(ipc_of(trial), DISTILLED), [])
        place = axis.place(trial.values.get(axis.field))
        if place is not None and results.objective in trial.metrics:
            group.append((trial, place))
    for number, (colour, placed) in enumerate(groups.items()):
        xs = np.array([place for _, place in placed])
        if axis.labels and axis.field != IPC:
            xs += (2 * number + 1 - len(groups)) * DODGE / len(groups)
        elif axis.labels:
            for here in (xs == place for place in set(xs)):
                xs[here] += np.linspace(-DODGE, DODGE, here.sum()) if here.sum() > 1 else 0
        yield colour, [trial for trial, _ in placed], xs


def _means(axes: Axes, results: Results, trials: Sequence[Trial], xs: np.ndarray, colour: str) -> None:
    """A dash at the mean of the finished trials at each place that has two of them or more."""
    scores: dict[float, list[float]] = {}
    for trial, x in zip(trials, xs, strict=True):
        if trial.state != STOPPED:
            scores.setdefault(x, []).append(results.score(trial))
    half = DODGE / max(1, len(ipc_colours(results)))
    for x, here in scores.items():
        if len(here) > 1:
            axes.hlines(np.mean(here), x - half, x + half, color=colour, linewidth=2.5)


def _dots(axes: Axes, results: Results, trials: Sequence[Trial], xs: np.ndarray, colour: str) -> None:
    stopped = np.array([trial.state == STOPPED for trial in trials], bool)
    best = np.array([trial in results.best.values() for trial in trials], bool)
    scores = np.array([results.score(trial) for trial in trials])
    for shown, size, fill, edge, width in (
        (stopped, 6, "none", colour, 1.4),
        (~stopped, 8, colour, PAPER, 1),
        (best, 11, colour, INK, 2.2),
    ):
        style = {"markerfacecolor": fill, "markeredgecolor": edge, "markeredgewidth": width}
        axes.plot(xs[shown], scores[shown], "o", markersize=size, **style)


def pareto(results: Results) -> Markup | None:
    """The first objective against each other; those on the front are named, of two objectives joined."""
    others = results.objectives[1:]
    if not others or not results.finished:
        return None
    drawing = svg.figure(WIDTH, 420)
    columns = min(len(others), MAX_COLUMNS)
    title = metric_name(results.objective).lower()
    for place, name in enumerate(others[:columns], start=1):
        axes = drawing.add_subplot(1, columns, place)
        svg.style(axes, x=metric_name(name).lower(), y=title if place == 1 else "")
        _pareto_panel(axes, results, name, is_joined=len(others) == 1)
        axes.margins(0.08)
        _figure_ticks(axes.xaxis, name)
        _figure_ticks(axes.yaxis, results.objective)
    return svg.to_svg(drawing, "pareto", "Trials by their objectives, the Pareto front marked")


def _pareto_panel(axes: Axes, results: Results, name: str, *, is_joined: bool) -> None:
    front, colours = set(results.document["pareto"]), ipc_colours(results)
    points = {trial.number: (trial.metrics[name], results.score(trial)) for trial in results.finished}
    if is_joined:
        xs, ys = zip(*sorted(points[number] for number in front), strict=True)
        axes.plot(xs, ys, color=INK, linewidth=1.6, drawstyle="steps-pre", zorder=1)
    for trial in results.finished:
        point, is_front = points[trial.number], trial.number in front
        style = {"markersize": 10, "markeredgecolor": INK} if is_front else {"markersize": 8, "alpha": 0.55}
        colour = colours.get(ipc_of(trial), DISTILLED)
        axes.plot(*point, "o", **{"color": colour, "markeredgecolor": PAPER, **style})
        if is_front:
            where = {"xytext": (9, 9), "textcoords": "offset points"}
            svg.label(axes, *point, str(trial.number), halo=True, weight="bold", **where)


def _figure_ticks(edge: Edge, metric: str, *, most: int = 5) -> None:
    """Ticks of a metric's figures: percent for the accuracy, plain for the others."""
    locator = Shares if metric == ACCURACY else MaxNLocator
    edge.set_major_locator(locator(most, steps=(1, 2, 5, 10)))
    edge.set_major_formatter(svg.PERCENT if metric == ACCURACY else "{x:g}")


def _value_ticks(edge: Edge, axis: Axis, width: float) -> None:
    """Ticks of a field's values; labels are cut to the room between them, `width` pixels in all."""
    if axis.labels:
        room = max(4, int(width * 0.85 / len(axis.labels) / LETTER))
        labels = [shortened(name, room) for name in axis.labels.values()]
        edge.set_ticks(range(len(labels)), labels, parse_math=False)
        edge.axes.set_xlim(-0.6, len(labels) - 0.4)
        return
    if axis.is_log:
        edge.axes.set_xscale("log")
        svg.log_ticks(edge, (1,) if axis.high > 100 * axis.low else (1, 2, 5))
    else:
        edge.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
    edge.axes.margins(x=0.05)
