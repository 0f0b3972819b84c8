"""List, compare and reproduce runs; clean and verify the storage.

    python jobs/runs.py --order accuracy --where "ipc=10"
    python jobs/runs.py storage=/mnt/runs --where "accuracy>0.9"
    python jobs/runs.py --sweep 3f9c          its trials, best first
    python jobs/runs.py --best --metric coverage/distilled
    python jobs/runs.py --diff 0cdc 91ab
    python jobs/runs.py --reproduce 0cdc
    python jobs/runs.py --gc                  lists, asks, then deletes
    python jobs/runs.py --verify              every byte against its checksum
    python jobs/runs.py --rebuild-mlflow      MLflow's runs from the records

Runs come from MLflow or, if it cannot be reached, from the records in the
storage. RUN is a key or its beginning, a name, or an MLflow id. A minus
before a metric means that less is better (--metric=-sample/seconds). --json
prints any answer as one JSON document; --gc --json deletes only with --yes.
"""

import argparse
import contextlib
import json
import math
import re
from collections.abc import Callable, Mapping
from functools import partial

import yaml

from ims3_ray.config.load import load_config, storage_override
from ims3_ray.errors import InputError
from ims3_ray.progress import message_stream, print_line
from ims3_ray.runs import query, tags
from ims3_ray.runs.mlflow_db import DATABASE, tracking_uri
from ims3_ray.runs.mlflow_tracker import EXPERIMENT, RECIPE_FILE, client, mlflow_errors_as_input
from ims3_ray.runs.query import Run
from ims3_ray.runs.records import recipe_of
from ims3_ray.storage.artifacts import Directory, check_format, open_directory

from .filters import read_condition
from .table import best_table, differences_table, table, trials_table

METRIC = re.compile(r"-?[\w./: -]+")  # MLflow's names; a minus means that less is better
MODES = ("best", "diff", "reproduce", "gc", "verify", "rebuild_mlflow")
FROM_MLFLOW = ("list", "best", "diff", "reproduce")

Answer = tuple[Mapping[str, object], list[str]]  # JSON document, lines of text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [option …] [storage=DIR]"  # argparse's own is too wide
    add = parser.add_argument
    add("--order", metavar="METRIC", help="sort by this metric, best first (default: newest first)")
    conditions = 'such as "ipc=10", "accuracy>0.9", "kind=sweep"'
    add("--where", action="append", default=[], metavar="COND", help=conditions)
    add("--sweep", metavar="RUN", help="list the trials of this sweep, which are otherwise hidden")
    mode = parser.add_mutually_exclusive_group().add_argument
    mode("--best", action="store_true", help="the best run per protocol and IPC")
    mode("--diff", nargs=2, metavar="RUN", help="the differences between two runs")
    mode("--reproduce", metavar="RUN", help="the command that repeats this run")
    mode("--gc", action="store_true", help="list what no run needs, ask, then delete it")
    mode("--verify", action="store_true", help="read every byte of the storage, and list damaged files")
    mode("--rebuild-mlflow", action="store_true", help="write MLflow's runs from the records of the storage")
    add("--metric", metavar="METRIC", help="the metric of --best (default accuracy)")
    add("--yes", action="store_true", help="with --gc, delete without asking; with --verify, delete damage")
    add("--json", action="store_true", help="print one JSON document instead of tables")
    add("overrides", nargs="*", metavar="storage=DIR", help="storage of the runs (default ./runs)")


def run(arguments: argparse.Namespace) -> None:
    mode = read_mode(arguments)
    overrides = storage_override(arguments.overrides)
    storage = open_directory(load_config("digits", overrides).storage)
    if not check_format(storage) and storage.is_local:
        raise InputError(f"storage: {storage.uri} holds no runs; name another storage=DIR")
    with contextlib.ExitStack() as stack:
        arguments.tracked = _tracked(storage, stack) if mode in FROM_MLFLOW else lambda: storage
        stack.enter_context(mlflow_errors_as_input(storage))
        answer, lines = ANSWERS[mode](storage, arguments)
    print(json.dumps(finite(answer), indent=1) if arguments.json else "\n".join(lines))
    if problem := answer.get("problem"):
        raise InputError(str(problem))


def read_mode(arguments: argparse.Namespace) -> str:
    """Return one of MODES, or "list". Raises InputError for options that do not belong to it."""
    mode = next((mode for mode in MODES if getattr(arguments, mode)), "list")
    names = {"list": "a plain list"} | {other: f"--{other.replace('_', '-')}" for other in MODES}
    rules = {"order": ("list",), "metric": ("best",), "yes": ("gc", "verify")}
    rules |= dict.fromkeys(("where", "sweep"), ("list", "best"))
    for option, allowed in rules.items():
        if getattr(arguments, option) and mode not in allowed:
            with_these = ", ".join(names[other] for other in allowed)
            raise InputError(f"--{option}: goes with {with_these}, not with {names[mode]}")
    return mode


