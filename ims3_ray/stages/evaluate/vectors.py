"""Features of a set of images: in memory, or left in Parquet until a task asks for those of a class."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ims3_ray.storage.index import Index


class Vectors(Protocol):
    """Features of N images; `labels` (N,) are known without them."""

    @property
    def labels(self) -> np.ndarray: ...

    def at(self, places: np.ndarray) -> "Vectors":
        """Those of the images at these places, in this order."""
        ...

    def read(self) -> np.ndarray:
        """(N, D) float32."""
        ...


@dataclass(frozen=True)
class Held:
    """Features in memory."""

    features: np.ndarray
    labels: np.ndarray

    def at(self, places: np.ndarray) -> "Held":
        return Held(self.features[places], self.labels[places])

    def read(self) -> np.ndarray:
        return self.features


@dataclass(frozen=True)
class Stored:
    """Features in an artefact, whose index has `label` among its keys."""

    index: Index
    column: str = "feature"

    @property
    def labels(self) -> np.ndarray:
        return self.index.keys["label"]

    def at(self, places: np.ndarray) -> "Stored":
        return Stored(self.index.at(places), self.column)

    def read(self) -> np.ndarray:
        return self.index.read(self.column)


def places_by_class(labels: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """The places of each class's images, ascending."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(1, num_classes)))
