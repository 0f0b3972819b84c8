"""Nodes without a shared disk: images and artefacts in a bucket, the model on each node."""

from contextlib import ExitStack

import pytest
from loopback_store import BUCKET, in_bucket
from processes import checksums, environment, finished
from raylets import can_have_own_disk, guarded, head, node

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(not can_have_own_disk(), reason="no mount namespaces here"),
]
WORKERS = "workers={actors: 2, shards: 2, train_workers: 2, device: cpu}"


def test_nodes_without_a_shared_disk_give_the_same_bytes(
    store, finished_images, tiny_model, tiny_images, tmp_path_factory
):
    base, folder = tmp_path_factory.getbasetemp(), tmp_path_factory.mktemp("private")
    words, env = [*in_bucket(tiny_model, tiny_images), WORKERS], guarded(environment() | store)
    with ExitStack() as running:
        address = running.enter_context(head(env=env, folder=folder))
        for number in range(2):
            log = folder / f"node-{number}.log"
            running.enter_context(
                node(f"--address={address}", "--num-cpus=1", env=env, log=log, hidden=base, seen=tiny_model)
            )
        env |= {"RAY_ADDRESS": address, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/m.db"}
        code, _, err = finished("distill", *words, env=env)
    assert code == 0, err
    assert checksums(f"s3://{BUCKET}/runs") == finished_images
