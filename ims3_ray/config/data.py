"""The section `data`: image sets, their classes and their licence."""

import re
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from .base import Section, Share, check_unique

TORCHVISION, HUB = "torchvision:", "hf:"  # prefixes of named data sets (data/named.py)
CACHE = "~/.cache/ims3_ray/datasets"  # default folder of torchvision's files
# names of files and folders that do not identify a data set
GENERIC_NAME = re.compile(r"(train|training|data|images)((-.*)?\.parquet)?", re.IGNORECASE)


class Licence(Section):
    """A licence as Hugging Face cards state it: an identifier, or `other` with a name and a link."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.+-]*$")
    """Identifier on the Hugging Face hub, such as mit. licence=mit is short for licence.id=mit."""
    name: str | None = None
    """Name of the licence, if id=other."""
    link: str | None = None
    """URL of the licence text, if id=other."""

    @model_validator(mode="before")
    @classmethod
    def _from_identifier(cls, value: object) -> object:
        return {"id": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_other(self) -> "Licence":
        if (self.id == "other") != bool(self.name) or (self.link and not self.name):
            raise ValueError("id=other needs a name and may have a link; other identifiers take neither")
        return self


class Data(Section):
    """Image sets and their classes."""

    train: str | None = None
    """Training images: class folders, Parquet rows, torchvision:NAME or hf:ID (page own-images)."""
    validation: str | None = None
    """Images scored by protocols ending in -val. Same forms as `train`."""
    test: str | None = None
    """Images scored by all other protocols. Same forms as `train`; null: the test split of a named set."""
    root: str | None = None
    """Folder of torchvision's files; missing ones are downloaded there. null: ~/.cache/ims3_ray/datasets."""
    validation_split: float = Field(default=0.0, ge=0, lt=1)
    """Share of each class's training images held out for validation. Excludes `validation`."""
    classes: tuple[str, ...] | None = None
    """Class folders to use in every split, at least 2. null: all."""
    class_map: str | dict[str, int] | None = None
    """Class folder → label of the generator: a mapping, a YAML or JSON file, or new to train labels."""
    mirror: bool = True
    """Also train on the mirror image of each image. Use false for letters, digits and signs."""
    max_bad_fraction: Share = 0.01
    """Maximum share of files that are not readable images. Up to it: a warning. Above it: an error."""
    max_overlap_fraction: Share = 0.01
    """Maximum share of scored images that are training images. Up to it: a warning. Above it: an error."""
    licence: Licence | None = None
    """Licence of the images, for the card of the distilled set. null: the card says "not stated"."""

    @property
    def name(self) -> str:
        """Name of the training images: the last part of the location that is not generic, as `train` is."""
        place = (self.train or "").partition("?")[0]
        place = place if "://" in place else str(Path(place).absolute())
        parts = [part for part in place.split("/") if part]
        names = [part for part in parts if not GENERIC_NAME.fullmatch(part)] or parts[-1:]
        return names[-1].removesuffix(".parquet")

    @model_validator(mode="after")
    def _check_validation(self) -> "Data":
        if self.validation_split and self.validation:
            raise ValueError("data.validation_split: data.validation names a folder; drop one of them")
        return self

    @field_validator("classes")
    @classmethod
    def _sort_classes(cls, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """The order of class folders has no effect, so they are sorted."""
        if classes is None:
            return None
        for name in classes:
            if not name or name.startswith(".") or "/" in name or "\\" in name:
                raise ValueError(f"{name!r} can't be a class folder's name")
        if len(classes) < 2:
            raise ValueError("name at least 2 class folders, or null for all")
        return tuple(sorted(check_unique(classes)))
