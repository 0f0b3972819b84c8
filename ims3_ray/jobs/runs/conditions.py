"""`--where`: conditions in a person's words as MLflow's filter language, or as a question to a run where it
has none.
"""

import re
from collections.abc import Callable

from ims3_ray.config.settings import Config
from ims3_ray.errors import InputError
from ims3_ray.runs.query import Run
from ims3_ray.runs.tags import KINDS, RUN
from ims3_ray.runs.tracking import flatten

CONDITION = re.compile(r"([A-Za-z_][\w./]*)\s*(!=|>=|<=|=|>|<)\s*(.+)")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
LOCAL = ("kind", "protocol")  # MLflow's `!=` passes over runs without the tag, and earlier versions gave none


def split_conditions(texts: list[str]) -> tuple[list[str], list[Callable[[Run], bool]]]:
    """Those that MLflow answers, and the others as questions to a run."""
    server, local = [], []
    for text in texts:
        name, operator, value = _parts(text)
        if name not in LOCAL:
            server.append(text)
        elif operator not in ("=", "!="):
            raise InputError(f"--where {text!r}: {name} compares with = or != alone")
        elif name == "kind" and value not in KINDS:
            raise InputError(f"--where {text!r}: {value!r} is no kind; choose one of {', '.join(KINDS)}")
        else:
            local.append(
                lambda run, name=name, value=value, same=operator == "=": (run[name] == value) == same
            )
    return server, local


def server_condition(text: str) -> str:
    """One condition in MLflow's filter language: a recipe's field is a parameter, `run` the run's key, all
    else a metric.
    """
    name, operator, value = _parts(text)
    fields = flatten(Config().results())
    if name == "run":
        return f"tags.`{RUN}` {operator} '{value}'"
    if name in fields:
        if operator not in ("=", "!="):
            raise InputError(f"--where {text!r}: recipe fields compare with = or != alone")
        return f"params.`{name}` {operator} '{value}'"
    if not NUMBER.fullmatch(value):
        known = ", ".join(sorted(fields))
        raise InputError(
            f"--where {text!r}: {name} is no recipe field ({known}), and a metric's value is a number"
        )
    return f"metrics.`{name}` {operator} {float(value)}"


def _parts(text: str) -> tuple[str, str, str]:
    match = CONDITION.fullmatch(text.strip())
    if not match:
        raise InputError(
            f"--where {text!r}: is no condition; write field=value, such as ipc=10 or accuracy>0.9"
        )
    value = match[3].strip("'\" ")
    if "'" in value:
        raise InputError(f"--where {text!r}: the value can't hold a quote")
    return match[1], match[2], value
