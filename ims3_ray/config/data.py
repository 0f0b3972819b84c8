"""The images that a run is told of, and licences."""

import re
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from .base import Section, Share

TORCHVISION, HUB = "torchvision:", "hf:"  # of sets by name: data/named.py
CACHE = "~/.cache/ims3_ray/datasets"  # of torchvision's files
ANYBODYS = re.compile(r"(train|training|data|images)((-.*)?\.parquet)?", re.IGNORECASE)  # name no data set


def refuse_twice(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names; ValueError where one stands twice."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is named twice")
    return names


class Licence(Section):
    """As the distilled set's card states it: the hub's identifier, or `other` with a name and a link."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.+-]*$")
    """Identifier of the Hugging Face hub, such as mit; licence=mit is short for it."""
    name: str | None = None
    """What it is called, where id=other."""
    link: str | None = None
    """Where its text is, where id=other."""

    @model_validator(mode="before")
    @classmethod
    def _from_identifier(cls, value: object) -> object:
        return {"id": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _other_alone_has_a_name(self) -> "Licence":
        if (self.id == "other") != bool(self.name) or (self.link and not self.name):
            raise ValueError("id=other needs a name, and takes a link; the hub's own identifiers stand alone")
        return self


class Data(Section):
    """The images: where they lie, which of them count."""

    train: str | None = None
    """Training images: class folders, rows in Parquet, torchvision:NAME or hf:ID (see own-images)."""
    validation: str | None = None
    """Images that protocols ending in -val score on, given as `train`."""
    test: str | None = None
    """Images that the other protocols score on, given as `train`; null takes a named set's own."""
    root: str | None = None
    """Where the files of torchvision's sets are, or are downloaded to; null: ~/.cache/ims3_ray/datasets."""
    validation_split: float = Field(default=0.0, ge=0, lt=1)
    """Share of each class's training images held out for validation, where no folder is named."""
    classes: tuple[str, ...] | None = None
    """Class folders to use in every split, at least 2; null uses all."""
    class_map: str | dict[str, int] | None = None
    """Table of class folder: label of the generator, a YAML or JSON file of one, or new for fresh rows."""
    mirror: bool = True
    """Whether the mirror image of each image is learned too."""
    max_bad_fraction: Share = 0.01
    """Share of files that may be no readable images."""
    max_overlap_fraction: Share = 0.01
    """Share of the scored images that may be training files: so many are told, more refused."""
    licence: Licence | None = None
    """Licence of the images."""

    @property
    def name(self) -> str:
        """What people call the training images: the folder or file, or what holds a mere `train` of it."""
        place = (self.train or "").partition("?")[0]
        place = place if "://" in place else str(Path(place).absolute())
        parts = [part for part in place.split("/") if part]
        names = [part for part in parts if not ANYBODYS.fullmatch(part)] or parts[-1:]
        return names[-1].removesuffix(".parquet")

    @model_validator(mode="after")
    def _one_validation_set(self) -> "Data":
        if self.validation_split and self.validation:
            raise ValueError("data.validation_split: data.validation names a folder; drop one of them")
        return self

    @field_validator("classes")
    @classmethod
    def _are_folder_names(cls, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Sorted, so that their order says nothing."""
        if classes is None:
            return None
        for name in classes:
            if not name or name.startswith(".") or "/" in name or "\\" in name:
                raise ValueError(f"{name!r} can't be a class folder's name")
        if len(classes) < 2:
            raise ValueError("name at least 2 class folders, or null for all")
        return tuple(sorted(refuse_twice(classes)))
