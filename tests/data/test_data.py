import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from tiny import write_images

from ims3_ray.data.classes import check_class_names, class_map, imagenet_labels
from ims3_ray.data.images import open_images
from ims3_ray.data.pixels import decode, encode_png, square
from ims3_ray.errors import InputError
from ims3_ray.storage import tables
from ims3_ray.storage.artifacts import (
    MANIFEST,
    complete,
    fingerprint,
    open_directory,
    open_storage,
    read_manifest,
    read_rows,
)

WOOF = (
    "n02086240",
    "n02087394",
    "n02088364",
    "n02089973",
    "n02093754",
    "n02096294",
    "n02099601",
    "n02105641",
    "n02111889",
    "n02115641",
)


def png(image):
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def opened(folder, tmp_path):
    storage = open_storage(str(tmp_path / "s"))
    return open_images(str(folder), storage, name="data.train", seed=0, max_bad_fraction=0.0)


def test_a_random_subset_is_seeded_and_not_the_first_files(tmp_path):
    images = opened(write_images(tmp_path / "set", 30, seed=0), tmp_path)
    subset = images.subset(5, "random", 0)
    assert np.bincount(images.labels[subset]).tolist() == [5, 5, 5]
    assert subset.tolist() == images.subset(5, "random", 0).tolist() != images.subset(5, "random", 1).tolist()
    assert subset.tolist() != images.subset(30, "x", 0).reshape(3, 30)[:, :5].ravel().tolist()


def test_a_larger_subset_holds_the_smaller_one(tmp_path):
    images = opened(write_images(tmp_path / "set", 30, seed=0), tmp_path)
    assert set(images.subset(5, "random", 0)) < set(images.subset(9, "random", 0))


def test_the_fingerprint_follows_the_content_not_the_place_or_time(tmp_path):
    first = opened(write_images(tmp_path / "a", 3, seed=0), tmp_path)
    same = opened(write_images(tmp_path / "b", 3, seed=0), tmp_path)
    other = opened(write_images(tmp_path / "c", 3, seed=1), tmp_path)
    assert first.fingerprint == same.fingerprint != other.fingerprint


def test_a_file_changed_since_the_last_look_is_seen(tmp_path):
    folder = write_images(tmp_path / "set", 3, seed=0)
    before = opened(folder, tmp_path)
    Image.new("RGB", (9, 9)).save(folder / "red" / "000.png")
    assert opened(folder, tmp_path).fingerprint != before.fingerprint


def test_digits_are_350_50_and_100_a_class_and_share_no_image(tmp_path):
    storage = open_storage(str(tmp_path))
    ids = []
    for split, count in (("train", 350), ("validation", 50), ("test", 100)):
        images = open_images(f"package://digits/{split}", storage, name="data", seed=0, max_bad_fraction=0.0)
        assert images.classes == tuple("0123456789")
        assert set(images.counts()) == {count}
        ids.append(set(images.ids))
    assert not (ids[0] & ids[1])
    assert not (ids[0] & ids[2])
    assert not (ids[1] & ids[2])


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "I;16", "RGBA", "1"])
def test_images_of_every_mode_become_rgb(mode):
    kind = "TIFF" if mode in ("CMYK", "I;16") else "PNG"
    sink = io.BytesIO()
    Image.new(mode, (8, 6)).save(sink, kind)
    assert decode(sink.getvalue()).mode == "RGB"


def test_a_rotated_image_is_set_upright_by_its_exif():
    image = Image.new("RGB", (8, 4))
    exif = image.getexif()
    exif[0x0112] = 6
    sink = io.BytesIO()
    image.save(sink, "JPEG", exif=exif)
    assert decode(sink.getvalue()).size == (4, 8)


@pytest.mark.parametrize(
    "data", [b"", b"no image", png(Image.effect_noise((64, 64), 50))[:1500]], ids=("empty", "text", "cut")
)
def test_what_is_no_image_is_refused_with_the_reason(data):
    with pytest.raises(ValueError, match="is no readable image"):
        decode(data)


def test_a_decompression_bomb_is_refused():
    with pytest.raises(ValueError, match="pixels"):
        decode(png(Image.new("1", (9000, 9000))))


@pytest.mark.parametrize("size", [(20, 30), (300, 45), (16, 16), (5, 7), (1, 1)])
def test_the_square_is_the_centre_whatever_the_shape(size):
    assert square(Image.new("RGB", size, (10, 20, 30)), 16)[:, 8, 8].tolist() == [10, 20, 30]
    assert square(Image.new("RGB", size), 16).shape == (3, 16, 16)


def test_png_bytes_are_the_pixels_and_always_the_same():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    data = encode_png(pixels)
    assert data == encode_png(pixels)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1), pixels)


def test_imagenet_ids_map_to_their_place_among_the_sorted_thousand():
    labels = imagenet_labels()
    assert len(labels) == 1000
    assert labels["n01440764"] == 0
    assert labels["n15075141"] == 999
    assert class_map(WOOF, None, 1000, None) == [labels[wnid] for wnid in WOOF]
    assert class_map(WOOF, None, 1000, None)[:3] == [155, 159, 162]


