"""evaluation.json: its types, the names of its sets, its metrics, and its text table."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NotRequired, TypedDict, TypeVar

if TYPE_CHECKING:
    from ims3_ray.method.coverage import Values


Value = TypeVar("Value")
CURVE = "distilled_accuracy"  # metric of the distilled set by step, while its classifiers train
YARDSTICKS = ("random", "ceiling")  # sets of real images that every coverage plot shows
# {set: (name in a line, title)} of the sets that accompany the scored ones, in a table's order
SET_TITLES = {
    "unrefined": ("before refinement", "Before refinement"),
    "random": ("random real", "Random real"),
    "herding": ("herding", "Herding, real"),
    "k_center": ("k-centre", "k-centre, real"),
    "medoids": ("k-means medoids", "k-means medoids, real"),
    "k_medoids": ("k-medoids", "k-medoids, real"),
    "full": ("full real", "Full real set"),
    "pool": ("pool", "First of the pool"),
    "ceiling": ("greedy cover", "Greedy cover, real"),
}


class Accuracies(TypedDict):
    """`statistics.Summary` of a set's accuracies over the seeds, as fractions, and their values."""

    mean: float
    deviation: float | None
    interval: float | None
    count: int
    values: list[float]


class StoredSize(TypedDict):
    """Storage of a set, per class; bytes as PNGs."""

    pixels: int
    bytes: int


class SetMetrics(TypedDict):
    """Metrics of a training set. `last` is the result; `best` used the scored images: a diagnostic."""

    images: int
    stored: NotRequired[StoredSize]
    seeds: list[int]
    curves: list[list[tuple[int, float]]]
    last: Accuracies
    best: Accuracies
    label_robust_score: NotRequired[float | None]
    augmentation_robust_score: NotRequired[float]


class TeacherMetrics(TypedDict):
    """A soft protocol's teacher and its accuracy on real training images, as a fraction."""

    network: str
    accuracy: float


class Evaluation(TypedDict):
    """evaluation.json. `networks`, if there are several, holds `sets` by protocol label.

    `names` gives table names: of a run's own sets, the method that made "distilled" and "unrefined"; of a
    packed run's baselines, which are packed like its sets, a name that says so. `numerics` has the precision
    and compilation of classifiers that were not trained in plain fp32, as published ones are.
    """

    protocol: str
    split: str
    sets: dict[str, SetMetrics]
    coverage: "dict[str, Values]"
    names: NotRequired[dict[str, str]]
    networks: NotRequired[dict[str, dict[str, SetMetrics]]]
    numerics: NotRequired[str]
    teacher: NotRequired[TeacherMetrics]
    packing: NotRequired[int]


def sort_sets(sets: Mapping[str, Value]) -> dict[str, Value]:
    """The sets in a table's order: a run's or user's own first, then the others as in SET_TITLES."""
    rank = {name: number for number, name in enumerate(SET_TITLES)}
    return dict(sorted(sets.items(), key=lambda item: rank.get(item[0].partition(" ")[0], -1)))


def headline_metrics(document: Evaluation) -> dict[str, float]:
    """The metrics by which runs are sorted and filtered; further networks add theirs under their label."""
    metrics: dict[str, float | None] = {"accuracy": document["sets"]["distilled"]["last"]["mean"]}
    for name, of_set in document["sets"].items():
        metrics[f"accuracy/{name}/last"] = of_set["last"]["mean"]
        metrics[f"accuracy/{name}/last_interval"] = of_set["last"]["interval"]
        metrics[f"accuracy/{name}/best"] = of_set["best"]["mean"]
        metrics[f"label_robust_score/{name}"] = of_set.get("label_robust_score")
    for label, sets in document.get("networks", {}).items():
        metrics |= {f"accuracy/{name}/last/{label}": of_set["last"]["mean"] for name, of_set in sets.items()}
    for name, values in document["coverage"].items():
        metrics |= {f"{metric}/{name}": v for metric, v in values.items() if not isinstance(v, list)}
    return {name: value for name, value in metrics.items() if value is not None}


