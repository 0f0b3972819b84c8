"""Validation of MLFLOW_TRACKING_URI without a connection, and the warning for network file systems."""

import re
import sqlite3
from types import SimpleNamespace

import pytest

from ims3_ray.errors import InputError
from ims3_ray.runs import mlflow_db
from ims3_ray.runs.mlflow_db import tracking_uri
from ims3_ray.storage.artifacts import open_directory, open_storage


@pytest.fixture
def uri_of(tmp_path, monkeypatch):
    """Set the variable and return the URI; {here} is a folder with the text file `words`."""
    (tmp_path / "words").write_text("no database")

    def of(uri):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(here=tmp_path))
        return tracking_uri(open_directory(str(tmp_path / "runs")))

    return of


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("htp://localhost:5000", "begins with none of http, https, "),
        ("{here}/mlruns", "begins with none of"),
        ("http://localhost:99999", "is malformed"),
        ("sqlite:////proc/nowhere/mlflow.db", "can't be written"),
        ("sqlite:///{here}/words/mlflow.db", "can't be written"),
        ("sqlite:///{here}", "is a folder"),
        ("sqlite:///{here}/words", "is a file of another kind"),
    ],
)
def test_an_unusable_uri_is_rejected_in_one_line(uri_of, tmp_path, uri, expected, refused):
    line = f"MLFLOW_TRACKING_URI: {re.escape(uri.format(here=tmp_path))} {expected}"
    with pytest.raises(InputError, match=f"^{line}"):
        uri_of(uri)
    open_storage(str(tmp_path / "runs"))
    for job in ("distill", "runs"):
        assert re.fullmatch(f"error: {line}.*\n", refused(job, f"storage={tmp_path}/runs"))


USABLE = "http://127.0.0.1:1 https://user:word@host databricks mysql+pymysql://host/runs"
USABLE += " sqlite:///{here}/new/mlflow.db sqlite:///{here}/old.db sqlite:///relative.db"


@pytest.mark.parametrize("uri", USABLE.split())
def test_a_usable_uri_is_unchanged(uri_of, tmp_path, monkeypatch, uri):
    monkeypatch.chdir(tmp_path)
    with sqlite3.connect(tmp_path / "old.db") as database:
        database.execute("create table runs (name text)")
    assert uri_of(uri) == uri.format(here=tmp_path)


@pytest.mark.parametrize(
    ("kind", "uri", "is_warned"),
    [
        *((kind, "sqlite:////shared/runs/m.db", True) for kind in ("nfs4", "cifs", "lustre", "fuse.sshfs")),
        ("ext4", "sqlite:////shared/runs/m.db", False),
        ("nfs4", "sqlite:////sharedother/m.db", False),
        ("nfs4", "sqlite:////shared/local/m.db", False),
        ("nfs4", "http://head:5000", False),
    ],
)
def test_a_database_on_a_network_file_system_is_one_warning(kind, uri, is_warned, monkeypatch, caplog):
    mounts = [("/", "ext4"), ("/shared", kind), ("/shared/local", "xfs")]
    partitions = [SimpleNamespace(mountpoint=place, fstype=kind) for place, kind in mounts]
    monkeypatch.setattr(mlflow_db.psutil, "disk_partitions", lambda **_: partitions)
    mlflow_db.warn_of_network_disk.cache_clear()
    for _ in range(2):
        mlflow_db.warn_of_network_disk(uri)
    mlflow_db.warn_of_network_disk.cache_clear()
    assert [record.args[1] for record in caplog.records] == [kind] * is_warned
