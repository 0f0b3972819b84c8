"""The list of runs: what a row says, in words and as what it is sorted by."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ims3_ray.config.data import Data
from ims3_ray.config.load import subject_of
from ims3_ray.pipeline.steps import STAGES
from ims3_ray.report.formatting import duration, percent, points
from ims3_ray.runs.query import DEAD, RUNNING, Run, metric_value
from ims3_ray.storage.artifacts import MANIFEST

from .run_store import Catalogue

STATES = {"FINISHED": "complete", RUNNING: "running", DEAD: "dead", "FAILED": "failed", "KILLED": "stopped"}
NONE = "–"
NUMBERS = ("IPC", "Accuracy", "Random real", "Time")  # the columns of figures


@dataclass(frozen=True)
class Cell:
    """What is shown, and the number or text that a column is sorted by; nothing sorts last."""

    shown: str | Markup
    by: float | str | None
    more: str = ""  # beneath, small


@dataclass(frozen=True)
class Row:
    """A run of the list; its cells by the heads of their columns."""

    run: Run
    state: str  # in a word
    cells: dict[str, Cell]


def rows(catalogue: Catalogue, runs: Sequence[Run]) -> list[Row]:
    """A row a run, in their order."""
    return [_row(catalogue, run) for run in runs]


def _row(catalogue: Catalogue, run: Run) -> Row:
    recipe, ipc, state = run["params"].get("recipe", NONE), metric_value(run, "ipc"), state_of(catalogue, run)
    took, about = seconds(run), subject(recipe, run["params"].get("data.train"))
    cells = {
        "Recipe": Cell(recipe, recipe),
        "Data": Cell(about, about),
        "IPC": Cell(NONE, None) if math.isnan(ipc) else Cell(f"{ipc:.0f}", ipc),
        "State": Cell(state, state),
        "Accuracy": accuracy(run, "distilled", more=run["protocol"] or ""),
        "Random real": accuracy(run, "random"),
        "Time": Cell(NONE, None) if took is None else Cell(duration(took), took),
        "Began, UTC": Cell(run["start_time"][:16].replace("T", " "), run["start_time"]),
    }
    return Row(run, state_word(run), cells)


def accuracy(run: Run, of_set: str, more: str = "") -> Cell:
    """Of a run's set, after the last step, with the interval of its mean."""
    mean, interval = (metric_value(run, f"accuracy/{of_set}/{name}") for name in ("last", "last_interval"))
    if of_set == "distilled" and math.isnan(mean):
        mean = metric_value(run, "accuracy")  # trials log no more
    if math.isnan(mean):
        return Cell(NONE, None)
    spread = "" if math.isnan(interval) else points(interval, " ± ")
    return Cell(percent(mean) + spread, mean, more)


def state_word(run: Run) -> str:
    return STATES.get(run["status"], run["status"].lower())


def state_of(catalogue: Catalogue, run: Run) -> str:
    """`complete`, or of a run at work or dead its stage and how many are done."""
    state = state_word(run)
    if run["status"] not in (RUNNING, DEAD):
        return state
    artifacts = catalogue.artifacts(run).values()
    done = sum(catalogue.storage.exists(f"{artifact}/{MANIFEST}") for artifact in artifacts)
    share = f"{done} of {len(artifacts)} stages" if artifacts else ""
    return ", ".join(part for part in (f"{state}: {run['stage']}" if run["stage"] else state, share) if part)


def seconds(run: Run) -> float | None:
    """What its stages took, whenever they were made."""
    times = [metric_value(run, f"{stage.name}/seconds") for stage in STAGES]
    known = [time for time in times if not math.isnan(time)]
    return sum(known) if known else None


@functools.cache
def subject(recipe: str, train: str | None) -> str:
    """What a run is about, of its recipe's name and its training images."""
    return subject_of(recipe, Data.model_construct(train=train)) if train else recipe
