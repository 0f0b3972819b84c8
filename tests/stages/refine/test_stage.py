"""Refinement in the pipeline: its images, resume, shared probes, settings."""

from functools import partial

import numpy as np
import planned
import pytest

from ims3_ray.config.evaluation import SEEDS_PER_RUN
from ims3_ray.data.distilled import DistilledSet
from ims3_ray.data.transforms import decode
from ims3_ray.errors import InputError
from ims3_ray.stages.evaluate.classifiers import classifier_seeds
from ims3_ray.stages.evaluate.teacher import SEED as TEACHER_SEED
from ims3_ray.stages.refine.probe import seed_of
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import MANIFEST
from ims3_ray.storage.rows import part_names, read_rows

REFINE = (
    "refine.steps=3",
    "probe.count=2",
    "probe.checkpoint_steps=[0, 2]",
    "refine.batch_size={cpu: 4, cuda: 4}",
)


steps_of = partial(planned.steps_of, upto="refine")


@pytest.fixture(scope="module")
def refined(words):
    return steps_of(words, *REFINE, upto="report")


def test_each_selected_image_is_refined_and_stored_with_its_start(refined):
    rows = read_rows(refined["refined"].directory, schemas.REFINED)
    assert np.bincount(rows["label"]).tolist() == [6, 6, 6]
    moved = [before != after for before, after in zip(rows["start"], rows["image"], strict=True)]
    assert moved == (~rows["kept"]).tolist()
    assert np.isfinite(rows["loss"]).all()


def test_the_distilled_set_holds_the_refined_images_and_says_so(refined):
    rows, product = read_rows(refined["refined"].directory, schemas.REFINED), refined["distilled"].directory
    pngs = DistilledSet(product)._pngs
    assert pngs == rows["image"].tolist()
    assert "refined in 3 steps" in product.read("README.md").decode()


def test_evaluation_and_report_show_the_set_before_and_after(refined):
    document = refined["evaluation"].directory.read_json("evaluation.json")
    coverage = document["coverage"]
    assert coverage["distilled"]["nearest"] != coverage["unrefined"]["nearest"] > 0
    assert document["names"] == {"distilled": "refined", "unrefined": "IM + S³"}
    assert document["sets"]["unrefined"]["images"] == document["sets"]["distilled"]["images"] == 18
    page = refined["report"].directory.read("index.html").decode()
    assert "before refinement" in page
    assert "IM + S³" in page
    assert "Refinement of the images" in page


def test_no_classifier_of_an_evaluation_starts_from_the_weights_of_a_probe():
    probes = {seed_of(seed, number) for seed in range(3) for number in range(SEEDS_PER_RUN)}
    classifiers = {seed for run in range(3) for seed in classifier_seeds(run, SEEDS_PER_RUN)}
    assert len(probes) == 3 * SEEDS_PER_RUN
    assert probes.isdisjoint({TEACHER_SEED, *classifiers})


@pytest.mark.slow
def test_three_actors_give_the_bytes_of_one(refined, words, tmp_path, tiny_overrides):
    one = steps_of([*tiny_overrides, "workers.actors=1"], *REFINE)["refined"].directory
    three = refined["refined"].directory
    assert one.uri != three.uri
    assert [one.read(name) for name in part_names(one)] == [three.read(name) for name in part_names(three)]


@pytest.mark.slow
def test_resume_refines_only_the_missing_class(words):
    out = steps_of(words, *REFINE, "refine.lr=0.05")["refined"].directory
    bytes_of = {name: out.read(name) for name in part_names(out)}
    first, *others = bytes_of
    times = {name: info.mtime_ns for name, info in out.files().items()}
    for name in (first, MANIFEST):
        (out / name).delete()
    again = steps_of(words, *REFINE, "refine.lr=0.05")["refined"]
    assert again.manifest["rows_made"] == 6
    assert {name: out.read(name) for name in part_names(out)} == bytes_of
    assert {out.files()[name].mtime_ns - times[name] for name in others} == {0}


@pytest.mark.slow
def test_runs_share_probes_and_zero_steps_disable_refinement(words, refined, finished_run):
    other = steps_of(words, *REFINE, "select.alpha=0.1", "refine.lr=0.2")
    assert other["probes"].fingerprint == refined["probes"].fingerprint
    assert other["refined"].fingerprint != refined["refined"].fingerprint
    plain = steps_of(words, upto="export")
    assert plain.keys().isdisjoint({"probes", "refined"})
    assert plain["distilled"].directory.uri == finished_run[1].distilled


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [("refine.objective=embeddings",), ("refine.space=pixel",), ("refine.start=medoids",)]
)
def test_other_objectives_spaces_and_starts_change_the_images(words, more):
    rows = read_rows(steps_of(words, *REFINE, *more)["refined"].directory, schemas.REFINED)
    assert any(before != after for before, after in zip(rows["start"], rows["image"], strict=True))


@pytest.mark.slow
def test_refined_medoids_need_no_candidates_and_have_the_classifiers_size(words):
    probes = "probe.protocol=dc-mnist", "probe.width=8"  # 28 pixels; the generator has fewer
    pixels = "refine.space=pixel", "refine.start=medoids", "refine.lr=0.01"
    steps = steps_of(words, *REFINE, *probes, *pixels, upto="report")
    assert set(steps) == {"features", "probes", "refined", "distilled", "evaluation", "report"}
    assert b"Solver:" not in steps["report"].directory.read("index.html")
    rows = read_rows(steps["refined"].directory, schemas.REFINED)
    assert {decode(png).size for png in [*rows["start"], *rows["image"]]} == {(28, 28)}
    real = read_rows(steps["features"].directory, schemas.FEATURES)["feature"]
    nearest = np.linalg.norm(rows["start_feature"][:, None] - real, axis=2).min(axis=1)
    assert nearest.max() < 0.5 * np.linalg.norm(real[:, None] - real, axis=2).mean()  # they are medoids


@pytest.mark.slow
def test_siamese_views_are_those_of_the_target(words):
    probes = "probe.protocol=dsa-cifar10", "probe.width=8", "probe.checkpoint_steps=[0]"
    moved = "refine.space=pixel", "refine.objective=embeddings", "refine.steps=4", "refine.lr=1e-9"

    def losses(real_images):
        all_twelve = "ipc=12", "refine.start=medoids", f"refine.real_images={real_images}"
        refined = steps_of(words, *REFINE, *probes, *moved, *all_twelve)["refined"].directory
        return read_rows(refined, schemas.REFINED, ["loss"])["loss"]

    of_all, of_half = losses(12), losses(6)
    assert of_all.max() < 1e-6 < 1e-4 < of_half.min()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["probe.networks=[convnet6]"], r"probe\.networks: .*convnet6"),
        (["probe.protocol=soft-32"], r"probe\.protocol: .*soft-32"),
        (["refine.real_images=13"], r"refine\.real_images: 13 .*12"),
        (["probe.checkpoint_steps=[0, 7]"], r"probe\.checkpoint_steps: 7 .*6 steps"),
        (["evaluate.protocol=none"], r"probe\.protocol: "),
    ],
)
def test_unsuitable_settings_are_refused_before_any_work(words, more, message):
    planned.config_of(words, *REFINE, *more)
    with pytest.raises(InputError, match=message):
        planned.context_of(words, *REFINE, *more)