def evaluation_lines(document: Evaluation) -> list[str]:
    """The text table: one line per set for the first network, then one line per further network."""
    sets, coverage = document["sets"], document["coverage"]
    names = list(sort_sets({**sets, **coverage}))
    titles = {name: document.get("names", {}).get(name) or set_title(name) for name in names}
    width = max(12, *(len(title) + 1 for title in titles.values()))
    factor = document.get("packing", 1)
    heads = "     pixels    bytes" if factor > 1 else ""
    lines = [
        f"accuracy on the {document['split']} images, {protocol_title(document)}",
        f"  {'set':<{width}}{'images':>8}{heads}  {'last':>14}  {'best':>14}   coverage  low-density",
    ]
    for name in names:
        images, last, best, shares = "", "", "", ""
        if metrics := sets.get(name):
            images = metrics["images"]
            last, best = format_accuracy(metrics["last"]), format_accuracy(metrics["best"])
        if covered := coverage.get(name):
            shares = f"{covered['coverage']:11.3f}{covered['low_density_coverage']:13.3f}"
        size = metrics.get("stored") if metrics else None
        stored = f"{size['pixels']:>11,}{size['bytes']:>9,}" if size else " " * len(heads)
        lines.append(
            f"  {titles[name]:<{width}}{images:>8}{stored if heads else ''} {last:>15} {best:>15}{shares}"
        )
    if factor > 1:
        lines.append(
            f"  (packed: {factor} × {factor} images in the pixels of one, each enlarged for training;"
        )
        lines.append("  images are those trained on; pixels and bytes as PNG are per class, as stored)")
    lines.append("  (mean ± 95 % interval over seeds; last is the result, best uses the scored")
    lines.append("  images and is a diagnostic)")
    if teacher := document.get("teacher"):
        correct = f"{100 * teacher['accuracy']:.1f} % of the training images"
        lines.append(f"  soft labels of {teacher['network']}, which classifies {correct} correctly")
    for label, of_network in document.get("networks", {}).items():
        if label != document["protocol"]:
            accuracies = (f"{titles[n]} {format_accuracy(m['last'])}" for n, m in of_network.items())
            lines.append(f"  {label}: {', '.join(accuracies)}")
    return lines


def score_lines(document: Evaluation) -> list[str]:
    """One line per set that has a DD-Ranking score."""
    lines: list[str] = []
    for name, metrics in document["sets"].items():
        scores = {
            "label-robust": metrics.get("label_robust_score"),
            "augmentation-robust": metrics.get("augmentation_robust_score"),
        }
        texts = [f"{kind} {score:.3f}" for kind, score in scores.items() if score is not None]
        lines += [f"  {name}: {', '.join(texts)} (DD-Ranking)"] if texts else []
    return lines


def protocol_title(document: Evaluation) -> str:
    """The protocol's label, with the numerics if they are not the published ones."""
    numerics = document.get("numerics")
    return document["protocol"] + (f" ({numerics}; published: fp32)" if numerics else "")


def set_title(name: str) -> str:
    """A set's name in a line; a baseline's size, if there are several, is kept: "random real 50"."""
    kind, _, images = name.partition(" ")
    return f"{SET_TITLES[kind][0]} {images}".rstrip() if kind in SET_TITLES else name


def format_accuracy(accuracies: Accuracies) -> str:
    """Percent, with its 95 % interval if there are several: "94.50 ± 0.25"."""
    interval = accuracies["interval"]
    return f"{100 * accuracies['mean']:.2f}" + ("" if interval is None else f" ± {100 * interval:.2f}")


def mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> list[tuple[int, float]]:
    """(step, mean accuracy) of the seeds' curves, which share their steps."""
    points = zip(*curves, strict=True)
    return [(int(by_seed[0][0]), sum(value for _, value in by_seed) / len(by_seed)) for by_seed in points]
