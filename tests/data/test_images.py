"""An image set: subsets, fingerprint, held-out split and cache; the bundled digits."""

import io

import numpy as np
import pytest
from flat import opened
from PIL import Image
from tiny import write_images

from ims3_ray.cluster import tasks
from ims3_ray.data import folders
from ims3_ray.data.transforms import encode_png
from ims3_ray.errors import InputError


def test_a_subset_is_random_by_seed_and_part_of_a_larger_one(tmp_path):
    images = opened(write_images(tmp_path / "set", 30, seed=0), tmp_path)
    subset = images.subset(5, "random", 0).tolist()
    assert np.bincount(images.labels[subset]).tolist() == [5, 5, 5]
    assert subset == images.subset(5, "random", 0).tolist() != images.subset(5, "random", 1).tolist()
    assert subset != images.subset(30, "x", 0).reshape(3, 30)[:, :5].ravel().tolist()
    assert set(subset) < set(images.subset(9, "random", 0))


def test_the_fingerprint_depends_on_content_only(tmp_path):
    first = opened(write_images(tmp_path / "a", 3, seed=0), tmp_path)
    same = opened(write_images(tmp_path / "b", 3, seed=0), tmp_path)
    other = opened(write_images(tmp_path / "c", 3, seed=1), tmp_path)
    assert first.fingerprint == same.fingerprint != other.fingerprint
    Image.new("RGB", (9, 9)).save(tmp_path / "a" / "red" / "000.png")
    assert opened(tmp_path / "a", tmp_path).fingerprint != first.fingerprint


def test_the_splits_of_the_digits_share_no_image(tmp_path):
    sizes, ids = {"train": 350, "validation": 50, "test": 100}, []
    for split, count in sizes.items():
        images = opened(f"package://digits/{split}", tmp_path)
        assert images.classes == tuple("0123456789")
        assert set(images.counts()) == {count}
        ids += set(images.ids)
    assert len(set(ids)) == len(ids)


def test_a_png_keeps_the_pixels_and_has_equal_bytes():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    data = encode_png(pixels)
    assert data == encode_png(pixels)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1), pixels)


def test_a_held_out_split_shares_no_image_and_depends_on_content_only(tmp_path):
    folder = write_images(tmp_path / "train", 10, seed=3)
    for copy in ("zz.png", "yy.png"):  # twins of one image
        (folder / "red" / copy).write_bytes((folder / "red" / "000.png").read_bytes())
    images = opened(folder, tmp_path)
    kept, held = images.split(0.2)
    assert sorted(kept.paths + held.paths) == sorted(images.paths)
    assert set(kept.ids).isdisjoint(held.ids)
    assert kept.fingerprint != held.fingerprint
    assert all(count >= 2 for count in held.counts())
    assert kept.labels.tolist() == sorted(kept.labels.tolist())
    assert opened(folder, tmp_path, seed=7).split(0.2)[1].paths == held.paths
    with pytest.raises(InputError, match=r"data.validation_split: 0.99 leaves class 'blue' none of its 10"):
        images.split(0.99)


@pytest.mark.parametrize("held", [b"", b"[]", b'{"a": {"id": "x"}}', b'{"a": 1}', b"null"])
def test_a_damaged_cache_is_made_again(tmp_path, held):
    first = opened(write_images(tmp_path / "a", 3, seed=0), tmp_path)
    (indexed,) = {path.parent for path in tmp_path.rglob("index/*.json")}
    whole = {path: path.read_bytes() for path in indexed.glob("*.json")}
    for path in whole:
        path.write_bytes(held)
    assert opened(tmp_path / "a", tmp_path).fingerprint == first.fingerprint
    assert {path: path.read_bytes() for path in whole} == whole


def test_tasks_of_the_cluster_give_the_same_results_and_inspect_only_new_files(
    ray_cluster, tmp_path, monkeypatch
):
    folder, asked = write_images(tmp_path / "a", 5, seed=0), []

    def each(function, batches):
        batches = list(batches)
        asked.extend(path for _, files in batches for path, _ in files)
        return tasks.map_on_cluster(function, batches)

    (folder / "red" / "odd.png").write_bytes(b"no image")
    (folder / "blue" / "lost.png").symlink_to(tmp_path / "nowhere")
    alone = opened(folder, tmp_path / "alone", limit=0.2)
    for name, value in {"FEW": 0, "BATCH": 4, "EACH": each}.items():
        monkeypatch.setattr(folders, name, value)
    monkeypatch.setattr(folders, "_look", lambda *_: pytest.fail("the driver looks"))
    spread = opened(folder, tmp_path / "spread", limit=0.2)
    assert spread.fingerprint == alone.fingerprint
    assert spread.bad == alone.bad
    assert sorted(asked) == sorted([*spread.paths, *spread.bad])
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / place).rglob("index/*.json")}
        for place in ("alone", "spread")
    )
    assert len(first) == 3
    assert first == second
    asked.clear()
    Image.new("RGB", (9, 9)).save(folder / "red" / "new.png")
    assert len(opened(folder, tmp_path / "spread", limit=0.2)) == len(spread) + 1
    assert {path.split("/")[0] for path in asked} == {"red"}
