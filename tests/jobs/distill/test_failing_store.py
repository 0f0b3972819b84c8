"""A run of 300 classes whose object store refuses 5 % of the requests, with one kill in every stage."""

import re

import pytest
from loopback_store import BUCKET, Store
from monkey import DRIVER, PROCESSES, STAGES, Fault, Nodes, run_under_fire
from processes import checksums, environment, job
from tiny import tiny_words, write_images

from ims3_ray.storage.artifacts import open_directory

CLASSES, IMAGES, TEST_IMAGES, FAILING = 300, 4, 2, 0.05
OF_STAGE = {stage: kind for kind, (_, stages) in PROCESSES.items() for stage in stages}
PLANNED = [Fault(OF_STAGE.get(stage, DRIVER), stage, delay=0.5, draw=0.5) for stage in STAGES]


def upload(folder, name):
    place = open_directory(f"s3://{BUCKET}/images/{name}")
    for path in sorted(folder.rglob("*.png")):
        place.write(str(path.relative_to(folder)), path.read_bytes())


@pytest.mark.chaos
def test_300_classes_on_a_failing_store_survive_a_kill_in_every_stage(tiny_model, tmp_path):
    classes = [f"class-{index:03d}" for index in range(CLASSES)]
    images = tmp_path / "images"
    write_images(images / "train", IMAGES, 0, classes)
    write_images(images / "test", TEST_IMAGES, 1, classes)
    words = [
        *("data.class_map=new", "ipc=2", "encode.images_per_class=4", "sample.subgroups=2"),
        *("finetune.epochs=1", "evaluate.full=false", "evaluate.neighbours=1"),
        "workers={actors: 2, shards: 2, train_workers: 2, device: cpu}",
    ]
    plain = job("distill", *tiny_words(tiny_model, images, tmp_path / "runs"), *words, env=environment())
    output = plain.communicate()
    assert plain.returncode == 0, output
    with Store().running() as store:
        for split in ("train", "test"):
            upload(images / split, split)
        tracked = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/m.db"}
        nodes = Nodes(3, tmp_path, environment() | store.variables | tracked)
        store.failing = FAILING
        try:
            remote = tiny_words(tiny_model, f"s3://{BUCKET}/images", f"s3://{BUCKET}/runs")
            outcome = run_under_fire([*remote, *words], nodes, PLANNED, timeout=1800)
        finally:
            store.failing = 0.0
            nodes.end()
        requests = sum(store.counted.values())
        print(f"{outcome.seconds:.0f} s, {requests} requests, {store.refused} refused")
        print("; ".join(outcome.killed))
        assert outcome.code == 0, outcome
        assert [re.search(" in ([a-z]+) after ", line)[1] for line in outcome.killed] == list(STAGES)
        assert store.refused > FAILING / 2 * requests
        assert checksums(f"s3://{BUCKET}/runs") == checksums(tmp_path / "runs")
