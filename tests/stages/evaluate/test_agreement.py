import numpy as np
from flat import opened
from stored import artefact_of

from ims3_ray.data.transforms import encode_png
from ims3_ray.evaluation.protocols import get_protocol
from ims3_ray.stages.evaluate import classifiers
from ims3_ray.stages.selected import KEYS
from ims3_ray.storage.rows import read_index
from ims3_ray.storage.schemas import CANDIDATES

RULES = get_protocol("smoke").model_copy(update={"steps": 40})
COLOURS = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]])


def drawn(count, seed):
    """Images in the colours of three classes in turn, and their labels."""
    draws, labels = np.random.default_rng(seed), np.arange(count) % 3
    noise = draws.integers(0, 50, (count, 3, 16, 16))
    return (COLOURS[labels][:, :, None, None] + noise).astype(np.uint8), labels


def candidates(folder, pixels, labels):
    """As two parts of the sample stage hold them."""
    columns = {"label": labels, "image": np.array([encode_png(image) for image in pixels], dtype=object)}
    return read_index(artefact_of(folder, CANDIDATES, columns, size=12), CANDIDATES, KEYS)


def real_images(pixels, labels, root):
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        folder = root / "real" / "abc"[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(encode_png(image))
    return opened(root / "real", root)


def test_the_agreement_is_the_share_of_images_that_show_their_label(tmp_path, monkeypatch):
    """In portions that fit neither the parts nor the set."""
    monkeypatch.setattr(classifiers, "READ_ROWS", 5)
    pixels, labels = drawn(24, seed=1)
    wrong = np.where(np.arange(24) < 6, (labels + 1) % 3, labels)
    held = {"right": labels, "a quarter wrong": wrong}
    sets = {name: candidates(tmp_path / name, pixels, given) for name, given in held.items()}
    shares = classifiers._label_agreement(sets, real_images(*drawn(60, seed=2), tmp_path), RULES, 0, "cpu")
    assert shares == {"right": 1.0, "a quarter wrong": 0.75}
