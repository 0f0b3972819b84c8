"""Sweep recipe fields with Ray Tune, every trial scored on validation images, all choosing from shared pools.

    python jobs/sweep.py --space select.alpha=0.2,0.4,0.8 ipc=1,5,10     the bundled digits, every combination
    python jobs/sweep.py storage=DIR --search bayes --trials 50 --asha \\
        --space select.alpha=0.1:0.9 select.beta=0.1:0.9 sample.subgroups=2,5,10,20
    python jobs/sweep.py --recipe imagewoof --objective accuracy,coverage --space space.yaml

A domain is values (a,b,c) or a range (low:high, low:high:log); a YAML file maps fields to such. Overrides
hold for every trial and come before --space. The same command goes on where it was stopped.
"""

import argparse
from typing import TYPE_CHECKING

from ims3_ray.config.load import parse_overrides
from ims3_ray.errors import InputError

if TYPE_CHECKING:
    from .document import Document


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--recipe", default="digits", metavar="NAME|FILE", help="as for distill")
    add("--space", nargs="+", default=[], metavar="field=DOMAIN", help="what varies, or a YAML file")
    search = "default: grid, or random where there are ranges"
    add("--search", metavar="grid|random|bayes", help=search)
    add("--trials", type=int, default=20, metavar="N", help="of random or bayes (default 20)")
    objective = "maximised; two or more give a Pareto front"
    add("--objective", default="accuracy", metavar="NAME,…", help=objective)
    early = "stop trials early whose classifiers fall behind at equal IPC"
    add("--asha", action="store_true", help=early)
    add("overrides", nargs="*", metavar="field=value", help="for every trial, such as storage=DIR")


def run(arguments: argparse.Namespace) -> None:
    overrides = parse_overrides(arguments.overrides)
    if not arguments.space:
        raise InputError(
            "--space: is empty; name fields and values, such as --space select.alpha=0.1:0.9 ipc=1,10"
        )
    from .plan import Sweep  # heavy, not needed to refuse bad input
    from .run import run as run_sweep
    from .space import Range, read_space

    space = read_space(arguments.space, arguments.recipe, overrides)
    has_range = any(isinstance(domain, Range) for domain in space.domains.values())
    objective = tuple(name.strip() for name in arguments.objective.split(",") if name.strip())
    search = arguments.search or ("random" if has_range else "grid")
    sweep = Sweep(arguments.recipe, overrides, space, search, arguments.trials, objective, arguments.asha)
    document, folder = run_sweep(sweep)
    trials, storage = document["trials"], f"storage={sweep.base.storage}"
    if not document["best"]:
        errors = (trial["error"] for trial in trials if trial["error"])
        first = next(errors, "all were stopped early")
        raise InputError(f"--space: of {len(trials)} trials none finished; the first error: {first}")
    print("", *summary_lines(document), "", sep="\n")
    print(f"page     {(folder / 'index.html').uri}")
    print(f"tables   {(folder / 'sweep.csv').uri}, sweep.json")
    for ipc in document["best"]:
        recipe = (folder / f"best-ipc{ipc}.yaml").uri
        print(f"winner   python jobs/distill.py --recipe {recipe} {storage}")
    print(f"query    python jobs/runs.py {storage} --sweep {document['key']}")


def summary_lines(document: "Document") -> list[str]:
    """The best of each IPC, the front, and what the trials shared."""
    trials, pools, name = document["trials"], document["pools"], document["objective"][0]
    by_number = {trial["number"]: trial for trial in trials}
    lines = [f"best by {name} on the {document['split']} images, {document['protocol']}"]
    for ipc, number in document["best"].items():
        trial = by_number[number]
        interval = trial["interval"] if name == "accuracy" else None
        spread = "" if interval is None else f" ± {100 * interval:.2f}"
        values = " ".join(f"{field}={value}" for field, value in trial["values"].items())
        lines.append(f"  ipc {ipc:>4}  {100 * trial['metrics'][name]:.2f}{spread}  trial {number}: {values}")
    if front := document["pareto"]:
        objectives = ", ".join(document["objective"])
        lines.append(f"Pareto front ({objectives}): trials {', '.join(map(str, front))}")
    statuses = [trial["status"] for trial in trials]
    counts = {status: statuses.count(status) for status in ("finished", "stopped", "failed")}
    ends = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    lines.append(ends or "no trial ended")
    failed = (trial for trial in trials if trial["status"] == "failed")
    lines += [f"  trial {trial['number']} failed: {trial['error']}" for trial in failed]
    made = sum(pool["made"] for pool in pools)
    lines.append(
        f"{len(pools)} pools of candidates ({made} made now) for {len(trials)} trials: "
        f"{document['saved_seconds']:.0f} s of sampling and what leads to it saved; "
        f"{document['seconds']:.0f} s in all, {document['trials_at_once']} trials at once"
    )
    return lines
