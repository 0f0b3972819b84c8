"""Features in an artefact."""

import numpy as np

from ims3_ray.storage.artifacts import complete, open_directory
from ims3_ray.storage.rows import read_index
from ims3_ray.storage.schemas import FEATURES, to_parquet


def features_of(features, labels, folder, parts=5):
    """Returns the index of an artefact with `parts` parts in `folder`."""
    directory = open_directory(str(folder))
    for part, rows in enumerate(np.array_split(np.arange(len(labels)), parts)):
        ids = rows.astype(str).astype(object)
        columns = {"image_id": ids, "label": labels[rows], "feature": features[rows]}
        directory.write(f"part-{part:05d}.parquet", to_parquet(columns, FEATURES))
    complete(directory, {})
    return read_index(directory, FEATURES, ["label"])
