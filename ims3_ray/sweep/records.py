"""A trial's record: one JSON file below the sweep, written when it begins and when it ends. All resuming goes by it.

<root>/sweeps/<recipe>-<key>/trials/<trial>.json
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..artifacts import Directory
from .plan import trial_key

RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"
TRIALS = "trials"


@dataclass(frozen=True)
class Record:
    """What is known of a trial. Metrics of a stopped one are those that were heard last."""

    number: int
    values: Mapping[str, Any]
    status: str = RUNNING
    metrics: Mapping[str, float] = field(default_factory=dict)
    interval: float | None = None
    history: Sequence[Sequence[float]] = ()  # (step, accuracy), the mean over classifier seeds
    error: str | None = None
    seconds: float | None = None
    pool: str | None = None  # fingerprint of the candidates
    upstream: Mapping[str, float] = field(default_factory=dict)  # artefact up to the candidates → seconds that it took
    artifacts: Sequence[str] = ()  # noun/fingerprint
    mlflow_run_id: str | None = None
    owner: Sequence[str] = ()  # the driver's session and Tune's trial under which it last ran

    @property
    def is_over(self) -> bool:
        """Whether it needs not run again: a failed one does, its cause may have gone."""
        return self.status in (FINISHED, STOPPED)

    def write(self, folder: Directory) -> "Record":
        (folder / TRIALS).write_json(f"{trial_key(self.values)}.json", asdict(self))
        return self

    def end(self, folder: Directory, status: str, **found: Any) -> "Record":
        return replace(self, status=status, **found).write(folder)


def read_record(folder: Directory, values: Mapping[str, Any]) -> Record | None:
    name = f"{trial_key(values)}.json"
    return Record(**(folder / TRIALS).read_json(name)) if (folder / TRIALS).exists(name) else None


def read_records(folder: Directory) -> list[Record]:
    """Every record, by number."""
    trials = folder / TRIALS
    found = [Record(**trials.read_json(name)) for name in trials.files() if name.endswith(".json")]
    return sorted(found, key=lambda record: record.number)
