"""Verify a set: its bytes, its class order, and its accuracy anew.

    python jobs/verify.py hf://ORG/NAME
    python jobs/verify.py runs/distilled/… evaluate.seeds=5
    python jobs/verify.py ./my-set data.train=TRAIN data.test=TEST

PLACE is a pushed set, on the hub or in a folder, or a RUN as for push. The
set's own recipe gives the real images and the protocol; 3 seeds are used. Give
data.train and data.test if the real images lie elsewhere here. Prints one line
per check; a failed check ends in exit code 2.
"""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ims3_ray.config.load import load_settings, parse_overrides
from ims3_ray.config.reproduce import upgraded
from ims3_ray.config.settings import Evaluating
from ims3_ray.display import noun, one_line
from ims3_ray.errors import InputError
from ims3_ray.evaluation.results import Accuracies, Evaluation, format_accuracy
from ims3_ray.progress import print_line, spinner
from ims3_ray.storage.artifacts import DamagedError, Directory, read_manifest
from ims3_ray.storage.integrity import verify

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
SHARED = ("seed", "data", "embed")  # settings taken from the run's recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("place", metavar="PLACE", help="a pushed set, or a RUN as for push")
    trust = "also measure a set whose classes look swapped"
    parser.add_argument("--trust-labels", action="store_true", help=trust)
    more = "such as data.train=DIR or evaluate.seeds=5"
    parser.add_argument("overrides", nargs="*", metavar="field=value", help=more)


def run(arguments: argparse.Namespace) -> None:
    overrides = parse_overrides(arguments.overrides)
    with spinner("imports"):  # heavy: torch
        from ims3_ray.stages.evaluate.teacher import is_soft

        from .release import DISTILLED, find_release

    release = find_release(arguments.place, load_settings(Evaluating, overrides).storage)
    _print("checksums", check_files(release.distilled))
    if release.evaluation is None:
        _print("accuracy", "none is stated: not measured")
        return
    config = load_settings(Evaluating, overrides, settings_of(release.recipe))
    if is_soft(config.evaluate):
        _print("accuracy", "is by soft labels, whose teacher a run trains: not measured")
        return
    scored = _score(config, {DISTILLED: release.distilled.uri}, trust_labels=arguments.trust_labels)
    order = scored["audit"]["classes"][DISTILLED]
    own, real = 100 * order["own_share"], 100 * order["real_share"]
    _print(
        "class order", f"{own:.0f} % of its images look like their own class, {real:.0f} % of real ones do"
    )
    lines, problems = compare(release.evaluation, scored)
    for text in lines:
        _print("accuracy", text)
    if problems:
        raise InputError(f"{arguments.place}: accuracy is not as stated: {'; '.join(problems)}")


def _print(check: str, text: str) -> None:
    print_line(f"{check:<14} {one_line(text)}")


def check_files(distilled: Directory) -> str:
    """One line on the intact files; raises DamagedError if a file is missing or changed."""
    damaged, unknown = verify(distilled)
    manifest = read_manifest(distilled)
    if damaged or not manifest:
        raise DamagedError(distilled, damaged)
    number = len(manifest["files"])
    less = f", {unknown} of which never had a checksum" if unknown else ""
    return f"{number} {noun(number, 'files')} as written{less}"


def settings_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Settings for a quick evaluation of the distilled set by the run's own recipe."""
    recipe = upgraded(recipe)
    return {name: recipe[name] for name in SHARED if name in recipe} | {
        "evaluate": {**recipe["evaluate"], **QUICK}
    }


def compare(stated: Evaluation, measured: Evaluation) -> tuple[list[str], list[str]]:
    """One line per network, and those of the lines that report a disagreement."""
    from .release import accuracies

    ours, lines, problems = accuracies(measured), [], []
    for label, of in accuracies(stated).items():
        text = f"{label}: stated {format_accuracy(of)}"
        if label not in ours:
            lines.append(f"{text}, not measured: the protocol here is {', '.join(ours)}")
            continue
        is_same = agrees(of, ours[label])
        verdict = "as stated" if is_same else "not as stated"
        lines.append(f"{text}, measured {format_accuracy(ours[label])}: {verdict}")
        problems += [] if is_same else lines[-1:]
    return lines, problems


def agrees(stated: Accuracies, measured: Accuracies) -> bool:
    """Whether the two 95 % intervals overlap."""
    reach = (stated["interval"] or 0) + (measured["interval"] or 0)
    return abs(stated["mean"] - measured["mean"]) <= reach


def _score(config: Evaluating, sets: Mapping[str, str], *, trust_labels: bool) -> "Scored":
    """Evaluate as `ims3 evaluate` does, with its checks."""
    with spinner("imports"):  # heavy: Ray, faiss
        from ims3_ray.jobs.evaluate.run import evaluate

    return evaluate(config, sets, trust_labels=trust_labels)
