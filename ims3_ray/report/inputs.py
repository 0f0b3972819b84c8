"""What a report is made of, and how much of a large run it shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class Uncovered:
    """Real images of a class that no image of the set covers: a few encoded ones, sparsest first, and their
    number.
    """

    images: Sequence[bytes]
    count: int
    total: int
    """Real images of the class."""


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything that the page shows. Class names are untrusted text. Labels are places in `classes`."""

    recipe: str
    config: Mapping[str, Any]
    classes: tuple[str, ...]
    about: Mapping[str, Any]
    """Versions and hardware, by name."""
    contact: Mapping[str, Mapping[str, Sequence[bytes]]]
    """By class name: `distilled`, its encoded images in order, and `real`, a few to hold them against, or none."""
    real_features: Float[np.ndarray, "n d"]
    real_labels: Int[np.ndarray, " n"]
    candidate_features: Float[np.ndarray, "m d"]
    candidate_labels: Int[np.ndarray, " m"]
    candidate_selected: Bool[np.ndarray, " m"]
    selection: Mapping[str, Any]
    """As in selection.json: `selection` and `per_class` by class name, objective, terms, bound, gap, solver, settings."""
    history: Sequence[Mapping[str, float]] = ()
    """Fine-tuning's metrics, a mapping a log step, with `step`; empty where the pretrained model was kept."""
    evaluation: Mapping[str, Any] | None = None
    """`protocol`, `split`, `sets` by name, `coverage` by set; accuracies are fractions. None: left out.

    `networks`, where there are several: `sets` by the protocol's label.
    """
    stages: Sequence[Mapping[str, Any]] = ()
    """`name`, `rows`, `unit` of the rows, `seconds`, `rate` (rows/s), in the order in which they ran."""
    uncovered: Mapping[str, Uncovered] = field(default_factory=dict)
    """By class name, of the classes that the page shows; empty: left out."""
    commands: Mapping[str, str] = field(default_factory=dict)
    """What it is for → the shell command."""

    def __post_init__(self):
        """Raises ValueError for a class without images and for labels that are no class."""
        for name in self.classes:
            if name not in self.contact or not self.contact[name]["distilled"]:
                raise ValueError(f"contact: class {name!r} has no distilled image")
        for labels_of in ("real_labels", "candidate_labels"):
            labels = getattr(self, labels_of)
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
                raise ValueError(
                    f"{labels_of}: {labels.min()} to {labels.max()} do not fit {len(self.classes)} classes"
                )


def shown_classes(classes: Sequence[str], limit: int) -> list[int]:
    """Places of at most `limit` classes, evenly spaced: neighbours in a sorted list resemble each other."""
    return [int(i) for i in np.linspace(0, len(classes) - 1, min(limit, len(classes))).round()]


def shortened(name: str, limit: int = 24) -> str:
    """A class name on one line, with an ellipsis in place of its middle where it is long: ids differ at the
    end.
    """
    name = " ".join(name.split())
    if len(name) <= limit:
        return name
    head = limit // 2
    return f"{name[:head]}…{name[len(name) - (limit - head - 1) :]}"
