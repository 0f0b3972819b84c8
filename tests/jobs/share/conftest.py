"""A finished run in a storage, of images that are drawn here: what is shared needs no pipeline."""

import numpy as np
import pytest
from stored import write_set
from tiny import CLASSES

from ims3_ray.config.load import load_config
from ims3_ray.data.distilled import DistilledImage, Method, card
from ims3_ray.data.transforms import encode_png
from ims3_ray.runs import records
from ims3_ray.storage.artifacts import complete, fingerprint, open_storage

IPC = 2
ACCURACY = {"mean": 0.945, "deviation": 0.002, "interval": 0.0025, "count": 5, "values": [0.945] * 5}
SET = {"images": 6, "seeds": [0], "curves": [], "last": ACCURACY, "best": ACCURACY}
EVALUATION = {
    "protocol": "smoke-v2/convnet3-w8",
    "split": "test",
    "sets": {"distilled": SET},
    "coverage": {"distilled": {"copy_rate": 0.25}},
}


@pytest.fixture
def evaluation():
    """evaluation.json of the run."""
    return EVALUATION


@pytest.fixture
def make_run(tmp_path):
    """`make_run(seed, **overrides)` gives the storage and the place of the set in it."""
    storage = open_storage(str(tmp_path / "runs"))

    def make(seed=0, **overrides):
        config = load_config("digits", overrides)
        pixels = np.random.default_rng(seed).integers(0, 255, (len(CLASSES) * IPC, 3, 8, 8), np.uint8)
        images = [DistilledImage(i // IPC, i % IPC, 0, i, seed, encode_png(p)) for i, p in enumerate(pixels)]
        name = fingerprint(["distilled", seed])
        out = storage / "distilled" / name
        licences = {"weights": None, "images": None}
        method = Method("synthetic", "")
        text = card(len(images), CLASSES, "digits", "digits", name, licences, method)
        out.write("README.md", text.encode())
        write_set(out, images, CLASSES, IPC, fingerprint=name, rows=len(images))
        artifacts = {"distilled": out}
        for noun, file, content in (
            ("adapter", "adapter.safetensors", b"values"),
            ("teacher", "teacher.safetensors", b"answers"),
            ("evaluation", "x", b""),
        ):
            artifacts[noun] = storage / noun / fingerprint([noun, seed])
            artifacts[noun].write(file, content)
        artifacts["evaluation"].write_json("evaluation.json", EVALUATION)
        for noun in ("adapter", "teacher", "evaluation"):
            complete(artifacts[noun], {"fingerprint": artifacts[noun].name})
        key = fingerprint(["report", seed])
        kept = {"state": records.FINISHED, "config": config.model_dump(mode="json")}
        places = {noun: place.uri for noun, place in artifacts.items()}
        records.write(storage, f"runs/digits-{key}/run.json", places, key=key, **kept)
        return storage, out

    return make
