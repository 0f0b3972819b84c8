"""What a report is made of, and how much of a large run it shows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict, overload

import numpy as np
from jaxtyping import Bool, Float, Int

from ims3_ray.evaluation.results import Evaluation

PAGE_CLASSES = 24  # whose images the page shows at most, so that it stays below 3 MB
MAP_CLASSES = 12  # whose features it shows, each in a colour of its own

History = Sequence[Mapping[str, float]]
"""Fine-tuning's metrics, a mapping a log step, with `step`."""


class OfClass(TypedDict):
    """A class in selection.json: its subgroups, their distances to the real class, and that of the choice."""

    subgroups: list[int]
    distances_to_real: list[float]
    distance_to_real: float


class Selection(TypedDict):
    """selection.json: a subgroup or single images by class name, and how good the choice is."""

    selection: dict[str, int | list[list[int]]]
    per_class: dict[str, OfClass]
    unit: str
    objective: float
    start_objective: float
    terms: dict[str, float]
    lower_bound: float | None
    gap: float | None
    certificate: str
    solver: str
    settings: dict[str, object]


class Timing(TypedDict):
    """A stage that was run: rows in their unit, and rows a second."""

    name: str
    rows: int
    unit: str
    seconds: float
    rate: float | None


@dataclass(frozen=True)
class Uncovered:
    """Of a class: some real images that no image of the set covers, encoded, sparsest first; their number."""

    images: Sequence[bytes]
    count: int
    total: int
    """Real images of the class."""


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything that the page shows. Class names are untrusted text. Labels are places in `classes`."""

    title: str
    config: Mapping[str, object]
    classes: tuple[str, ...]
    about: Mapping[str, object]
    """Versions and hardware, by name."""
    contact: Mapping[str, Mapping[str, Sequence[bytes]]]
    """By class name: `distilled`, its encoded images in order, `before`, what they were before refinement,
    and `real`, a few to hold them against."""
    real_features: Float[np.ndarray, "n d"]
    """Of the classes in `looked_at` at least, like those of candidates."""
    real_labels: Int[np.ndarray, " n"]
    candidate_features: Float[np.ndarray, "m d"]
    candidate_labels: Int[np.ndarray, " m"]
    candidate_selected: Bool[np.ndarray, " m"]
    selection: Selection
    history: History = ()
    """Empty where the pretrained model was kept."""
    refinement: History = ()
    """The loss as images were refined; empty where they were not."""
    evaluation: Evaluation | None = None
    stages: Sequence[Timing] = ()
    """In the order in which they ran."""
    uncovered: Mapping[str, Uncovered] = field(default_factory=dict)
    """By class name, of the classes that the page shows; empty: left out."""
    commands: Mapping[str, str] = field(default_factory=dict)
    """What it is for → the shell command."""

    def __post_init__(self) -> None:
        """Raises ValueError for a class without images and for labels that are no class."""
        for name in self.classes:
            if name not in self.contact or not self.contact[name]["distilled"]:
                raise ValueError(f"contact: class {name!r} has no distilled image")
        for labels_of in ("real_labels", "candidate_labels"):
            labels = getattr(self, labels_of)
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
                span = f"{labels.min()} to {labels.max()}"
                raise ValueError(f"{labels_of}: {span} do not fit {len(self.classes)} classes")


class Pictures(Sequence[bytes]):
    """Encoded images of a class, read once a page asks for one: of a large run it shows few classes."""

    def __init__(self, count: int, read: Callable[[], Sequence[bytes]]):
        self._count, self._read = count, read
        self._held: Sequence[bytes] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        if self._held is None:
            self._held = self._read()
        return self._held[index]


def shown_classes(classes: Sequence[str], limit: int) -> list[int]:
    """Places of at most `limit` classes, evenly spaced: neighbours in a sorted list resemble each other."""
    return [int(i) for i in np.linspace(0, len(classes) - 1, min(limit, len(classes))).round()]


def looked_at(classes: Sequence[str]) -> list[int]:
    """Places of the classes of which the page needs features."""
    return sorted({i for limit in (MAP_CLASSES, PAGE_CLASSES) for i in shown_classes(classes, limit)})


def shortened(name: str, limit: int = 24) -> str:
    """A class name on one line, an ellipsis for its middle where it is long: ids differ at the end."""
    name = " ".join(name.split())
    if len(name) <= limit:
        return name
    head = limit // 2
    return f"{name[:head]}…{name[len(name) - (limit - head - 1) :]}"
