"""Train classifiers on image sets by Ray actors, one per (protocol, set, seed), and summarise accuracies.

The driver handles keys only. Pixels are read on the node where a classifier trains, onto its own disk, once
for all classifiers there that need them.
"""

import itertools
import json
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict

import numpy as np
import ray
import torch

from ims3_ray.cluster.resources import Machine, run_on_every_node
from ims3_ray.cluster.tasks import stream_jobs
from ims3_ray.config.evaluation import SEEDS_PER_RUN
from ims3_ray.data.images import ImageSet
from ims3_ray.data.loader import CachedPixels
from ims3_ray.data.transforms import resize_and_crop
from ims3_ray.display import first_few
from ims3_ray.errors import InputError
from ims3_ray.evaluation.protocols import Protocol
from ims3_ray.evaluation.results import Accuracies, SetMetrics
from ims3_ray.evaluation.statistics import label_robust_score, summary
from ims3_ray.evaluation.teacher import TeacherSource, load_teacher
from ims3_ray.evaluation.train import Labelled, Score, budget_for, plan, train_with_evals
from ims3_ray.models.device import Numerics, prepare_device
from ims3_ray.progress import bar
from ims3_ray.storage.artifacts import Directory
from ims3_ray.storage.checksums import BLANK, embed_checksum
from ims3_ray.storage.disk_cache import remove_unused
from ims3_ray.storage.integrity import intact_parts

SCORES = "scores"
Sets = Mapping[tuple[str, int], ImageSet]  # {(name of a set, classifier seed): training images}
Training = tuple[str, str, int]  # protocol's label, name of a set, classifier seed
OnEval = Callable[[str, str, int, int, float], None]  # (*training, step, accuracy)
Scores = dict[str, dict[str, dict[int, Score]]]  # {protocol's label: {name of a set: {seed: score}}}


def classifier_seeds(seed: int, count: int) -> list[int]:
    """`count` classifier seeds that no other seed of a run shares."""
    return [seed * SEEDS_PER_RUN + i for i in range(count)]


def train_all(
    sets: Sets,
    tests: ImageSet,
    protocols: Sequence[Protocol],
    machine: Machine,
    on_eval: OnEval | None = None,
    teacher: TeacherSource | None = None,
    out: Directory | None = None,
) -> Scores:
    """Train a classifier for every set, seed and protocol, and score it on `tests`.

    The longest trainings start first; those of one set follow each other. An exception from `on_eval` ends
    all. `out` keeps each score in a file; intact ones are not computed again. Raises InputError, before any
    training, if a set lacks a scored class or a network is too deep for its protocol's images.
    """
    classes = tests.classes
    check_networks(protocols, len(classes))
    check_classes(sets, tests)
    distinct = {id(of_set): of_set for of_set in (tests, *sets.values())}
    stored = {key: ray.put(of_set) for key, of_set in distinct.items()}
    done = _kept_scores(out, [(protocol.label, *key) for key in sets for protocol in protocols])
    if on_eval:
        _report_evals(done, on_eval)
    jobs = [(rules, *key) for key in sets for rules in protocols if (rules.label, *key) not in done]
    jobs.sort(key=lambda job: -images_seen(job[0], sets[job[1:]].num_trained, len(classes)))
    resources = machine.classifier_resources(len(jobs) or 1)
    arguments = [
        (stored[id(sets[name, seed])], stored[id(tests)], protocol, seed, machine.device, teacher)
        for protocol, name, seed in jobs
    ]
    with (
        bar("evaluate", len(done) + len(jobs), "classifiers", done=len(done)) as progress,
        closing(stream_jobs(stream_score, arguments, **resources)) as items,
    ):
        for index, item in items:
            protocol, name, seed = jobs[index]
            if isinstance(item, Score):
                done[protocol.label, name, seed] = item
                if out:
                    _keep_score(out, (protocol.label, name, seed), item)
                progress.update(1)
            elif on_eval is not None:  # raises SystemExit if a sweep ends this trial
                on_eval(protocol.label, name, seed, *item)
    if machine.runs_at_once > 1:  # other runs score on the same images
        del distinct[id(tests)]
    remove_local_pixels(distinct.values(), {protocol.image_size for protocol in protocols}, machine)
    scores: Scores = {}
    for rules, (name, seed) in itertools.product(protocols, sets):
        scores.setdefault(rules.label, {}).setdefault(name, {})[seed] = done[rules.label, name, seed]
    return scores


