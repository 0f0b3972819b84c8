"""A trial's record: one JSON file, written when it begins and when it ends. All resuming goes by it.

    <root>/sweeps/<recipe>-<key>/trials/<trial>.json

It is one of those that say what a run needs of the storage (ims3_ray.runs.records).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from ims3_ray.runs.records import FINISHED, RUNNING, STOPPED, now
from ims3_ray.storage.artifacts import Directory

from .plan import trial_key
from .search_space import Value, Values

TRIALS = "trials"


@dataclass(frozen=True)
class Trial:
    """What is known of a trial. Metrics of a stopped one are those that were heard last."""

    number: int
    values: Values
    state: str = RUNNING
    metrics: Mapping[str, float] = field(default_factory=dict)
    # all that MLflow's run holds, by its names there
    figures: Mapping[str, float] = field(default_factory=dict)
    interval: float | None = None
    history: Sequence[tuple[int, float]] = ()  # (step, accuracy), the mean over classifier seeds
    error: str | None = None
    began: float | None = None  # Unix seconds, when it last did
    seconds: float | None = None
    pool: str | None = None  # fingerprint of the candidates
    # artefact up to the candidates → seconds that it took
    upstream: Mapping[str, float] = field(default_factory=dict)
    artifacts: Sequence[str] = ()  # noun/fingerprint
    mlflow_run_id: str | None = None
    owner: Sequence[str] = ()  # the driver's session and Tune's trial under which it last ran
    key: str = ""  # the tag by which MLflow's run is found
    written: str = ""

    @property
    def ended(self) -> float | None:
        """Unix seconds; None while that is not known."""
        return None if self.began is None or self.seconds is None else self.began + self.seconds

    @property
    def is_over(self) -> bool:
        """Whether it needs not run again: a failed one does, its cause may have gone."""
        return self.state in (FINISHED, STOPPED)

    def write(self, folder: Directory, **changes: object) -> "Trial":
        """The same with `changes`, written."""
        trial = replace(self, **{**changes, "written": now()})  # pyright: ignore[reportArgumentType]
        (folder / TRIALS).write_json(f"{trial_key(self.values)}.json", asdict(trial))
        return trial


def read_trial(folder: Directory, values: Mapping[str, Value]) -> Trial | None:
    name = f"{trial_key(values)}.json"
    return Trial(**(folder / TRIALS).read_json(name)) if (folder / TRIALS).exists(name) else None


def read_trials(folder: Directory) -> list[Trial]:
    """Every trial, by number."""
    trials = folder / TRIALS
    records = [Trial(**trials.read_json(name)) for name in trials.files() if name.endswith(".json")]
    return sorted(records, key=lambda trial: trial.number)
