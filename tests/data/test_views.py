"""Views and soft labels in the set's Parquet file, read by this project and by other tools."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ims3_ray.data.distilled import PARQUET, DistilledImage, DistilledSet, to_table, write_parquet
from ims3_ray.data.transforms import encode_png
from ims3_ray.data.views import FIELDS, Views, render_view, with_views
from ims3_ray.evaluation.augment import crop_boxes, resized_crop
from ims3_ray.method.seeding import generator
from ims3_ray.storage.artifacts import open_directory

CLASSES, EACH = ("blue", "red"), 3


def picture(seed, size=32):
    values = np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)
    return Image.fromarray(values)


def view(left, top, width, height, mirrored):
    return np.uint16([left, top, width, height, mirrored])


def pixels(image):
    return np.asarray(image).astype(int)


def test_a_view_is_its_box():
    image = picture(0)
    assert np.array_equal(pixels(render_view(image, view(0, 0, 32, 32, 0), 32)), pixels(image))
    assert np.array_equal(pixels(render_view(image, view(0, 0, 32, 32, 1), 32)), pixels(image)[:, ::-1])
    corner = pixels(render_view(image, view(4, 8, 16, 16, 0), 32))[0, 0]
    assert np.array_equal(corner, pixels(image)[8, 4])
    assert render_view(picture(0, 64), view(0, 0, 32, 32, 0), 32).size == (32, 32)


def test_a_view_equals_the_augmented_image_of_the_same_draw():
    image = picture(1)
    batch = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float().expand(8, 3, 32, 32)
    boxes = crop_boxes(batch, (0.3, 0.9), generator("a"))
    expected = resized_crop(batch, (0.3, 0.9), generator("a")).permute(0, 2, 3, 1)
    for box, of_view in zip(torch.stack(boxes, dim=1).tolist(), expected, strict=True):
        shown = pixels(render_view(image, view(*map(int, box), 0), 32))
        assert np.abs(shown - of_view.numpy()).max() <= 1.01  # of 255: Pillow rounds


@pytest.fixture
def written(tmp_path):
    """A set of two classes in blocks of four and two images, and its views."""
    rng = np.random.default_rng(0)
    pngs = [encode_png(rng.integers(0, 255, (3, 8, 8), np.uint8)) for _ in range(6)]
    images = [DistilledImage(i // 3, i % 3, 0, i % 3, i, png) for i, png in enumerate(pngs)]
    boxes = np.stack([view(i % 5, v, 4, 3, v % 2) for i in range(6) for v in range(EACH)]).reshape(6, EACH, 5)
    logits = rng.standard_normal((6, EACH, 2)).astype(np.float16)

    def block(rows):
        of_block = Views(boxes[rows], logits[rows], 8, "a teacher")
        return with_views(to_table(images[rows], CLASSES, 3), of_block)

    out = open_directory(str(tmp_path))
    write_parquet(out, lambda: [block(slice(0, 4)), block(slice(4, 6))])
    return out, boxes, logits


def test_every_view_is_read_back_with_its_logits(written):
    out, boxes, logits = written
    images = DistilledSet(out, transform=np.asarray)
    assert images.soft_labels.dtype == torch.float16
    assert np.array_equal(images.soft_labels.numpy(), logits)
    views = images.views()
    assert len(views) == 6 * EACH
    plain = DistilledSet(out)
    for index, (shown, answer) in enumerate(views):
        image, box = plain[index // EACH][0], boxes[index // EACH, index % EACH]
        assert np.array_equal(shown, np.asarray(render_view(image, box, 8)))
        assert answer.tolist() == logits[index // EACH, index % EACH].astype(np.float32).tolist()


def test_other_tools_read_views_and_logits(written, tmp_path):
    _, boxes, logits = written
    rows = pq.read_table(tmp_path / PARQUET).to_pylist()
    assert [[[view[name] for name in FIELDS] for view in row["views"]] for row in rows] == boxes.tolist()
    assert np.array_equal(np.float16([row["soft_labels"] for row in rows]), logits)
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / PARQUET), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert np.array_equal(np.float16(loaded[5]["soft_labels"]), logits[5])
    assert loaded.features["label"].names == list(CLASSES)
