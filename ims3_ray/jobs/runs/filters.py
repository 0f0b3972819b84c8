"""`--where`: translate conditions into MLflow's filter language, or into predicates on a run."""

import re
from collections.abc import Callable, Iterable
from functools import partial

from ims3_ray.config.load import load_config
from ims3_ray.errors import InputError
from ims3_ray.runs import tags
from ims3_ray.runs.mlflow_tracker import flatten
from ims3_ray.runs.query import Run

CONDITION = re.compile(r"([A-Za-z_][\w./]*)\s*(!=|>=|<=|=|>|<)\s*(.+)")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
LOCAL = ("kind", "protocol")  # old runs lack these tags, and MLflow's `!=` skips runs without the tag


def read_conditions(texts: Iterable[str]) -> tuple[list[str], list[Callable[[Run], bool]]]:
    """Return MLflow filters, and predicates for the conditions that MLflow cannot evaluate.

    Raises InputError for a malformed condition.
    """
    filters: list[str] = []
    predicates: list[Callable[[Run], bool]] = []
    for text in texts:
        name, operator, value = _parse(text)
        if name not in LOCAL:
            filters.append(_filter(text, name, operator, value))
        elif operator not in ("=", "!="):
            raise InputError(f"--where {text!r}: {name} takes only = or !=")
        elif name == "kind" and value not in tags.KINDS:
            kinds = ", ".join(tags.KINDS)
            raise InputError(f"--where {text!r}: {value!r} is no kind; choose one of {kinds}")
        else:
            predicates.append(partial(_meets, name, value, operator == "="))
    return filters, predicates


def _meets(name: str, value: str, is_wanted: bool, run: Run) -> bool:
    return (run[name] == value) == is_wanted


def _filter(text: str, name: str, operator: str, value: str) -> str:
    """Filter by the run's key (`run`), a parameter (a field of recipes), or a metric."""
    fields = flatten(load_config().results())
    if name == "run":
        return f"tags.`{tags.RUN}` {operator} '{value}'"
    if name in fields:
        if operator not in ("=", "!="):
            raise InputError(f"--where {text!r}: recipe fields take only = or !=")
        return f"params.`{name}` {operator} '{value}'"
    if not NUMBER.fullmatch(value):
        names = ", ".join(sorted(fields))
        raise InputError(
            f"--where {text!r}: {name} is no recipe field ({names}), and a metric's value is a number"
        )
    return f"metrics.`{name}` {operator} {float(value)}"


def _parse(text: str) -> tuple[str, str, str]:
    match = CONDITION.fullmatch(text.strip())
    if not match:
        raise InputError(
            f"--where {text!r}: is no condition; write field=value, such as ipc=10 or accuracy>0.9"
        )
    value = match[3].strip("'\" ")
    if "'" in value:
        raise InputError(f"--where {text!r}: the value cannot contain a quote")
    return match[1], match[2], value
