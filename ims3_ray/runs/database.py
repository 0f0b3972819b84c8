"""Where MLflow keeps its records: a server or database that is named, or its own in a local storage."""

import os
import tempfile
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import urlsplit

from ims3_ray.errors import InputError
from ims3_ray.storage.directory import Directory, open_directory, refuse_unwritable

DATABASE = "mlflow.db"
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
PLUGINS = "mlflow.tracking_store"  # MLflow's group of installed ones, each named by its scheme
SQLITE = b"SQLite format 3\0"


def tracking_uri(storage: Directory) -> str:
    """MLFLOW_TRACKING_URI, or a SQLite file in the storage.

    InputError for a remote storage without it, and where MLflow could never keep records by it; whether a
    server answers is not asked.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        _check(uri)
        return uri
    if not storage.is_local:
        raise InputError(
            f"storage: {storage.uri} can hold no MLflow database; "
            "set MLFLOW_TRACKING_URI to a tracking server"
        )
    return f"sqlite:///{storage.path}/{DATABASE}"


def _check(uri: str) -> None:
    where, scheme = f"MLFLOW_TRACKING_URI: {uri}", uri.partition("://")[0].partition("+")[0]
    known = (*SCHEMES, *entry_points(group=PLUGINS).names)
    if scheme not in known:
        raise InputError(
            f"{where} begins with none of {', '.join(known)}; name a server as http://HOST:5000, or a file "
            "as sqlite:////FOLDER/mlflow.db"
        )
    try:
        _ = urlsplit(uri).port
    except ValueError as error:
        raise InputError(f"{where} can't be read ({error}); mend it") from error
    if scheme == "sqlite":
        _check_file(Path(uri.partition("://")[2].removeprefix("/").partition("?")[0]), where)


def _check_file(path: Path, where: str) -> None:
    if path.is_dir():
        raise InputError(f"{where} is a folder; name a file in it, such as {where}/{DATABASE}")
    if not path.is_file():
        refuse_unwritable(open_directory(str(path.absolute().parent)), where)
        return
    with path.open("rb") as file:
        if file.read(len(SQLITE)) not in (b"", SQLITE):
            raise InputError(f"{where} is a file of another kind; name a new one, or a database")


def make_database(path: Path) -> None:
    """A new database, where there is none: whole or not there, whoever is stopped or makes it at once."""
    if path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp") as folder:
        new = Path(folder, path.name)
        SqlAlchemyStore(f"sqlite:///{new}", str(path.parent / "mlruns")).engine.dispose()
        try:
            os.link(new, path)
        except FileExistsError:
            pass  # somebody else has made it meanwhile
        except OSError:  # a filesystem without links
            new.replace(path)
