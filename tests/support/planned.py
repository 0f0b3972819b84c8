"""A tiny run's configuration, context, steps and result, from its words."""

from pydantic import BaseModel

from ims3_ray.cluster.resources import find_machine
from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.jobs.distill import run as distillation
from ims3_ray.pipeline import prepare as preparation
from ims3_ray.pipeline.steps import plan, run_step


def config_of(words, *more, recipe="digits"):
    return load_config(recipe, parse_overrides([*words, *more]))


def leaves(settings, prefix=""):
    """The dotted names of all fields."""
    for name, value in settings:
        is_section = isinstance(value, BaseModel)
        yield from leaves(value, f"{prefix}{name}.") if is_section else [f"{prefix}{name}"]


def context_of(words, *more, recipe="digits"):
    config = config_of(words, *more, recipe=recipe)
    return preparation.prepare(config, find_machine(config.workers))


def run(words, *more):
    return distillation.run(config_of(words, *more), lambda line: None)


def steps_of(words, *more, upto):
    """Runs a stage and the steps that it needs; returns them by the noun of their artefact."""
    context = context_of(words, *more)
    steps = plan(context, upto)
    needed = {steps[-1].directory.uri}
    for step in reversed(steps):
        if step.directory.uri in needed:
            needed |= {parent.uri for parent in step.parents.values()}
    steps = [step for step in steps if step.directory.uri in needed]
    return {step.stage.output: step if step.manifest else run_step(context, step) for step in steps}
