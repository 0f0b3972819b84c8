"""Training classifiers on image sets, each a Ray task, and summing up their accuracies.

The driver knows a set by its keys, whatever it came from. Pixels are read on the node where a classifier
trains, onto its own disk, once for all classifiers there that need them.
"""

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import ray
import torch

from ims3_ray.cluster.resources import DEFAULT_PLACEMENT, Machine, run_on_every_node
from ims3_ray.cluster.tasks import first_ready
from ims3_ray.config.evaluation import SEEDS_PER_RUN
from ims3_ray.data.images import ImageSet
from ims3_ray.data.loader import CachedPixels
from ims3_ray.data.transforms import resize_and_crop
from ims3_ray.display import first_few
from ims3_ray.errors import InputError
from ims3_ray.evaluation.membership import attack
from ims3_ray.evaluation.results import Accuracies, SetFigures
from ims3_ray.evaluation.rules import Protocol
from ims3_ray.evaluation.statistics import label_robust_score, summary
from ims3_ray.evaluation.teacher import Trained, load_teacher
from ims3_ray.evaluation.train import Beside, Labelled, Score, budget_of, plan, train_with_evals
from ims3_ray.method.seeding import permutation
from ims3_ray.models.device import prepare_device
from ims3_ray.progress import bar
from ims3_ray.storage.disk_cache import remove_unused

Sets = Mapping[tuple[str, int], ImageSet]  # (name of a set, classifier seed) → what that seed trains on
Training = tuple[str, str, int]  # protocol's label, name of a set, seed
Hear = Callable[[str, str, int, int, float], None]
Scores = dict[str, dict[str, dict[int, Score]]]  # protocol's label → name of a set → seed


def classifier_seeds(seed: int, count: int) -> list[int]:
    """Seeds of `count` repeats, which no other seed of a run shares."""
    return [seed * SEEDS_PER_RUN + i for i in range(count)]


def train_all(
    sets: Sets,
    tests: ImageSet,
    protocols: Sequence[Protocol],
    machine: Machine,
    hear: Hear | None = None,
    teacher: str | Trained | None = None,
    members: ImageSet | None = None,
) -> Scores:
    """A classifier for every set, seed and protocol, scored on `tests`.

    Where `members` are given, training images, each is asked about them and as many of `tests`.

    The longest trainings begin first, and those of one set follow each other. `hear(protocol's label, set,
    seed, step, accuracy)` is called at every look at the scored images; what it raises ends the trainings.
    Raises InputError, before any training, for a set without a class that the scored images have, and for a
    network too deep for its protocol's images.
    """
    classes = tests.classes
    check_networks(protocols, len(classes))
    check_classes(sets, tests)
    resources = machine.classifier_resources(len(sets) * len(protocols))
    train: Any = ray.remote(num_returns="streaming", **resources, **DEFAULT_PLACEMENT)(score_in_looks)
    distinct = {id(of_set): of_set for of_set in (tests, *sets.values(), *([members] if members else []))}
    stored = {key: ray.put(of_set) for key, of_set in distinct.items()}
    jobs = [(rules, *key) for key in sets for rules in protocols]
    jobs.sort(key=lambda job: -images_seen(job[0], len(sets[job[1:]]), len(classes)))
    running: dict[Any, Training] = {}
    for rules, name, seed in jobs:
        given = stored[id(sets[name, seed])], stored[id(tests)]
        asked = stored[id(members)] if members else None
        looks = train.remote(*given, rules, seed, machine.device, teacher, asked)
        running[looks] = rules.label, name, seed
    done = _collect(running, hear)
    sizes = {rules.image_size for rules in protocols}
    if machine.runs_at_once > 1:  # others score on the same images
        del distinct[id(tests)]
    clear(distinct.values(), sizes, machine)
    scores: Scores = {}
    for rules in protocols:
        for name, seed in sets:
            scores.setdefault(rules.label, {}).setdefault(name, {})[seed] = done[rules.label, name, seed]
    return scores


def _collect(running: dict[Any, Training], hear: Hear | None) -> dict[Training, Score]:
    """The scores of streaming trainings; whatever ends this early ends them too."""
    done: dict[Training, Score] = {}
    pending = dict(running)
    ready: Any  # a stream of references
    try:
        with bar("evaluate", len(pending), "classifiers") as shown:
            while pending:
                ready = first_ready(list(pending))
                look = ray.get(next(ready))
                if isinstance(look, Score):
                    done[pending.pop(ready)] = look
                    shown.update(1)
                elif hear is not None:
                    hear(*pending[ready], *look)
    except BaseException:  # a sweep ends a trial by raising SystemExit
        for training in pending:
            ray.cancel(training, force=True)
        raise
    return done


