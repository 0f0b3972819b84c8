"""Write a recipe for images of your own.

    python jobs/init.py --data /data/flowers
    python jobs/init.py --data /data/flowers/train --test /data/flowers/val
    python jobs/init.py --data flowers.parquet --out my-flowers.yaml

Decodes every image once and caches the result in the storage, as a run does.
The recipe gives the reason for each value and the next two commands. If the
folder contains train and test (or val), both are used.
"""

import argparse
import json
import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from ims3_ray.config.base import canonical_location
from ims3_ray.config.data import Data
from ims3_ray.config.evaluation import Evaluate
from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.config.sections import PAPER_BATCH
from ims3_ray.config.settings import Config
from ims3_ray.data.images import ImageSet, open_images
from ims3_ray.data.sources import Rows, find_set
from ims3_ray.data.transforms import decode
from ims3_ray.display import escape_unprintable, first_few, one_line
from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import Directory, open_directory, open_storage

SIDES = (32, 64, 128, 256)  # image sizes of generators, in pixels
MAX_ENLARGEMENT = 1.2  # of the median shorter side
PUBLISHED_SIDE = 256  # of the checkpoint on the hub
MAX_QUICK_SIDE = 64  # for protocols of 32 pixels
TRAIN, TESTS = "train", ("test", "val", "validation", "valid")  # folders of class folders
HUB = "facebook/DiT-XL-2-256"
INSPECTED = 64  # images, for size and colours
SPLIT = 0.1  # of each class
WNID = re.compile(r"n\d{8}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--data",
        required=True,
        metavar="DIR",
        help="class folders or a Hugging Face data set, as path or URI",
    )
    add("--test", metavar="DIR", help="images to score on")
    add("--out", metavar="FILE.yaml", help="new file (default: the data's name)")
    add("overrides", nargs="*", metavar="storage=DIR", help="cache of the inspection (default ./runs)")


def run(arguments: argparse.Namespace) -> None:
    overrides = parse_overrides(arguments.overrides)
    if unknown := set(overrides) - {"storage"}:
        raise InputError(f"{', '.join(sorted(unknown))}: not valid here; edit the recipe instead")
    train, test = _locations(arguments.data, arguments.test)
    name = re.sub(r"[^\w.-]+", "-", Data(train=train).name).strip("-.") or "my-images"
    out = Path(arguments.out or f"{name}.yaml")
    _check_out(out)
    storage = open_storage(load_config("digits", overrides).storage)
    words = [f"{field}={value}" for field, value in overrides.items()]
    draft = Draft(name, out, _inspect(train, test, storage), words)
    text = "\n".join(draft.lines()) + "\n"
    try:
        with out.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"--out: {out} can't be written ({reason}); name another file") from error
    print(f"recipe  {out}: {draft.summary}")
    print("\n".join(f"next    {command}" for command in draft.commands))


def _check_out(out: Path) -> None:
    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"--out: {out} is not a recipe's name; it must end with .yaml")
    if out.exists():
        raise InputError(f"--out: {out} exists; name a new file with --out FILE.yaml")


def _locations(data: str, test: str | None) -> tuple[str, str | None]:
    """Returns the locations of training and test images, as absolute paths if local."""
    train = canonical_location(data) or data
    if test is not None or train.startswith("package://"):
        return train, canonical_location(test)
    directory = open_directory(train)
    folders = [name for name in directory.folders() if not name.startswith(".")]
    if TRAIN in folders and set(folders) <= {TRAIN, *TESTS}:
        tests = [f"{train}/{name}" for name in TESTS if name in folders]
        return f"{train}/{TRAIN}", next(iter(tests), None)
    try:
        rows = find_set(directory, "data.test", None)
    except InputError:  # no such split
        return train, None
    is_split = isinstance(rows, Rows) and rows != find_set(directory, "data.train", None)
    return train, train if is_split else None


@dataclass(frozen=True)
class Inspection:
    """Properties of a data set."""

    train: str
    test: str | None
    images: ImageSet
    sizes: list[tuple[int, int]]  # of INSPECTED images
    is_grey: bool
    split: float  # share of each class that is held out, if there are no test images
    tuned: list[int]  # training images per class

    @property
    def side(self) -> int:
        """Image size for a generator, in pixels."""
        largest = MAX_ENLARGEMENT * median(map(min, self.sizes))
        return max([SIDES[0], *(side for side in SIDES if side <= largest)])


