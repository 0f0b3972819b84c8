"""Measure speed and quality on this machine or cluster.

python jobs/bench.py select                                   S³ over sizes and noise levels, beside the plain
loop python jobs/bench.py select --grid 21841x20 --noise 0.3 --no-plain workers.shards=4 python jobs/bench.py
select --optimum 200                     how often the solver ends at the proven optimum python jobs/bench.py
select --grid 5000x20 --neighbours 32    rounds that score near classes alone, against all

python jobs/bench.py sample                                   a stage (sample, finetune, encode, invert) of the bundled
                                                              digits, beside the published settings, in one run
python jobs/bench.py finetune --random-init --size XL/2       with random weights of that size: nothing is downloaded
python jobs/bench.py sample --recipe my.yaml model.path=DIR --batch-size 128,256
python jobs/bench.py pipeline                                 the stages under Ray beside the bare loop of the same parts

python jobs/bench.py evaluate                                 training a classifier, beside DataLoader and PIL
python jobs/bench.py evaluate --protocol minimax --steps 4 --scored 2 --accuracy 5

python jobs/bench.py sweep --trials 50                        a sweep, beside the trainings of its classifiers
alone
"""

import argparse
import json
from pathlib import Path

from ims3_ray.errors import InputError

from . import command_evaluate as bench_evaluate
from . import command_select as bench_select
from . import command_stages as bench_stages
from . import command_sweep as bench_sweep

WHAT = {"select": bench_select, "evaluate": bench_evaluate, "sweep": bench_sweep} | dict.fromkeys(
    bench_stages.WHAT, bench_stages
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="WHAT", help=f"what is measured: {', '.join(WHAT)}")
    parser.add_argument(
        "--work", metavar="DIR", help="where the inputs are kept (default: a temporary folder)"
    )
    parser.add_argument("--out", metavar="JSON", help="also write the figures here")
    bench_select.add_arguments(parser.add_argument_group("select"))
    bench_stages.add_arguments(parser.add_argument_group(", ".join(bench_stages.WHAT)))
    bench_evaluate.add_arguments(parser.add_argument_group("evaluate"))
    bench_sweep.add_arguments(parser.add_argument_group("sweep"))
    parser.add_argument(
        "overrides", nargs="*", metavar="field=value", help="such as workers.shards=4 or model.path=DIR"
    )


def run(arguments: argparse.Namespace) -> None:
    if arguments.what not in WHAT:
        raise InputError(f"bench: {arguments.what!r} is none of {', '.join(WHAT)}")
    if arguments.out and (Path(arguments.out).is_dir() or not Path(arguments.out).absolute().parent.is_dir()):
        raise InputError(
            f"--out: {arguments.out} is no file in a folder that exists; name one, such as figures.json"
        )
    found = WHAT[arguments.what].run(arguments)
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(found, indent=2) + "\n")
