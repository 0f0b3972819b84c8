"""The plots of a sweep's page: trials by field and objective, and the rows of a comparison."""

from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import MaxNLocator

from ims3_ray.report import svg
from ims3_ray.report.formatting import METRICS, value
from ims3_ray.report.inputs import shortened
from ims3_ray.report.svg import CLASS_COLOURS, DISTILLED, INK, MUTED, PAPER, PERCENT, RANDOM, WIDTH
from ims3_ray.runs.records import FINISHED, STOPPED

from .comparison import Comparison
from .results import Document
from .trial import Trial

ACCURACY, IPC = "accuracy", "ipc"
PANEL_HEIGHT = 270  # pixels
ROW_HEIGHT, PANEL_EDGE = 30, 74  # pixels, of the comparison's panels
LETTER = 7.5  # pixels, width of a letter of a tick's label
MAX_COLOURED = 8  # IPCs that colours can tell apart


def ipc_colours(trials: Sequence[Trial]) -> dict[object, str]:
    """A colour per IPC; none if IPC is not swept, or has too many values."""
    ipcs = sorted({trial.values[IPC] for trial in trials if IPC in trial.values})
    return dict(zip(ipcs, CLASS_COLOURS, strict=False)) if len(ipcs) <= MAX_COLOURED else {}


def field_panels(document: Document, trials: Sequence[Trial]) -> Markup | None:
    """A panel per swept field: the first objective of every trial by the field's value."""
    score = document["objective"][0]
    scored = [trial for trial in trials if score in trial.metrics]
    if not any(trial.state == FINISHED for trial in scored):
        return None
    fields = sorted(document["space"], key=lambda field: field != IPC)
    lines, columns = svg.panels(len(fields))
    drawing = svg.figure(WIDTH, lines * PANEL_HEIGHT, hspace=0.08, wspace=0.04)
    first = None
    for number, field in enumerate(fields, start=1):
        axes = drawing.add_subplot(lines, columns, number, sharey=first)
        first = first or axes
        svg.style(axes, grid="y", title=shortened(field, 34))
        swept = [trial for trial in scored if field in trial.values]
        values = [trial.values[field] for trial in swept]
        _dots(
            axes, document, swept, _field_axis(axes, document["space"][field], values, WIDTH / columns), score
        )
        _metric_ticks(axes.yaxis, score)
    return svg.to_svg(drawing, "fields", f"{metric_name(score)} of every trial by each swept field")


def pareto_panels(document: Document, trials: Sequence[Trial]) -> Markup | None:
    """The first objective against each further one; trials on the front are numbered."""
    score, *others = document["objective"]
    finished = [trial for trial in trials if trial.state == FINISHED]
    if not others or not finished:
        return None
    lines, columns = svg.panels(len(others))
    drawing = svg.figure(WIDTH, lines * 420)
    for number, name in enumerate(others, start=1):
        axes = drawing.add_subplot(lines, columns, number)
        svg.style(axes, x=metric_name(name).lower(), y=metric_name(score).lower())
        _dots(axes, document, finished, [trial.metrics[name] for trial in finished], score)
        for trial in finished:
            if trial.number in document["pareto"]:
                style = {"xytext": (9, 9), "textcoords": "offset points", "weight": "bold", "halo": True}
                svg.label(axes, trial.metrics[name], trial.metrics[score], str(trial.number), **style)
        axes.margins(0.08)
        _metric_ticks(axes.xaxis, name)
        _metric_ticks(axes.yaxis, score)
    return svg.to_svg(drawing, "pareto", "Trials by their objectives, with the Pareto front")


def row_panels(comparison: Comparison) -> Markup:
    """Each row's accuracy with its 95 % interval, a panel per IPC; filled if its difference is clear."""
    lines, columns = svg.panels(len(comparison.ipcs))
    height = lines * (PANEL_EDGE + ROW_HEIGHT * len(comparison.rows))
    drawing = svg.figure(WIDTH, height, hspace=0.06, wspace=0.03)
    for number, ipc in enumerate(comparison.ipcs):
        axes = drawing.add_subplot(lines, columns, number + 1)
        svg.style(axes, grid="x", title=f"IPC {ipc}")
        _rows(axes, comparison, ipc)
        names = [shortened(name, 28) for name in comparison.rows] if number % columns == 0 else []
        svg.name_rows(axes, names, size=13, pad=10)
        axes.set_ylim(len(comparison.rows) - 0.4, -0.6)
    return svg.to_svg(drawing, "comparison", "Accuracy of every row with its 95 % interval, by IPC")


def _rows(axes: Axes, comparison: Comparison, ipc: int) -> None:
    baseline = comparison.cells[comparison.baseline, ipc].accuracy.mean
    axes.axvline(baseline, color=MUTED, linewidth=1.4, zorder=1)
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


def _dots(axes: Axes, document: Document, trials: Sequence[Trial], xs: Sequence[float], score: str) -> None:
    """A dot per trial in its IPC's colour: a ring if stopped early, outlined if the best of its IPC."""
    colours, best = ipc_colours(trials), set(document["best"].values())
    for trial, x in zip(trials, xs, strict=True):
        y, colour = trial.metrics[score], colours.get(trial.values.get(IPC), DISTILLED)
        is_best, is_stopped = trial.number in best, trial.state == STOPPED
        edge = INK if is_best else colour if is_stopped else PAPER
        size, order, fill = (11, 3, colour) if is_best else (8, 2, "none" if is_stopped else colour)
        style = {"markerfacecolor": fill, "markeredgecolor": edge, "markersize": size}
        axes.plot(x, y, "o", zorder=order, **style)
        if score == ACCURACY and trial.interval is not None and is_best:
            low, high = max(0.0, y - trial.interval), min(1.0, y + trial.interval)  # few seeds reach beyond
            axes.vlines(x, low, high, color=colour, linewidth=2, alpha=0.5)


def _field_axis(axes: Axes, spec: dict, values: Sequence, width: float) -> list[float]:
    """Set the x axis for a field; returns where the values lie. Listed values are evenly spaced."""
    if "values" not in spec:
        if spec.get("log"):
            axes.set_xscale("log")
            svg.log_ticks(axes.xaxis)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
        axes.margins(x=0.05)
        return [float(item) for item in values]
    listed = [*spec["values"], *values]
    listed = sorted(listed) if all(isinstance(v, int | float) for v in listed) else listed
    labels = list(dict.fromkeys(map(short, listed)))
    room = max(4, int(width * 0.85 / len(labels) / LETTER))
    axes.set_xticks(range(len(labels)), [shortened(label, room) for label in labels], parse_math=False)
    axes.set_xlim(-0.6, len(labels) - 0.4)
    return [labels.index(short(item)) for item in values]


def _metric_ticks(axis: Axis, metric: str) -> None:
    """Percent for the accuracy, plain numbers for other metrics."""
    axis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
    axis.set_major_formatter(PERCENT if metric == ACCURACY else "{x:g}")


def metric_name(name: str) -> str:
    return METRICS[name][0] if name in METRICS else name.replace("_", " ").capitalize()


def short(item: object) -> str:
    """As in YAML, numbers with four digits."""
    if isinstance(item, list | tuple):
        return f"[{', '.join(map(short, item))}]"
    return f"{item:.4g}" if isinstance(item, float) else value(item)