def find_runs(storage: Directory, arguments: argparse.Namespace) -> tuple[list[Run], Run | None]:
    """Return the runs that meet every --where, and the sweep of --sweep.

    With --sweep they are its trials, sorted by its first objective; without it no trial is among them.
    """
    filters = [read_condition(text) for text in arguments.where]
    order = arguments.order
    if order and not METRIC.fullmatch(order):
        raise InputError(f"--order {order!r}: is no metric's name")
    if (tracked := arguments.tracked()) is None:
        return [], None
    mlflow_client, sweep = client(tracked), None
    runs = query.find_runs(mlflow_client, " and ".join(filters))
    if arguments.sweep:
        sweeps = [run for run in query.find_runs(mlflow_client) if run["kind"] == tags.SWEEP]
        sweep = query.resolve(sweeps, arguments.sweep)
        runs = [run for run in runs if run["parent"] == sweep["run_id"]]
        if not order:
            runs = query.sort_best_first(runs, query.objectives(sweep)[0])
    elif not any(f"tags.`{tag}`" in text for tag in (tags.KIND, tags.RUN) for text in filters):
        runs = [run for run in runs if run["kind"] != tags.TRIAL]
    if order:
        query.check_metrics(runs, [order])
        runs = query.sort_best_first(runs, order)
    return query.with_live_status(storage, runs), sweep


def _list(storage: Directory, arguments: argparse.Namespace) -> Answer:
    runs, sweep = find_runs(storage, arguments)
    return {"runs": runs}, trials_table(sweep, runs) if sweep else table(runs)


def _best(storage: Directory, arguments: argparse.Namespace) -> Answer:
    (runs, _), metric = find_runs(storage, arguments), arguments.metric or "accuracy"
    query.check_metrics(runs, [metric])
    rows = query.best_runs(runs, metric)
    return {"metric": metric, "best": rows}, best_table(rows, metric)


def _diff(_storage: Directory, arguments: argparse.Namespace) -> Answer:
    from ims3_ray.pipeline.steps import STAGES  # heavy

    runs = _all(arguments)
    one, other = (query.resolve(runs, text) for text in arguments.diff)
    differences = query.differences(one, other, [stage.name for stage in STAGES])
    pair = [{"name": run["name"], "key": run["key"], "run_id": run["run_id"]} for run in (one, other)]
    return {"runs": pair, **differences}, differences_table(one, other, differences)


def _reproduce(storage: Directory, arguments: argparse.Namespace) -> Answer:
    from ims3_ray.config.reproduce import reproduce

    wanted = query.resolve(_all(arguments), arguments.reproduce)
    folder = storage / "runs" / wanted["name"]
    recipe = query.logged_file(client(arguments.tracked()), wanted["run_id"], RECIPE_FILE)
    if recipe is None and query.PLAIN_NAME.fullmatch(wanted["name"]) and folder.exists("config.yaml"):
        config = recipe_of(yaml.safe_load(folder.read("config.yaml")))
        recipe = yaml.safe_dump(config).encode()
    if recipe is None:
        raise InputError(
            f"--reproduce: {wanted['name']} logged no {RECIPE_FILE}; name a distillation or a sweep's trial"
        )
    result = reproduce(recipe, storage.uri)
    if not arguments.json:
        for note in result.notes:
            print_line(f"note: {note}", message_stream())
    answer = {"command": result.command, "words": result.words, "notes": result.notes}
    return {"run_id": wanted["run_id"], **answer}, [result.command]


def _gc(storage: Directory, arguments: argparse.Namespace) -> Answer:
    from .gc import collect  # heavy: the pipeline's stages

    return collect(storage, asks=not arguments.json, is_agreed=arguments.yes)


def _verify(storage: Directory, arguments: argparse.Namespace) -> Answer:
    from .verify import verify_storage  # heavy, likewise

    return verify_storage(storage, removes=arguments.yes)


def _rebuild(storage: Directory, _arguments: argparse.Namespace) -> Answer:
    from .rebuild import rebuild, record_names  # heavy, likewise

    client(storage).get_experiment_by_name(EXPERIMENT)  # report an unreachable server once, not per run
    written, skipped = rebuild(storage, storage, partial(print_line, stream=message_stream()))
    found = len(record_names(storage))
    rest = f"{found - written - skipped} as they were" + (f", {skipped} skipped" if skipped else "")
    line = f"{written} of {found} runs written to {tracking_uri(storage)}, {rest}"
    return {"runs": found, "written": written, "skipped": skipped}, [line]


ANSWERS = {"list": _list, "best": _best, "diff": _diff, "reproduce": _reproduce, "gc": _gc}
ANSWERS |= {"verify": _verify, "rebuild_mlflow": _rebuild}


def _all(arguments: argparse.Namespace) -> list[Run]:
    tracked = arguments.tracked()
    return query.find_runs(client(tracked)) if tracked is not None else []


def _tracked(storage: Directory, stack: contextlib.ExitStack) -> Callable[[], Directory | None]:
    """Return a function that returns the directory of the MLflow database, or None if there are no runs.

    It is the storage. If MLflow cannot be reached, it is a temporary database of the records, until `stack`
    closes, and a line says so. Raises InputError if there are no records either.
    """
    try:
        if query.has_tracking(storage):
            with mlflow_errors_as_input(storage):
                client(storage).get_experiment_by_name(EXPERIMENT)
            return lambda: storage
        trouble = f"storage: {storage.uri} has no {DATABASE}"
    except InputError as error:
        trouble = str(error)
        if not storage.has_directory("runs"):
            raise
    if not storage.has_directory("runs"):
        return lambda: None
    from .rebuild import records_as_mlflow  # heavy: the pipeline's stages

    print_line(f"note: {trouble}; this answer comes from the records in {storage.uri}/runs", message_stream())
    return stack.enter_context(records_as_mlflow(storage, partial(print_line, stream=message_stream())))


def finite(value: object) -> object:
    """Replace NaN and infinities, which JSON lacks, by None."""
    if isinstance(value, Mapping):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
