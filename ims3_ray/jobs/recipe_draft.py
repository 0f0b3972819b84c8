"""The recipe that `ims3 init` writes: inspected images, and the YAML with a reason for each value."""

import json
import math
import re
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

import numpy as np
import yaml

from ims3_ray.config.data import Data
from ims3_ray.config.evaluation import Evaluate
from ims3_ray.config.load import load_config, load_settings, override_words, recipe_text
from ims3_ray.config.pretrain import Pretrain
from ims3_ray.config.sections import PAPER_BATCH, UNTRAINED
from ims3_ray.config.settings import Config
from ims3_ray.data.images import ImageSet, open_images
from ims3_ray.data.transforms import decode
from ims3_ray.display import first_few, one_line
from ims3_ray.errors import InputError
from ims3_ray.jobs.next_steps import shell_command
from ims3_ray.storage.artifacts import Directory

SIDES = (32, 64, 128, 256)  # image sizes of generators, in pixels
MAX_ENLARGEMENT = 1.2  # of the median shorter side
MAX_QUICK_SIDE = 64  # for protocols of 32 pixels
HUB = "facebook/DiT-XL-2-256"
REAL_BATCH = 64  # of the recipe real
INSPECTED = 64  # images, for size and colours
SPLIT = 0.1  # of each class
WNID = re.compile(r"n\d{8}")


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

    def size_for(self, model: str) -> int:
        """Pixels per side for real images ("none") or an existing generator."""
        return min(self.side, MAX_QUICK_SIDE) if model == "none" else self.side

    @property
    def side(self) -> int:
        """Image size for a generator, in pixels."""
        largest = MAX_ENLARGEMENT * median(map(min, self.sizes))
        return max([SIDES[0], *(side for side in SIDES if side <= largest)])


