"""Train a generator (VAE and DiT) and a feature extractor on images of your own.

python jobs/pretrain.py --out my-model data.train=/data/my-images image_size=32
python jobs/distill.py model.path=my-model embed.extractor=my-model/extractor data.train=/data/my-images …
"""

import argparse
from pathlib import Path

from ims3_ray.cluster.machine import connect, find_machine
from ims3_ray.config.load import load_settings, parse_overrides
from ims3_ray.config.pretrain import Pretrain
from ims3_ray.data.images import open_images
from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import open_storage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder for the model")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="such as transformer.steps=20000")


def run(arguments: argparse.Namespace) -> None:
    config = load_settings(Pretrain, parse_overrides(arguments.overrides))
    out = Path(arguments.out).absolute()
    if out.exists():
        raise InputError(f"--out: {out} exists; name a new folder")
    data = config.data
    if data.train is None:
        raise InputError(
            "data.train: no images to train on; give one folder of images a class, or a Hugging Face dataset"
        )
    storage = open_storage(config.storage)
    shared = {"seed": config.seed, "max_bad_fraction": data.max_bad_fraction, "classes": data.classes}
    images = open_images(data.train, storage, name="data.train", **shared)
    connect()
    from .run import Pretraining  # heavy: torch and diffusers, not needed to refuse bad input

    figures = Pretraining(config, images, storage, find_machine(config.workers)).run(out)
    print(f"model: {out}")
    for name, value in figures.items():
        print(f"  {name.replace('_', ' ')}: {value:.4g}")
