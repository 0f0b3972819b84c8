"""The data of a report, and how much of a large run it shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from ims3_ray.evaluation.results import Evaluation
from ims3_ray.storage.artifacts import Summary
from ims3_ray.storage.schemas import SelectionFile

PAGE_CLASSES = 24  # maximum number of classes with images on the page, which stays below 3 MB
SHEET_CLASSES = 40  # maximum number of classes on the contact sheet
MAP_CLASSES = 12  # maximum number of classes on the map, one colour each

History = Sequence[Mapping[str, float]]
"""Training metrics: one mapping per log step, with `step`."""


class Timing(Summary):
    """A timed stage."""

    name: str


@dataclass(frozen=True)
class Uncovered:
    """Uncovered real images of a class: encoded examples, sparsest first; their number; all real images."""

    images: Sequence[bytes]
    count: int
    total: int


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything that the page shows. Class names are untrusted text. Labels index `classes`."""

    title: str
    config: Mapping[str, object]
    classes: tuple[str, ...]
    about: Mapping[str, object]
    """Versions and hardware, by name."""
    counts: Sequence[int]
    """Distilled images per class."""
    contact: Mapping[str, Mapping[str, Sequence[bytes]]]
    """Encoded images of `image_classes` by name and kind: distilled, before (refinement), some real."""
    real_features: Float[np.ndarray, "n d"]
    """Features of the classes in `feature_classes` at least; so are those of candidates."""
    real_labels: Int[np.ndarray, " n"]
    candidate_features: Float[np.ndarray, "m d"]
    candidate_labels: Int[np.ndarray, " m"]
    candidate_selected: Bool[np.ndarray, " m"]
    selection: SelectionFile | None
    """None if no candidates were made."""
    history: History = ()
    """Fine-tuning; empty if it was off."""
    refinement: History = ()
    """Refinement; empty if it was off."""
    evaluation: Evaluation | None = None
    stages: Sequence[Timing] = ()
    """In the order of execution."""
    uncovered: Mapping[str, Uncovered] = field(default_factory=dict)
    """By class name, for classes on the page; empty: the section is left out."""
    commands: Mapping[str, str] = field(default_factory=dict)
    """Shell commands by purpose."""


def shown_classes(classes: Sequence[str], limit: int) -> list[int]:
    """Indices of at most `limit` classes, evenly spaced: neighbours in a sorted list resemble each other."""
    return [int(i) for i in np.linspace(0, len(classes) - 1, min(limit, len(classes))).round()]


def image_classes(classes: Sequence[str]) -> list[int]:
    """Indices of the classes whose images the page or the contact sheet shows."""
    return sorted({i for limit in (PAGE_CLASSES, SHEET_CLASSES) for i in shown_classes(classes, limit)})


def feature_classes(classes: Sequence[str]) -> list[int]:
    """Indices of the classes whose features the page needs."""
    return sorted({i for limit in (MAP_CLASSES, PAGE_CLASSES) for i in shown_classes(classes, limit)})


def shortened(name: str, limit: int = 24) -> str:
    """A class name on one line. A long name loses its middle, since ids differ at the end."""
    name = " ".join(name.split())
    if len(name) <= limit:
        return name
    head = limit // 2
    return f"{name[:head]}…{name[len(name) - (limit - head - 1) :]}"
