"""A batch of images, read and scaled: as generator and φ see them, and as classifiers do."""

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from ims3_ray.data.loader import BatchReader
from ims3_ray.data.transforms import resize_and_crop, square
from ims3_ray.storage.artifacts import open_directory


def picture(width, height):
    draws = np.random.default_rng(width * height).integers(0, 256, (height, width, 3))
    return Image.fromarray(draws.astype(np.uint8))


@pytest.mark.parametrize(
    "size", [(16, 16), (32, 32), (40, 57), (57, 40), (20, 12), (33, 19), (15, 16), (7, 100), (300, 45)]
)
def test_classifiers_see_images_exactly_as_torchvision_resizes_and_crops_them(size):
    image = picture(*size)
    expected = np.asarray(Compose([Resize(16), CenterCrop(16)])(image)).transpose(2, 0, 1)
    assert np.array_equal(resize_and_crop(image, 16), expected)


def test_an_extreme_strip_is_cut_before_it_is_scaled():
    strip = Image.new("RGB", (3, 30_000), (10, 20, 30))
    assert (resize_and_crop(strip, 256) == np.array((10, 20, 30)).reshape(3, 1, 1)).all()


def test_a_batch_is_scaled_as_the_reader_was_told_and_what_cannot_be_read_is_named(tmp_path):
    image, paths = picture(40, 57), ["a.png", "b.png"]
    image.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    directory = open_directory(str(tmp_path))
    for told, scale in (((), square), ((resize_and_crop,), resize_and_crop)):
        read = BatchReader(directory, 16, *told)
        pixels, known, bad = read({"paths": paths, "ids": ["A", "B"], "labels": [3, 4]})
        assert np.array_equal(pixels, scale(image, 16)[None])
        assert (known["image_id"].tolist(), known["label"].tolist(), list(bad)) == (["A"], [3], ["b.png"])
    assert not np.array_equal(square(image, 16), resize_and_crop(image, 16))
