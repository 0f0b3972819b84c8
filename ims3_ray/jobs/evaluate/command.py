"""Evaluate any labelled image set as a distilled set is evaluated.

    python jobs/evaluate.py --set SET data.train=TRAIN data.test=TEST
    python jobs/evaluate.py --set ours=runs/distilled/… --set theirs=x.parquet \\
        data.train=… data.test=… evaluate.protocol=minimax \\
        evaluate.networks=[resnetap10,resnet18] --out evaluation.json

SET is a folder or URI with one folder of images per class, a distilled set of
this project, or a Hugging Face data set of one split: Parquet, or what
save_to_disk wrote, with columns image (struct {bytes, path} or binary) and
label (integer, ClassLabel or string). Before any training, all sets are
audited for leaks and wrong labels. As many real images are scored beside them.
"""

import argparse
import re
from functools import partial

from ims3_ray.config.load import load_settings, parse_overrides
from ims3_ray.config.settings import Evaluating
from ims3_ray.errors import InputError
from ims3_ray.evaluation.results import evaluation_lines, score_lines
from ims3_ray.jobs.next_steps import open_result, result_lines
from ims3_ray.pipeline.inputs import check_inputs
from ims3_ray.progress import spinner
from ims3_ray.storage.directory import check_writable

NAMED = re.compile(r"([A-Za-z0-9_.-]+)=(.+)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    set_help = "set to evaluate; may be repeated"
    add("--set", required=True, action="append", dest="sets", metavar="[NAME=]SET", help=set_help)
    add("--out", default="evaluation.json", metavar="JSON", help="results file; an existing one is replaced")
    add("--trust-labels", action="store_true", help="also score sets whose classes look swapped")
    robust = "also train without augmentation, for DD-Ranking's augmentation-robust score; doubles the time"
    add("--augmentation-robust", action="store_true", help=robust)
    add("overrides", nargs="*", metavar="field=value", help="such as data.train=DIR or evaluate.seeds=5")


def run(arguments: argparse.Namespace) -> None:
    config = load_settings(Evaluating, parse_overrides(arguments.overrides))
    locations = parse_sets(arguments.sets)
    check_inputs(config)
    out, name = open_result(arguments.out)
    with spinner("imports"):  # heavy: Ray, torch, faiss
        from .run import evaluate

    options = {"plain": arguments.augmentation_robust, "trust_labels": arguments.trust_labels}
    document = evaluate(config, locations, **options, ready=partial(check_writable, out, f"--out: {out.uri}"))
    out.write_json(name, document)
    warnings = [f"warning: {line}" for line in document["audit"]["warnings"]]
    print("", *evaluation_lines(document), *score_lines(document), "", sep="\n")
    print(*warnings or ["audit          no shared, doubly labelled or swapped images"], sep="\n")
    print("", *result_lines({"evaluation": arguments.out}), sep="\n")


def _last_part(place: str) -> str:
    return place.partition("?")[0].rstrip("/").rsplit("/", 1)[-1].removesuffix(".parquet")


def parse_sets(words: list[str]) -> dict[str, str]:
    """{name: place} of the --set options; an unnamed set is called like its file or folder."""
    sets: dict[str, str] = {}
    for word in words:
        match = NAMED.fullmatch(word)
        name, place = match.groups() if match else (_last_part(word), word)
        if not place or not name:
            raise InputError(f"--set: {word!r} names no set; write --set PLACE or --set NAME=PLACE")
        if name in sets:
            raise InputError(f"--set: two sets are called {name!r}; write --set NAME=PLACE to name one")
        sets[name] = place
    return sets
