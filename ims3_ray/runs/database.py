"""MLflow's database in a local storage."""

import os
import tempfile
from pathlib import Path

DATABASE = "mlflow.db"


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
