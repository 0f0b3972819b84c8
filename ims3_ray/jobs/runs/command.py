"""Ask MLflow about runs, compare and reproduce them, and delete what no run needs any more.

    python jobs/runs.py --order accuracy --where "ipc=10"
    python jobs/runs.py storage=/mnt/runs --where "accuracy>0.9" --where "sample.subgroups=20" --csv runs.csv
    python jobs/runs.py --best --metric coverage/distilled
    python jobs/runs.py --pareto accuracy,coverage/distilled      a minus before a name: less is better
    python jobs/runs.py --diff 0cdc 91ab                          RUN: key or its beginning, name, MLflow id
    python jobs/runs.py --reproduce 0cdc
    python jobs/runs.py --gc                                      lists first, and asks

Every answer is one JSON document with --json; --gc --json deletes nothing unless --yes is there too.
"""

import argparse
import json
import math
import re
import sys
from typing import Any

from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.errors import InputError
from ims3_ray.runs import query as querying
from ims3_ray.runs import tags
from ims3_ray.runs.tracking import RECIPE_FILE, client
from ims3_ray.storage.artifacts import Directory, open_directory

from . import table as runs_shown
from .conditions import server_condition, split_conditions

METRIC = re.compile(r"-?[\w./: -]+")  # as MLflow names them, a minus before for less being better
MODES = ("best", "pareto", "diff", "reproduce", "gc")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    say = parser.add_argument
    say("--order", metavar="METRIC", help="sort by this, best first (default: newest)")
    say(
        "--where",
        action="append",
        default=[],
        metavar="COND",
        help='such as "ipc=10", "accuracy>0.9", "kind=ablation"',
    )
    say("--sweep", metavar="RUN", help="the trials of this sweep, which are left out otherwise")
    say("--best", action="store_true", help="the best run for every protocol and IPC")
    say("--metric", metavar="METRIC", help="what is best (default accuracy)")
    say(
        "--pareto",
        metavar="METRIC,METRIC",
        help="the runs that no other beats in all of these, for every protocol",
    )
    say("--diff", nargs=2, metavar="RUN", help="what differs between two runs")
    say("--reproduce", metavar="RUN", help="the command that gives this run again")
    say(
        "--gc", action="store_true", help="what lies in the storage and what no run needs: asks, then deletes"
    )
    say("--yes", action="store_true", help="with --gc: delete without asking")
    say("--csv", metavar="FILE", help="write what is listed, with all parameters and metrics")
    say("--json", action="store_true", help="one JSON document in place of tables")
    say("overrides", nargs="*", metavar="storage=DIR", help="where the runs are (default ./runs)")


def run(arguments: argparse.Namespace) -> None:
    mode = checked_mode(arguments)
    overrides = parse_overrides(arguments.overrides)
    if unknown := set(overrides) - {"storage"}:
        raise InputError(f"{', '.join(sorted(unknown))}: not known here; only storage=DIR is")
    storage = open_directory(load_config("digits", overrides).storage)
    if storage.is_local and not storage.exists("format.json"):
        raise InputError(f"storage: {storage.uri} holds no runs; name another storage=DIR")
    if mode == "gc":
        from .collect import collect  # heavy: the pipeline's stages

        answer, lines = collect(storage, asks=not arguments.json, is_agreed=arguments.yes)
    else:
        answer, lines = ANSWERS[mode](storage, arguments)
    print(json.dumps(finite(answer), indent=1) if arguments.json else "\n".join(lines))


def checked_mode(arguments: argparse.Namespace) -> str:
    """One of MODES, or "list". InputError for two at once, and for options that do not belong together."""
    given = [mode for mode in MODES if getattr(arguments, mode)]
    if len(given) > 1:
        raise InputError(
            f"{' and '.join(f'--{mode}' for mode in given)}: answer different questions; give one"
        )
    mode = given[0] if given else "list"
    lists = ("list", "best", "pareto")
    rules = {
        "order": ("list",),
        "where": lists,
        "sweep": lists,
        "csv": lists,
        "metric": ("best",),
        "yes": ("gc",),
    }
    for option, modes in rules.items():
        if getattr(arguments, option) and mode not in modes:
            named = ", ".join("a plain list" if m == "list" else f"--{m}" for m in modes)
            raise InputError(
                f"--{option}: goes with {named}, not with {'a plain list' if mode == 'list' else f'--{mode}'}"
            )
    return mode


