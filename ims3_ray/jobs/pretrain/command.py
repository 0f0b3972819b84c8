"""Train a generator and a feature extractor on images of your own.

    python jobs/pretrain.py --out my-model data.train=/data/my-images/train
    python jobs/pretrain.py --out my-model data.train=… image_size=64 --dry-run
    python jobs/distill.py model.path=my-model embed.extractor=my-model \\
        data.train=/data/my-images/train data.test=/data/my-images/test

Trains a VAE, a DiT and a classifier; the last command distils with them. The
folder's quality.html says whether they are good enough. A repeated command
resumes. --status shows the progress of every training. ims3 init suggests a
size.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from ims3_ray.config.load import load_settings, override_words, parse_overrides
from ims3_ray.config.pretrain import Pretrain
from ims3_ray.errors import InputError
from ims3_ray.jobs.next_steps import result_lines, shell_command
from ims3_ray.progress import print_line, spinner
from ims3_ray.storage.artifacts import open_storage
from ims3_ray.storage.directory import check_writable, open_directory

if TYPE_CHECKING:
    from .run import Pretraining


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", help="new folder for the model")
    queries = parser.add_mutually_exclusive_group()
    queries.add_argument("--dry-run", action="store_true", help="print the settings and each training's plan")
    queries.add_argument("--status", action="store_true", help="print the progress of every training")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="such as transformer.steps=20000")


def run(arguments: argparse.Namespace) -> None:
    config = load_settings(Pretrain, parse_overrides(arguments.overrides))
    is_query = arguments.dry_run or arguments.status
    out = Path() if is_query else _new_folder(arguments.out)
    data = config.data
    if data.train is None:
        raise InputError("data.train: is missing; give class folders or a Hugging Face data set")
    with spinner("imports"):  # heavy, and not needed to refuse bad input
        from ims3_ray.cluster.resources import connect, expect_gpu, find_machine, has_address
        from ims3_ray.data.classes import check_class_names
        from ims3_ray.data.named import with_root
        from ims3_ray.pipeline.inputs import check_storage_outside
        from ims3_ray.pipeline.prepare import open_splits

        from .rows import split_images
        from .run import Pretraining, check_network

    check_storage_outside(config.storage, data.train, data.classes, "data.train")
    with spinner("start"):
        if has_address():  # the cluster's nodes then decode the images
            connect()
        storage = open_storage(config.storage)
        places = {"train": with_root(data.train, data.root)}
        images = open_splits(places, data, config.seed, storage)["train"]
        check_class_names(images.classes)
        check_network(config, len(images.classes))
        split_images(config, images)
        if not is_query:
            check_writable(open_directory(str(out.parent)), f"--out: {out.parent}")
            connect(config.workers)

    for line in images.skipped("data.train"):
        print_line(f"warning: {line}")
    workers = expect_gpu(config.workers) if arguments.status else config.workers
    pretraining = Pretraining(config, images, storage, find_machine(workers, wait=not is_query))
    if is_query:
        print("\n".join(_plan(pretraining) if arguments.dry_run else pretraining.status()))
        return
    metrics, quality = pretraining.run(out)
    for name, value in metrics.items():
        print(f"  {name.replace('_', ' ')}: {value:.4g}")
    if quality:
        print("{0.headline}. {0.detail}".format(quality.claim()))
        if quality.problem:
            raise InputError(f"{quality.problem}; the model and quality.html are in {out}")
    distill = shell_command("distill", *override_words(distil_fields(config, out)))
    places = {"model": str(out)} | ({"quality": f"{out}/quality.html"} if quality else {})
    print("", *result_lines(places, {"distil": distill}), sep="\n")


def distil_fields(config: Pretrain, out: Path) -> Mapping[str, object]:
    """Return the fields of a run that distils with the models in `out`."""
    data = config.data
    fields = {"model.path": str(out), "embed.extractor": str(out), "storage": config.storage}
    named = data.model_dump(mode="json", exclude_defaults=True, exclude={"class_map"})
    fields |= {f"data.{name}": value for name, value in (named | {"mirror": data.mirror}).items()}
    has_validation = data.validation or data.validation_split
    if not data.test:
        fields["evaluate.protocol"] = "quick-val" if has_validation else "none"
    return fields if data.test or has_validation else fields | {"probe.protocol": "quick"}


def _plan(pretraining: "Pretraining") -> list[str]:
    pretraining.check_memory()
    settings = yaml.safe_dump(pretraining.config.model_dump(mode="json"), sort_keys=False)
    with spinner("first steps"):
        return [settings, *pretraining.status(pretraining.step_seconds())]


def _new_folder(out: str | None) -> Path:
    if out is None:
        raise InputError("--out: is missing; name a new folder for the model")
    if "://" in out:
        raise InputError(f"--out: {out} is a URI; name a local folder")
    folder = Path(out).absolute()
    if folder.exists():
        raise InputError(f"--out: {folder} exists; name a new folder")
    return folder
