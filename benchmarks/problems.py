"""Synthetic selection problems of any size, with structured features or with none (the adversarial case).

Structured: classes come in families of ten; features are non-negative, as after a ReLU; their cosines lie
mostly between 0.4 and 0.95. Structureless: each vector is independent of its class and uses few dimensions,
so that distances vary.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32

from ims3_ray.method.seeding import key_seed
from ims3_ray.storage.artifacts import Directory

WIDTH = 512
FREE_WIDTH = 16  # non-zero dimensions of a structureless vector
FAMILY = 10  # classes that resemble each other
RANK = 16  # number of directions in which classes differ
FAMILY_SPREAD, CLASS_SPREAD = 0.7, 0.4
CHUNK = 256  # classes per file


@dataclass(frozen=True)
class Problem:
    """A selection problem of C classes with G subgroups each, and its weights."""

    classes: int
    subgroups: int
    noise: float
    kind: Literal["structured", "structureless"] = "structured"
    normalization: Literal["per_class", "none"] = "per_class"

    @property
    def size(self) -> str:
        return f"{self.classes} × {self.subgroups}"

    @property
    def instance(self) -> str:
        return f"noise {self.noise}" if self.kind == "structured" else self.kind

    def vectors(
        self, ids: range | None = None, seed: int = 0
    ) -> tuple[Float32[np.ndarray, "n G D"], Float32[np.ndarray, "n D"]]:
        """Unit-length candidates and real centroids of some classes (default: all), seeded per class."""
        ids = range(self.classes) if ids is None else ids
        candidates = np.zeros((len(ids), self.subgroups, WIDTH), np.float32)
        real = np.zeros((len(ids), WIDTH), np.float32)
        rng = _rng("base", seed)
        base, directions = rng.random(WIDTH), rng.standard_normal((RANK, WIDTH)) / np.sqrt(RANK)
        for row, label in enumerate(ids):
            rng = _rng("class", seed, label)
            if self.kind == "structureless":
                candidates[row, :, :FREE_WIDTH] = rng.standard_normal((self.subgroups, FREE_WIDTH))
                real[row, :FREE_WIDTH] = rng.standard_normal(FREE_WIDTH)
            else:
                family = _rng("family", seed, label // FAMILY).standard_normal(RANK)
                center = FAMILY_SPREAD * family + CLASS_SPREAD * rng.standard_normal(RANK)
                offsets = self.noise * rng.standard_normal((self.subgroups, RANK))
                own = self.noise * rng.standard_normal((self.subgroups, WIDTH)) / 4
                candidates[row] = base + (center + offsets) @ directions + own
                real[row] = base + center @ directions
        rows = (np.abs(v) if self.kind == "structureless" else np.maximum(v, 0) for v in (candidates, real))
        candidates, real = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in rows)
        return candidates, real

    def chunks(self) -> list[range]:
        """The classes of each file."""
        return [range(start, min(start + CHUNK, self.classes)) for start in range(0, self.classes, CHUNK)]

    def write(self, folder: Directory, ids: range) -> None:
        """Write both tables of some classes as one file each below candidates/ and real/."""
        candidates, real = self.vectors(ids)
        labels, subgroups = np.arange(ids.start, ids.stop), np.arange(self.subgroups)
        keys = {"class": np.repeat(labels, self.subgroups), "subgroup": np.tile(subgroups, len(ids))}
        keys["index"] = np.zeros(candidates.shape[:2], np.int64).ravel()
        tables = {
            "candidates": keys | {"feature": _lists(candidates.reshape(-1, WIDTH))},
            "real": {"class": labels, "feature": _lists(real)},
        }
        for name, columns in tables.items():
            sink = pa.BufferOutputStream()
            pq.write_table(pa.table(columns), sink, compression="none", row_group_size=32 * self.subgroups)
            (folder / name).write(f"part-{ids.start:06d}.parquet", sink.getvalue().to_pybytes())

    def cosines(self) -> tuple[float, float]:
        """The 5th and 95th percentile of cosines between candidates of different classes (at most 200)."""
        candidates = self.vectors(range(min(self.classes, 200)))[0][:, :5]
        flat = candidates.reshape(-1, WIDTH)
        labels = np.repeat(np.arange(len(candidates)), candidates.shape[1])
        low, high = np.percentile((flat @ flat.T)[labels[:, None] != labels], (5, 95))
        return float(low), float(high)


def _rng(*key: int | str) -> np.random.Generator:
    return np.random.default_rng(key_seed("bench", *key))


def _lists(rows: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
