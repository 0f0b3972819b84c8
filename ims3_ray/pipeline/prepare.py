"""Prepare runs: check inputs, models, images and numbers before any heavy work, and build their contexts."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch._dynamo  # noqa: F401 the meta device imports it later, which fails without a working directory

from ims3_ray.cluster.resources import (
    DEFAULT_PLACEMENT,
    Machine,
    connect,
    find_machine,
    is_present,
    live_nodes,
)
from ims3_ray.config.base import canonical_location
from ims3_ray.config.data import Data
from ims3_ray.config.sections import Model
from ims3_ray.config.settings import Config, Evaluating
from ims3_ray.data.classes import check_class_names, class_map
from ims3_ray.data.images import ImageSet, open_images
from ims3_ray.data.loader import scale_images
from ims3_ray.errors import InputError
from ims3_ray.evaluation.protocols import NO_PROTOCOL, get_protocol
from ims3_ray.models.device import Numerics, supported_numerics
from ims3_ray.models.extractor import inspect_extractor, load_extractor
from ims3_ray.models.files import pin_revision
from ims3_ray.models.generator import inspect_generator
from ims3_ray.stages.context import Context, Inputs, real_size
from ims3_ray.storage.artifacts import Directory, fingerprint, open_storage
from ims3_ray.storage.checksums import content_hash

from .checks import check_environments, check_node_disks, check_numbers, idle_gpu_notes
from .inputs import check_run, check_splits, check_storage, image_places, used_weights
from .steps import plan

Kind = TypeVar("Kind", Config, Evaluating)


def prepare_runs(configs: Sequence[Config], print_note: Callable[[str], None]) -> list[Context]:
    """Connect to the cluster and return the contexts of runs of one recipe. Notes go to `print_note`.

    Raises InputError for every user mistake, before a cluster is started if possible.
    """
    first = configs[0]
    check_run(first)
    for model in {str(config.model): config.model for config in configs if config.source != "real"}.values():
        inspect_generator(pin_revision(model.path), **_generator_options(model))
    connect(first.workers)
    check_storage(first, len(live_nodes()))
    # slow checks and those that may fail come before waiting for GPUs, which are billed from then on
    contexts = prepare_all(configs, find_machine(first.workers, wait=False))
    contexts = _on_machine(contexts, find_machine(first.workers))
    for note in contexts[0].notes:
        print_note(note)
    steps = [(c, step) for c in contexts for step in plan(c)]
    for line in check_environments(contexts[0].machine, [step for _, step in steps]):
        print_note(line)
    missing = [(c, step.stage) for c, step in steps if not step.manifest]
    for line in dict.fromkeys(line for context, stage in missing for line in idle_gpu_notes(context, stage)):
        print_note(line)
    if {stage.name for _, stage in missing} & {"embed", "sample"}:
        # fail now, not after hours of fine-tuning, if the weights cannot be loaded
        load_extractor(contexts[0].config.embed.extractor)
    check_node_disks(missing)
    return contexts


def prepare(config: Config, machine: Machine) -> Context:
    """The context of a run. Raises InputError for every user mistake."""
    return _on_machine(prepare_all([config], machine), machine)[0]


def _on_machine(contexts: Sequence[Context], machine: Machine) -> list[Context]:
    """The contexts with the numerics that the devices of `machine` support; its nodes must be up."""
    support = functools.cache(lambda numerics: _supported_numerics(numerics, machine))
    placed: list[Context] = []
    for context in contexts:
        numerics, notes = support(_recipe_numerics(context.config, machine))
        placed.append(replace(context, machine=machine, numerics=numerics, notes=(*notes, *context.notes)))
    return placed


def _recipe_numerics(config: Config, machine: Machine) -> Numerics:
    device, model = machine.device, config.model
    is_gpu = device == "cuda"
    return Numerics(
        device, model.precision.on(device), is_gpu and model.compile, is_gpu and model.cuda_graphs
    )


def prepare_all(configs: Iterable[Config], machine: Machine) -> list[Context]:
    """Contexts of runs of one recipe, with the numerics of the recipe. Shared inputs are read once.

    They depend on the machine's device kind, and on its number of devices if finetune.batch_size=auto.
    """
    contexts_of: dict[str, Context] = {}
    contexts: list[Context] = []
    pin_once = functools.cache(pin_revision)
    for config in configs:
        config, note = _resolve_batch_size(pinned(config, pin_once), machine)
        sections = [section.model_dump(mode="json") for section in (config.data, config.model, config.embed)]
        key = fingerprint([sections, config.seed, config.evaluate.protocol, config.evaluate.teacher])
        if config.source == "real":
            key = fingerprint([key, real_size(config)])
        if key not in contexts_of:
            contexts_of[key] = _open(config, machine)
        context = contexts_of[key]
        contexts.append(replace(context, config=config, notes=(*context.notes, *note)))
        check_numbers(contexts[-1])
    return contexts


def _resolve_batch_size(config: Config, machine: Machine) -> tuple[Config, list[str]]:
    """The config with finetune.batch_size=auto resolved, and a note with the resolved fields."""
    if config.finetune.batch_size != "auto":
        return config, []
    devices = machine.workers.train_workers or machine.devices
    scaled = config.finetune.scaled_to(devices)
    names = ("batch_size", "micro_batches", "lr", "ema_decay", "steps")
    fields = " ".join(
        f"finetune.{name}={getattr(scaled, name)}" for name in names if getattr(scaled, name) is not None
    )
    line = f"finetune.batch_size=auto: for {devices} devices; elsewhere, reproduce with: {fields}"
    return config.model_copy(update={"finetune": scaled}), [line] if config.is_tuned else []


def pinned(config: Kind, pin: Callable[[str], str] = pin_revision) -> Kind:
    """`config` with hub ids pinned to their current commits, and absolute paths.

    Workers, whose working directory may differ, then load what the driver hashes.
    """
    for name, field in used_weights(config):
        section = getattr(config, name, None)
        if section and (location := getattr(section, field)):
            config = config.model_copy(
                update={name: section.model_copy(update={field: canonical_location(pin(location))})}
            )
    return config


def _open(config: Config, machine: Machine) -> Context:
    places, model, info = image_places(config), config.model, None
    if config.source == "generator":
        info = inspect_generator(model.path, **_generator_options(model))
    for network in (config.embed.extractor, config.evaluate.teacher):
        if network is not None:
            inspect_extractor(network)
    storage = open_storage(config.storage)
    images = open_splits(places, config.data, config.seed, storage)
    warnings = [line for name, each in images.items() for line in each.skipped(f"data.{name}")]
    warnings += check_splits(images, config.data.max_overlap_fraction)
    check_class_names(images["train"].classes)
    labels, weights = [], config.source
    if info:
        names = tuple(info.id2label) if info.id2label else None
        labels = class_map(images["train"].classes, names, info.config.num_classes, config.data.class_map)
        folders = [Path(info.path)] if model.vae is None else [Path(info.path), Path(info.vae_path)]
        weights = fingerprint([content_hash(folder, storage) for folder in folders])
    else:
        limit = config.data.max_bad_fraction
        images["train"] = scale_images(images["train"], real_size(config), storage, limit)
    inputs: Inputs = {
        "images": images["train"].fingerprint,
        "model": weights,
        "extractor": content_of(config.embed.extractor, storage),
    }
    if config.evaluate.teacher is not None:
        inputs["teacher"] = content_of(config.evaluate.teacher, storage)
    if config.evaluate.protocol != NO_PROTOCOL:
        inputs["scored"] = images[get_protocol(config.evaluate.protocol).split].fingerprint
    if info is None and config.evaluate.protocol != NO_PROTOCOL:
        size, scored_size = real_size(config), get_protocol(config.evaluate.protocol).image_size
        if size < scored_size:
            warnings.append(
                f"image_size: {size} is below the protocol's {scored_size}: the full set, baselines and "
                "teacher have such images too"
            )
    notes = tuple(f"warning: {line}" for line in warnings)
    return Context(
        config, storage, machine, images, info, labels, _recipe_numerics(config, machine), inputs, notes
    )


def _generator_options(model: Model) -> dict[str, Any]:
    return {"vae": model.vae, "heads": model.heads, "frequency_shift": model.frequency_shift}


def content_of(network: str, storage: Directory) -> str:
    """Hash of the weights of an extractor or a teacher, or its timm name."""
    source = inspect_extractor(network)
    return content_hash(source, storage) if isinstance(source, Path) else source


def _supported_numerics(wanted: Numerics, machine: Machine) -> tuple[Numerics, list[str]]:
    """The numerics that the workers' device supports, and a note for each setting that it does not."""
    if wanted == Numerics() or not is_present(machine):
        return wanted, []
    if not ray.is_initialized():  # a dry run: assume that the cluster supports the same as this machine
        return supported_numerics(wanted)
    check = ray.remote(**machine.actor_resources, **DEFAULT_PLACEMENT)(supported_numerics)
    return ray.get(check.remote(wanted))


def open_splits(places: Mapping[str, str], data: Data, seed: int, storage: Directory) -> dict[str, ImageSet]:
    """Open the image sets at `places` ("train" and the scored split). Raises InputError if classes differ.

    With data.validation_split, a part of the training images becomes "validation" for every protocol.
    """
    shared = {"seed": seed, "max_bad_fraction": data.max_bad_fraction, "classes": data.classes}
    sets = {
        name: open_images(place, storage, name=f"data.{name}", **shared) for name, place in places.items()
    }
    for name, images in sets.items():
        if images.classes != sets["train"].classes:
            difference = sorted(set(images.classes) ^ set(sets["train"].classes))
            raise InputError(
                f"data.{name}: its classes differ from data.train's: {', '.join(map(repr, difference[:5]))}"
            )
    if data.validation_split:
        sets["train"], sets["validation"] = sets["train"].split(data.validation_split)
    return sets
