"""Features of a set of images, left in Parquet until a task asks for those of a class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ims3_ray.storage.index import Index, joined


@dataclass(frozen=True)
class Vectors:
    """Features of N images in an artefact, whose index has `label` among its keys."""

    index: Index
    column: str = "feature"

    @property
    def labels(self) -> np.ndarray:
        """(N,), known without the features."""
        return self.index.keys["label"]

    def at(self, places: np.ndarray) -> "Vectors":
        """Those of the images at these places, in this order."""
        return Vectors(self.index.at(places), self.column)

    def read(self) -> np.ndarray:
        """(N, D) float32."""
        return self.index.read(self.column)


def read_together(parts: Sequence[Vectors]) -> list[np.ndarray]:
    """What `read` gives of each, all of one column of one artefact: a file that several need is read once."""
    whole = Vectors(joined([part.index for part in parts]), parts[0].column).read()
    return np.split(whole, np.cumsum([len(part.index) for part in parts])[:-1])


def places_by_class(labels: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """The places of each class's images, ascending."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(1, num_classes)))
