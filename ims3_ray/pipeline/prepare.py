"""What is checked before any heavy work: inputs, models, images, classes, numbers that must fit."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
import torch._dynamo  # as the meta device does at first use, which fails where the working directory is gone

from ims3_ray.cluster.resources import (
    DEFAULT_PLACEMENT,
    Machine,
    connect,
    find_machine,
    num_nodes,
    run_on_every_node,
)
from ims3_ray.config.base import canonical_location
from ims3_ray.config.data import Data
from ims3_ray.config.sections import Model
from ims3_ray.config.settings import WEIGHTS, Config, Evaluating
from ims3_ray.data.classes import check_class_names, class_map
from ims3_ray.data.images import ImageSet, open_images
from ims3_ray.errors import InputError
from ims3_ray.evaluation.protocols import NO_PROTOCOL, protocol
from ims3_ray.models.device import Numerics, supported_numerics
from ims3_ray.models.extractor import inspect_extractor, load_extractor
from ims3_ray.models.files import pin_revision
from ims3_ray.models.generator import inspect_generator
from ims3_ray.stages.base import Stage
from ims3_ray.stages.context import Context, Inputs
from ims3_ray.storage.artifacts import Directory, fingerprint, open_storage
from ims3_ray.storage.disk_cache import refuse_full_disk
from ims3_ray.storage.hashing import content_hash

from .environments import check_environments
from .inputs import check_run, check_storage, image_places
from .steps import plan
from .validate_numbers import check_numbers
from .validate_splits import check_splits, left_out

Kind = TypeVar("Kind", Config, Evaluating)


def prepare_runs(configs: Sequence[Config], say: Callable[[str], None]) -> list[Context]:
    """The contexts of runs of one recipe, on the cluster that they are for; `say` takes what to know of it.

    InputError for whatever a person must mend first: before a cluster is started, where it can be told.
    """
    first = configs[0]
    check_run(first)
    for model in {str(config.model): config.model for config in configs}.values():
        inspect_generator(pin_revision(model.path), **_generator_options(model))
    connect()
    check_storage(first, num_nodes())
    # all that takes long or may be refused comes before GPUs are waited for, and billed
    contexts = prepare_all(configs, find_machine(first.workers, wait=False))
    contexts = _on_machine(contexts, find_machine(first.workers))
    for note in contexts[0].notes:
        say(note)
    steps = [(c, step) for c in contexts for step in plan(c)]
    for line in check_environments(contexts[0].machine, [step for _, step in steps]):
        say(line)
    missing = [(c, step.stage) for c, step in steps if not step.manifest]
    for line in dict.fromkeys(line for context, stage in missing for line in idle_gpu_notes(context, stage)):
        say(line)
    if {stage.name for _, stage in missing} & {"embed", "sample"}:
        # where weights can't be had: now, not after hours of tuning
        load_extractor(contexts[0].config.embed.extractor)
    _check_room(missing)
    return contexts


def idle_gpu_notes(context: Context, stage: Stage) -> list[str]:
    """A line on a stage that leaves some GPUs idle, and why."""
    use, there = stage.gpu_usage(context), context.machine.gpus
    return [f"{stage.name}: {use.gpus} of {there} GPUs, since {use.limit}"] if use.limit else []


def _check_room(missing: Iterable[tuple[Context, Stage]]) -> None:
    """InputError where what a stage lays on a node's own disk does not fit one that it may run on."""
    largest: dict[str, tuple[float, Context, Stage]] = {}
    for context, stage in missing:
        needed = stage.node_disk(context)
        if needed > largest.get(stage.name, (0.0,))[0]:
            largest[stage.name] = needed, context, stage
    for needed, context, stage in largest.values():
        run_on_every_node(context.machine, refuse_full_disk, needed, stage.node_disk_remedy)


def prepare(config: Config, machine: Machine) -> Context:
    """The run's context. InputError, in one line, for whatever a person must mend first."""
    return _on_machine(prepare_all([config], machine), machine)[0]


def _on_machine(contexts: Sequence[Context], machine: Machine) -> list[Context]:
    """The contexts with what the machine can do, which has to be there for that."""
    known: dict[Numerics, tuple[Numerics, list[str]]] = {}
    placed = []
    for context in contexts:
        wanted = _wanted(context.config, machine)
        if wanted not in known:
            known[wanted] = _supported(wanted, machine)
        numerics, notes = known[wanted]
        notes = (*notes, *context.notes)
        placed.append(replace(context, machine=machine, numerics=numerics, notes=notes))
    return placed


def _wanted(config: Config, machine: Machine) -> Numerics:
    device, model = machine.device, config.model
    is_gpu = device == "cuda"
    return Numerics(
        device, model.precision.on(device), is_gpu and model.compile, is_gpu and model.cuda_graphs
    )