def inspect_images(train: str, test: str | None, storage: Directory) -> Inspection:
    """Raises InputError if a run would refuse the images."""
    settings = {"seed": Config().seed, "max_bad_fraction": Data().max_bad_fraction}
    images = open_images(train, storage, name="data.train", **settings)
    scored = open_images(test, storage, name="data.test", **settings) if test else images
    if different := first_few(sorted(set(scored.classes) ^ set(images.classes))):
        raise InputError(f"--test: its classes differ from --data's: {different}; give the same folders")
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
    model: str  # none, own, or the location of a generator
    size: int  # pixels per side
    own_size: int  # of a generator that this machine can train

    @property
    def is_own(self) -> bool:
        return self.model == "own"

    @property
    def folder(self) -> str:
        return str(self.path.absolute().with_name(f"{self.path.stem}-model")) if self.is_own else self.model

    def time(self, text: str, overrides: Mapping[str, object]) -> str:
        """Returns the estimated time of this recipe's run, the generator's training excluded."""
        if self.model not in ("none", "own"):
            return "--dry-run estimates it"
        from .distill.estimate import run_seconds

        untrained = load_settings(Pretrain, {"image_size": self.size}) if self.is_own else None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.path.name
            path.write_text(text, encoding="utf-8")
            config = load_config(str(path), overrides)
        return f"about {math.ceil(run_seconds(config, untrained, self.data.images.classes) / 60)} min"

    @cached_property
    def commands(self) -> list[str]:
        """The next commands to run."""
        distil = shell_command("distill", "--recipe", str(self.path), *self.storage)
        if not self.is_own:
            return [distil]
        from .pretrain.rows import hold_out, smaller_batches  # imports torch

        data, pretrain = self.data, Pretrain()
        images = data.images.split(data.split)[0] if data.split else data.images
        fields: dict[str, object] = {"data.train": data.train, "image_size": self.size}
        fields |= {"data.validation_split": data.split} if data.split else {}
        fields |= {"data.mirror": False} if data.is_grey else {}
        fields |= smaller_batches(pretrain, len(hold_out(pretrain, images)[0]))
        words = [*override_words(fields), *self.storage]
        return [shell_command("pretrain", "--out", self.folder, *words), distil]

    @property
    def alternative(self) -> str:
        """The command for a recipe with a generator, or without one."""
        other = "none" if self.is_own else "own"
        words = ["--data", self.data.train, *(["--test", self.data.test] if self.data.test else [])]
        words += ["--model", other, *(["--image-size", str(self.own_size)] if other == "own" else [])]
        out = str(self.path.with_name(f"{self.path.stem}-{other}{self.path.suffix}"))
        return shell_command("init", *words, "--out", out, *self.storage)

    @property
    def summary(self) -> str:
        images, counts = self.data.images, self.data.images.counts()
        per_class = " to ".join(f"{count:,}" for count in sorted({counts.min(), counts.max()}))
        return f"{len(images):,} images of {len(images.classes):,} classes, {per_class} per class"

    def lines(self) -> Iterator[str]:
        """Yields the YAML."""
        smallest = min(self.data.tuned)
        yield from _comment(f"{self.name}: {self.summary}. Written by ims3 init; change any value. Next:")
        yield from (f"#   {command}" for command in self.commands)
        yield from self._image_comments()
        if self.model == "none":
            yield "base: real  # real images, selected and refined, without a generator"
        yield f"ipc: {max(1, min(Config().ipc, smallest // 2))}  # images per class of the distilled set"
        yield from self._data_section()
        yield from self._model_sections()
        yield from self._refine_section(smallest)
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
        for line in data.images.skipped("data.train"):
            yield from _comment(one_line(line))
        yield "# Time, memory and accuracy: not yet measured."

    def _data_section(self) -> Iterator[str]:
        data = self.data
        yield "data:"
        yield f"  train: {json.dumps(data.train, ensure_ascii=False)}"
        if data.test:
            yield f"  test: {json.dumps(data.test, ensure_ascii=False)}"
        elif self._is_scored:
            yield f"  validation_split: {data.split}  # no test images: score on a tenth of each class"
        mirror = json.dumps(not data.is_grey)
        yield f"  mirror: {mirror}  # false if mirroring changes the meaning, as of letters"
        if self.model == HUB and not all(map(WNID.fullmatch, data.images.classes)):
            yield "  class_map: new  # the checkpoint has ImageNet's classes; train embeddings for yours"
        yield "  # licence: cc-by-4.0  # of the images, for the card of the distilled set"

    def _model_sections(self) -> Iterator[str]:
        if self.model == "none":
            yield f"image_size: {self.size}  # pixels per side; images are read and scaled once"
            return
        yield "model:"
        if self.model == HUB:
            yield f"  path: {self.model}  # DiT-XL/2 at 256 pixels, downloaded; needs a GPU"
            yield from ("  frequency_shift: 0", "  licence: cc-by-nc-4.0")
            yield from ("embed:", "  extractor: timm:resnet18.tv_in1k")
            return
        origin = f"written by the first command, at {self.size} pixels" if self.is_own else "--model"
        yield f"  path: {json.dumps(self.folder, ensure_ascii=False)}  # {origin}"
        yield "embed:"
        has_phi = self.is_own or (Path(self.folder) / "extractor").is_dir()
        yield f"  extractor: {json.dumps(self.folder, ensure_ascii=False) if has_phi else UNTRAINED}"
        yield from ("sample:", "  guidance_scale: 1.5", "  guidance_channels: 4")
        if (total := sum(self.data.tuned)) < PAPER_BATCH:
            yield "finetune:"
            yield f"  batch_size: 2  # there are only {total} images"

    @property
    def _is_quick(self) -> bool:
        return self.size <= MAX_QUICK_SIDE or self.model in ("none", "own")

    @property
    def _is_scored(self) -> bool:
        return min(self.data.tuned) > 1 and bool(self.data.test or self.data.split)

    def _refine_section(self, smallest: int) -> Iterator[str]:
        batch = min(smallest, REAL_BATCH)
        if self.model == "none":
            yield from () if self._is_scored else ("probe:", "  protocol: quick")
            yield from ("refine:", f"  real_batch: {batch}  # images per class") if batch < REAL_BATCH else ()
        elif self._is_quick and self._is_scored:
            real = yaml.safe_load(recipe_text("real")[1])
            sections = {"probe": real["probe"], "refine": {**real["refine"], "real_batch": batch}}
            yield from yaml.safe_dump(sections, sort_keys=False).splitlines()

    def _evaluate_section(self, smallest: int) -> Iterator[str]:
        data, is_quick = self.data, self._is_quick
        protocol = "quick" if is_quick else "minimax"
        yield "evaluate:"
        if not self._is_scored:
            yield "  protocol: none  # too few images to hold out; use quick with test images"
            return
        size = "32 pixels, ConvNet-3" if is_quick else "224 pixels, ResNetAP-10: needs a GPU"
        yield f"  protocol: {protocol}{'-val' if data.split else ''}  # {size}"
        if not is_quick:
            yield "  full: false  # true also trains on all real images, for hundreds of epochs"
        if smallest - 1 < Evaluate().neighbours:
            yield f"  neighbours: {smallest - 1}  # the smallest class has {smallest} training images"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
