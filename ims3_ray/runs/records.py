"""Records: files that name the artefacts of each run, written before its first stage; --gc keeps those.

    runs/<recipe>-<key>/run.json             of a distillation
    sweeps/<recipe>-<key>/trials/<trial>.json         of a trial

`artifacts` in a record is a list of "noun/fingerprint", or a mapping from noun to URI. Removing the record
releases them.
"""

import calendar
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ims3_ray.config.reproduce import NO_RESULT
from ims3_ray.errors import InputError, OutageError
from ims3_ray.storage.artifacts import Directory

RECORD = re.compile(r"runs/[^/]+/run\.json|sweeps/[^/]+/trials/[^/]+\.json")
PLANNED, RUNNING, FINISHED, FAILED, STOPPED = STATES = (
    "planned", "running", "finished", "failed", "stopped"
)  # fmt: skip
UNENDED = (PLANNED, RUNNING)
STATUS = {FINISHED: "FINISHED", STOPPED: "KILLED", FAILED: "FAILED"}  # MLflow's
TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class Record:
    place: str
    key: str  # the run's tag `ims3.run` in MLflow
    state: str  # a killed run's is still RUNNING
    written: float  # seconds since 1970
    artifacts: frozenset[str]  # "noun/fingerprint"


def write(
    storage: Directory,
    place: str,
    artifacts: Iterable[str] | Mapping[str, str],
    *,
    key: str,
    state: str = RUNNING,
    **details: object,
) -> None:
    """Write the record at `place` ("sweeps/ab12/trials/7.json"), before the first stage and at the end.

    `key` is the tag `ims3.run` of its MLflow run; `details` are further fields.
    """
    assert RECORD.fullmatch(place), place
    assert state in STATES, state
    needed = dict(artifacts) if isinstance(artifacts, Mapping) else sorted(set(artifacts))
    storage.write_json(place, {**details, "key": key, "state": state, "written": now(), "artifacts": needed})


def now() -> str:
    return time.strftime(TIME, time.gmtime())


def read(storage: Directory) -> list[Record]:
    """Return every record. Raises InputError for an unreadable one, since its artefacts are unknown."""
    names = [f"{top}/{name}" for top in ("runs", "sweeps") for name in (storage / top).files()]
    return [read_one(storage, name) for name in names if RECORD.fullmatch(name)]


def read_one(storage: Directory, place: str) -> Record:
    try:
        record = storage.read_json(place)
        needed = record["artifacts"]
        artifacts = frozenset(map(artifact_name, needed.values() if isinstance(needed, Mapping) else needed))
        written = calendar.timegm(time.strptime(record["written"], TIME))
        return Record(place, record["key"], record["state"], written, artifacts)
    except OutageError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"storage: {(storage / place).uri} is no readable record ({type(error).__name__}: {error}), "
            "so the artefacts of its run are unknown; mend or remove it"
        ) from error


def recipe_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `Config.results` does, from a record's configuration, which an earlier version may have."""
    recipe = {name: value for name, value in config.items() if name not in NO_RESULT}
    return recipe | {"data": {name: value for name, value in recipe["data"].items() if name != "root"}}


def artifact_name(location: str) -> str:
    """Return the last two parts of a path or URI; the storage may have moved since it was written."""
    path = location.partition("?")[0] if "://" in location else location
    return "/".join(path.rstrip("/").split("/")[-2:])
