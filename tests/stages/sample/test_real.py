"""`source=real`: candidates are real training images, and every page says so."""

import io
import json
from pathlib import Path

import numpy as np
import planned
import pytest
from PIL import Image
from tiny import CLASSES, TINY, write_images

from ims3_ray.config.load import load_config
from ims3_ray.data.distilled import load_distilled
from ims3_ray.errors import InputError
from ims3_ray.stages.selected import REAL
from ims3_ray.storage import schemas
from ims3_ray.storage.rows import read_rows

REFINED = [
    *("refine.steps=3", "refine.space=pixel", "refine.lr=0.01", "refine.objective=embeddings"),
    *("probe.count=1", "probe.checkpoint_steps=[0, 2]"),
]


@pytest.fixture
def words(tmp_path):
    """A tiny run without a generator, on images of 20 pixels."""
    images = write_images(tmp_path / "images", 12, 0)
    places = {"data.train": images, "data.test": write_images(tmp_path / "test", 4, 1)}
    places |= {"storage": tmp_path / "runs", "model.path": tmp_path / "nowhere"}
    real = ["source=real", "embed.extractor=untrained:convnet3", "evaluate.protocol=smoke", "ipc=4"]
    return [*TINY, *(f"{field}={place}" for field, place in places.items()), *real]


def candidates_of(steps):
    return read_rows(steps["candidates"].directory, schemas.CANDIDATES, list(schemas.CANDIDATES))


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_subgroups_are_disjoint_real_images_until_all_are_used(ray_cluster, words):
    steps = planned.steps_of(words, "sample.subgroups=7", "image_size=20", upto="sample")
    rows = candidates_of(steps)
    assert set(rows["seed"]) == {REAL}
    for label, name in enumerate(CLASSES):
        files = {path.read_bytes() for path in (Path(planned.config_of(words).data.train) / name).iterdir()}
        known = {pixels(png).tobytes() for png in files}
        for first, last, count in ((0, 3, 12), (3, 6, 12), (6, 7, 4)):  # rounds of three subgroups of four
            chosen = (rows["label"] == label) & (first <= rows["subgroup"]) & (rows["subgroup"] < last)
            drawn = {pixels(png).tobytes() for png in rows["image"][chosen]}
            assert len(drawn) == chosen.sum() == count
            assert drawn <= known


def test_every_image_is_one_candidate_if_single_images_are_selected(ray_cluster, words):
    more = "select.unit=image", "sample.subgroups=100", "sample.pool_ipc=5"
    rows = candidates_of(planned.steps_of(words, *more, upto="sample"))
    assert len(rows["label"]) == len(set(rows["image"])) == 12 * len(CLASSES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "kind", "side"),
    [((), "real", 16), (("image_size=20",), "real", 20), (REFINED, "refined real", 16)],
)
def test_a_set_of_real_images_says_so_and_evaluates(ray_cluster, words, more, kind, side):
    steps = planned.steps_of(words, *more, upto="report")
    out = steps["distilled"].directory
    record = json.loads(out.read("distilled.json"))
    assert (record["images"], record["packing_factor"], record["image_size"]) == (kind, 1, side)
    card = out.read("README.md").decode()
    assert f"12 {kind} images" in card
    assert ("They are copies" in card) == (kind == "real")
    assert "generator" not in card.partition("## Licences")[2]
    assert {image.size for image, _ in load_distilled(out.uri)} == {(side, side)}
    assert "real + S³" in steps["evaluation"].directory.read_json("evaluation.json")["names"].values()
    page = steps["report"].directory.read("index.html").decode()
    assert ("Refinement started from real" if more is REFINED else "are copies of real") in page


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["refine.steps=3"], r"refine\.space=pixel"),
        (["evaluate.protocol=none"], r"image_size=32"),
        (["select.unit=image", "select.exclude_copies=true"], r"exclude_copies: .*false"),
        (["evaluate.pool_images=5", *REFINED, "refine.start=medoids"], r"pool_images: .*null"),
    ],
)
def test_fields_that_need_a_generator_are_refused_with_a_remedy(words, more, message):
    with pytest.raises(InputError, match=message):
        planned.context_of(words, *more)


def test_the_size_of_subgroups_must_fit_the_smallest_class(words):
    with pytest.raises(InputError, match=r"12 images, sample\.pool_ipc=13 .*lower"):
        planned.context_of(words, "sample.pool_ipc=13")


def test_the_recipe_needs_no_generator():
    config = load_config("real")
    assert (config.source, config.is_tuned) == ("real", False)
