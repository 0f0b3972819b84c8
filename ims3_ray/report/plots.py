"""The report's plots. Each takes plain numbers and gives an SVG whose colours follow the page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from scipy.optimize import isotonic_regression

from . import svg
from .inputs import shortened
from .projection import Map
from .svg import CLASS_COLOURS, DISTILLED, FULL, GRID, INK, MUTED, PAPER, RANDOM, REAL, WIDTH

SET_COLOURS = {"distilled": DISTILLED, "random": RANDOM, "full": FULL}
SET_NAMES = {
    "distilled": "Distilled",
    "random": "Random real",
    "herding": "Herding, real",
    "k_center": "k-centre, real",
    "medoids": "k-means medoids, real",
    "k_medoids": "k-medoids, real",
    "full": "Full real set",
    "ceiling": "Greedy cover, real",
    "pool": "First of the pool",
}
MARKS = {
    "real": {"markersize": 4.5, "markeredgewidth": 0, "alpha": 0.4},
    "candidate": {"markersize": 6, "markeredgewidth": 1.1, "alpha": 0.8},
    "selected": {"markersize": 10, "markeredgewidth": 1.3},
}
_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:g} %")
MAX_ROWS = 40  # classes in the plot of subgroups


def set_name(name: str) -> str:
    return SET_NAMES.get(name, name)


def accuracy(sets: Mapping[str, Mapping[str, Any]]) -> Markup:
    """Accuracy after the last step: a row a set, a tick a seed, mean and 95 % interval, on a zoomed axis."""
    drawing = svg.figure(WIDTH, 60 + 58 * len(sets))
    axes = drawing.add_subplot()
    svg.style(axes, grid="x")
    rows = list(sets)
    for row, name in enumerate(rows):
        last, colour = sets[name]["last"], SET_COLOURS.get(name, MUTED)
        axes.plot(
            last["values"],
            [row + 0.3] * len(last["values"]),
            "|",
            color=colour,
            markersize=8,
            markeredgewidth=1.5,
        )
        if last["interval"] is not None:
            ends = last["mean"] - last["interval"], last["mean"] + last["interval"]
            axes.plot(ends, [row, row], color=colour, linewidth=5, alpha=0.3, solid_capstyle="round")
        axes.plot(
            last["mean"], row, "o", color=colour, markersize=11, markeredgecolor=PAPER, markeredgewidth=2
        )
        where = {
            "xytext": (0, 17),
            "textcoords": "offset points",
            "ha": "center",
            "weight": "bold",
            "fontsize": 14,
        }
        interval = "" if last["interval"] is None else f" ± {100 * last['interval']:.1f}"
        svg.label(axes, last["mean"], row, f"{100 * last['mean']:.1f} %{interval}", colour, **where)
    axes.set_yticks(range(len(rows)), [set_name(name) for name in rows], parse_math=False)
    axes.tick_params(axis="y", labelsize=14, labelcolor=INK, pad=14)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.margins(x=0.06)
    axes.xaxis.set_major_formatter(_PERCENT)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=(1, 2, 5, 10)))
    return svg.to_svg(drawing, "accuracy", "Accuracy of each set, with 95 % intervals")


def learning_curves(sets: Mapping[str, Mapping[str, Any]]) -> Markup | None:
    """Accuracy against the training step by set: mean over the seeds, and their range. None without curves."""
    drawing = svg.figure(WIDTH, 340)
    axes = drawing.add_subplot()
    svg.style(axes, x="training step of the classifier")
    ends = []
    for name, values in sets.items():
        steps, table = common_steps(values.get("curves") or ())
        if not len(steps):
            continue
        colour, mean = SET_COLOURS.get(name, MUTED), table.mean(axis=0)
        axes.fill_between(steps, table.min(axis=0), table.max(axis=0), color=colour, alpha=0.18, linewidth=0)
        axes.plot(steps, mean, color=colour, linewidth=2.5, solid_capstyle="round", solid_joinstyle="round")
        ends.append((steps[-1], mean[-1], set_name(name), colour))
    if not ends:
        return None
    low, high = axes.get_ylim()
    heights = spread([end[1] for end in ends], 0.06 * (high - low))
    for (step, _, name, colour), height in zip(ends, heights, strict=True):
        where = {"xytext": (10, 0), "textcoords": "offset points", "annotation_clip": False}
        svg.label(axes, step, height, name, colour, fontsize=13, **where)
    axes.margins(x=0.01)
    axes.yaxis.set_major_formatter(_PERCENT)
    return svg.to_svg(drawing, "curves", "Accuracy of the classifier during its training, by set")


def common_steps(curves: Sequence[Sequence[Sequence[float]]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps (S,) at which every seed was scored, and the accuracies (seeds, S), of a list of (step, accuracy)
    a seed.
    """
    tables = [{int(step): value for step, value in curve} for curve in curves]
    steps = sorted(set.intersection(*map(set, tables))) if tables else []
    return np.array(steps), np.array([[table[step] for step in steps] for table in tables])


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """The heights, moved as little as it takes (least squares) to lie `gap` or more apart, in their order."""
    order, steps = np.argsort(heights, kind="stable"), gap * np.arange(len(heights))
    result = np.empty(len(heights))
    result[order] = isotonic_regression(np.asarray(heights, float)[order] - steps).x + steps
    return list(result)