def _inspect(train: str, test: str | None, storage: Directory) -> Inspection:
    """Raises InputError if a run would refuse the images."""
    settings = {"seed": Config().seed, "max_bad_fraction": Data().max_bad_fraction}
    images = open_images(train, storage, name="data.train", **settings)
    if (
        test
        and (scored := open_images(test, storage, name="data.test", **settings)).classes != images.classes
    ):
        different = first_few(sorted(set(scored.classes) ^ set(images.classes)))
        raise InputError(
            f"--test: its classes differ from those of --data: {different}; give the same folders"
        )
    rows = range(0, len(images), max(1, len(images) // INSPECTED))
    decoded = [decode(images.directory.read(images.paths[row])) for row in rows]
    is_grey = all(np.ptp(np.asarray(image), axis=2).max() == 0 for image in decoded)
    split, tuned = 0.0 if test else SPLIT, images.counts()
    try:
        tuned = images.split(SPLIT)[0].counts() if split else tuned
    except InputError:  # a class would have no image left
        split = 0.0
    sizes = [image.size for image in decoded]
    return Inspection(train, test, images, sizes, is_grey, split, tuned.tolist())


@dataclass(frozen=True)
class Draft:
    """A recipe for inspected images. `storage` has the override that names the storage, if any."""

    name: str
    path: Path
    data: Inspection
    storage: list[str]

    @property
    def is_published(self) -> bool:
        """Whether to use the published checkpoint instead of a generator trained on the images."""
        return self.data.side == PUBLISHED_SIDE

    @property
    def model(self) -> str:
        return HUB if self.is_published else str(self.path.absolute().with_name(f"{self.name}-model"))

    @property
    def commands(self) -> list[str]:
        """The next commands to run."""
        data, distil = self.data, ["python", "jobs/distill.py", "--recipe", str(self.path), *self.storage]
        if self.is_published:
            return [shlex.join([*distil, "--dry-run"]), shlex.join(distil)]
        words = [f"data.train={data.train}", f"image_size={data.side}"]
        words += [f"data.validation_split={data.split}"] if data.split else []
        train = ["python", "jobs/pretrain.py", "--out", self.model, *words, *self.storage]
        return [shlex.join(train), shlex.join(distil)]

    @property
    def summary(self) -> str:
        images, counts = self.data.images, self.data.images.counts()
        per_class = (
            f"{counts.min():,}" if counts.min() == counts.max() else f"{counts.min():,} to {counts.max():,}"
        )
        return f"{len(images):,} images of {len(images.classes):,} classes, {per_class} per class"

    def lines(self) -> Iterator[str]:
        """Yields the YAML."""
        smallest = min(self.data.tuned)
        yield from _comment(
            f"{self.name}: {self.summary}. Written by ims3 init; change any value. python jobs/distill.py "
            "--help lists all fields. Next:"
        )
        yield from (f"#   {command}" for command in self.commands)
        yield from self._image_comments()
        yield f"ipc: {max(1, min(Config().ipc, smallest // 2))}  # images per class of the distilled set"
        yield from self._data_section()
        yield from self._model_sections()
        yield from self._evaluate_section(smallest)

    def _image_comments(self) -> Iterator[str]:
        data = self.data
        counts = zip(data.images.classes, data.images.counts(), strict=True)
        yield from _comment(
            f"Classes: {first_few((f'{one_line(name)} {count:,}' for name, count in counts), 20, str)}."
        )
        ordered = sorted(data.sizes)
        ends = " to ".join(dict.fromkeys("×".join(map(str, size)) for size in (ordered[0], ordered[-1])))
        grey = "; all are grey, and decoded to three equal channels" if data.is_grey else ""
        yield from _comment(f"Sizes: {ends} pixels in a sample of {len(data.sizes)} images{grey}.")
        if data.images.bad:
            bad = first_few(map(escape_unprintable, data.images.bad), 3, str)
            yield from _comment(f"Skipped, since they are not readable: {bad}.")
        yield "# Time, memory and accuracy: not yet measured; --dry-run estimates the first two."

    def _data_section(self) -> Iterator[str]:
        data = self.data
        yield "data:"
        yield f"  train: {json.dumps(data.train)}"
        if data.test:
            yield f"  test: {json.dumps(data.test)}"
        elif data.split:
            yield f"  validation_split: {data.split}  # no test images: score on a tenth of each class"
        mirror = json.dumps(not data.is_grey)
        yield f"  mirror: {mirror}  # false if mirroring changes the meaning, as of letters"
        if self.is_published and not all(map(WNID.fullmatch, data.images.classes)):
            yield "  class_map: new  # the checkpoint has ImageNet's classes; train embeddings for yours"
        yield "  # licence: cc-by-4.0  # of the images, for the card of the distilled set"

    def _model_sections(self) -> Iterator[str]:
        yield "model:"
        if self.is_published:
            yield f"  path: {self.model}  # DiT-XL/2 at 256 pixels, downloaded; needs a GPU"
            yield "  frequency_shift: 0"
            yield "  licence: cc-by-nc-4.0"
            yield "embed:"
            yield "  extractor: timm:resnet18.tv_in1k"
            return
        yield f"  path: {json.dumps(self.model)}  # written by the first command, at {self.data.side} pixels"
        yield "embed:"
        yield f"  extractor: {json.dumps(self.model)}"
        yield "sample:"
        yield "  guidance_scale: 1.5"
        yield "  guidance_channels: 4"
        if (total := sum(self.data.tuned)) < PAPER_BATCH:
            yield "finetune:"
            yield f"  batch_size: 2  # there are only {total} images"

    def _evaluate_section(self, smallest: int) -> Iterator[str]:
        data, is_quick = self.data, self.data.side <= MAX_QUICK_SIDE
        protocol = "quick" if is_quick else "minimax"
        yield "evaluate:"
        if smallest < 2 or not (data.test or data.split):
            yield "  protocol: none  # too few images to hold out; use quick with test images"
            return
        size = "32 pixels, ConvNet-3" if is_quick else "224 pixels, ResNetAP-10: needs a GPU"
        yield f"  protocol: {protocol}{'-val' if data.split else ''}  # {size}"
        yield "  # networks: [convnet3, resnet8]  # default: the protocol's"
        if not is_quick:
            yield "  full: false  # true also trains on all real images, for hundreds of epochs"
        if smallest - 1 < Evaluate().neighbours:
            yield f"  neighbours: {smallest - 1}  # the smallest class has {smallest} training images"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
