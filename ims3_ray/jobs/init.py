"""Write a recipe for images of your own.

    python jobs/init.py --data /data/flowers
    python jobs/init.py --data /data/flowers/train --test /data/flowers/val
    python jobs/init.py --data flowers.parquet --out my-flowers.yaml
    python jobs/init.py --data /data/flowers --model own --image-size 32

Decodes every image once and caches the result in the storage, as a run does.
The recipe gives the reason for each value. If the folder contains train and
test (or val), both are used. Without a GPU it needs no generator (--model
none). Printed times are estimates, from short measurements on this machine.
"""

import argparse
import re
from pathlib import Path

from ims3_ray.config.allocation import granted_memory
from ims3_ray.config.data import Data
from ims3_ray.config.load import load_config, override_words, storage_override
from ims3_ray.config.settings import Workers
from ims3_ray.data.images import split_locations
from ims3_ray.display import format_bytes
from ims3_ray.errors import InputError
from ims3_ray.models.files import is_hub_id
from ims3_ray.pipeline.inputs import check_storage_outside
from ims3_ray.progress import spinner
from ims3_ray.storage.artifacts import open_storage

from .doctor import OK, check_gpus, check_hub
from .recipe_draft import HUB, SIDES, Draft, inspect_images

OWN_SIDES, HOURS = SIDES[:-1], 8.0  # of generators that are trained here; longest training
PUBLISHED_SIDE = 256  # of the checkpoint on the hub


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="class folders or a Hugging Face data set, path or URI")
    add("--test", metavar="DIR", help="images to score on")
    add("--out", metavar="FILE.yaml", help="new file (default: the data's name)")
    add("--model", metavar="none|own|PATH", help="real images, an own generator, or a folder or hub id")
    add("--image-size", type=int, metavar="N", help="pixels per side (default: by the images and the time)")
    add("--hours", type=float, default=HOURS, help=f"for training an own generator (default {HOURS})")
    add("overrides", nargs="*", metavar="storage=DIR", help="cache of the inspection (default ./runs)")


def run(arguments: argparse.Namespace) -> None:
    overrides = storage_override(arguments.overrides)
    train, test = split_locations(arguments.data, arguments.test)
    check_storage_outside(load_config("digits", overrides).storage, train, None, "--data")
    name = re.sub(r"[^\w.-]+", "-", Data(train=train).name).strip("-.") or "my-images"
    out = Path(arguments.out or f"{name}.yaml")
    _check_out(out)
    storage = open_storage(load_config("digits", overrides).storage)
    data, gpu = inspect_images(train, test, storage), check_gpus()
    given = arguments.model or "none"
    if given not in ("none", "own") and not Path(given).exists() and not is_hub_id(given):
        raise InputError(f"--model: {given} is no folder and no hub id; or give none or own")
    with spinner("estimate"):
        from ims3_ray.cluster.resources import find_machine  # heavy; bad input is reported before

        from .distill.estimate import largest_pretraining
        from .pretrain.rows import MIN_IMAGES

        machine = find_machine(Workers(), wait=False)
        has_hub = machine.on_gpus and data.side == PUBLISHED_SIDE and check_hub().state == OK
        smallest = min(data.tuned)
        trains = smallest >= MIN_IMAGES
        model = arguments.model or (HUB if has_hub else "own" if machine.on_gpus and trains else "none")
        if model == "own" and not trains:
            raise InputError(
                f"--data: the smallest class has {smallest} images to train on, a generator needs "
                f"{MIN_IMAGES}; add some, or give --model none"
            )
        chosen = [arguments.image_size] if model == "own" and arguments.image_size else None
        sizes = chosen or [side for side in OWN_SIDES if side <= data.side]
        own = largest_pretraining(sizes, arguments.hours, data.tuned, machine)
        size = arguments.image_size or (own[0] if model == "own" else data.size_for(model))
        draft = Draft(name, out, data, override_words(overrides), model, size, own[0])
        text = "\n".join(draft.lines()) + "\n"
        time = draft.time(text, overrides)
    try:
        with out.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"--out: {out} can't be written ({reason}); name another file") from error
    print(f"recipe  {out}: {draft.summary}")
    print(f"machine {gpu.detail}; {format_bytes(granted_memory())} of memory")
    hours = f"about {own[1]:.1f} h"
    for command, duration in zip(draft.commands, [hours, time][1 - draft.is_own :], strict=True):
        print(f"next    {command}  # {duration}")
    if trains:
        print(f"or      {draft.alternative}  # {'minutes' if draft.is_own else f'generator: {hours}'}")


def _check_out(out: Path) -> None:
    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"--out: {out} is not a recipe's name; it must end with .yaml")
    if out.exists():
        raise InputError(f"--out: {out} exists; name a new file with --out FILE.yaml")