def _report_evals(scores: Mapping[Training, Score], on_eval: OnEval) -> None:
    for training, score in scores.items():
        for step, accuracy in score.history:
            on_eval(*training, step, accuracy)


def _score_file(training: Training) -> str:
    label, name, seed = training
    return f"{SCORES}/{label}/{name}-{seed}.json"


def _keep_score(out: Directory, training: Training, score: Score) -> None:
    file = _score_file(training)
    out.write(file, embed_checksum(json.dumps({**asdict(score), "checksum": BLANK}).encode(), file))


def _kept_scores(out: Directory | None, trainings: Sequence[Training]) -> dict[Training, Score]:
    files = {_score_file(training): training for training in trainings}
    scores = {}
    for file, data in intact_parts(out, files) if out else ():
        fields = json.loads(data)
        del fields["checksum"]
        for name in ("history", "train_loss"):
            fields[name] = [(step, value) for step, value in fields[name]]
        scores[files[file]] = Score(**{**fields, "numerics": Numerics(**fields["numerics"])})
    return scores


def stream_score(
    data: ImageSet, tests: ImageSet, protocol: Protocol, seed: int, kind: str, teacher: TeacherSource | None
) -> Iterator[tuple[int, float] | Score]:
    """Train a classifier on `data`: yields (step, accuracy) on `tests` at each evaluation, then the score."""
    device, size, classes = prepare_device(kind), protocol.image_size, tests.classes
    teacher_fn = None if teacher is None else load_teacher(teacher, protocol, classes, device)
    with open_pixels(tests, size) as scored, open_pixels(data, size) as train:
        yield (yield from train_with_evals(train, scored, protocol, len(classes), seed, device, teacher_fn))


def numerics_deviation(scores: Scores) -> str:
    """How the classifiers' numerics differ from plain fp32, such as "bf16, compiled"; empty if not."""
    runs = (run for sets in scores.values() for seeds in sets.values() for run in seeds.values())
    return " or ".join(sorted({run.numerics.deviation for run in runs} - {""}))


def summarise(scores: Mapping[str, Mapping[int, Score]], own: Collection[str]) -> dict[str, SetMetrics]:
    """Metrics of every set over its seeds.

    Sets in `own`, which are neither real nor baselines, also get a `label_robust_score` from the mean last
    accuracies; None without the full set or as many random images.
    """
    sets: dict[str, SetMetrics] = {}
    for name, by_seed in scores.items():
        runs = list(by_seed.values())
        sets[name] = {
            "images": runs[0].images,
            "seeds": list(by_seed),
            "curves": [run.history for run in runs],
            "last": _accuracies([run.last for run in runs]),
            "best": _accuracies([run.best for run in runs]),
        }
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
    """Raise InputError if a network is too deep for its protocol's images or there are under two classes."""
    for protocol in protocols:
        protocol.build(num_classes)


def check_classes(sets: Sets, tests: ImageSet) -> None:
    """Raise InputError if a set has no image of a scored class."""
    scored, classes = np.unique(tests.labels), tests.classes
    for (name, _), of_set in sets.items():
        if missing := [classes[label] for label in np.setdiff1d(scored, of_set.labels)]:
            share = f"{len(missing)} of the {len(scored)} classes that the scored images have"
            raise InputError(
                f"set {name!r}: has no image of {share}: {first_few(missing)}; "
                "add images, or score on the classes that it has"
            )


def images_seen(protocol: Protocol, images: int, num_classes: int) -> int:
    """Images that pass through a training on `images` images: its cost."""
    budget = budget_for(protocol, images, num_classes)
    return plan(budget, images, 1)[0] * min(budget.batch_size, images)


def local_pixels(images: ImageSet, size: int) -> CachedPixels:
    """The set's pixels for a protocol of `size` pixels per side, cached on this node's disk."""
    return CachedPixels(images, size, resize_and_crop)


@contextmanager
def open_pixels(images: ImageSet, size: int) -> Generator[Labelled]:
    """Pixels (N, 3, S, S) and labels (N,) of the readable images, mapped from this node's disk cache."""
    rows = local_pixels(images, size).open()
    try:
        yield torch.from_numpy(rows.mapped("pixels")), torch.from_numpy(rows.mapped("label"))
    finally:
        rows.close(keep=True)


def remove_local_pixels(sets: Iterable[ImageSet], sizes: Iterable[int], machine: Machine) -> None:
    """Remove the sets' pixels from all nodes' disks, except those in use."""
    keys = [local_pixels(of_set, size).key for of_set in sets for size in sizes]
    run_on_every_node(machine, remove_unused, keys)
