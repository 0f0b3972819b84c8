"""What every run needs of a storage, written when it starts: nothing that it counts on is deleted beneath it.

    runs/<recipe>-<key>/run.json             of a distillation
    ablations/<recipe>-<key>/artifacts.json  of all cells of an ablation
    sweeps/<key>/trials/<trial>.json         of a trial

A record's `artifacts` are a list of "noun/fingerprint", or a mapping from noun to URI. A run needs them until
its MLflow run is deleted there, or its record here.
"""

import calendar
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import Directory

RECORD = re.compile(
    r"runs/([^/]+)/run\.json|ablations/([^/]+)/artifacts\.json|sweeps/([^/]+)/trials/([^/]+)\.json"
)
PLANNED, RUNNING, FINISHED, FAILED, STOPPED = STATES = (
    "planned", "running", "finished", "failed", "stopped"
)  # fmt: skip
UNENDED = (PLANNED, RUNNING)
TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class Record:
    """`keys` are the tags by which MLflow knows the run and, of a trial, its sweep."""

    place: str
    keys: tuple[str, ...]
    is_unended: bool  # as far as it says: a killed run never wrote that it ended
    written: float  # seconds since 1970
    artifacts: frozenset[str]  # "noun/fingerprint"

    def is_released(self, deleted: Mapping[str, float]) -> bool:
        """Whether a person deleted the run. `deleted`: by key, when the last such run in MLflow had begun.

        One that has not ended was written before its MLflow run began: older deletions do not mean it.
        """
        return any(
            key in deleted and (not self.is_unended or deleted[key] >= self.written) for key in self.keys
        )


def write(
    storage: Directory,
    place: str,
    artifacts: Iterable[str] | Mapping[str, str],
    *,
    key: str,
    state: str = RUNNING,
    **details: object,
) -> None:
    """Write the record at `place`, "sweeps/ab12/trials/7.json": before the first stage, and again at the end.

    `key` is the tag `ims3.run` of its MLflow run; `details` stand beside what is needed.
    """
    assert RECORD.fullmatch(place), place
    assert state in STATES, state
    needed = dict(artifacts) if isinstance(artifacts, Mapping) else sorted(set(artifacts))
    storage.write_json(place, {**details, "key": key, "state": state, "written": now(), "artifacts": needed})


def now() -> str:
    return time.strftime(TIME, time.gmtime())


def artifact_names(directories: Iterable[Directory]) -> list[str]:
    """Artefacts as records name them, "noun/fingerprint", once each."""
    return sorted({artifact_name(directory.path) for directory in directories})


def read(storage: Directory) -> list[Record]:
    """Every record. InputError for one that can't be read: what its run needs is not known."""
    names = [f"{top}/{name}" for top in ("runs", "ablations", "sweeps") for name in (storage / top).files()]
    return [_read(storage, match) for match in map(RECORD.fullmatch, names) if match]


def _read(storage: Directory, match: re.Match[str]) -> Record:
    place, (run, ablation, sweep, trial) = match[0], match.groups()
    try:
        record = storage.read_json(place)
        needed = record["artifacts"]
        artifacts = frozenset(map(artifact_name, needed.values() if isinstance(needed, Mapping) else needed))
        written = calendar.timegm(time.strptime(record["written"], TIME)) if "written" in record else 0.0
        own = record.get("key") or run or ablation or trial
        # of a sweep, the folder begins with the recipe's name
        keys = (own, sweep.rsplit("-", 1)[-1]) if sweep else (own,)
        return Record(place, keys, record.get("state") in UNENDED, written, artifacts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"storage: {(storage / place).uri} is no readable record ({type(error).__name__}: {error}), "
            "so what its run needs is not known; mend or remove it"
        ) from error


def artifact_name(location: str) -> str:
    """The last two parts of a path or URI, wherever the storage lay when it was written."""
    path = location.partition("?")[0] if "://" in location else location
    return "/".join(path.rstrip("/").split("/")[-2:])
