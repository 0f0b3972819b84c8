"""A batch of images, read and scaled for the generator and φ, and for classifiers."""

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from ims3_ray.data.loader import BatchReader
from ims3_ray.data.transforms import resize_and_crop, square
from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import Directory, open_directory


def unreachable(*_):
    raise InputError("outage")


def picture(width, height):
    draws = np.random.default_rng(width * height).integers(0, 256, (height, width, 3))
    return Image.fromarray(draws.astype(np.uint8))


@pytest.mark.parametrize(
    "size", [(16, 16), (32, 32), (40, 57), (57, 40), (20, 12), (33, 19), (15, 16), (7, 100), (300, 45)]
)
def test_images_for_classifiers_equal_torchvisions_resize_and_crop(size):
    image = picture(*size)
    expected = np.asarray(Compose([Resize(16), CenterCrop(16)])(image)).transpose(2, 0, 1)
    assert np.array_equal(resize_and_crop(image, 16), expected)


def test_a_long_strip_is_cropped_before_it_is_scaled():
    strip = Image.new("RGB", (3, 30_000), (10, 20, 30))
    assert (resize_and_crop(strip, 256) == np.array((10, 20, 30)).reshape(3, 1, 1)).all()


def test_a_reader_scales_its_batch_and_reports_unreadable_images(tmp_path, monkeypatch):
    image, paths = picture(40, 57), ["a.png", "b.png"]
    image.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    directory = open_directory(str(tmp_path))
    for options, scale in (((), square), ((resize_and_crop,), resize_and_crop)):
        read = BatchReader(directory, 16, *options)
        pixels, known, bad = read({"paths": paths, "ids": ["A", "B"], "labels": [3, 4]})
        assert np.array_equal(pixels, scale(image, 16)[None])
        assert (known["image_id"].tolist(), known["label"].tolist(), list(bad)) == (["A"], [3], ["b.png"])
    monkeypatch.setattr(Directory, "read", unreachable)
    with pytest.raises(InputError, match="outage"):  # no bad image, which a part would keep
        BatchReader(directory, 16)({"paths": paths, "ids": ["A", "B"], "labels": [3, 4]})
    assert not np.array_equal(square(image, 16), resize_and_crop(image, 16))
