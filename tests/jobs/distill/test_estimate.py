"""Estimates of --dry-run compared with measurements."""

import tracemalloc

import pytest
from flat import opened
from planned import config_of
from tiny import many_words

from benchmarks.scale import make_images, peak_memory
from ims3_ray.jobs.distill.estimate import LISTED_BYTES, estimate_steps
from ims3_ray.pipeline.prepare import prepare_runs
from ims3_ray.pipeline.steps import plan, run_step

LEAST = 2e6  # bytes; smaller values are not compared


def within_factor_two(estimated: float, taken: float) -> bool:
    return taken < 2 * max(estimated, LEAST) and estimated < 2 * max(taken, LEAST)


@pytest.mark.chaos
def test_memory_and_disk_of_every_stage_are_estimated_within_a_factor_of_two(ray_cluster, tmp_path):
    words = many_words(tmp_path, tmp_path / "storage")
    config = config_of(words, "workers.actors=2", "workers.shards=2", recipe="digits-paper")
    (context,) = prepare_runs([config], print)
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
