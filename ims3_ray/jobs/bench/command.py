"""Measure speed and quality on this machine or cluster.

    python jobs/bench.py select         S³ over sizes, beside the plain loop
    python jobs/bench.py select --grid 21841x20 --no-plain workers.shards=4
    python jobs/bench.py select --optimum 200   whether it ends at the best
    python jobs/bench.py sample         or finetune, encode, invert
    python jobs/bench.py finetune --random-init --size XL/2        no download
    python jobs/bench.py sample --recipe my.yaml --batch-size 128,256
    python jobs/bench.py refine --random-init ipc=2       a step of refinement
    python jobs/bench.py pipeline       stages under Ray beside the bare loop
    python jobs/bench.py scale --classes 10,100,1000      all of it, as it grows
    python jobs/bench.py plan --recipe imagenet1k --classes 1000 --images 1281 \\
        --gpus 8,64,512                 what it would take elsewhere, computed
    python jobs/bench.py evaluate       a classifier, beside DataLoader and PIL
    python jobs/bench.py evaluate --protocol minimax --steps 4 --scored 2 \\
        --accuracy 5

The figures are printed as tables; --out also writes them as JSON.
"""

import argparse
import json
import tempfile
from importlib import import_module
from pathlib import Path

from ims3_ray.errors import InputError

STAGES = ("sample", "finetune", "encode", "invert")
WHAT = {
    "select": "selection",
    **dict.fromkeys((*STAGES, "refine"), "stages"),
    "pipeline": "overhead",
    "scale": "scale",
    "plan": "plan",
    "evaluate": "classifiers",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = f"what is measured: {', '.join(WHAT)}"
    parser.add_argument("what", metavar="WHAT", choices=WHAT, help=what)
    parser.add_argument(
        "--work", metavar="DIR", help="where the inputs are kept (default: a temporary folder)"
    )
    parser.add_argument("--out", metavar="JSON", help="also write the figures here")
    _add_select(parser.add_argument_group("select"))
    _add_stages(parser.add_argument_group(", ".join((*STAGES, "refine", "pipeline"))))
    _add_scale(parser.add_argument_group("scale, plan (--classes, --images)"))
    _add_plan(parser.add_argument_group("plan"))
    _add_evaluate(parser.add_argument_group("evaluate"))
    parser.add_argument(
        "overrides", nargs="*", metavar="field=value", help="such as workers.shards=4 or model.path=DIR"
    )


def _add_select(group: argparse._ArgumentGroup) -> None:
    add, grid = group.add_argument, "10x5,100x5,1000x5,1000x20"
    add("--grid", default=grid, metavar="CxG,…", help=f"classes × subgroups (default {grid})")
    add("--noise", default="0.1,0.3,0.5", metavar="N,…", help="deviation of the candidates from their class")
    add("--normalization", default="per_class,none", metavar="NAME,…", help="as select.normalization")
    add(
        "--no-structureless",
        dest="structureless",
        action="store_false",
        help="leave out the adversarial case",
    )
    add("--no-plain", dest="plain", action="store_false", help="leave out the plain loop")
    add("--optimum", type=int, metavar="N", help="instead: N problems a kind, rounds against the optimum")


def _add_stages(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--recipe", default="digits-paper", metavar="NAME|FILE", help="a named run, or a YAML file like those"
    )
    add("--random-init", action="store_true", help="random weights and images instead of the recipe's")
    add("--size", metavar="NAME", help="of the random model: tiny, S/2, B/2, L/2, XL/2 (default XL/2)")
    add("--batch-size", metavar="N,…", help="of the own path (default: the recipe's; finetune: 8,64)")
    add("--no-published", dest="published", action="store_false", help="leave the published settings out")
    add("--repetitions", type=int, default=3, metavar="N", help="of which medians are shown (default 3)")
    add("--seconds", type=float, default=3.0, metavar="S", help="a repetition takes at least (default 3)")
    add("--stages", default=",".join(STAGES), metavar="NAME,…", help="pipeline: which (default all)")
    add("--batches", type=int, default=6, metavar="N", help="pipeline: of every pool (default 6)")


def _add_scale(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--classes", default="10,100", metavar="N,…", help="numbers of classes (default 10,100)")
    add("--images", type=int, default=100, metavar="N", help="images a class (default 100)")


def _add_plan(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--gpus", default="8,64,512", metavar="N,…", help="numbers of GPUs (default 8,64,512)")
    add("--tflops", type=float, default=200.0, metavar="N", help="that a GPU sustains (default 200)")
    add("--price", type=float, default=4.0, metavar="N", help="of an hour of a GPU (default 4)")


def _add_evaluate(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--protocol", default="quick", metavar="NAME", help="of the evaluation (default quick)")
    add("--ipc", type=int, default=10, metavar="N", help="digits a class to train on (default 10)")
    add("--steps", type=int, metavar="N", help="train for N steps, scored once (default: the protocol's)")
    add("--scored", type=int, metavar="N", help="score N images a class (default: all of the split)")
    add("--loader-workers", type=int, default=2, metavar="N", help="of the plain side (default 2)")
    add("--accuracy", type=int, default=0, metavar="N", help="also compare accuracies over N seeds")


def run(arguments: argparse.Namespace) -> None:
    out = Path(arguments.out).absolute() if arguments.out else None
    if out and (out.is_dir() or not out.parent.is_dir()):
        raise InputError(
            f"--out: {arguments.out} is no file in a folder that exists; name one, such as figures.json"
        )
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(arguments.work or temporary).absolute()
        figures = import_module(f".{WHAT[arguments.what]}", __package__).run(arguments, work)
    if out:
        out.write_text(json.dumps(figures, indent=2) + "\n")