def finetuning(history: Sequence[Mapping[str, float]]) -> Markup | None:
    """Each loss term, unweighted, and each ratio of gradient norms against the step; None without history."""
    ratios = [key for key in _keys(history) if key.startswith("grad_ratio/")]
    panels = [
        key for key in _keys(history) if "/" not in key and key not in ("step", "images_per_s")
    ] + ratios
    if not panels:
        return None
    columns = 2 if len(panels) in (2, 4) else min(3, len(panels))
    rows = -(-len(panels) // columns)
    drawing = svg.figure(WIDTH, 240 * rows)
    drawing.get_layout_engine().set(hspace=0.08, wspace=0.05)
    for place, key in enumerate(panels, start=1):
        axes = drawing.add_subplot(rows, columns, place)
        term = key.removeprefix("grad_ratio/")
        svg.style(
            axes,
            title=f"Gradient ratio, {term} / diffusion" if key in ratios else f"{term.capitalize()} loss",
        )
        points = np.array([(entry["step"], entry[key]) for entry in history if key in entry])
        _trend(axes, points, DISTILLED if key in ratios else INK)
        if key in ratios and (points[:, 1] > 0).all():
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return svg.to_svg(
        drawing, "finetuning", "Loss terms and gradient ratio during fine-tuning, against the step"
    )


def _keys(history: Sequence[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(key for entry in history for key in entry))


def _trend(axes: Axes, points: np.ndarray, colour: str) -> None:
    """The values faintly, and over them their mean over a tenth of the run."""
    steps, values = points.T
    width = max(1, len(values) // 10)
    axes.plot(steps, values, color=colour, linewidth=1, alpha=0.35 if width > 1 else 0.8)
    if width > 1:
        means = np.convolve(values, np.ones(width) / width, "valid")
        centres = np.convolve(steps, np.ones(width) / width, "valid")
        axes.plot(centres, means, color=colour, linewidth=2.2, solid_capstyle="round")


def feature_map(found: Map, names: Mapping[int, str]) -> Markup:
    """t-SNE: real images as dots, candidates as rings, selected ones filled; the name of a class beside its
    dots.
    """
    drawing = svg.figure(WIDTH, 640)
    axes = drawing.add_subplot()
    svg.style(axes, grid="x")
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    for colour, label in zip(CLASS_COLOURS, names, strict=False):
        for kind, marks in MARKS.items():
            points = found.points[kind][found.labels[kind] == label]
            edge = PAPER if kind == "selected" else colour
            fill = "none" if kind == "candidate" else colour
            axes.plot(*points.T, "o", color=colour, markerfacecolor=fill, markeredgecolor=edge, **marks)
    for label, name in names.items():
        of_class = [points[found.labels[kind] == label] for kind, points in found.points.items()]
        own = next((points for points in reversed(of_class) if len(points)), None)
        if own is not None:
            svg.label(
                axes, *densest(own), shortened(name), halo=True, ha="center", fontsize=15, weight="bold"
            )
    axes.margins(0.02)
    return svg.to_svg(drawing, "map", "t-SNE of real images, candidates and selected images in feature space")


def densest(points: np.ndarray) -> np.ndarray:
    """The point (2,) of `points` (N, 2) that an eighth of the others lie closest around: a class may be in
    parts.
    """
    distances = np.sort(np.linalg.norm(points[:, None] - points[None], axis=2), axis=1)
    return points[np.argmin(distances[:, len(points) // 8])]


def subgroups(selection: Mapping[str, Any], classes: Sequence[str]) -> Markup:
    """Distance of every subgroup to its real class: a row a class, the chosen subgroup filled."""
    drawing = svg.figure(WIDTH, 70 + 30 * len(classes))
    axes = drawing.add_subplot()
    svg.style(axes, grid="x", x="cosine distance of the subgroup's centroid to that of the real class")
    for row, name in enumerate(classes):
        ids, distances = (selection["per_class"][name][key] for key in ("subgroups", "distances_to_real"))
        chosen = chosen_distance(selection, name)
        axes.plot(
            [min(*distances, chosen), max(*distances, chosen)],
            [row, row],
            color=GRID,
            linewidth=3,
            solid_capstyle="round",
        )
        others = [d for i, d in zip(ids, distances, strict=True) if i != selection["selection"][name]]
        ring = {"markerfacecolor": PAPER, "markeredgecolor": REAL, "markeredgewidth": 1.6}
        axes.plot(others, [row] * len(others), "o", markersize=8, **ring)
        axes.plot(
            chosen, row, "o", color=DISTILLED, markersize=11, markeredgecolor=PAPER, markeredgewidth=1.5
        )
    axes.set_yticks(range(len(classes)), [shortened(name) for name in classes], parse_math=False)
    axes.tick_params(axis="y", labelsize=13, labelcolor=INK, pad=12)
    axes.set_ylim(len(classes) - 0.4, -0.6)
    return svg.to_svg(
        drawing, "subgroups", "Distance of each class's subgroups to its real images, the chosen one filled"
    )


def subgroup_rows(selection: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """The classes to plot: all where they fit, else those whose chosen subgroup is farthest from its real
    class.
    """
    if len(classes) <= MAX_ROWS:
        return list(classes)
    return sorted(classes, key=lambda name: -chosen_distance(selection, name))[:MAX_ROWS]


def chosen_distance(selection: Mapping[str, Any], name: str) -> float:
    """Distance of what the class chose to the real class."""
    return selection["per_class"][name]["distance_to_real"]