def score_in_looks(
    data: ImageSet,
    tests: ImageSet,
    rules: Protocol,
    seed: int,
    device: str,
    teacher: str | Trained | None,
    members: ImageSet | None = None,
) -> Iterator[tuple[int, float] | Score]:
    """One classifier trained on `data`: (step, accuracy) at every look at `tests`, at last its score.

    That has its confidences in `members` and in as many of `tests`, where the first are given.
    """
    on, size, classes = prepare_device(device), rules.image_size, tests.classes
    answer = None if teacher is None else load_teacher(teacher, rules, classes, on)
    with ExitStack() as held:
        scored, train = (held.enter_context(pixels_of(images, size)) for images in (tests, data))
        asked: list[Labelled] = []
        if members is not None:
            asked.append(held.enter_context(pixels_of(members, size)))
            rows = permutation(len(scored[1]), "membership")[: len(members)]
            asked.append((scored[0][rows], scored[1][rows]))
        beside = Beside(answer, asked)
        yield (yield from train_with_evals(train, scored, rules, len(classes), seed, on, beside))


def summarise(scores: Mapping[str, Mapping[int, Score]], own: Collection[str]) -> dict[str, SetFigures]:
    """The figures of every set over its seeds.

    Those of `own`, which are neither real nor baselines, have a `label_robust_score` too: of the means of the
    last accuracies, or None where the full set or as many random images are missing.
    """
    sets: dict[str, SetFigures] = {}
    for name, by_seed in scores.items():
        runs = list(by_seed.values())
        sets[name] = {
            "images": runs[0].images,
            "seeds": list(by_seed),
            "curves": [run.history for run in runs],
            "last": _accuracies([run.last for run in runs]),
            "best": _accuracies([run.best for run in runs]),
        }
        if runs[0].confidences:
            of_seeds = zip(*(run.confidences for run in runs), strict=True)
            sets[name]["membership"] = attack(*(np.mean(of_set, axis=0) for of_set in of_seeds))
    for name in own:
        random = sets.get("random") or sets.get(f"random {sets[name]['images']}")
        sets[name]["label_robust_score"] = None
        if random is not None and "full" in sets:
            means = (of_set["last"]["mean"] for of_set in (sets["full"], random, sets[name]))
            sets[name]["label_robust_score"] = label_robust_score(*means)
    return sets


def _accuracies(values: list[float]) -> Accuracies:
    of = summary(values)
    return Accuracies(
        mean=of.mean, deviation=of.deviation, interval=of.interval, count=of.count, values=values
    )


def check_networks(protocols: Sequence[Protocol], num_classes: int) -> None:
    """InputError for a network too deep for its protocol's images, or fewer than two classes."""
    for rules in protocols:
        rules.build(num_classes)


def check_classes(sets: Sets, tests: ImageSet) -> None:
    """InputError for a set without an image of a class that the scored images have."""
    scored, classes = np.unique(tests.labels), tests.classes
    for (name, _), of_set in sets.items():
        if missing := [classes[label] for label in np.setdiff1d(scored, of_set.labels)]:
            share = f"{len(missing)} of the {len(scored)} classes that the scored images have"
            raise InputError(
                f"set {name!r}: has no image of {share}: {first_few(missing)}; "
                "add images, or score on the classes that it has"
            )


def images_seen(rules: Protocol, images: int, num_classes: int) -> int:
    """How long a training on so many images is, in images that pass through it."""
    budget = budget_of(rules, images, num_classes)
    return plan(budget, images, 1)[0] * min(budget.batch_size, images)


def local_pixels(images: ImageSet, size: int) -> CachedPixels:
    """A set as a protocol of `size` pixels sees it."""
    return CachedPixels(images, size, resize_and_crop)


@contextmanager
def pixels_of(images: ImageSet, size: int) -> Generator[Labelled]:
    """Pixels (N, 3, S, S) and labels (N,) of the readable images, mapped from this machine's disk.

    Laid there where they are not yet, and kept for whoever comes next.
    """
    rows = local_pixels(images, size).open()
    try:
        yield torch.from_numpy(rows.mapped("pixels")), torch.from_numpy(rows.mapped("label"))
    finally:
        rows.close(keep=True)


def clear(sets: Iterable[ImageSet], sizes: Iterable[int], machine: Machine) -> None:
    """Remove the sets' pixels from the nodes' disks, but for what others use at the moment."""
    keys = [local_pixels(of_set, size).key for of_set in sets for size in sizes]
    run_on_every_node(machine, remove_unused, keys)
