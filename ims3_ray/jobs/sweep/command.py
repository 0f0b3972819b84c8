"""Sweep recipe fields with Ray Tune, scored on validation images.

    python jobs/sweep.py --space select.alpha=0.2,0.4,0.8 ipc=1,5,10
    python jobs/sweep.py storage=DIR --search bayes --trials 50 --asha \\
        --space select.alpha=0.1:0.9 sample.subgroups=2,5,10,20
    python jobs/sweep.py --recipe imagewoof --objective accuracy,coverage \\
        --space space.yaml

The first is every combination on the bundled digits. A domain is values
(a,b,c) or a range (low:high, low:high:log); a YAML file maps fields to such.
Overrides hold for every trial and come before --space. Trials choose from
shared pools; the same command goes on where it was stopped.
"""

import argparse
from typing import TYPE_CHECKING

from ims3_ray.config.load import parse_overrides
from ims3_ray.errors import InputError
from ims3_ray.jobs.next_steps import result_lines, shell_command
from ims3_ray.progress import spinner

if TYPE_CHECKING:
    from .results import Results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--recipe", default="digits-paper", metavar="NAME|FILE", help="as for distill")
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
    with spinner("imports"):  # heavy
        from .document import winner_file
        from .plan import Sweep
        from .results import Results
        from .run import run as run_sweep
        from .search_space import Range, read_space
        from .trial_state import read_trials

    overrides = parse_overrides(arguments.overrides)
    space = read_space(arguments.space, arguments.recipe, overrides)
    has_range = any(isinstance(domain, Range) for domain in space.domains.values())
    objective = tuple(name.strip() for name in arguments.objective.split(",") if name.strip())
    search = arguments.search or ("random" if has_range else "grid")
    sweep = Sweep(arguments.recipe, overrides, space, search, arguments.trials, objective, arguments.asha)
    document, folder = run_sweep(sweep)
    results, storage = Results(document, read_trials(folder)), sweep.base.storage
    if not results.best:
        first = next((trial.error for trial in results.trials if trial.error), "all were stopped early")
        raise InputError(f"--space: of {len(results.trials)} trials none finished; the first error: {first}")
    print("", *summary_lines(results), "", sep="\n")
    made = {"page": (folder / "index.html").uri, "tables": f"{(folder / 'sweep.csv').uri}, sweep.json"}
    recipes = {ipc: (folder / winner_file(ipc)).uri for ipc in document["best"]}
    made |= {f"best, ipc {ipc}": recipe for ipc, recipe in recipes.items()}
    test = shell_command("distill", "--recipe", list(recipes.values())[-1], f"storage={storage}")
    query = shell_command("runs", f"storage={storage}", "--sweep", document["key"])
    print(*result_lines(made, {"test": test, "query": query}), sep="\n")


def summary_lines(results: "Results") -> list[str]:
    """The best of each IPC, what became of the trials and what they shared, and the errors of failed ones."""
    from .headline import sweep_work
    from .plan import as_words

    document = results.document
    lines = [f"best by {results.objective} on the {document['split']} images, {document['protocol']}"]
    for ipc, trial in results.best.items():
        interval = results.interval(trial)
        spread = "" if interval is None else f" ± {100 * interval:.2f}"
        score, values = f"{100 * results.score(trial):.2f}{spread}", as_words(trial.values)
        lines.append(f"  ipc {ipc:>4}  {score}  trial {trial.number}: {values}")
    errors = [f"  trial {trial.number} failed: {trial.error}" for trial in results.trials if trial.error]
    return [*lines, sweep_work(results), *errors]
