"""Sets of images of one colour. (class, value) identifies each image."""

import io

import numpy as np
from PIL import Image

from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.data.images import open_images, open_labelled
from ims3_ray.data.transforms import decode
from ims3_ray.pipeline.inputs import image_places
from ims3_ray.pipeline.prepare import open_splits
from ims3_ray.storage.artifacts import open_storage


def encoded(image, kind="PNG", **options):
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def png(value):
    return encoded(Image.fromarray(np.full((16, 16, 3), value, np.uint8)))


def opened(place, tmp_path, name="data.train", limit=0.0, seed=0, **options):
    """Returns the set at `place`, opened with a storage below `tmp_path`."""
    storage = open_storage(str(tmp_path / "storage"))
    return open_images(str(place), storage, name=name, seed=seed, max_bad_fraction=limit, **options)


def labelled(place, tmp_path, classes, **options):
    """Returns the set at `place`, opened likewise, to be scored on images of these classes."""
    options |= {"name": "--set", "seed": 0, "max_bad_fraction": 0.0, "scored_classes": classes}
    return open_labelled(str(place), open_storage(str(tmp_path / "storage")), **options)


def values(images):
    """Returns sorted [(class, value)] of a set."""
    shown = [np.asarray(decode(images.directory.read(path)))[0, 0, 0] for path in images.paths]
    return sorted((images.classes[c], int(v)) for c, v in zip(images.labels, shown, strict=True))


def run_splits(storage, *words):
    """Returns the sets of a run with these overrides, as the run opens them; `storage` is a folder or URI."""
    config = load_config("digits", parse_overrides(["evaluate.protocol=smoke", *words]))
    return open_splits(image_places(config), config.data, 0, open_storage(str(storage)))
