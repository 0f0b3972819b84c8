"""List runs, over MLflow's own search.

python jobs/runs.py --order accuracy --where "ipc=10"
python jobs/runs.py storage=/mnt/runs --where "accuracy>0.9" --where "sample.subgroups=20"
"""

import argparse
import re
from typing import Any

from ..artifacts import open_directory
from ..config import Config
from ..errors import InputError
from ..overrides import load_config, parse_overrides
from ..tracking import RUN_TAG, client, experiment_id, flatten

COLUMNS = ("accuracy", "accuracy/random/last", "coverage/distilled", "low_density_coverage/distilled")
CONDITION = re.compile(r"([A-Za-z_][\w./]*)\s*(!=|>=|<=|=|>|<)\s*(.+)")
MOST = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--order", default="start_time", metavar="METRIC", help="sort by this, best first (default: newest)")
    parser.add_argument("--where", action="append", default=[], metavar="COND", help='such as "ipc=10" or "accuracy>0.9"')
    parser.add_argument("overrides", nargs="*", metavar="storage=DIR", help="where the runs are (default ./runs)")


def run(arguments: argparse.Namespace) -> None:
    overrides = parse_overrides(arguments.overrides)
    if unknown := set(overrides) - {"storage"}:
        raise InputError(f"{', '.join(sorted(unknown))}: not known here; only storage=DIR is")
    config = load_config("digits", overrides)
    found = search(config, arguments.where, arguments.order)
    print("\n".join(table(found)))


def search(config: Config, conditions: list[str], order: str) -> list[Any]:
    """MLflow's runs that meet every condition, sorted."""
    storage = open_directory(config.storage)
    if storage.is_local and not storage.exists("format.json"):
        raise InputError(f"storage: {storage.uri} holds no runs; name another storage=DIR")
    mlflow_client = client(storage)
    by = "attributes.start_time DESC" if order == "start_time" else f"metrics.`{order}` DESC"
    return mlflow_client.search_runs(
        [experiment_id(mlflow_client, storage)], " and ".join(map(condition, conditions)), order_by=[by], max_results=MOST
    )


def condition(text: str) -> str:
    """One condition in MLflow's filter language: a recipe's field is a parameter, `run` the run's key, all else a metric."""
    match = CONDITION.fullmatch(text.strip())
    if not match:
        raise InputError(f"--where {text!r}: is no condition; write field=value, such as ipc=10 or accuracy>0.9")
    name, operator, value = match[1], match[2], match[3].strip("'\" ")
    if "'" in value:
        raise InputError(f"--where {text!r}: the value can't hold a quote")
    fields = flatten(Config().results())
    if name == "run":
        return f"tags.`{RUN_TAG}` {operator} '{value}'"
    if name in fields:
        if operator not in ("=", "!="):
            raise InputError(f"--where {text!r}: recipe fields compare with = or != alone")
        return f"params.`{name}` {operator} '{value}'"
    try:
        return f"metrics.`{name}` {operator} {float(value)}"
    except ValueError as error:
        known = ", ".join(sorted(fields))
        raise InputError(f"--where {text!r}: {name} is no recipe field ({known}), and a metric's value is a number") from error


def table(runs: list[Any]) -> list[str]:
    """A line a run: name, state, the recipe's main fields, the headline metrics."""
    if not runs:
        return ["no run matches"]
    lines = [f"{'run':<28}{'status':<10}{'ipc':>4}{'G':>4}{'seed':>5}" + "".join(f"{_short(c):>14}" for c in COLUMNS)]
    for found in runs:
        params, metrics = found.data.params, found.data.metrics
        cells = "".join(f"{metrics[c]:>14.4f}" if c in metrics else f"{'–':>14}" for c in COLUMNS)
        known = f"{params.get('ipc', '–'):>4}{params.get('sample.subgroups', '–'):>4}{params.get('seed', '–'):>5}"
        lines.append(f"{found.info.run_name:<28}{found.info.status:<10}{known}{cells}")
    return lines


def _short(column: str) -> str:
    return {
        "accuracy/random/last": "random real",
        "coverage/distilled": "coverage",
        "low_density_coverage/distilled": "low-density",
    }.get(column, column)
