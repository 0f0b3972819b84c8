"""Credentials are refused in places and shown nowhere, and services listen on this machine alone."""

import os
from pathlib import Path

import pytest
import ray

from ims3_ray import cli
from ims3_ray.cluster.resources import Machine, connect
from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.config.settings import Workers
from ims3_ray.data.images import open_images, open_labelled
from ims3_ray.display import SECRET_VARIABLES, redact, redact_uris
from ims3_ray.errors import InputError
from ims3_ray.jobs.distill.recorder import Recorder
from ims3_ray.jobs.distill.result import Distillation
from ims3_ray.models.finetuned import inspect_adapter
from ims3_ray.pipeline.prepare import prepare
from ims3_ray.pipeline.steps import plan
from ims3_ray.runs.mlflow_tracker import Tracker
from ims3_ray.stages.select.candidates import REAL_KEYS, open_features
from ims3_ray.storage.artifacts import open_directory, open_storage

SECRET = "hunter2/Zx+9q"
USERS = (f"AKIAKEY:{SECRET}", "AKIAKEY:hunter2%2FZx", "AKIAKEY", ":hunter2", "user@mail:hunter2")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def secrets(monkeypatch):
    """Every secret variable set, and what must be found nowhere."""
    for name in SECRET_VARIABLES:
        monkeypatch.setenv(name, f"{SECRET}-{name}")
    return [SECRET]


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("rest", ["bucket/runs", "bucket/runs?region=us-east-1&endpoint_override=host:9000"])
def test_a_place_with_credentials_is_refused_wherever_it_is_given_and_the_line_tells_none(
    tmp_path, user, rest
):
    place, storage = f"s3://{user}@{rest}", open_storage(str(tmp_path))
    images = {"name": "data.train", "seed": 0, "max_bad_fraction": 0.0}
    for use in (
        lambda: open_directory(place),
        lambda: open_directory(place.replace("s3", "S3")),
        lambda: open_storage(place),
        lambda: open_images(place, storage, **images),
        lambda: open_labelled(place, storage, **images, known=("a", "b")),
        lambda: open_features(place, "--real", REAL_KEYS),
        lambda: inspect_adapter(place),
    ):
        with pytest.raises(InputError, match="holds credentials") as refused:
            use()
        assert "AKIA" not in str(refused.value)
        assert "hunter2" not in str(refused.value)
    assert list(tmp_path.iterdir()) == [tmp_path / "format.json"]


def test_a_field_of_a_uri_with_a_secret_is_refused_too():
    for field in ("secret_key", "access_key", "session_token", "X-Amz-Signature", "sig", "password"):
        with pytest.raises(InputError, match="holds credentials") as refused:
            open_directory(f"s3://bucket/runs?region=eu-1&{field}={SECRET}")
        assert "hunter2" not in str(refused.value)


def test_places_without_credentials_are_left_as_they_are():
    for place in (
        *(
            "s3://bucket/runs?region=us-east-1&scheme=http",
            "gs://anonymous@bucket/x",
            "hdfs://me@host:8020/x",
        ),
        *("abfss://container@account.dfs.core.windows.net/x", "/data/me@home/a:b", "http://127.0.0.1:5000"),
        *("https://host/model@v1", "package://digits/train"),
    ):
        assert redact_uris(place) == place


def test_a_wrong_recipe_is_told_without_all_else_that_it_holds():
    held = {"ipc": 50, "sample.pool_ipc": 10, "storage": f"s3://AKIAKEY:{SECRET}@bucket/runs"}
    with pytest.raises(InputError) as refused:
        load_config("digits-paper", held)
    assert str(refused.value) == "sample.pool_ipc: 10 holds 10 images to choose ipc=50 from; raise it"


def test_no_line_and_no_trace_holds_a_secret(secrets, capsys):
    def fail(kind):
        def act():
            told = f"https://me:{SECRET}@host/api?token={SECRET}: no {os.environ['MLFLOW_TRACKING_TOKEN']}"
            try:
                raise OSError(told)
            except OSError as error:
                raise kind(f"can't reach {told}") from error

        return act

    assert cli.guarded(fail(InputError)) == cli.BAD_INPUT
    assert cli.guarded(fail(RuntimeError)) == cli.FAILURE
    said = capsys.readouterr().err
    log = Path(said.split()[-1])
    assert said.count("https://***@host") == 2
    assert "OSError" in log.read_text()
    assert not any(secret in text for secret in secrets for text in (said, log.read_text()))
    log.unlink()


def test_trouble_with_a_tracking_server_is_told_without_its_password(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET.replace('/', '')}@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said = []
    Tracker(open_storage(str(tmp_path)), said.append).start("key", "name", {}, {})
    assert len(said) == 1
    assert "127.0.0.1" in said[0]
    assert "hunter2" not in said[0]
    assert "me:" not in said[0]
    run = Distillation("k", "d", "r", None, {}, [], None, os.environ["MLFLOW_TRACKING_URI"])
    assert "hunter2" not in repr(run)


def test_what_a_run_records_holds_no_secret(secrets, tiny_overrides, tmp_path):
    config = load_config("digits", parse_overrides(tiny_overrides))
    context = prepare(config, Machine("cpu", 1, 0, 4e9, Workers(actors=1, shards=1)))
    recorder = Recorder(context, plan(context), pytest.fail)
    with pytest.raises(RuntimeError), recorder.recording():
        raise RuntimeError(f"https://me:{secrets[0]}@host")
    recorder.tracker.log_dataset("distilled", "f", context.storage.uri, 1)
    files = {path.name: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert {"run.json", "log.jsonl", "config.yaml", "mlflow.db", "recipe.yaml"} <= set(files)
    assert not any(secret.encode() in data for secret in secrets for data in files.values())


def test_short_and_empty_variables_blot_out_no_words(monkeypatch):
    for name, value in zip(SECRET_VARIABLES, ("", "a", "run", "five5"), strict=False):
        monkeypatch.setenv(name, value)
    assert redact("a run of five5") == "a run of five5"


def test_what_ray_serves_listens_on_this_machine_alone(monkeypatch):
    given = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: given.append(options))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    connect()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    connect()
    started, joined = given
    assert started["address"] == "local"
    assert started["dashboard_host"] == "127.0.0.1"
    assert not {"dashboard_host", "_node_ip_address"} & set(joined)


def test_nothing_here_asks_to_listen_on_every_interface():
    below = [path for top in ("ims3_ray", "jobs", "cluster") for path in (ROOT / top).rglob("*.*")]
    kinds = (".py", ".yaml", ".md", ".html")
    texts = [path for path in [*below, ROOT / "README.md"] if path.suffix in kinds and path.is_file()]
    assert texts
    assert not [path for path in texts if b"0.0.0.0" in path.read_bytes()]
