"""Search recipe fields, or compare named rows, by Ray Tune.

    python jobs/sweep.py --space select.alpha=0.2,0.4,0.8 ipc=1,5,10
    python jobs/sweep.py storage=DIR --search bayes --trials 50 --asha \\
        --space select.alpha=0.1:0.9 sample.subgroups=2,5,10,20
    python jobs/sweep.py --rows standard --ipc 1,5,10 --seeds 5

A search scores on validation images. A domain is values (a,b,c) or a range
(low:high, low:high:log). Overrides hold for every trial and come before
--space.

A comparison scores every row at every IPC with every generator seed as the
recipe says, and tells which differences are larger than the noise. Rows are
YAML: `baseline`, and `rows` of {name, overrides, note} or {name, real,
packing}, real images as in evaluate.baselines; ims3_ray/jobs/sweep/rows has
examples.

Trials share what they have in common. The same command resumes a stopped
sweep.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ims3_ray.config.evaluation import scored_split
from ims3_ray.config.load import parse_overrides
from ims3_ray.errors import InputError
from ims3_ray.jobs.next_steps import result_lines, shell_command
from ims3_ray.progress import print_line, spinner

from .rows import named_rows, read_rows

if TYPE_CHECKING:
    from ims3_ray.config.settings import Config
    from ims3_ray.storage.artifacts import Directory

    from .plan import Sweep
    from .results import Document

POOL_IMAGES = 40
MAX_SEEDS = 1000
# options of only one of the two modes, with their defaults
SEARCH = {"search": None, "trials": 20, "objective": "accuracy", "asha": False}
COMPARE = {"baseline": None, "ipc": "1,5,10", "seeds": 5, "pool_images": POOL_IMAGES}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--recipe", default="digits-paper", metavar="NAME|FILE", help="default digits-paper")
    add("--dry-run", action="store_true", help="list the trials and check their recipes; run nothing")
    add = parser.add_argument_group("search").add_argument
    add("--space", nargs="+", default=[], metavar="field=DOMAIN", help="what varies")
    search = "default: grid, or random if there are ranges"
    add("--search", metavar="grid|random|bayes", help=search)
    add("--trials", type=int, metavar="N", help="of random or bayes (default 20)")
    objective = "maximised (default accuracy); two or more give a Pareto front"
    add("--objective", metavar="NAME,…", help=objective)
    early = "stop trials early whose classifiers lag behind others of the same IPC"
    add("--asha", action="store_true", help=early)
    add = parser.add_argument_group("comparison").add_argument
    rows = f"named rows ({', '.join(named_rows())}) or a YAML file"
    add("--rows", metavar="NAME|FILE", help=rows)
    add("--baseline", metavar="ROW", help="differences are taken to this row (default: as the rows say)")
    add("--ipc", metavar="K,K,…", help="images per class (default 1,5,10)")
    add("--seeds", type=int, metavar="N", help="generator seeds (default 5)")
    pool = f"candidates per class whose coverage is measured (default {POOL_IMAGES}); 0: none"
    add("--pool-images", type=int, metavar="N", help=pool)
    add = parser.add_argument
    add("overrides", nargs="*", metavar="field=value", help="for every trial, such as storage=DIR")


def run(arguments: argparse.Namespace) -> None:
    with spinner("imports"):  # heavy
        from . import run as engine
        from .plan import as_words

    sweep = read_sweep(arguments)
    if arguments.dry_run:
        for values in sweep.points() or [sweep.space.first()]:
            print_line(as_words(values))
        return
    document, folder = engine.run(sweep)
    if not document["best"] and not document["comparison"]:
        errors = [trial["error"] for trial in document["trials"] if trial["error"]]
        raise InputError(
            f"{'--rows' if arguments.rows else '--space'}: {len(errors)} of {len(document['trials'])} trials "
            f"failed, first: {errors[0] if errors else 'none'}; the same command runs these again"
        )
    print("", *summary(document), "", sep="\n")
    print(*result_lines(*_next_steps(document, folder, sweep.base)), sep="\n")


def read_sweep(arguments: argparse.Namespace) -> "Sweep":
    """The sweep of the command line. Raises InputError for an option of the other mode."""
    overrides = parse_overrides(arguments.overrides)
    if arguments.rows and arguments.space:
        raise InputError("--rows: compares rows, --space searches fields; give one of them")
    options, others, mode = (COMPARE, SEARCH, "--space") if arguments.rows else (SEARCH, COMPARE, "--rows")
    if wrong := [name for name in others if getattr(arguments, name) not in (None, False)]:
        raise InputError(f"--{wrong[0].replace('_', '-')}: is an option of {mode}")
    values = {n: v if (v := getattr(arguments, n)) is not None else d for n, d in options.items()}
    return (_read_comparison if arguments.rows else _read_search)(arguments, overrides, values)


def _read_search(arguments: argparse.Namespace, overrides: dict, values: Mapping[str, Any]) -> "Sweep":
    from .plan import Sweep
    from .search_space import Range, read_space

    space = read_space(arguments.space, arguments.recipe, overrides)
    has_range = any(isinstance(domain, Range) for domain in space.domains.values())
    objective = tuple(name.strip() for name in values["objective"].split(",") if name.strip())
    return Sweep(
        recipe=arguments.recipe,
        overrides=overrides,
        space=space,
        search=values["search"] or ("random" if has_range else "grid"),
        trials=values["trials"],
        objective=objective,
        asha=values["asha"],
    )


def _read_comparison(arguments: argparse.Namespace, overrides: dict, values: Mapping[str, Any]) -> "Sweep":
    from .plan import row_sweep

    rows, seed = read_rows(arguments.rows), overrides.pop("seed", 0)
    if not isinstance(seed, int):
        raise InputError(f"seed: should be an integer, got {seed!r}")
    rows = replace(rows, baseline=values["baseline"]) if values["baseline"] else rows
    ipcs, count, pool_images = _read_ipcs(values["ipc"]), values["seeds"], values["pool_images"]
    if not 1 <= count <= MAX_SEEDS:
        raise InputError(f"--seeds: {count} generator seeds; give 1 to {MAX_SEEDS}, 2 or more for intervals")
    if pool_images < 0:
        raise InputError(f"--pool-images: {pool_images} candidates; give a number, or 0 for none")
    if "ipc" in overrides:
        raise InputError("ipc: a comparison runs over several; give them as --ipc 1,5,10")
    seeds = tuple(range(seed, seed + count))
    return row_sweep(arguments.recipe, overrides, rows, ipcs, seeds, pool_images or None)


def _read_ipcs(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    ipcs = {int(part) for part in parts if part.isdecimal()}
    if len(ipcs) < len(parts) or 0 in ipcs:
        raise InputError(f"--ipc: {text!r} is no list of different numbers of images per class; write 1,5,10")
    return tuple(sorted(ipcs))


def summary(document: "Document") -> list[str]:
    """The comparison's tables, or the best trial of each IPC and how the trials ended."""
    if document["comparison"]:
        from .tables import comparison_lines

        return comparison_lines(document)
    from .page import metric_text, work_sentence
    from .plan import as_words
    from .results import as_trials

    trials, objective = as_trials(document), document["objective"][0]
    by_number = {trial.number: trial for trial in trials}
    lines = [f"best by {objective} on the {document['split']} images, {document['protocol']}"]
    for ipc, number in document["best"].items():
        score = metric_text(by_number[number], objective)
        lines.append(f"  ipc {ipc:>4}  {score}  trial {number}: {as_words(by_number[number].values)}")
    errors = [f"  trial {trial.number} failed: {trial.error}" for trial in trials if trial.error]
    return [*lines, work_sentence(document, trials), *errors]


def _next_steps(document: "Document", folder: "Directory", base: "Config") -> tuple[dict, dict]:
    """The files that the sweep wrote, and the commands to run next."""
    from .results import winner_file

    recipes = {ipc: (folder / winner_file(ipc)).uri for ipc in document["best"]}
    tables = "comparison.txt, sweep.json" if document["comparison"] else "sweep.json"
    files = {"page": (folder / "index.html").uri, "tables": f"{(folder / 'sweep.csv').uri}, {tables}"}
    files |= {f"best, ipc {ipc}": recipe for ipc, recipe in recipes.items()}
    query = {"query": shell_command("runs", f"storage={base.storage}", "--sweep", document["key"])}
    if not recipes:
        return files, query
    best = shell_command("distill", "--recipe", [*recipes.values()][-1], f"storage={base.storage}")
    return files, {scored_split(base.evaluate.protocol): best, **query}
