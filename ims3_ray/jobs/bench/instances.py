"""Selection problems of any size: features like a network's, and tables without structure as the adversarial
case.

Structured: classes come in families of ten; features are non-negative, as after a ReLU, and their cosines lie
mostly between 0.4 and 0.95. Structureless: every vector is independent of its class, in few dimensions, so
that distances vary.
"""

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ims3_ray.method.keys import key_seed
from ims3_ray.storage.artifacts import Directory

Kind = Literal["structured", "structureless"]
WIDTH = 512
FREE_WIDTH = 16  # dimensions that a structureless vector uses
FAMILY = 10  # classes that resemble each other
RANK = 16  # directions in which classes differ
FAMILY_SPREAD, CLASS_SPREAD = 0.7, 0.4
CHUNK = 256  # classes a file


def chunks(num_classes: int) -> list[range]:
    return [range(start, min(start + CHUNK, num_classes)) for start in range(0, num_classes, CHUNK)]


def vectors(ids: range, subgroups: int, noise: float, kind: Kind, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit-length candidates (n, G, D) and real centroids (n, D) float32 of some classes, each drawn by its
    own key.
    """
    candidates = np.zeros((len(ids), subgroups, WIDTH), np.float32)
    real = np.zeros((len(ids), WIDTH), np.float32)
    draws = _draws("base", seed)
    base, directions = draws.random(WIDTH), draws.standard_normal((RANK, WIDTH)) / np.sqrt(RANK)
    for row, label in enumerate(ids):
        draws = _draws("class", seed, label)
        if kind == "structureless":
            candidates[row, :, :FREE_WIDTH] = draws.standard_normal((subgroups, FREE_WIDTH))
            real[row, :FREE_WIDTH] = draws.standard_normal(FREE_WIDTH)
        else:
            family = _draws("family", seed, label // FAMILY).standard_normal(RANK)
            place = FAMILY_SPREAD * family + CLASS_SPREAD * draws.standard_normal(RANK)
            around = noise * draws.standard_normal((subgroups, RANK))
            own = noise * draws.standard_normal((subgroups, WIDTH)) / 4
            candidates[row] = base + (place + around) @ directions + own
            real[row] = base + place @ directions
    fold = np.abs if kind == "structureless" else lambda values: np.maximum(values, 0)
    candidates, real = fold(candidates), fold(real)
    return candidates / np.linalg.norm(candidates, axis=2, keepdims=True), real / np.linalg.norm(
        real, axis=1, keepdims=True
    )


def write(folder: Directory, ids: range, subgroups: int, noise: float, kind: Kind, seed: int) -> None:
    """Both tables of some classes, as files of their own below candidates/ and real/."""
    candidates, real = vectors(ids, subgroups, noise, kind, seed)
    labels = np.repeat(np.arange(ids.start, ids.stop), subgroups)
    own = {
        "class": labels,
        "subgroup": np.tile(np.arange(subgroups), len(ids)),
        "index": np.zeros(len(labels), np.int64),
    }
    tables = {
        "candidates": own | {"feature": _lists(candidates.reshape(-1, WIDTH))},
        "real": {"class": np.arange(ids.start, ids.stop), "feature": _lists(real)},
    }
    for name, columns in tables.items():
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink, compression="none", row_group_size=32 * subgroups)
        (folder / name).write(f"part-{ids.start:06d}.parquet", sink.getvalue().to_pybytes())


def cosines(
    num_classes: int, subgroups: int, noise: float, kind: Kind, seed: int
) -> tuple[float, float, float]:
    """The 5th, 50th and 95th percentile of the cosines between candidates of different classes, of up to 200
    classes.
    """
    candidates, _ = vectors(range(min(num_classes, 200)), min(subgroups, 5), noise, kind, seed)
    flat = candidates.reshape(-1, WIDTH)
    labels = np.repeat(np.arange(len(candidates)), candidates.shape[1])
    values = (flat @ flat.T)[labels[:, None] != labels]
    return tuple(float(q) for q in np.percentile(values, (5, 50, 95)))


def _draws(*key: int | str) -> np.random.Generator:
    return np.random.default_rng(key_seed("bench", *key))


def _lists(rows: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
