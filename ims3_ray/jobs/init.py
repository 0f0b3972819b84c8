"""Begin a recipe for images of your own, by a look at them.

    python jobs/init.py --data /data/flowers
    python jobs/init.py --data /data/flowers/train --test /data/flowers/val
    python jobs/init.py --data flowers.parquet --out my-flowers.yaml

Every image is looked at once, as a run would, and what was seen is kept in the
storage. The YAML that is written says why each value was chosen, and which two
commands come next. Of a folder that holds train and test (or val), both are
taken.
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

SIDES = (32, 64, 128, 256)  # pixels that a generator may draw
ENLARGED = 1.2  # at most, of the middle image's shorter side
PUBLISHED = 256  # pixels of the checkpoints that there are to download
QUICK = 64  # pixels up to which a protocol of 32 says something
TRAIN, TESTS = "train", ("test", "val", "validation", "valid")  # folders of class folders
HUB = "facebook/DiT-XL-2-256"
LOOKED_AT = 64  # images decoded for their size and colours
SPLIT = 0.1  # of each class
WNID = re.compile(r"n\d{8}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--data",
        required=True,
        metavar="DIR",
        help="class folders, or a Hugging Face data set on disk; URIs too",
    )
    add("--test", metavar="DIR", help="images to score on, given likewise")
    add("--out", metavar="FILE.yaml", help="a new file (default: the data's name)")
    add("overrides", nargs="*", metavar="storage=DIR", help="what was seen is kept there (default ./runs)")


def run(arguments: argparse.Namespace) -> None:
    overrides = parse_overrides(arguments.overrides)
    if unknown := set(overrides) - {"storage"}:
        raise InputError(f"{', '.join(sorted(unknown))}: not known here; the recipe that is written takes it")
    train, test = _places(arguments.data, arguments.test)
    name = re.sub(r"[^\w.-]+", "-", Data(train=train).name).strip("-.") or "my-images"
    out = Path(arguments.out or f"{name}.yaml")
    _refuse(out)
    storage = open_storage(load_config("digits", overrides).storage)
    words = [f"{field}={value}" for field, value in overrides.items()]
    suggested = Recipe(name, out, _look(train, test, storage), words)
    text = "\n".join(suggested.lines()) + "\n"
    try:
        with out.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"--out: {out} can't be written ({why}); name another") from error
    print(f"recipe  {out}: {suggested.summary}")
    print("\n".join(f"next    {command}" for command in suggested.commands))


def _refuse(out: Path) -> None:
    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"--out: {out} is no name of a recipe; end it with .yaml")
    if out.exists():
        raise InputError(f"--out: {out} exists; name a new file with --out FILE.yaml")


def _places(data: str, test: str | None) -> tuple[str, str | None]:
    """Where training and test images lie, as a recipe names them: wherever a run is started."""
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
class Look:
    """What was seen of a data set."""

    train: str
    test: str | None
    images: ImageSet
    sizes: list[tuple[int, int]]  # of some images
    is_grey: bool
    split: float  # share of each class that is held out, where no images to score on are given
    tuned: list[int]  # images of each class that are left to train on

    @property
    def side(self) -> int:
        """Pixels a side that a generator should draw."""
        shorter = ENLARGED * median(map(min, self.sizes))
        return max([SIDES[0], *(side for side in SIDES if side <= shorter)])


def _look(train: str, test: str | None, storage: Directory) -> Look:
    """InputError where a run would refuse the images."""
    checked = {"seed": Config().seed, "max_bad_fraction": Data().max_bad_fraction}
    images = open_images(train, storage, name="data.train", **checked)
    if test and (scored := open_images(test, storage, name="data.test", **checked)).classes != images.classes:
        odd = first_few(sorted(set(scored.classes) ^ set(images.classes)))
        raise InputError(f"--test: its classes differ from those of --data: {odd}; give the same folders")
    rows = range(0, len(images), max(1, len(images) // LOOKED_AT))
    looked = [decode(images.directory.read(images.paths[row])) for row in rows]
    is_grey = all(np.ptp(np.asarray(image), axis=2).max() == 0 for image in looked)
    split, tuned = 0.0 if test else SPLIT, images.counts()
    try:
        tuned = images.split(SPLIT)[0].counts() if split else tuned
    except InputError:  # a class would have nothing left
        split = 0.0
    sizes = [image.size for image in looked]
    return Look(train, test, images, sizes, is_grey, split, tuned.tolist())


@dataclass(frozen=True)
class Recipe:
    """What is suggested for images that were looked at; `storage` are the words that name it."""

    name: str
    path: Path
    look: Look
    storage: list[str]

    @property
    def is_published(self) -> bool:
        """Whether a checkpoint to download draws such images; else a generator is trained on them."""
        return self.look.side == PUBLISHED

    @property
    def model(self) -> str:
        return HUB if self.is_published else str(self.path.absolute().with_name(f"{self.name}-model"))

    @property
    def commands(self) -> list[str]:
        """What to run next."""
        look, distil = self.look, ["python", "jobs/distill.py", "--recipe", str(self.path), *self.storage]
        if self.is_published:
            return [shlex.join([*distil, "--dry-run"]), shlex.join(distil)]
        words = [f"data.train={look.train}", f"image_size={look.side}"]
        words += [f"data.validation_split={look.split}"] if look.split else []
        train = ["python", "jobs/pretrain.py", "--out", self.model, *words, *self.storage]
        return [shlex.join(train), shlex.join(distil)]

    @property
    def summary(self) -> str:
        images = self.look.images
        counts = images.counts()
        each = str(counts.min()) if counts.min() == counts.max() else f"{counts.min():,} to {counts.max():,}"
        return f"{len(images):,} images of {len(images.classes):,} classes, {each} each"

    def lines(self) -> Iterator[str]:
        """The YAML."""
        least = min(self.look.tuned)
        yield from _comment(
            f"{self.name}: {self.summary}. Begun by ims3 init from a look at the images: every value may be "
            "changed; python jobs/distill.py --help lists all fields. Next:"
        )
        yield from (f"#   {command}" for command in self.commands)
        yield from self._about_the_images()
        yield f"ipc: {max(1, min(Config().ipc, least // 2))}  # images a class that are made"
        yield from self._data()
        yield from self._model()
        yield from self._evaluation(least)

    def _about_the_images(self) -> Iterator[str]:
        look = self.look
        counts = zip(look.images.classes, look.images.counts(), strict=True)
        yield from _comment(
            f"Classes: {first_few((f'{one_line(name)} {count:,}' for name, count in counts), 20, str)}."
        )
        ordered = sorted(look.sizes)
        ends = " to ".join(dict.fromkeys("×".join(map(str, size)) for size in (ordered[0], ordered[-1])))
        grey = ", all grey, which are read as colours of equal parts" if look.is_grey else ""
        yield from _comment(f"Sizes: {ends} pixels, of {len(look.sizes)} images looked at{grey}.")
        if look.images.bad:
            bad = first_few(map(escape_unprintable, look.images.bad), 3, str)
            yield from _comment(f"Left out, since they can't be read: {bad}.")
        yield "# Time, memory and accuracy: not yet measured; --dry-run estimates the first two."

    def _data(self) -> Iterator[str]:
        look = self.look
        yield "data:"
        yield f"  train: {json.dumps(look.train)}"
        if look.test:
            yield f"  test: {json.dumps(look.test)}"
        elif look.split:
            yield f"  validation_split: {look.split}  # no test images: a tenth of each class is scored on"
        mirror = json.dumps(not look.is_grey)
        yield f"  mirror: {mirror}  # false where a mirror image is another thing, as of letters"
        if self.is_published and not all(map(WNID.fullmatch, look.images.classes)):
            yield "  class_map: new  # the checkpoint's classes are ImageNet's; rows for these are trained"
        yield "  # licence: cc-by-4.0  # of the images, for the card of what is made"

    def _model(self) -> Iterator[str]:
        yield "model:"
        if self.is_published:
            yield f"  path: {self.model}  # DiT-XL/2 at 256 pixels, downloaded; wants a GPU"
            yield "  frequency_shift: 0"
            yield "  licence: cc-by-nc-4.0"
            yield "embed:"
            yield "  extractor: timm:resnet18.tv_in1k"
            return
        yield f"  path: {json.dumps(self.model)}  # made by the first command, at {self.look.side} pixels"
        yield "embed:"
        yield f"  extractor: {json.dumps(self.model)}"
        yield "sample:"
        yield "  guidance_scale: 1.5"
        yield "  guidance_channels: 4"
        if (total := sum(self.look.tuned)) < PAPER_BATCH:
            yield "finetune:"
            yield f"  batch_size: 2  # of {total} images in all"

    def _evaluation(self, least: int) -> Iterator[str]:
        look, is_quick = self.look, self.look.side <= QUICK
        protocol = "quick" if is_quick else "minimax"
        yield "evaluate:"
        if least < 2 or not (look.test or look.split):
            yield "  protocol: none  # too few images to hold some out; quick once there are test images"
            return
        size = "32 pixels, ConvNet-3" if is_quick else "224 pixels, ResNetAP-10: wants a GPU"
        yield f"  protocol: {protocol}{'-val' if look.split else ''}  # {size}"
        yield "  # networks: [convnet3, resnet8]  # null, as here: the protocol's own"
        if not is_quick:
            yield "  full: false  # true adds hundreds of epochs of every real image, to compare with"
        if least - 1 < Evaluate().neighbours:
            yield f"  neighbours: {least - 1}  # the smallest class has {least} images to train on"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
