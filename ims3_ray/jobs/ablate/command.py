"""Run an ablation's rows on a recipe, over seeds and images a class.

    python jobs/ablate.py              the bundled digits, the paper's rows
    python jobs/ablate.py --recipe imagewoof --ipc 10,50 --seeds 3 \\
        data.train=… data.test=…
    python jobs/ablate.py --rows my-rows.yaml evaluate.protocol=quick-val

Says which differences are real. Rows are YAML: `baseline`, and `rows` of
{name, overrides, note} or {name, real}, real images chosen as
evaluate.baselines; ims3_ray/jobs/ablate/rows has examples. What rows have in
common is made once, and what is complete under the storage not again.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ims3_ray.config.load import parse_overrides
from ims3_ray.errors import InputError
from ims3_ray.jobs.next_steps import result_lines, shell_command
from ims3_ray.progress import print_line, spinner

from .plan import Plan, named, read_rows

if TYPE_CHECKING:
    from .comparison import Ablation

STANDARD = "standard"
POOL_IMAGES = 40
MOST_SEEDS = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", default="digits-paper", metavar="NAME|FILE", help="as for distill")
    rows = f"named rows ({', '.join(named())}) or a YAML file"
    parser.add_argument("--rows", default=STANDARD, metavar="NAME|FILE", help=rows)
    baseline = "the row that differences are taken to (default: as the rows say)"
    parser.add_argument("--baseline", metavar="ROW", help=baseline)
    parser.add_argument("--ipc", default="1,5,10", metavar="K,K,…", help="images a class (default 1,5,10)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="generator seeds (default 5)")
    pool = f"candidates a class whose coverage is measured (default {POOL_IMAGES}); 0 leaves it out"
    parser.add_argument("--pool-images", type=int, default=POOL_IMAGES, metavar="N", help=pool)
    agreement = "also judge the candidates' labels, by a classifier of all real training images"
    parser.add_argument("--agreement", action="store_true", help=agreement)
    parser.add_argument(
        "overrides", nargs="*", metavar="field=value", help="for every row, such as evaluate.seeds=3"
    )


def run(arguments: argparse.Namespace) -> None:
    overrides = parse_overrides(arguments.overrides)
    ipcs = _numbers(arguments.ipc)
    rows, seed = read_rows(arguments.rows), overrides.pop("seed", 0)
    if not isinstance(seed, int):
        raise InputError(f"seed: should be an integer, got {seed!r}")
    rows = replace(rows, baseline=arguments.baseline) if arguments.baseline else rows
    if not 1 <= arguments.seeds <= MOST_SEEDS:
        raise InputError(
            f"--seeds: {arguments.seeds} generator seeds; give 1 to {MOST_SEEDS}, 2 or more for intervals"
        )
    if arguments.pool_images < 0:
        raise InputError(f"--pool-images: {arguments.pool_images} candidates; give a number, or 0 for none")
    if arguments.agreement and not arguments.pool_images:
        raise InputError("--agreement: judges the labels of the candidates that --pool-images counts; not 0")
    if "ipc" in overrides:
        raise InputError("ipc: an ablation runs over several; give them as --ipc 1,5,10")
    with spinner("imports"):  # heavy, not needed to refuse bad input
        from . import run as ablation
        from .page import render_ablation
        from .screen import lines
        from .tables import long_csv, markdown

    seeds = tuple(range(seed, seed + arguments.seeds))
    pool = arguments.pool_images or None, arguments.agreement
    plan = Plan(arguments.recipe, overrides, rows, ipcs, seeds, *pool)
    document, out = ablation.run(plan, print_line)
    with spinner("tables"):
        files = {
            "ablation.json": json.dumps(document, indent=1).encode(),
            "ablation.md": markdown(document).encode(),
            "ablation.csv": long_csv(document).encode(),
            "index.html": render_ablation(document),
        }
        for name, data in files.items():
            out.write(name, data)
        storage = next(iter(plan.configs().values())).storage
        _track(document, storage, out.name, files)
    print("", *lines(document), "", sep="\n")
    made = {"page": (out / "index.html").uri}
    made |= {"tables": f"{(out / 'ablation.md').uri}, ablation.csv, ablation.json"}
    query = shell_command("runs", f"storage={storage}", "--where", "kind=ablation")
    print(*result_lines(made, {"query": query, "look": shell_command("view", storage)}), sep="\n")


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts) or len(set(parts)) < len(parts):
        raise InputError(f"--ipc: {text!r} is no list of different numbers of images a class; write 1,5,10")
    return tuple(sorted(int(part) for part in parts))


def _track(document: "Ablation", storage: str, key: str, files: Mapping[str, bytes]) -> None:
    """One MLflow run: a row's figures as metrics, the tables and the page as artefacts."""
    from ims3_ray.runs import tags
    from ims3_ray.runs.mlflow_tracker import Tracker
    from ims3_ray.storage.artifacts import open_storage

    from .tables import metrics_for_mlflow

    tracker = Tracker(open_storage(storage), print_line)
    stated = {"recipe", "protocol", "baseline", "ipcs", "generator_seeds", "classifier_seeds"}
    params = {name: value for name, value in document.items() if name in stated}
    tracker.start(key, f"ablation-{key}", params, {tags.KIND: tags.ABLATION})
    if tracker.is_finished:
        return
    tracker.log(0, metrics_for_mlflow(document))
    for name, data in files.items():
        tracker.log_file(name, data)
    tracker.finish("FINISHED")
