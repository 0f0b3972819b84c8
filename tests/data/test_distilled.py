"""The distilled set as written: in blocks or at once."""

import io

import pyarrow.parquet as pq
import pytest

from ims3_ray.data.distilled import (
    PARQUET,
    DistilledImage,
    DistilledSet,
    image_path,
    list_images,
    to_table,
    write_parquet,
    write_pngs,
)
from ims3_ray.data.transforms import encode_png
from ims3_ray.storage.artifacts import complete, open_directory

CLASSES = ("blue", "red")


@pytest.fixture
def images():
    import numpy as np

    pixels = np.random.default_rng(0).integers(0, 255, (6, 3, 8, 8), np.uint8)
    return [DistilledImage(i // 3, i % 3, 1, i % 3, i, encode_png(p)) for i, p in enumerate(pixels)]


def test_blocks_hold_the_same_rows_as_one_table(tmp_path, images):
    out, sink = open_directory(str(tmp_path)), io.BytesIO()
    whole = to_table(images, CLASSES, 3)
    pq.write_table(whole, sink)
    write_parquet(out, lambda: [whole])
    assert out.read(PARQUET) == sink.getvalue()
    write_parquet(out, lambda: (to_table(images[start : start + 2], CLASSES, 3) for start in (0, 2, 4)))
    assert pq.ParquetFile(tmp_path / PARQUET).num_row_groups == 3
    assert pq.read_table(tmp_path / PARQUET).equals(whole, check_metadata=True)
    assert DistilledSet(out).classes == list(CLASSES)
    assert DistilledSet(out).targets == [0, 0, 0, 1, 1, 1]


def test_listed_images_are_in_the_order_of_the_parquet_file(tmp_path, images):
    out = open_directory(str(tmp_path))
    write_parquet(out, lambda: [to_table(images[::-1], CLASSES, 3)])
    complete(out, {"images": write_pngs(out, images[::-1], CLASSES, 3)})
    listed, loaded = list_images(out, CLASSES), DistilledSet(out)
    assert [out.read(path) for path in listed.paths] == loaded._pngs
    assert listed.labels.tolist() == loaded.targets
    assert listed.classes == CLASSES


@pytest.mark.parametrize(("ipc", "name"), [(1, "0"), (10, "0"), (11, "00"), (100, "00"), (101, "000")])
def test_file_names_have_as_many_digits_as_the_ipc_needs(images, ipc, name):
    assert image_path(images[0], CLASSES, ipc) == f"train/blue/{name}.png"
