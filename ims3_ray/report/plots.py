"""The report's plots: each function takes numbers and returns an SVG that uses the page's colours."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from jaxtyping import Float
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from scipy.optimize import isotonic_regression

from ims3_ray.evaluation.results import SET_TITLES, SetMetrics
from ims3_ray.models.training import HELD_OUT
from ims3_ray.storage.schemas import SelectionFile

from . import svg
from .feature_space import Map
from .inputs import History, shortened
from .svg import CLASS_COLOURS, DISTILLED, FULL, GRID, INK, MUTED, PAPER, PERCENT, RANDOM, REAL, WIDTH

SET_COLOURS = {"distilled": DISTILLED, "random": RANDOM, "full": FULL}
SET_NAMES = {"distilled": "Distilled"} | {name: title for name, (_, title) in SET_TITLES.items()}
MARKS = {
    "real": {"markersize": 4.5, "markeredgewidth": 0, "alpha": 0.4},
    "candidate": {"markersize": 6, "markeredgewidth": 1.1, "alpha": 0.8},
    "selected": {"markersize": 10, "markeredgewidth": 1.3},
}
MAX_ROWS = 40  # maximum number of classes in the plot of subgroups


def set_name(name: str, names: Mapping[str, str] = MappingProxyType({})) -> str:
    """Display name of a set: from the evaluation's `names`, else from SET_NAMES."""
    title = names.get(name, "")
    return title[:1].upper() + title[1:] or SET_NAMES.get(name, name)


def accuracy(sets: Mapping[str, SetMetrics], names: Mapping[str, str]) -> Markup:
    """Accuracy after the last step: one row per set with a tick per seed, mean and 95 % interval."""
    drawing = svg.figure(WIDTH, 60 + 58 * len(sets))
    axes = drawing.add_subplot()
    svg.style(axes, grid="x")
    for row, (name, of_set) in enumerate(sets.items()):
        last, colour = of_set["last"], SET_COLOURS.get(name, MUTED)
        mean, values, interval = last["mean"], last["values"], last["interval"]
        ticks = {"markersize": 8, "markeredgewidth": 1.5}
        axes.plot(values, [row + 0.3] * len(values), "|", color=colour, **ticks)
        words = f"{100 * mean:.1f} %"
        if interval is not None:
            ends = mean - interval, mean + interval
            axes.plot(ends, [row, row], color=colour, linewidth=5, alpha=0.3, solid_capstyle="round")
            words += f" ± {100 * interval:.1f}"
        dot = {"markersize": 11, "markeredgecolor": PAPER, "markeredgewidth": 2}
        axes.plot(mean, row, "o", color=colour, **dot)
        svg.label(axes, mean, row, words, colour, offset=(0, 17), ha="center", weight="bold", fontsize=14)
    svg.name_rows(axes, [set_name(name, names) for name in sets], size=14, pad=14)
    axes.set_ylim(len(sets) - 0.45, -0.55)
    axes.margins(x=0.06)
    axes.xaxis.set_major_formatter(PERCENT)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=(1, 2, 5, 10)))
    return svg.to_svg(drawing, "accuracy", "Accuracy of each set, with 95 % intervals")


