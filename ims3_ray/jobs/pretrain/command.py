"""Train a generator and a feature extractor on images of your own.

    python jobs/pretrain.py --out my-model data.train=/data/my-images/train
    python jobs/pretrain.py --out my-model data.train=… image_size=64 --dry-run
    python jobs/distill.py model.path=my-model embed.extractor=my-model \\
        data.train=/data/my-images/train data.test=/data/my-images/test

A VAE, a DiT and a classifier are trained; the last command distils with them.
The same command goes on where it was stopped; --status says how far every
training has come. ims3 init suggests the size.
"""

import argparse
from pathlib import Path

import yaml

from ims3_ray.config.load import load_settings, parse_overrides
from ims3_ray.config.settings import Pretrain
from ims3_ray.errors import InputError
from ims3_ray.jobs.next_steps import result_lines, shell_command
from ims3_ray.progress import spinner
from ims3_ray.storage.artifacts import open_storage
from ims3_ray.storage.directory import check_writable, open_directory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", help="a new folder for the model")
    parser.add_argument("--dry-run", action="store_true", help="show the settings and what would be trained")
    parser.add_argument("--status", action="store_true", help="show how far every training has come")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="such as transformer.steps=20000")


def run(arguments: argparse.Namespace) -> None:
    config = load_settings(Pretrain, parse_overrides(arguments.overrides))
    only_asks = arguments.dry_run or arguments.status
    out = Path() if only_asks else _new_folder(arguments.out)
    data = config.data
    if data.train is None:
        raise InputError(
            "data.train: no images to train on; give one folder of images a class, or a Hugging Face dataset"
        )
    with spinner("imports"):  # heavy: Ray, torch and diffusers, not needed to refuse bad input
        from ims3_ray.cluster.resources import connect, find_machine, has_address
        from ims3_ray.data.images import open_images
        from ims3_ray.data.named import below, is_named
        from ims3_ray.pipeline.inputs import check_storage_outside

        from .run import Pretraining, check_network

    if "://" not in data.train and not is_named(data.train):
        check_storage_outside(config.storage, data.train, data.classes, "data.train")
    with spinner("start"):
        if has_address():  # whose nodes look at the images
            connect()
        storage = open_storage(config.storage)
        shared = {"seed": config.seed, "max_bad_fraction": data.max_bad_fraction, "classes": data.classes}
        images = open_images(below(data.train, data.root), storage, name="data.train", **shared)
        if data.validation_split:
            images, _ = images.split(data.validation_split)
        check_network(config, len(images.classes))
        if not only_asks:
            check_writable(open_directory(str(out.parent)), f"--out: {out.parent}")
            connect()

    pretraining = Pretraining(config, images, storage, find_machine(config.workers, wait=not only_asks))
    if only_asks:
        if arguments.dry_run:
            print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        print("\n".join(pretraining.states()))
        return
    figures = pretraining.run(out)
    for name, value in figures.items():
        print(f"  {name.replace('_', ' ')}: {value:.4g}")
    scored = f"data.test={data.test}" if data.test else "evaluate.protocol=none"
    places = {"model.path": out, "embed.extractor": out, "data.train": data.train, "storage": config.storage}
    distill = shell_command("distill", *(f"{field}={place}" for field, place in places.items()), scored)
    print("", *result_lines({"model": str(out)}, {"distil": distill}), sep="\n")


def _new_folder(out: str | None) -> Path:
    if out is None:
        raise InputError("--out: is missing; name a new folder for the model")
    if "://" in out:
        raise InputError(f"--out: {out} is a URI; name a local folder")
    folder = Path(out).absolute()
    if folder.exists():
        raise InputError(f"--out: {folder} exists; name a new folder")
    return folder
