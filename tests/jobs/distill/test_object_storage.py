"""The whole pipeline with images and artefacts in an object store: a server on loopback that speaks S3."""

import json
from pathlib import Path

import pytest
from loopback_store import BUCKET
from processes import checksums, environment, finished
from tiny import tiny_words

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ran(store, images_in_bucket, tiny_model, tmp_path_factory):
    """A run with everything but the model in the bucket: words, environment, output."""
    from pyarrow import fs

    from ims3_ray.storage.artifacts import open_directory

    assert isinstance(open_directory(f"s3://{BUCKET}/images").filesystem, fs.S3FileSystem)
    words = tiny_words(tiny_model, Path("unused"), f"s3://{BUCKET}/runs")
    words += [
        f"data.train=s3://{BUCKET}/images/train",
        f"data.test=s3://{BUCKET}/images/test",
        "workers.actors=1",
    ]
    tracked = f"sqlite:///{tmp_path_factory.mktemp('tracking')}/m.db"
    env = environment() | store | {"MLFLOW_TRACKING_URI": tracked}
    code, out, err = finished("distill", *words, env=env)
    assert code == 0, err
    return words, env, out


def test_a_run_in_a_bucket_gives_the_bytes_of_a_run_on_disk(ran, finished_run):
    from ims3_ray import load_distilled
    from ims3_ray.storage.artifacts import open_directory

    (name,) = {n.split("/")[0] for n in open_directory(f"s3://{BUCKET}/runs/distilled").files()}
    place = open_directory(f"s3://{BUCKET}/runs/distilled/{name}")
    (on_disk,) = checksums(Path(finished_run[1].distilled).parents[1])
    assert checksums(f"s3://{BUCKET}/runs") == [on_disk]
    assert place.read("README.md")
    assert len(load_distilled(place.uri)) == len(on_disk)


def test_it_is_found_complete_and_can_be_asked_about(ran):
    words, env, out = ran
    assert f"s3://{BUCKET}/runs/distilled/" in out
    code, again, err = finished("distill", *words, env=env)
    assert code == 0 and again.count("found complete") == 9, err
    code, found, err = finished("distill", "--status", "--json", *words, env=env)
    assert code == 0 and json.loads(found)["state"] == "finished", err
    code, listed, err = finished("runs", f"storage=s3://{BUCKET}/runs", "--gc", "--json", env=env)
    assert code == 0 and json.loads(listed), err


def test_a_stage_without_its_manifest_is_not_complete(ran):
    from ims3_ray.storage.artifacts import open_directory

    words, env, _ = ran
    (name,) = {n.split("/")[0] for n in open_directory(f"s3://{BUCKET}/runs/candidates").files()}
    place = open_directory(f"s3://{BUCKET}/runs/candidates/{name}")
    before = {n: place.read(n) for n in place.files() if n.endswith(".parquet")}
    place.delete_file("manifest.json")
    place.delete_file(min(before))
    code, out, err = finished("distill", *words, env=env)
    assert code == 0 and "] sample " in out, err
    assert {n: place.read(n) for n in place.files() if n.endswith(".parquet")} == before


def test_a_bucket_needs_a_tracking_server_and_no_secret_is_written_anywhere(ran, store):
    words, env, _ = ran
    code, _, err = finished(
        "distill", *words, env={k: v for k, v in env.items() if k != "MLFLOW_TRACKING_URI"}
    )
    assert code == 2
    assert err.startswith("error: ")
    assert "MLFLOW_TRACKING_URI" in err
    assert len(err.splitlines()) == 1
    from ims3_ray.storage.artifacts import open_directory

    root, secret = open_directory(f"s3://{BUCKET}/runs"), store["AWS_SECRET_ACCESS_KEY"].encode()
    texts = [name for name in root.files() if name.endswith((".json", ".jsonl", ".yaml", ".md", ".html"))]
    assert len(texts) > 10
    assert not [name for name in texts if secret in root.read(name)]
