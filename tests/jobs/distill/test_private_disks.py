"""Nodes that share no disk: images and artefacts lie in a bucket, the model on every node, and nothing else
is needed.
"""

from contextlib import ExitStack
from pathlib import Path

import pytest
from processes import checksums, environment, finished
from raylets import can_have_own_disk, guarded, head, node
from tiny import tiny_words

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_have_own_disk(), reason="no mount namespaces here"),
]
WORKERS = "workers={actors: 2, shards: 2, train_workers: 2, device: cpu}"


def test_nodes_that_share_no_disk_give_the_bytes_of_a_run_on_one(
    store, images_in_bucket, finished_run, tiny_model, tmp_path_factory
):
    base, folder = tmp_path_factory.getbasetemp(), tmp_path_factory.mktemp("private")
    storage = f"{images_in_bucket}/private"
    words = [*tiny_words(tiny_model, Path("unused"), storage), WORKERS]
    words += [f"data.{split}={images_in_bucket}/{split}" for split in ("train", "test")]
    env = guarded(environment() | store)
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
    assert checksums(storage) == checksums(Path(finished_run[1].distilled).parents[1]) != []
