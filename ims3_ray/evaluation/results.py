"""The document of an evaluation, the names of its sets, and the figures that a run is sorted by."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NotRequired, TypedDict, TypeVar

if TYPE_CHECKING:
    from ims3_ray.method.coverage import Values

    from .membership import Membership

Value = TypeVar("Value")
CURVE = "distilled_accuracy"  # the metric, by step, of the distilled set while its classifiers train
# Every set that stands beside those that are scored: its name in a line, and as a title. In a table's order.
NAMES = {
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
    """Of a set over the seeds, as fractions; `statistics.Summary` and its values."""

    mean: float
    deviation: float | None
    interval: float | None
    count: int
    values: list[float]


class SetFigures(TypedDict):
    """Of a training set: `last` is the result, `best` looked at the scored images and is a diagnostic."""

    images: int
    seeds: list[int]
    curves: list[list[tuple[int, float]]]
    last: Accuracies
    best: Accuracies
    label_robust_score: NotRequired[float | None]
    augmentation_robust_score: NotRequired[float]
    membership: "NotRequired[Membership]"


class TeacherFigures(TypedDict):
    """Whose answers a soft protocol's networks learnt, and the share of real images that it labels right."""

    network: str
    accuracy: float


class Evaluation(TypedDict):
    """evaluation.json. `networks`, if there are several: `sets` by the protocol's label.

    `names` says how tables name the sets of a run: the method that made "distilled" and "unrefined".
    """

    protocol: str
    split: str
    sets: dict[str, SetFigures]
    coverage: "dict[str, Values]"
    names: NotRequired[dict[str, str]]
    networks: NotRequired[dict[str, dict[str, SetFigures]]]
    teacher: NotRequired[TeacherFigures]


def ordered(sets: Mapping[str, Value]) -> dict[str, Value]:
    """The sets in a table's order: those that a run made or a user gave, then the others as in NAMES."""
    place = {name: number for number, name in enumerate(NAMES)}
    return dict(sorted(sets.items(), key=lambda item: place.get(item[0].partition(" ")[0], -1)))


def headline(document: Evaluation) -> dict[str, float]:
    """What a run is sorted and filtered by. Networks but the first have theirs under their label."""
    figures: dict[str, float | None] = {"accuracy": document["sets"]["distilled"]["last"]["mean"]}
    for name, of_set in document["sets"].items():
        figures[f"accuracy/{name}/last"] = of_set["last"]["mean"]
        figures[f"accuracy/{name}/last_interval"] = of_set["last"]["interval"]
        figures[f"accuracy/{name}/best"] = of_set["best"]["mean"]
        figures[f"label_robust_score/{name}"] = of_set.get("label_robust_score")
        if membership := of_set.get("membership"):
            figures[f"membership_auc/{name}"] = membership["auc"]
    for label, sets in document.get("networks", {}).items():
        figures |= {f"accuracy/{name}/last/{label}": of_set["last"]["mean"] for name, of_set in sets.items()}
    for name, values in document["coverage"].items():
        figures |= {f"{metric}/{name}": v for metric, v in values.items() if not isinstance(v, list)}
    return {name: figure for name, figure in figures.items() if figure is not None}
