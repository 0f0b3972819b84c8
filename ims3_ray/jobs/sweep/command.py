"""Sweep recipe fields with Ray Tune, every trial scored on validation images, and all of them choosing from
shared pools.

    python jobs/sweep.py --space select.alpha=0.2,0.4,0.8 ipc=1,5,10            the bundled digits, every combination
    python jobs/sweep.py storage=DIR --search bayes --trials 50 --asha \\
        --space select.alpha=0.1:0.9 select.beta=0.1:0.9 sample.subgroups=2,5,10,20
    python jobs/sweep.py --recipe imagewoof --objective accuracy,coverage --space space.yaml

A domain is values (a,b,c) or a range (low:high, low:high:log); a YAML file maps fields to such. Overrides
hold for every trial and come before --space. The same command goes on where it was stopped.
"""

import argparse

from ims3_ray.config.load import parse_overrides
from ims3_ray.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", default="digits", metavar="NAME|FILE", help="as for distill")
    parser.add_argument(
        "--space", nargs="+", default=[], metavar="field=DOMAIN", help="what varies, or a YAML file"
    )
    parser.add_argument(
        "--search", metavar="grid|random|bayes", help="default: grid, or random where there are ranges"
    )
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="of random or bayes (default 20)")
    parser.add_argument(
        "--objective", default="accuracy", metavar="NAME,…", help="maximised; two or more give a Pareto front"
    )
    parser.add_argument(
        "--asha", action="store_true", help="stop trials early whose classifiers fall behind at equal IPC"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="field=value", help="for every trial, such as storage=DIR"
    )


def run(arguments: argparse.Namespace) -> None:
    overrides = parse_overrides(arguments.overrides)
    if not arguments.space:
        raise InputError(
            "--space: is empty; name fields and values, such as --space select.alpha=0.1:0.9 ipc=1,10"
        )
    from . import run as sweeping  # heavy, not needed to refuse bad input
    from .plan import Sweep
    from .space import Range, read_space

    space = read_space(arguments.space, arguments.recipe, overrides)
    has_range = any(isinstance(domain, Range) for domain in space.domains.values())
    objective = tuple(name.strip() for name in arguments.objective.split(",") if name.strip())
    search = arguments.search or ("random" if has_range else "grid")
    sweep = Sweep(arguments.recipe, overrides, space, search, arguments.trials, objective, arguments.asha)
    document, folder = sweeping.run(sweep)
    if not document["best"]:
        first = next(
            (trial["error"] for trial in document["trials"] if trial["error"]), "all were stopped early"
        )
        raise InputError(
            f"--space: of {len(document['trials'])} trials none finished; the first error: {first}"
        )
    print()
    print("\n".join(summary_lines(document)))
    print(f"\npage     {(folder / 'index.html').uri}")
    print(f"tables   {(folder / 'sweep.csv').uri}, sweep.json")
    for ipc in document["best"]:
        print(
            f"winner   python jobs/distill.py --recipe {(folder / f'best-ipc{ipc}.yaml').uri} storage={sweep.base.storage}"
        )
    print(f"query    python jobs/runs.py storage={sweep.base.storage} --sweep {document['key']}")


def summary_lines(document: dict) -> list[str]:
    """The best of each IPC, the front, and what the trials shared."""
    by_number = {trial["number"]: trial for trial in document["trials"]}
    name = document["objective"][0]
    lines = [f"best by {name} on the {document['split']} images, {document['protocol']}"]
    for ipc, number in document["best"].items():
        trial = by_number[number]
        spread = (
            f" ± {100 * trial['interval']:.2f}"
            if name == "accuracy" and trial["interval"] is not None
            else ""
        )
        values = " ".join(f"{field}={value}" for field, value in trial["values"].items())
        lines.append(f"  ipc {ipc:>4}  {100 * trial['metrics'][name]:.2f}{spread}  trial {number}: {values}")
    if document["pareto"]:
        lines.append(
            f"Pareto front ({', '.join(document['objective'])}): trials {', '.join(map(str, document['pareto']))}"
        )
    counts = {
        status: sum(t["status"] == status for t in document["trials"])
        for status in ("finished", "stopped", "failed")
    }
    lines.append(
        ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "no trial ended"
    )
    lines += [
        f"  trial {t['number']} failed: {t['error']}" for t in document["trials"] if t["status"] == "failed"
    ]
    made = sum(pool["made"] for pool in document["pools"])
    lines.append(
        f"{len(document['pools'])} pools of candidates ({made} made now) for {len(document['trials'])} trials: "
        f"{document['saved_seconds']:.0f} s of sampling and what leads to it saved; "
        f"{document['seconds']:.0f} s in all, {document['trials_at_once']} trials at once"
    )
    return lines
