"""Check a set's bytes and class order; measure its accuracy again.

    python jobs/verify.py hf://ORG/NAME
    python jobs/verify.py runs/distilled/… evaluate.seeds=5
    python jobs/verify.py ./my-set data.train=TRAIN data.test=TEST

PLACE is a set that was pushed, to the hub or a folder, or what `push` takes as
RUN. Its own recipe says on which images and by which protocol it is scored,
with 3 seeds; give data.train and data.test where they lie elsewhere here. A
line each; what is not as stated ends in exit code 2.
"""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ims3_ray.config.load import load_settings, parse_overrides
from ims3_ray.config.reproduce import upgraded
from ims3_ray.config.settings import Evaluating
from ims3_ray.display import noun, one_line
from ims3_ray.errors import InputError
from ims3_ray.evaluation.results import Evaluation
from ims3_ray.evaluation.table import in_words
from ims3_ray.progress import print_line, spinner
from ims3_ray.storage.artifacts import DamagedError, Directory, read_manifest
from ims3_ray.storage.integrity import verify

from .claims import DISTILLED, accuracies, agrees

if TYPE_CHECKING:
    from ims3_ray.jobs.evaluate.run import Scored

QUICK = {
    "seeds": 3,
    "baselines": [],
    "full": False,
    "unrefined": False,
    "pool_images": None,
    "random_subsets": None,
}
SHARED = ("seed", "data", "embed")  # that an evaluation takes as the run had them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("place", metavar="PLACE", help="a set that was pushed, or a run's, as push takes it")
    trust = "measure a set whose classes look swapped, too"
    parser.add_argument("--trust-labels", action="store_true", help=trust)
    more = "such as data.train=DIR or evaluate.seeds=5"
    parser.add_argument("overrides", nargs="*", metavar="field=value", help=more)


def run(arguments: argparse.Namespace) -> None:
    overrides = parse_overrides(arguments.overrides)
    with spinner("imports"):  # heavy: torch
        from .release import find_product

    storage = load_settings(Evaluating, overrides).storage
    product = find_product(arguments.place, storage)
    print_line(line("checksums", checked(product.distilled)))
    if product.evaluation is None:
        print_line(line("accuracy", "none is stated: not measured"))
        return
    config = load_settings(Evaluating, overrides, settings_of(product.recipe))
    scored = _score(config, product.distilled.uri, trust_labels=arguments.trust_labels)
    order = scored["audit"]["classes"][DISTILLED]
    shares = f"{100 * order['own_share']:.0f} % of its images look like their own class, of real ones "
    print_line(line("class order", f"{shares}{100 * order['real_share']:.0f} %"))
    lines, problems = compared(product.evaluation, scored)
    for text in lines:
        print_line(line("accuracy", text))
    if problems:
        raise InputError(f"{arguments.place}: accuracy is not as stated: {'; '.join(problems)}")


def line(what: str, text: str) -> str:
    return f"{what:<14} {one_line(text)}"


def checked(distilled: Directory) -> str:
    """That all files are as written; DamagedError where they are not."""
    damaged, unknown = verify(distilled)
    manifest = read_manifest(distilled)
    if damaged or not manifest:
        raise DamagedError(distilled, damaged)
    number = len(manifest["files"])
    less = f", {unknown} of which never had a checksum" if unknown else ""
    return f"{number} {noun(number, 'files')} as written{less}"


def settings_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation takes of a run's recipe, quick and of the distilled set alone."""
    recipe = upgraded(dict(recipe))
    return {name: recipe[name] for name in SHARED if name in recipe} | {
        "evaluate": {**recipe["evaluate"], **QUICK}
    }


def compared(stated: Evaluation, measured: Evaluation) -> tuple[list[str], list[str]]:
    """A line a network, and those of them that do not agree."""
    ours, lines, problems = accuracies(measured), [], []
    for label, of in accuracies(stated).items():
        if label not in ours:
            lines.append(
                f"{label}: stated {in_words(of)}, not measured: this run scores by {', '.join(ours)}"
            )
            continue
        as_stated = agrees(of, ours[label])
        verdict = "as stated" if as_stated else "not as stated"
        lines.append(f"{label}: stated {in_words(of)}, measured {in_words(ours[label])}: {verdict}")
        problems += [] if as_stated else lines[-1:]
    return lines, problems


def _score(config: Evaluating, place: str, *, trust_labels: bool) -> "Scored":
    """As `ims3 evaluate` does, whose refusals these are."""
    with spinner("imports"):  # heavy: Ray, faiss
        from ims3_ray.cluster.resources import check_device, connect, find_machine, has_address
        from ims3_ray.jobs.evaluate import run as evaluating

    check_device(config.workers)
    with spinner("start"):
        if has_address():  # whose nodes look at the images
            connect()
        prepared = evaluating.prepare(config, {DISTILLED: place})
        connect()
    return evaluating.score(prepared, find_machine(config.workers), trust_labels=trust_labels)