def prepare_all(configs: Iterable[Config], machine: Machine) -> list[Context]:
    """The contexts of runs of one recipe: what several of them read is opened and hashed once.

    Of the machine its kind of device counts, and, where the recipe leaves its batch to them
    (finetune.batch_size=auto), their number. Numerics are what the recipe asks for.
    """
    opened: dict[str, Context] = {}
    contexts, pin_once = [], functools.cache(pin_revision)
    for config in configs:
        config, note = _scaled(pinned(config, pin_once), machine)
        sections = [section.model_dump(mode="json") for section in (config.data, config.model, config.embed)]
        key = fingerprint([sections, config.seed, config.evaluate.protocol, config.evaluate.teacher])
        if key not in opened:
            opened[key] = _open(config, machine)
        notes = (*opened[key].notes, *note)
        contexts.append(replace(opened[key], config=config, notes=notes))
        check_numbers(contexts[-1])
    return contexts


def _scaled(config: Config, machine: Machine) -> tuple[Config, list[str]]:
    """With a number for finetune.batch_size=auto; and a line on what it is."""
    if config.finetune.batch_size != "auto":
        return config, []
    devices = machine.workers.train_workers or machine.devices
    scaled = config.finetune.scaled_to(devices)
    names = ("batch_size", "micro_batches", "lr", "ema_decay", "steps")
    same = " ".join(
        f"finetune.{name}={getattr(scaled, name)}" for name in names if getattr(scaled, name) is not None
    )
    line = f"finetune.batch_size=auto: for {devices} devices; the same anywhere else: {same}"
    return config.model_copy(update={"finetune": scaled}), [line] if scaled.epochs else []


def pinned(config: Kind, pin: Callable[[str], str] = pin_revision) -> Kind:
    """`config` with the commits that its hub ids mean now, and whole paths: every worker, whose working
    directory may be another, then loads what the driver hashes.
    """
    for name, field in WEIGHTS:
        section = getattr(config, name, None)
        if section and (place := getattr(section, field)):
            config = config.model_copy(
                update={name: section.model_copy(update={field: canonical_location(pin(place))})}
            )
    return config


def _open(config: Config, machine: Machine) -> Context:
    places, model = image_places(config), config.model
    info = inspect_generator(model.path, **_generator_options(model))
    for network in (config.embed.extractor, config.evaluate.teacher):
        if network is not None:
            inspect_extractor(network)
    storage = open_storage(config.storage)
    images = open_splits(places, config.data, config.seed, storage)
    train = images["train"]
    check_class_names(train.classes)
    names = tuple(info.id2label) if info.id2label else None
    labels = class_map(train.classes, names, info.num_classes, config.data.class_map)
    folders = [Path(info.path)] if model.vae is None else [Path(info.path), Path(info.vae_path)]
    inputs: Inputs = {
        "images": train.fingerprint,
        "model": fingerprint([content_hash(folder, storage) for folder in folders]),
        "extractor": content_of(config.embed.extractor, storage),
    }
    if config.evaluate.teacher is not None:
        inputs["teacher"] = content_of(config.evaluate.teacher, storage)
    if config.evaluate.protocol != NO_PROTOCOL:
        inputs["scored"] = images[protocol(config.evaluate.protocol).split].fingerprint
    doubts = [*left_out(images), *check_splits(images, config.data.max_overlap_fraction)]
    notes = tuple(f"warning: {line}" for line in doubts)
    return Context(config, storage, machine, images, info, labels, _wanted(config, machine), inputs, notes)


def _generator_options(model: Model) -> dict[str, Any]:
    return {"vae": model.vae, "heads": model.heads, "frequency_shift": model.frequency_shift}


def content_of(network: str, storage: Directory) -> str:
    """What the answers of an extractor or a teacher depend on."""
    source = inspect_extractor(network)
    return content_hash(source, storage) if isinstance(source, Path) else source


def _supported(wanted: Numerics, machine: Machine) -> tuple[Numerics, list[str]]:
    """What of the recipe's arithmetic the device that will work can do; and a line for what it can't."""
    if wanted == Numerics():
        return wanted, []
    if not ray.is_initialized():  # a dry run: what this machine can do stands for what a cluster can
        return (
            supported_numerics(wanted)
            if machine.device == "cpu" or torch.cuda.is_available()
            else (wanted, [])
        )
    if machine.device == "cuda" and not ray.cluster_resources().get("GPU"):  # those to come are not asked for
        return wanted, []
    return ray.get(
        ray.remote(**machine.actor_resources, **DEFAULT_PLACEMENT)(supported_numerics).remote(wanted)
    )


def open_splits(places: Mapping[str, str], data: Data, seed: int, storage: Directory) -> dict[str, ImageSet]:
    """The sets at `places` ("train", and the split that is scored), of the same classes.

    With data.validation_split a part of the training images becomes "validation", whatever is scored.
    """
    shared = {"seed": seed, "max_bad_fraction": data.max_bad_fraction, "classes": data.classes}
    opened = {
        name: open_images(place, storage, name=f"data.{name}", **shared) for name, place in places.items()
    }
    for name, images in opened.items():
        if images.classes != opened["train"].classes:
            odd = sorted(set(images.classes) ^ set(opened["train"].classes))
            raise InputError(
                f"data.{name}: its classes differ from data.train's: {', '.join(map(repr, odd[:5]))}"
            )
    if data.validation_split:
        opened["train"], opened["validation"] = opened["train"].split(data.validation_split)
    return opened
