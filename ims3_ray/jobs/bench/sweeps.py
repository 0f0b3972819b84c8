"""What a sweep costs beside the trainings of its classifiers: the same ones, alone and one after another."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from ims3_ray.cluster.machine import find_machine
from ims3_ray.data.distilled import DistilledSet
from ims3_ray.evaluation.protocols import protocols
from ims3_ray.jobs.sweep import run as sweeping
from ims3_ray.jobs.sweep.keeper import steps_of
from ims3_ray.jobs.sweep.plan import Sweep
from ims3_ray.method.keys import permutation
from ims3_ray.pipeline import prepare as preparation
from ims3_ray.stages.evaluate.classifiers import (
    classifier_resources,
    classifier_seeds,
    pixels_of,
    read_pixels,
    score_in_looks,
)


@dataclass(frozen=True)
class SweepCost:
    """Seconds. `alone` is what all classifiers of the sweep take one after another, from `measured` of the
    trials.
    """

    trials: int
    trials_at_once: int
    whole: float
    pools: float
    alone: float
    measured: int
    saved: float

    @property
    def ratio(self) -> float:
        """Of the sweep without its pools to the classifiers' trainings divided by the trials at once."""
        return (self.whole - self.pools) / (self.alone / self.trials_at_once)


def measure(sweep: Sweep, measured: int, say: Any) -> SweepCost:
    """Run the sweep, whose trials must not be there yet, then the classifiers of `measured` of its trials
    alone.
    """
    began = time.perf_counter()
    document, _ = sweeping.run(sweep, say)
    whole = time.perf_counter() - began
    done = [trial for trial in document["trials"] if trial["status"] == "finished"]
    chosen = [done[place] for place in permutation(len(done), "alone")[:measured]]
    seconds = [_alone(sweep, trial["values"]) for trial in chosen]
    return SweepCost(
        trials=len(done),
        trials_at_once=document["trials_at_once"],
        whole=whole,
        pools=document["upstream_seconds"],
        alone=float(np.mean(seconds)) * len(done),
        measured=len(chosen),
        saved=document["saved_seconds"],
    )


def _alone(sweep: Sweep, values: dict[str, Any]) -> float:
    """Seconds of training a trial's classifiers, one after another, each a Ray task of its own as in the
    sweep.
    """
    config = sweep.config(values)
    context = preparation.prepare(config, find_machine(config.workers))
    made = next(step.directory for step in steps_of(context) if step.stage.noun == "distilled")
    rules = protocols(config.evaluate.protocol, config.evaluate.networks)
    scored = context.images[rules[0].split]
    tests = ray.put(read_pixels(scored, np.arange(len(scored)), rules[0].image_size))
    pixels = ray.put(pixels_of(DistilledSet(made)))
    train = ray.remote(**classifier_resources(context.machine))(
        lambda *work: list(score_in_looks(*work))[-1]["seconds"]
    )
    jobs = [(of, seed) for of in rules for seed in classifier_seeds(config.seed, config.evaluate.seeds)]
    device = context.machine.device
    return sum(
        ray.get(train.remote(pixels, tests, of, len(context.classes), seed, device)) for of, seed in jobs
    )