def listed(storage: Directory, arguments: argparse.Namespace) -> list[querying.Run]:
    """The runs that meet every --where; a sweep's trials alone with --sweep, and else without any."""
    server, local = split_conditions(arguments.where)
    filters = [server_condition(text) for text in server]
    order = arguments.order or "start_time"
    if not METRIC.fullmatch(order):
        raise InputError(f"--order {order!r}: can't be a metric's name")
    if not querying.has_tracking(storage):
        return []
    mlflow_client = client(storage)
    runs = [
        run
        for run in querying.find(mlflow_client, " and ".join(filters), order)
        if all(meets(run) for meets in local)
    ]
    if arguments.sweep:
        everything = querying.find(mlflow_client)
        sweep = querying.resolve([run for run in everything if run["kind"] == tags.SWEEP], arguments.sweep)
        runs = [run for run in runs if run["parent"] == sweep["run_id"]]
    elif not local and not any(f"tags.`{tags.RUN}`" in text for text in filters):
        runs = [run for run in runs if run["kind"] != tags.TRIAL]
    if order != "start_time":
        querying.check_figures(runs, [order])
    return runs


def _list(storage: Directory, arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    runs = listed(storage, arguments)
    return {"runs": runs}, [*runs_shown.table(runs), *_write_csv(runs, arguments)]


def _best(storage: Directory, arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    runs, metric = listed(storage, arguments), arguments.metric or "accuracy"
    querying.check_figures(runs, [metric])
    found = querying.best(runs, metric)
    said = _write_csv([line["run"] for line in found], arguments)
    return {"metric": metric, "best": found}, [*runs_shown.best_table(found, metric), *said]


def _pareto(storage: Directory, arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    names = [name.strip() for name in arguments.pareto.split(",")]
    if len(names) < 2 or len({name.removeprefix("-") for name in names}) < len(names) or not all(names):
        raise InputError(
            f"--pareto {arguments.pareto!r}: give two or more different metrics, as accuracy,coverage/distilled"
        )
    runs = listed(storage, arguments)
    querying.check_figures(runs, names)
    found = querying.fronts(runs, names)
    said = _write_csv([run for front in found for run in front["runs"]], arguments)
    return {"metrics": names, "fronts": found}, [*runs_shown.fronts_table(found, names), *said]


def _diff(storage: Directory, arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    runs = _all(storage)
    one, other = (querying.resolve(runs, text) for text in arguments.diff)
    found = querying.differences(one, other)
    who = [{name: run[name] for name in ("name", "key", "run_id")} for run in (one, other)]
    return {"runs": who, **found}, runs_shown.differences_table(one, other, found)


def _reproduce(storage: Directory, arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    from ims3_ray.runs.reproduce import reproduce

    found = querying.resolve(_all(storage), arguments.reproduce)

    def resolved() -> bytes | None:
        kept = storage / "runs" / str(found["name"])
        logged = querying.logged_file(client(storage), found["run_id"], RECIPE_FILE)
        return logged or (kept.read("config.yaml") if kept.exists("config.yaml") else None)

    made = reproduce(found["params"], resolved)
    if not arguments.json:
        for note in made.notes:
            print(f"note: {note}", file=sys.stderr)
    words = ["python", "jobs/distill.py", *made.words]
    return {"run_id": found["run_id"], "command": made.command, "words": words, "notes": made.notes}, [
        made.command
    ]


ANSWERS = {"list": _list, "best": _best, "pareto": _pareto, "diff": _diff, "reproduce": _reproduce}


def _all(storage: Directory) -> list[querying.Run]:
    return querying.find(client(storage)) if querying.has_tracking(storage) else []


def _write_csv(runs: list[querying.Run], arguments: argparse.Namespace) -> list[str]:
    if not arguments.csv:
        return []
    try:
        with open(arguments.csv, "w", newline="", encoding="utf-8") as stream:
            stream.write(runs_shown.as_csv(runs))
    except OSError as error:
        raise InputError(
            f"--csv: {arguments.csv} can't be written ({error.strerror}); name another file"
        ) from error
    return [f"written: {arguments.csv}, {len(runs)} runs"]


def finite(value: Any) -> Any:
    """The same, None in the place of numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
