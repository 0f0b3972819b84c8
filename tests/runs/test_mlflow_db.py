"""Where MLflow keeps its records: a mistake in the place is told at once, a server that is away is not."""

import re
import sqlite3
from types import SimpleNamespace

import pytest

from ims3_ray.cli import main
from ims3_ray.errors import InputError
from ims3_ray.runs import mlflow_db
from ims3_ray.runs.mlflow_db import tracking_uri
from ims3_ray.storage.artifacts import open_directory, open_storage


@pytest.fixture
def uri_of(tmp_path, monkeypatch):
    """uri_of(uri): what is taken, with {here} for an empty folder but for a text file `words`."""
    (tmp_path / "words").write_text("no database")

    def of(uri):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(here=tmp_path))
        return tracking_uri(open_directory(str(tmp_path / "runs")))

    return of


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("htp://localhost:5000", "begins with none of http, https, "),
        ("localhost:5000", "begins with none of"),
        ("{here}/mlruns", "begins with none of"),
        ("http://localhost:port", "can't be read"),
        ("http://localhost:99999", "can't be read"),
        ("sqlite:////proc/nowhere/mlflow.db", "can't be written"),
        ("sqlite:///{here}/words/mlflow.db", "can't be written"),
        ("sqlite:///{here}", "is a folder"),
        ("sqlite:///{here}/words", "is a file of another kind"),
    ],
)
def test_a_place_where_no_records_can_be_kept_is_one_line_that_names_it(uri_of, tmp_path, uri, said, capsys):
    told = f"MLFLOW_TRACKING_URI: {re.escape(uri.format(here=tmp_path))} {said}"
    with pytest.raises(InputError, match=f"^{told}"):
        uri_of(uri)
    open_storage(str(tmp_path / "runs"))
    for job in ("distill", "runs"):
        assert main([job, f"storage={tmp_path}/runs"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert re.fullmatch(f"error: {told}.*\n", err), err


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:1",
        "https://user:word@host",
        "databricks",
        "mysql+pymysql://host/runs",
        "sqlite:///{here}/new/mlflow.db",
        "sqlite:///relative.db",
    ],
)
def test_a_place_that_may_serve_is_taken_as_it_is_written(uri_of, tmp_path, monkeypatch, uri):
    monkeypatch.chdir(tmp_path)
    assert uri_of(uri) == uri.format(here=tmp_path)


def test_a_database_that_is_there_is_taken(uri_of, tmp_path):
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("create table runs (name text)")
    assert uri_of("sqlite:///{here}/mlflow.db").endswith("/mlflow.db")


@pytest.mark.parametrize(
    ("kind", "uri", "is_told"),
    [
        ("nfs4", "sqlite:////shared/runs/mlflow.db", True),
        ("cifs", "sqlite:////shared/mlflow.db", True),
        ("lustre", "sqlite:////shared/runs/mlflow.db", True),
        ("fuse.sshfs", "sqlite:////shared/runs/mlflow.db", True),
        ("ext4", "sqlite:////shared/runs/mlflow.db", False),
        ("nfs4", "sqlite:////sharedother/mlflow.db", False),
        ("nfs4", "sqlite:////shared/local/mlflow.db", False),
        ("nfs4", "http://head:5000", False),
    ],
)
def test_a_database_on_a_network_file_system_is_one_warning(kind, uri, is_told, monkeypatch, caplog):
    mounts = [("/", "ext4"), ("/shared", kind), ("/shared/local", "xfs")]
    partitions = [SimpleNamespace(mountpoint=place, fstype=kind) for place, kind in mounts]
    monkeypatch.setattr(mlflow_db.psutil, "disk_partitions", lambda **_: partitions)
    mlflow_db.warn_of_network_disk.cache_clear()
    for _ in range(2):
        mlflow_db.warn_of_network_disk(uri)
    mlflow_db.warn_of_network_disk.cache_clear()
    assert [record.args[1] for record in caplog.records] == [kind] * is_told
