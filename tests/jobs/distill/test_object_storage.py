"""The whole pipeline with images and artefacts in an S3 bucket, served on loopback."""

import json

import pytest
from loopback_store import BUCKET, SECRET, in_bucket
from processes import checksums
from pyarrow import fs

from ims3_ray import load_distilled
from ims3_ray.cli import run_command
from ims3_ray.storage.artifacts import open_directory

RUNS = f"s3://{BUCKET}/runs"
pytestmark = pytest.mark.slow  # a second whole pipeline


@pytest.fixture(scope="module")
def words(store, ray_cluster, tiny_model, tiny_images, tmp_path_factory):
    """Arguments of a finished run with everything but the model in the bucket."""
    words = [*in_bucket(tiny_model, tiny_images), "workers={actors: 1, shards: 2, train_workers: 1}"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('tracking')}/m.db")
        assert run_command("distill", words) == 0
        yield words


def artefact(noun):
    (name,) = {name.split("/")[0] for name in open_directory(f"{RUNS}/{noun}").files()}
    return open_directory(f"{RUNS}/{noun}/{name}")


def test_a_run_in_a_bucket_gives_the_bytes_of_a_run_on_disk(words, finished_images):
    place = artefact("distilled")
    assert isinstance(place.filesystem, fs.S3FileSystem)
    assert checksums(RUNS) == finished_images
    assert place.read("README.md")
    assert len(load_distilled(place.uri)) == len(finished_images[0])


def test_it_is_found_complete_and_can_be_queried(words, output):
    again = output("distill", *words)
    assert again.count("found complete") == 9
    assert f"{RUNS}/distilled/" in again
    assert json.loads(output("distill", "--status", "--json", *words))["state"] == "finished"
    assert json.loads(output("runs", f"storage={RUNS}", "--gc", "--json"))


def test_a_bucket_needs_a_tracking_server(words, monkeypatch, refused):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert "MLFLOW_TRACKING_URI" in refused("distill", *words)


def test_no_secret_is_written_anywhere(words):
    root = open_directory(RUNS)
    texts = [name for name in root.files() if name.endswith((".json", ".jsonl", ".yaml", ".md", ".html"))]
    assert len(texts) > 10
    assert not [name for name in texts if SECRET.encode() in root.read(name)]
