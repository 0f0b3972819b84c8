"""Credentials are refused in paths and never displayed or stored; services listen only on this machine."""

import os
import re
from pathlib import Path

import pytest
from planned import config_of
from processes import ROOT

from ims3_ray import cli
from ims3_ray.cluster.resources import Machine
from ims3_ray.config.load import load_config
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


@pytest.fixture
def secrets(monkeypatch):
    """Set every secret variable."""
    for name in SECRET_VARIABLES:
        monkeypatch.setenv(name, f"{SECRET}-{name}")


def assert_refused(use, *words, **options):
    with pytest.raises(InputError, match="credentials") as error:
        use(*words, **options)
    assert not re.search("AKIA|hunter2", str(error.value))


@pytest.mark.parametrize("user", USERS)
def test_a_path_with_credentials_is_refused_without_printing_them(tmp_path, user):
    path, storage = f"s3://{user}@bucket/runs?region=us-east-1", open_storage(str(tmp_path))
    images = {"name": "data.train", "seed": 0, "max_bad_fraction": 0.0}
    assert_refused(open_directory, path.replace("s3", "S3"))
    assert_refused(open_storage, path)
    assert_refused(open_images, path, storage, **images)
    assert_refused(open_labelled, path, storage, **images, scored_classes=("a", "b"))
    assert_refused(open_features, path, "--real", REAL_KEYS)
    assert_refused(inspect_adapter, path)
    assert list(tmp_path.iterdir()) == [tmp_path / "format.json"]


def test_a_secret_in_a_field_of_a_uri_is_refused():
    for field in ("secret_key", "access_key", "session_token", "X-Amz-Signature", "sig", "password"):
        assert_refused(open_directory, f"s3://bucket/runs?region=eu-1&{field}={SECRET}")


def test_a_path_without_credentials_is_unchanged():
    paths = "s3://bucket/runs?region=us-east-1&scheme=http gs://anonymous@bucket/x hdfs://me@host:8020/x"
    paths += " abfss://container@account.dfs.core.windows.net/x /data/me@home/a:b https://host/model@v1"
    for path in paths.split():
        assert redact_uris(path) == path


def test_a_recipe_error_prints_only_the_wrong_field():
    overrides = {"ipc": 50, "sample.pool_ipc": 10, "storage": f"s3://AKIAKEY:{SECRET}@bucket/runs"}
    with pytest.raises(InputError, match=r"^sample\.pool_ipc: ") as error:
        load_config("digits-paper", overrides)
    assert "AKIA" not in str(error.value)


@pytest.mark.parametrize(("kind", "code"), [(InputError, cli.BAD_INPUT), (RuntimeError, cli.FAILURE)])
def test_no_error_line_and_no_trace_has_a_secret(secrets, capsys, kind, code):
    def fail():
        text = f"https://me:{SECRET}@host/api?token={SECRET}: no {os.environ['MLFLOW_TRACKING_TOKEN']}"
        try:
            raise OSError(text)
        except OSError as error:
            raise kind(f"cannot reach {text}") from error

    assert cli.guarded(fail) == code
    printed = capsys.readouterr().err
    assert "https://***@host" in printed
    if code == cli.FAILURE:
        log = Path(printed.split()[-1])
        printed += log.read_text()
        log.unlink()
        assert "OSError" in printed
    assert SECRET not in printed


def test_an_error_of_the_tracking_server_is_printed_without_its_password(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET.replace('/', '')}@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    lines = []
    Tracker(open_storage(str(tmp_path)), lines.append).start("key", "name", {}, {})
    (line,) = lines
    assert "127.0.0.1" in line
    assert not re.search("hunter2|me:", line)
    run = Distillation("k", "d", "r", None, {}, [], None, os.environ["MLFLOW_TRACKING_URI"])
    assert "hunter2" not in repr(run)


def test_no_record_of_a_run_has_a_secret(secrets, tiny_overrides, tmp_path):
    context = prepare(config_of(tiny_overrides), Machine("cpu", 1, 0, 4e9, Workers(actors=1, shards=1)))
    recorder = Recorder(context, plan(context), pytest.fail)
    with pytest.raises(RuntimeError), recorder.recording():
        raise RuntimeError(f"https://me:{SECRET}@host")
    recorder.tracker.log_dataset("distilled", "f", context.storage.uri, 1)
    files = {path.name: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert {"run.json", "log.jsonl", "config.yaml", "mlflow.db", "recipe.yaml"} <= set(files)
    assert not any(SECRET.encode() in data for data in files.values())


def test_short_and_empty_variables_hide_no_words(monkeypatch):
    for name, value in zip(SECRET_VARIABLES, ("", "a", "run", "five5"), strict=False):
        monkeypatch.setenv(name, value)
    assert redact("a run of five5") == "a run of five5"


def test_no_file_asks_to_listen_on_every_interface():
    below = [path for top in ("ims3_ray", "jobs", "cluster") for path in (ROOT / top).rglob("*.*")]
    kinds = (".py", ".yaml", ".md", ".html")
    texts = [path for path in [*below, ROOT / "README.md"] if path.suffix in kinds and path.is_file()]
    assert texts
    assert not [path for path in texts if b"0.0.0.0" in path.read_bytes()]
