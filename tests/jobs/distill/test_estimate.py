"""Estimates of --dry-run compared with measurements."""

import tracemalloc

import pytest
from flat import opened
from planned import config_of

from benchmarks.scale import make_images, peak_memory
from ims3_ray.jobs.distill.estimate import LISTED_BYTES, estimate_steps
from ims3_ray.pipeline.prepare import prepare_runs
from ims3_ray.pipeline.steps import plan, run_step

CLASSES, IMAGES, SCORED = 300, 4, 2
LEAST = 2e6  # bytes; smaller values are not compared
WORDS = [
    *("ipc=2", "sample.subgroups=2", "sample.steps=2", "invert.steps=2", "finetune.epochs=1"),
    *("data.class_map=new", "data.validation=null", "workers.actors=2", "workers.shards=2"),
    *("evaluate.protocol=smoke", "evaluate.seeds=2", "evaluate.neighbours=1", "evaluate.full=true"),
]


def within_factor_two(estimated: float, taken: float) -> bool:
    return taken < 2 * max(estimated, LEAST) and estimated < 2 * max(taken, LEAST)


@pytest.mark.chaos
def test_memory_and_disk_of_every_stage_are_estimated_within_a_factor_of_two(ray_cluster, tmp_path):
    places = {
        "data.train": make_images(tmp_path / "train", CLASSES, IMAGES, seed=0),
        "data.test": make_images(tmp_path / "test", CLASSES, SCORED, seed=1),
        "storage": tmp_path / "storage",
    }
    words = (f"{field}={place}" for field, place in places.items())
    (context,) = prepare_runs([config_of(WORDS, *words, recipe="digits-paper")], print)
    off, workers = {}, []
    for step, estimate in zip(plan(context), estimate_steps(context, plan(context)), strict=True):
        with peak_memory() as peak:
            done = run_step(context, step)
        taken = {
            "disk": sum(info.size for info in done.directory.files().values()),
            "node_disk": peak.node_disk,
            "driver": peak.driver,
        }
        if estimate.worker:
            workers.append((estimate.worker, peak.worker))
        for what, size in taken.items():
            print(f"{step.stage.name:<9} {what:<10} {getattr(estimate, what):>13,.0f} {size:>13,}")
            if not within_factor_two(getattr(estimate, what), size):
                off[step.stage.name, what] = getattr(estimate, what), size
    assert not off
    # a short stage may end before its workers are sampled, so the measured value can only be too small
    assert all(seen < 2 * estimated for estimated, seen in workers), workers
    assert within_factor_two(*map(max, zip(*workers, strict=True))), workers


def test_driver_memory_per_image_is_estimated_within_a_factor_of_two(tmp_path):
    folder = make_images(tmp_path / "images", 4, 150, seed=0)
    opened(folder, tmp_path)  # a first call, to exclude one-time costs
    tracemalloc.start()
    images = opened(folder, tmp_path)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.5 < held / len(images) / LISTED_BYTES < 2
