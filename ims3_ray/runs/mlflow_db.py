"""MLflow's tracking URI: MLFLOW_TRACKING_URI, or a SQLite file in a local storage."""

import functools
import logging
import os
import re
import tempfile
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import psutil

from ims3_ray.errors import InputError
from ims3_ray.storage.directory import Directory, check_writable, open_directory

DATABASE = "mlflow.db"
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
PLUGINS = "mlflow.tracking_store"  # entry points of MLflow plugins, named by their schemes
SQLITE = b"SQLite format 3\0"
SQLITE_URI = re.compile(r"sqlite(?:\+\w+)?:///([^?]+)")
NETWORK = re.compile(
    r"nfs\d*|cifs|smb\w*|lustre|gpfs|beegfs\w*|ceph|glusterfs|afs|pvfs2|panfs|wekafs|ocfs2|gfs2"
    r"|fuse\.(sshfs|ceph\S*|glusterfs|juicefs|gpfs|beegfs|s3fs|rclone)"
)
_logger = logging.getLogger(__name__)


def tracking_uri(storage: Directory) -> str:
    """Return MLFLOW_TRACKING_URI, or the URI of a SQLite file in the storage.

    Raises InputError for a remote storage without the variable and for a URI that MLflow cannot use. Does not
    connect to a server.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        _check(uri)
        return uri
    if not storage.is_local:
        raise InputError(
            f"storage: {storage.uri} cannot hold MLflow's database; "
            "set MLFLOW_TRACKING_URI to a tracking server"
        )
    return f"sqlite:///{quote(storage.path)}/{DATABASE}"


@functools.cache  # once per URI
def warn_of_network_disk(uri: str) -> None:
    """Log a warning if MLflow's SQLite file lies on a network file system, where locks can fail."""
    path = SQLITE_URI.fullmatch(uri)
    if path and (kind := _network_file_system(Path(unquote(path[1])))):
        _logger.warning(
            "MLflow: %s lies on a network file system (%s), where drivers of several hosts can damage it; "
            "set MLFLOW_TRACKING_URI to a server; jobs/runs.py --rebuild-mlflow rebuilds a lost database",
            *(path[1], kind),
        )


def _network_file_system(path: Path) -> str | None:
    """Return the type of the network file system that holds `path`, or None for a local disk."""
    real = Path(os.path.realpath(path))
    mounts = [mount for mount in psutil.disk_partitions(all=True) if real.is_relative_to(mount.mountpoint)]
    # reversed: the last mount of a mount point hides the others
    mount = max(reversed(mounts), key=lambda each: len(each.mountpoint), default=None)
    return mount.fstype if mount and NETWORK.fullmatch(mount.fstype) else None


def _check(uri: str) -> None:
    where, scheme = f"MLFLOW_TRACKING_URI: {uri}", uri.partition("://")[0].partition("+")[0]
    schemes = (*SCHEMES, *entry_points(group=PLUGINS).names)
    if scheme not in schemes:
        raise InputError(
            f"{where} begins with none of {', '.join(schemes)}; name a server as http://HOST:5000, or a file "
            "as sqlite:////FOLDER/mlflow.db"
        )
    try:
        _ = urlsplit(uri).port
    except ValueError as error:
        raise InputError(f"{where} is malformed ({error}); correct it") from error
    if scheme == "sqlite":
        _check_file(Path(unquote(uri.partition("://")[2].removeprefix("/").partition("?")[0])), where)


def _check_file(path: Path, where: str) -> None:
    if path.is_dir():
        raise InputError(f"{where} is a folder; name a file in it, such as {where}/{DATABASE}")
    if not path.is_file():
        check_writable(open_directory(str(path.absolute().parent)), where)
        return
    with path.open("rb") as file:
        if file.read(len(SQLITE)) not in (b"", SQLITE):
            raise InputError(f"{where} is a file of another kind; name a new one, or a database")


def make_database(path: Path) -> None:
    """Create the database if it is missing: atomically, and safe with concurrent drivers."""
    if path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp") as folder:
        new = Path(folder, path.name)
        SqlAlchemyStore(f"sqlite:///{quote(str(new))}", str(path.parent / "mlruns")).engine.dispose()
        try:
            os.link(new, path)
        except FileExistsError:
            pass  # another driver has created it meanwhile
        except OSError:  # a file system without hard links
            new.replace(path)
