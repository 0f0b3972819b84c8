"""The stages in order: what each depends on, where its artefact lies, and running what is missing."""

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ims3_ray.evaluation.protocols import protocols
from ims3_ray.stages.context import Context
from ims3_ray.storage.artifacts import Directory, complete, fingerprint, read_manifest

from .prepare import NO_PROTOCOL, depends_on


@dataclass(frozen=True)
class Stage:
    """A verb, the artefact that it makes, the artefacts that it reads, and the settings that its bits depend
    on.
    """

    name: str
    noun: str
    parents: tuple[str, ...]  # nouns
    settings: Callable[[Context], Any]
    # whether this run's stage reads that parent
    reads: Callable[[Context, str], bool] = lambda context, noun: True

    @property
    def module(self) -> Any:
        folder = (
            "." + self.name + (".stage" if self.name in ("finetune", "sample", "select", "evaluate") else "")
        )
        return importlib.import_module(folder, "ims3_ray.stages")


def _on_device(context: Context, section: Any) -> dict[str, Any]:
    """A section's values, its batch size for this kind of device alone."""
    return section.model_dump(mode="json") | {"batch_size": context.batch_size(section)}


def _encode(c: Context) -> Any:
    shared = depends_on(c)
    of_data = [
        c.inputs["images"],
        c.config.data.mirror,
        c.config.seed if c.config.encode.images_per_class else None,
    ]
    return [of_data, _on_device(c, c.config.encode), shared["model"], shared["device"]]


def _finetune(c: Context) -> Any:
    settings = c.config.finetune.model_dump(mode="json", exclude={"checkpoint_every"})
    return [settings, c.config.im.model_dump(mode="json"), c.config.seed, depends_on(c)]


def _sample(c: Context) -> Any:
    settings = _on_device(c, c.config.sample) | {"pool_ipc": c.config.pool_ipc}
    if c.config.sample.start == "noise":
        settings = {name: value for name, value in settings.items() if not name.startswith("start")}
    return [settings, c.config.seed, c.inputs["extractor"], depends_on(c)]


def _embed(c: Context) -> Any:
    device = c.machine.device
    return [
        c.inputs["images"],
        _on_device(c, c.config.embed),
        c.inputs["extractor"],
        c.info.image_size,
        device,
    ]


def _select(c: Context) -> Any:
    settings = c.config.select.model_dump(mode="json", exclude={"memory"})
    return [settings, c.config.seed, list(c.classes), c.config.ipc]


def _evaluate(c: Context) -> Any:
    rules = [
        r.model_dump(mode="json") for r in protocols(c.config.evaluate.protocol, c.config.evaluate.networks)
    ]
    return [
        c.config.evaluate.model_dump(mode="json"),
        rules,
        c.config.seed,
        c.config.ipc,
        c.inputs["scored"],
        c.machine.device,
    ]


def _export(c: Context) -> Any:
    return [c.config.recipe, list(c.classes), c.licences]


def _sample_reads(c: Context, noun: str) -> bool:
    return noun == "adapter" or c.config.sample.start == "inversion"


STAGES = (
    Stage("encode", "latents", (), _encode),
    Stage("invert", "inversions", ("latents",), lambda c: [_on_device(c, c.config.invert), depends_on(c)]),
    Stage("finetune", "adapter", ("latents", "inversions"), _finetune),
    Stage("embed", "features", (), _embed),
    Stage("sample", "candidates", ("adapter", "inversions", "features"), _sample, _sample_reads),
    Stage("select", "selection", ("candidates", "features"), _select),
    Stage("export", "distilled", ("selection", "candidates"), _export),
    Stage("evaluate", "evaluation", ("distilled", "selection", "candidates", "features"), _evaluate),
    Stage(
        "report",
        "report",
        (
            "latents",
            "inversions",
            "adapter",
            "features",
            "candidates",
            "selection",
            "distilled",
            "evaluation",
        ),
        lambda c: c.config.results(),
    ),
)


@dataclass(frozen=True)
class Step:
    """A stage of one run: where its artefact lies, and its manifest once it is complete."""

    stage: Stage
    directory: Directory
    parents: dict[str, Directory]
    manifest: dict[str, Any] | None

    @property
    def fingerprint(self) -> str:
        return self.directory.name


def plan(context: Context) -> list[Step]:
    """The steps of a run, in order; nothing is run."""
    steps: dict[str, Step] = {}
    for stage in STAGES:
        if stage.name == "evaluate" and context.config.evaluate.protocol == NO_PROTOCOL:
            continue
        parents = {
            noun: steps[noun].directory
            for noun in stage.parents
            if noun in steps and stage.reads(context, noun)
        }
        inputs = {noun: steps[noun].fingerprint for noun in parents}
        key = fingerprint([stage.name, stage.module.VERSION, stage.settings(context), inputs])
        directory = context.storage / stage.noun / key
        steps[stage.noun] = Step(stage, directory, parents, read_manifest(directory))
    return list(steps.values())


def run_step(context: Context, step: Step) -> Step:
    """Run a step whose artefact is not complete, and write its manifest."""
    began = time.perf_counter()
    details = step.stage.module.run(context, step.directory, **step.parents)
    seconds = time.perf_counter() - began
    made = details.get("rows_made", details["rows"])
    manifest = complete(
        step.directory,
        {
            "unit": "images",
            **details,
            "stage": step.stage.name,
            "version": step.stage.module.VERSION,
            "fingerprint": step.fingerprint,
            "inputs": {noun: directory.name for noun, directory in step.parents.items()},
            "seconds": round(seconds, 3),
            "rate": round(made / seconds, 3),
            "device": context.machine.device,
        },
    )
    return replace(step, manifest=manifest)
