"""`--where`: translate conditions into MLflow's filter language."""

import contextlib
import re

from ims3_ray.config.base import as_field, flatten
from ims3_ray.config.load import load_config, read_yaml
from ims3_ray.config.settings import Config
from ims3_ray.errors import InputError
from ims3_ray.runs import tags

CONDITION = re.compile(r"([A-Za-z_][\w./-]*)\s*(!=|>=|<=|=|>|<)\s*(.+)")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
TAGS = {"run": tags.RUN, "kind": tags.KIND, "protocol": tags.PROTOCOL}


def read_condition(text: str) -> str:
    """Return MLflow's filter for a tag of TAGS, a parameter (a field of recipes), or a metric.

    Raises InputError for a malformed condition.
    """
    match = CONDITION.fullmatch(text.strip())
    if not match:
        raise InputError(
            f"--where {text!r}: is no condition; write field=value, such as ipc=10 or accuracy>0.9"
        )
    name, operator, value = match[1], match[2], match[3].strip("'\" ")
    fields = flatten(load_config().results())
    if name in TAGS or name in fields:
        if operator not in ("=", "!="):
            raise InputError(f"--where {text!r}: {name} takes only = or !=")
        if name in fields:  # as MLflow has it: null is None, true is True
            with contextlib.suppress(ValueError):
                value = tags.param_text(as_field(Config, name, read_yaml(value, InputError)))
        quote = '"' if "'" in value else "'"
        if quote in value:
            raise InputError(f"--where {text!r}: the value cannot contain both kinds of quotes")
        if name == "kind" and value not in tags.KINDS:
            raise InputError(f"--where {text!r}: {value!r} is no kind; choose one of {', '.join(tags.KINDS)}")
        column = f"tags.`{TAGS[name]}`" if name in TAGS else f"params.`{name}`"
        return f"{column} {operator} {quote}{value}{quote}"
    if not NUMBER.fullmatch(value):
        raise InputError(
            f"--where {text!r}: {name} is no recipe field ({', '.join(sorted(fields))}), "
            "and a metric's value is a number"
        )
    return f"metrics.`{name}` {operator} {float(value)}".replace("e+", "e")  # MLflow reads no 1e+17
