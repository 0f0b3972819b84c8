"""A packed set through the pipeline: what is refined, exported, scored and read back."""

import json

import numpy as np
import planned
import pytest
import torch
from flat import opened

from ims3_ray import load_distilled, score
from ims3_ray.config.load import load_config
from ims3_ray.data.sources import PARQUET
from ims3_ray.data.transforms import decode, resize_and_crop
from ims3_ray.errors import InputError
from ims3_ray.evaluation.results import evaluation_lines
from ims3_ray.method.packing import cut, unpack
from ims3_ray.stages.base import count_forward
from ims3_ray.storage import schemas
from ims3_ray.storage.rows import read_rows

PACKED = ("packing.factor=2", "ipc=1", "sample.pool_ipc=6")  # 4 of the tiny run's 6 images per subgroup
REFINE = ("refine.steps=3", "refine.space=pixel", "refine.objective=embeddings")
FRESH = ("probe.count=0", "refine.real_batch=5")


@pytest.fixture(scope="module")
def packed(words):
    return planned.steps_of(words, *PACKED, *REFINE, *FRESH, upto="report")


@pytest.fixture(scope="module")
def distilled(packed):
    return packed["distilled"].directory


def pixels(png):
    return torch.from_numpy(np.asarray(decode(png)).transpose(2, 0, 1).copy())


def test_stored_images_hold_the_refined_tiles_and_say_how_to_unpack_them(packed, distilled):
    rows = read_rows(packed["refined"].directory, schemas.REFINED)
    assert np.bincount(rows["label"]).tolist() == [4, 4, 4]
    assert {decode(png).size for png in [*rows["start"], *rows["image"]]} == {(8, 8)}
    entries = packed["distilled"].manifest["images"]
    stored = torch.stack([pixels(distilled.read(entry["path"])) for entry in entries])
    assert torch.equal(cut(stored, 2), torch.stack([pixels(png) for png in rows["image"]]))
    assert [entry["index"] for entry in entries] == rows["index"].reshape(3, 4).tolist()
    assert distilled.read_json("distilled.json")["packing_factor"] == 2
    card = distilled.read("README.md").decode()
    assert "\npacking_factor: 2\n---\n" in card
    assert "embedding before the last layer of untrained networks match" in " ".join(card.split())
    assert "probes" not in packed


def test_a_packed_set_stands_beside_baselines_that_are_packed_likewise(packed):
    document = packed["evaluation"].directory.read_json("evaluation.json")
    assert document["names"]["random"] == "random real, packed"
    sets = document["sets"]
    assert {name: of["images"] for name, of in sets.items() if name != "full"} == dict.fromkeys(
        ("distilled", "unrefined", "random"), 12
    )
    assert {of["stored"]["pixels"] for name, of in sets.items() if name != "full"} == {16 * 16}
    assert all(of["stored"]["bytes"] > 100 for name, of in sets.items() if name != "full")
    assert "random" not in document["coverage"]
    text = "\n".join(evaluation_lines(document))
    assert "refined, packed" in text
    assert "  pixels    bytes" in text


def test_the_report_shows_each_stored_image_and_what_training_unpacks(packed):
    page = packed["report"].directory.read("index.html").decode()
    assert [page.count(f"distilled image {k}") for k in (1, 2)] == [3, 0]
    assert [page.count(f"image {k} unpacked") for k in (4, 5)] == [3, 0]


def test_a_loaded_set_is_unpacked_and_scores_as_the_run_says(packed, distilled, tiny_images):
    loaded = load_distilled(distilled.uri)
    stored = torch.stack([pixels(png) for png in loaded._pngs])
    images = torch.stack([torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) for image, _ in loaded])
    assert torch.equal(images, unpack(stored, 2, 16))
    assert loaded.targets == [0] * 4 + [1] * 4 + [2] * 4
    labels = torch.tensor(loaded.targets)
    measured = score(images, labels, test=f"{tiny_images}/test", protocol="smoke", seeds=2)
    document = packed["evaluation"].directory.read_json("evaluation.json")
    assert list(measured.accuracies) == document["sets"]["distilled"]["last"]["values"]


def test_every_reader_unpacks_and_the_stored_images_come_with_a_warning(distilled, tmp_path):
    loaded = load_distilled(distilled.uri)
    for place in (distilled.uri, f"{distilled.uri}/train"):
        found = opened(place, tmp_path, "--set mine")
        assert found.labels.tolist() == loaded.targets
        assert len(opened(place, tmp_path, "--set mine", classes=("blue", "red"))) == 8
        read = [resize_and_crop(decode(found.directory.read(path)), 16) for path in found.paths]
        assert all(
            np.array_equal(a, np.asarray(b).transpose(2, 0, 1))
            for a, (b, _) in zip(read, loaded, strict=True)
        )
    with pytest.warns(UserWarning, match="2 × 2 smaller ones"):
        assert len(load_distilled(distilled.uri, unpack=False)) == 3


def test_a_packed_parquet_file_without_its_statement_is_refused(distilled, tmp_path):
    (tmp_path / "mine.parquet").write_bytes(distilled.read(PARQUET))
    with pytest.raises(InputError, match=r"mine\.parquet states packing_factor 2"):
        opened(tmp_path / "mine.parquet", tmp_path, "--set mine")


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ({"packing_factor": 3}, r"distilled\.json states packing_factor 3, README\.md 2"),
        ({"packing_factor": "2"}, r"distilled\.json states no packing_factor from 1 to 16"),
    ],
)
def test_a_factor_that_differs_from_the_cards_is_refused(distilled, statement, message):
    before = distilled.read("distilled.json")
    try:
        distilled.write("distilled.json", json.dumps(statement).encode().ljust(len(before)))
        with pytest.raises(InputError, match=message):
            load_distilled(distilled.uri)
    finally:
        distilled.write("distilled.json", before)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["packing.factor=3", "sample.pool_ipc=9"],
            r"packing\.factor: 3 does not divide .* 16 .*image_size=15",
        ),
        (["packing.factor=2", "image_size=15", "sample.pool_ipc=6"], r"2 does not divide"),
        (["packing.factor=2", "sample.pool_ipc=3"], r"to select ipc=1 × packing\.factor² = 4 from"),
        (["image_size=32"], r"image_size: 32 needs source=real"),
        (["probe.count=0", "refine.steps=3"], r"probe\.count: 0, .* refine\.real_batch"),
        (
            ["probe.count=0", "refine.steps=3", "refine.real_batch=13"],
            r"refine\.real_batch: 13 exceed the 12",
        ),
    ],
)
def test_sizes_and_counts_that_do_not_fit_are_refused(words, more, message):
    with pytest.raises(InputError, match=message):
        planned.context_of(words, "ipc=1", *more)


@pytest.mark.slow
def test_a_packed_set_without_refinement_and_in_latents_has_its_own_size(words):
    for more in (
        ("refine.steps=0",),
        ("refine.steps=2", "refine.space=latent", "probe.count=1", "probe.checkpoint_steps=[0]"),
    ):
        steps = planned.steps_of(words, *PACKED, "image_size=20", *more, upto="export")
        out = steps["distilled"].directory
        assert {decode(out.read(entry["path"])).size for entry in steps["distilled"].manifest["images"]} == {
            (20, 20)
        }


def test_cost_counts_the_unpacked_images(words):
    plain, packed = (planned.context_of(words, *more) for more in (["ipc=4"], [*PACKED]))
    assert plain.config.unpacked_ipc == packed.config.unpacked_ipc == 4
    assert load_config("digits", {"packing.factor": 2}).pool_ipc == 40
    assert count_forward(plain) == count_forward(packed)
