"""Fingerprints of a run's artefacts depend on every field that can change a result."""

from dataclasses import replace
from typing import get_args

from planned import context_of, leaves

from ims3_ray.pipeline.steps import plan

ENABLED = "refine.steps=2", "refine.real_batch=2", "probe.checkpoint_steps=[0]", "sample.start=inversion"
VALUES = {"evaluate.protocol": "quick", "probe.protocol": "quick", "evaluate.baselines": ("medoids",)}
VALUES |= {"evaluate.networks": ("mlp",), "probe.networks": ("mlp",), "sample.guidance_interval": (1, 2)}
OTHER_DEVICE = {f"{section}.batch_size.cuda" for section in ("encode", "invert", "embed", "sample", "refine")}
CONTENT_COUNTS = {  # only the report depends on the field itself
    *("data.validation", "data.test", "data.validation_split", "data.classes", "data.class_map"),
    *("data.max_bad_fraction", "data.max_overlap_fraction", "data.licence", "model.licence"),
    *("model.path", "model.vae", "embed.extractor", "evaluate.teacher", "image_size"),
}
NUMERICS_COUNT = {"model.precision.cpu", "model.precision.cuda", "model.compile", "model.cuda_graphs"}
SAME_RESULT = {"data.root", "storage", "finetune.checkpoint_every", "select.memory_gb"}


def choices(annotation):
    parts = get_args(annotation)
    return [choice for part in parts for choice in choices(part)] if parts else [annotation]


def changed(settings, field, name):
    """`settings` with another value of the field `name`; nothing checks it."""
    head, _, rest = name.partition(".")
    value = getattr(settings, head)
    if rest:
        new = changed(value, field, rest)
    elif field in VALUES:
        new = VALUES[field]
    elif isinstance(value, bool):
        new = not value
    elif isinstance(value, int | float):
        new = 2 * value + 1
    elif isinstance(value, tuple):
        new = (*value, 3)
    else:
        texts = [x for x in choices(type(settings).model_fields[head].annotation) if isinstance(x, str)]
        new = next((text for text in texts if text != value), f"{value}/other" if value else 3)
    return settings.model_copy(update={head: new})


def test_the_scored_images_change_only_the_evaluation_and_the_report(tiny_overrides):
    context = context_of(tiny_overrides, *ENABLED)
    other = replace(context, inputs={**context.inputs, "scored": "other"})
    before, after = ({step.fingerprint: step.stage.name for step in plan(of)} for of in (context, other))
    assert {before[key] for key in before.keys() - after.keys()} == {"evaluate", "report"}


def test_every_field_that_can_change_a_result_changes_an_artefact_before_the_report(tiny_overrides):
    context = context_of(tiny_overrides, *ENABLED)

    def fingerprints(config):
        steps = plan(replace(context, config=config))
        return {step.fingerprint for step in steps if step.stage.name != "report"}

    before, fields = fingerprints(context.config), set(leaves(context.config)) - CONTENT_COUNTS
    kept = {field for field in fields if fingerprints(changed(context.config, field, field)) == before}
    workers = {field for field in fields if field.startswith("workers.")}
    assert kept == workers | OTHER_DEVICE | NUMERICS_COUNT | SAME_RESULT
