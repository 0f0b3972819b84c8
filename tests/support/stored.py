"""Artefacts of given columns, and distilled sets of given images."""

import numpy as np

from ims3_ray.data.distilled import to_table, write_parquet, write_pngs
from ims3_ray.storage.artifacts import complete, open_directory
from ims3_ray.storage.rows import read_index
from ims3_ray.storage.schemas import FEATURES, to_parquet


def artefact_of(folder, table, columns, size=7):
    """Returns a complete artefact in parts of `size` rows. Columns that are left out hold the rows' numbers,
    `x` or ones.
    """
    directory, rows = open_directory(str(folder)), np.arange(len(columns["label"]))
    left_out = {"str": rows.astype(str).astype(object), "bytes": np.full(len(rows), b"x", object)}
    left_out |= {"int64": rows, "float32": np.ones((len(rows), 2), np.float32)}
    held = {name: columns.get(name, left_out.get(column.dtype)) for name, column in table.items()}
    for part, start in enumerate(range(0, len(rows), size)):
        own = {name: column[start : start + size] for name, column in held.items()}
        directory.write(f"part-{part:05d}.parquet", to_parquet(own, table))
    complete(directory, {"rows": len(rows)})
    return directory


def write_set(out, images, classes, ipc, **details):
    """Writes a complete distilled set, each image in a block of its own."""
    write_parquet(out, lambda: [to_table([image], classes, ipc) for image in images])
    complete(out, details | {"images": write_pngs(out, images, classes, ipc)})


def features_of(features, labels, folder):
    """Returns the index of an artefact with several parts in `folder`."""
    directory = artefact_of(folder, FEATURES, {"label": labels, "feature": features})
    return read_index(directory, FEATURES, ["label"])