def test_folders_map_by_the_models_names_and_never_by_their_order():
    assert class_map(("b", "a"), ("a", "b", "c"), 3, None) == [1, 0]
    assert class_map(("x", "y"), None, 1000, "new") == [0, 1]


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ("{a: 1}", "'b'"),
        ("{a: 1, b: 1}", "one label to two"),
        ("{a: 1, b: 9}", "0 … 2"),
        ("[1]", "table"),
        ("{a: 1, b: x}", "'x'"),
    ],
)
def test_a_class_table_that_does_not_fit_is_refused(tmp_path, table, named):
    path = tmp_path / "table.yaml"
    path.write_text(table)
    with pytest.raises(InputError, match=named):
        class_map(("a", "b"), None, 3, str(path))


def test_folders_that_a_thousand_class_model_does_not_know_are_refused_with_the_remedy():
    with pytest.raises(InputError, match=r"'cat'.*data\.class_map"):
        class_map(("cat", "n01440764"), None, 1000, None)


@pytest.mark.parametrize("name", ["..", ".hidden", "a/b", "a\\b", "a\nb", "", "con:", "dot."])
def test_a_class_name_that_is_no_safe_folder_is_refused(name):
    with pytest.raises(InputError, match="class folder"):
        check_class_names(["fine", name])


def test_class_names_with_spaces_and_unicode_are_fine():
    check_class_names(["great white shark", "Größe", "犬", "<b>bold"[1:2]])


def rows(count, seed=0):
    draws = np.random.default_rng(seed)
    return {
        "image_id": np.array([f"id{i}" for i in range(count)], dtype=object),
        "label": np.arange(count),
        "mean": draws.normal(size=(count, 4, 2, 2)).astype(np.float16),
        "logvar": draws.normal(size=(count, 4, 2, 2)).astype(np.float16),
    }


def test_a_table_comes_back_as_it_was_written(tmp_path):
    directory = open_directory(str(tmp_path / "latents"))
    directory.write("part-00001.parquet", tables.to_parquet(rows(2, 1), tables.LATENTS))
    directory.write("part-00000.parquet", tables.to_parquet(rows(3), tables.LATENTS))
    back = read_rows(directory, tables.LATENTS)
    expected = tables.concatenate([rows(3), rows(2, 1)])
    assert all(np.array_equal(back[name], expected[name]) for name in tables.LATENTS)
    assert list(read_rows(directory, tables.LATENTS, ["label"])) == ["label"]


def test_a_table_with_a_wrong_type_shape_or_column_is_never_written():
    for wrong in (
        {"mean": rows(3)["mean"].astype(np.float32)},
        {"mean": rows(3)["mean"][:, 0]},
        {"label": np.arange(2)},
        {"more": np.arange(3)},
    ):
        with pytest.raises(AssertionError):
            tables.to_parquet(rows(3) | wrong, tables.LATENTS)


def test_an_artefact_is_complete_only_with_its_manifest(tmp_path):
    directory = open_directory(str(tmp_path / "x"))
    directory.write("part.parquet", b"1234")
    assert read_manifest(directory) is None
    complete(directory, {"stage": "encode"})
    assert read_manifest(directory)["files"] == {"part.parquet": 4}
    assert MANIFEST not in read_manifest(directory)["files"]


def test_a_reader_never_sees_half_a_file(tmp_path):
    directory = open_directory(str(tmp_path / "x"))
    bodies = [bytes([i]) * 2_000_000 for i in range(4)]
    directory.write("file", bodies[0])
    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(lambda: [directory.write("file", bodies[i % 4]) for i in range(40)])
        while not writing.done():
            seen = directory.read("file")
            assert len(seen) == 2_000_000
            assert len(set(seen)) == 1
    assert list(directory.files()) == ["file"]


def test_fingerprints_follow_values_not_the_order_of_keys():
    assert (
        fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1}) != fingerprint({"a": 1, "b": [3]})
    )


def test_a_held_out_split_shares_no_image_with_what_is_kept_and_depends_on_the_files_alone(tmp_path):
    from tiny import write_images

    folder = write_images(tmp_path / "train", 10, seed=3)
    for copy in ("zz.png", "yy.png"):  # twins of one image
        (folder / "red" / copy).write_bytes((folder / "red" / "000.png").read_bytes())
    open_it = {"storage": open_storage(str(tmp_path / "s")), "name": "data.train", "max_bad_fraction": 0.0}
    kept, held = open_images(str(folder), seed=0, **open_it).split(0.2)
    assert sorted(kept.paths + held.paths) == sorted(open_images(str(folder), seed=0, **open_it).paths)
    assert set(kept.ids).isdisjoint(held.ids)
    assert kept.fingerprint != held.fingerprint
    assert all(count >= 2 for count in held.counts())
    assert kept.labels.tolist() == sorted(kept.labels.tolist())
    assert open_images(str(folder), seed=7, **open_it).split(0.2)[1].paths == held.paths
    with pytest.raises(InputError, match=r"data.validation_split: 0.99 leaves class 'blue' none of its 10"):
        open_images(str(folder), seed=0, **open_it).split(0.99)
