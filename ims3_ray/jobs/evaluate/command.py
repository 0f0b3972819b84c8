"""Score any labelled image set as a distilled one is scored.

    python jobs/evaluate.py --set SET data.train=TRAIN data.test=TEST
    python jobs/evaluate.py --set ours=runs/distilled/… --set theirs=x.parquet \\
        data.train=… data.test=… evaluate.protocol=minimax \\
        evaluate.networks=[resnetap10,resnet18] --out evaluation.json

SET is a folder or URI with one folder of images a class, a distilled set of
this project, or a Hugging Face data set of one split: Parquet, or what
save_to_disk wrote. Column image (struct {bytes, path} or binary), and label
(integer, ClassLabel or string). Beside it as many real images are scored, and
all sets are audited for leaks and wrong labels, before any classifier trains.
"""

import argparse
import re
from collections.abc import Collection

from ims3_ray.config.load import load_settings, parse_overrides
from ims3_ray.config.settings import Evaluating
from ims3_ray.display import first_few
from ims3_ray.errors import InputError
from ims3_ray.evaluation.table import evaluation_lines, expected_lines, score_lines
from ims3_ray.jobs.next_steps import json_view, result_lines
from ims3_ray.pipeline.inputs import check_inputs
from ims3_ray.progress import spinner
from ims3_ray.storage.directory import check_writable, open_directory

NAMED = re.compile(r"([A-Za-z0-9_.-]+)=(.+)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = "what is scored; may be given again"
    parser.add_argument("--set", required=True, action="append", dest="sets", metavar="[NAME=]SET", help=what)
    where = "where the figures are written; replaced where it exists"
    parser.add_argument("--out", default="evaluation.json", metavar="JSON", help=where)
    stated = "accuracy that the set NAME is said to have, in percent, to be told from what is measured"
    parser.add_argument(
        "--expect", action="append", default=[], dest="stated", metavar="NAME=LOW..HIGH", help=stated
    )
    trust = "score sets whose classes look swapped, too"
    parser.add_argument("--trust-labels", action="store_true", help=trust)
    robust = "also train without augmentation, for DD-Ranking's augmentation-robust score: twice as long"
    parser.add_argument("--augmentation-robust", action="store_true", help=robust)
    parser.add_argument(
        "overrides", nargs="*", metavar="field=value", help="such as data.train=DIR or evaluate.seeds=5"
    )


def run(arguments: argparse.Namespace) -> None:
    config = load_settings(Evaluating, parse_overrides(arguments.overrides))
    locations = named_sets(arguments.sets)
    expected = stated_ranges(arguments.stated, locations)
    check_inputs(config)
    with spinner("imports"):  # heavy: Ray
        from ims3_ray.cluster.resources import check_device, connect, find_machine, has_address

    check_device(config.workers)
    folder, _, name = arguments.out.rpartition("/")
    out = open_directory(folder or ("/" if arguments.out.startswith("/") else "."))
    if not name or out.has_directory(name):
        raise InputError(f"--out: {arguments.out} is a folder; name a file, such as evaluation.json")
    with spinner("imports"):  # heavy: torch, faiss
        from . import run as evaluating

    with spinner("start"):
        if has_address():  # whose nodes look at the images
            connect()
        prepared = evaluating.prepare(config, locations, plain=arguments.augmentation_robust)
        check_writable(out, f"--out: {out.uri}")
        connect()
    document = evaluating.score(prepared, find_machine(config.workers), trust_labels=arguments.trust_labels)
    out.write_json(name, document)
    warnings = [f"warning: {line}" for line in document["audit"]["warnings"]]
    print()
    print(*evaluation_lines(document), *score_lines(document), sep="\n")
    print(*expected_lines(document, expected), "", sep="\n")
    print(*warnings or ["audit          no shared, doubly labelled or swapped images"], sep="\n")
    print("", *result_lines({"evaluation": arguments.out}, json_view(arguments.out)), sep="\n")


def named_sets(words: list[str]) -> dict[str, str]:
    """{name: place} of the sets given; one without a name is called as its file or folder is."""
    sets: dict[str, str] = {}
    for word in words:
        match = NAMED.fullmatch(word)
        name = match[1] if match else word.rstrip("/").rsplit("/", 1)[-1].removesuffix(".parquet")
        place = match[2] if match else word
        if not place or not name:
            raise InputError(f"--set: {word!r} names no set; write --set PLACE or --set NAME=PLACE")
        if name in sets:
            raise InputError(
                f"--set: two sets are called {name!r}; write --set NAME=PLACE to tell them apart"
            )
        sets[name] = place
    return sets


def stated_ranges(words: list[str], sets: Collection[str]) -> dict[str, tuple[float, float]]:
    """{name of a set: (low, high)} as fractions, of what is said beforehand of its accuracy."""
    ranges: dict[str, tuple[float, float]] = {}
    for word in words:
        name, _, said = word.partition("=")
        try:
            low, high = (float(percent) / 100 for percent in said.split(".."))
        except ValueError as error:
            raise InputError(f"--expect: {word!r} is no range; write NAME=LOW..HIGH in percent") from error
        if not 0 <= low <= high <= 1:
            raise InputError(f"--expect: {word!r} is no range of percents; give the lower one first")
        if name not in sets:
            raise InputError(f"--expect: no set is called {name!r}; those given are {first_few(sets)}")
        ranges[name] = low, high
    return ranges