def learning_curves(sets: Mapping[str, SetMetrics], names: Mapping[str, str]) -> Markup | None:
    """Accuracy against the training step per set: mean and range over seeds. None without curves."""
    drawing = svg.figure(WIDTH, 340)
    axes = drawing.add_subplot()
    svg.style(axes, x="training step of the classifier")
    ends: list[tuple[float, float, str, str]] = []
    for name, values in sets.items():
        curves = np.array(values["curves"])  # (seeds, S, 2): all seeds are scored at the same steps
        if not curves.size:
            continue
        steps, table = curves[0, :, 0], curves[:, :, 1]
        colour, mean = SET_COLOURS.get(name, MUTED), table.mean(axis=0)
        axes.fill_between(steps, table.min(axis=0), table.max(axis=0), color=colour, alpha=0.18, linewidth=0)
        axes.plot(steps, mean, color=colour, linewidth=2.5, solid_capstyle="round", solid_joinstyle="round")
        ends.append((steps[-1], mean[-1], set_name(name, names), colour))
    if not ends:
        return None
    low, high = axes.get_ylim()
    heights = spread([end[1] for end in ends], 0.06 * (high - low))
    for (step, _, name, colour), height in zip(ends, heights, strict=True):
        svg.label(axes, step, height, name, colour, offset=(10, 0), fontsize=13)
    axes.margins(x=0.01)
    axes.yaxis.set_major_formatter(PERCENT)
    return svg.to_svg(drawing, "curves", "Accuracy of the classifier during its training, by set")


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Heights at least `gap` apart and in the same order, with the least squared displacement."""
    order, steps = np.argsort(heights, kind="stable"), gap * np.arange(len(heights))
    places = np.empty(len(heights))
    places[order] = isotonic_regression(np.asarray(heights, float)[order] - steps).x + steps
    return places.tolist()


def losses(history: History, stage: str) -> Markup | None:
    """Each unweighted loss term and each ratio of gradient norms against the step; None without history.

    `stage` is a display name such as "fine-tuning".
    """
    keys = dict.fromkeys(key for entry in history for key in entry)
    ratios = [key for key in keys if key.startswith("grad_ratio/")]
    others = {"step", "images_per_s"}
    terms = [key for key in keys if "/" not in key.removeprefix(HELD_OUT) and key not in others]
    if not terms + ratios:
        return None
    rows, columns = svg.panels(len(terms + ratios))
    drawing = svg.figure(WIDTH, 240 * rows, hspace=0.08, wspace=0.05)
    for place, key in enumerate(terms + ratios, start=1):
        axes, is_ratio = drawing.add_subplot(rows, columns, place), key in ratios
        points = np.array([(entry["step"], entry[key]) for entry in history if key in entry])
        title = f"{key.replace(HELD_OUT, 'held-out ').replace('_', ' ').capitalize()} loss"
        if is_ratio:
            title = f"Gradient ratio, {key.partition('/')[2]} / diffusion"
        svg.style(axes, title=title)
        _trend(axes, points, DISTILLED if is_ratio else INK)
        if is_ratio and (points[:, 1] > 0).all():
            axes.set_yscale("log")
            svg.log_ticks(axes.yaxis)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return svg.to_svg(drawing, stage, f"Loss terms during {stage}, against the step")


def _trend(axes: Axes, points: Float[np.ndarray, "n 2"], colour: str) -> None:
    """Plot the values faintly, and their moving average over a tenth of the run."""
    steps, values = points.T
    width = max(1, len(values) // 10)
    axes.plot(steps, values, color=colour, linewidth=1, alpha=0.35 if width > 1 else 0.8)
    if width > 1:
        means, centres = (np.convolve(x, np.ones(width) / width, "valid") for x in (values, steps))
        axes.plot(centres, means, color=colour, linewidth=2.2, solid_capstyle="round")


def feature_map(points: Map, names: Mapping[int, str]) -> Markup:
    """t-SNE map: real images as dots, candidates as rings, selected ones filled; classes are labelled."""
    drawing = svg.figure(WIDTH, 640)
    axes = drawing.add_subplot()
    svg.style(axes, grid="x")
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    by_class = {label: {kind: points.of_class(kind, label) for kind in points.labels} for label in names}
    for colour, of_class in zip(CLASS_COLOURS, by_class.values(), strict=False):
        for kind, marks in MARKS.items():
            edge = PAPER if kind == "selected" else colour
            fill = "none" if kind == "candidate" else colour
            look = {"color": colour, "markerfacecolor": fill, "markeredgecolor": edge, **marks}
            axes.plot(*of_class[kind].T, "o", **look)
    for label, of_class in by_class.items():
        own = next((of_class[kind] for kind in reversed(of_class) if len(of_class[kind])), None)
        if own is not None:
            x, y = densest(own)
            name = shortened(names[label])
            svg.label(axes, x, y, name, halo=True, ha="center", fontsize=15, weight="bold")
    axes.margins(0.02)
    return svg.to_svg(drawing, "map", "t-SNE of real images, candidates and selected images in feature space")


def densest(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "2"]:
    """The point with the smallest radius around an eighth of all points: a class may be several clusters."""
    distances = np.sort(np.linalg.norm(points[:, None] - points[None], axis=2), axis=1)
    return points[np.argmin(distances[:, len(points) // 8])]


def subgroups(selection: SelectionFile, classes: Sequence[str]) -> Markup:
    """Distance of each subgroup to its real class: one row per class, the selected subgroup filled."""
    drawing = svg.figure(WIDTH, 70 + 30 * len(classes))
    axes = drawing.add_subplot()
    svg.style(axes, grid="x", x="cosine distance of the subgroup's centroid to that of the real class")
    for row, name in enumerate(classes):
        of_class = selection["per_class"][name]
        ids, distances = of_class["subgroups"], of_class["distances_to_real"]
        own = of_class["distance_to_real"]
        ends = [min(*distances, own), max(*distances, own)]
        axes.plot(ends, [row, row], color=GRID, linewidth=3, solid_capstyle="round")
        others = [d for i, d in zip(ids, distances, strict=True) if i != selection["selection"][name]]
        ring = {"markerfacecolor": PAPER, "markeredgecolor": REAL, "markeredgewidth": 1.6}
        axes.plot(others, [row] * len(others), "o", markersize=8, **ring)
        dot = {"markersize": 11, "markeredgecolor": PAPER, "markeredgewidth": 1.5}
        axes.plot(own, row, "o", color=DISTILLED, **dot)
    svg.name_rows(axes, [shortened(name) for name in classes], size=13, pad=12)
    axes.set_ylim(len(classes) - 0.4, -0.6)
    description = "Distance of each class's subgroups to its real images, the selected one filled"
    return svg.to_svg(drawing, "subgroups", description)


def subgroup_rows(selection: SelectionFile, classes: Sequence[str]) -> list[str]:
    """The classes to plot: all, or those whose selected subgroup is farthest from its class."""
    if len(classes) <= MAX_ROWS:
        return list(classes)
    of_class = selection["per_class"]
    return sorted(classes, key=lambda name: -of_class[name]["distance_to_real"])[:MAX_ROWS]
