"""Image sets before they are scored: folders that overlap, files that two sets share, splits mixed up."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ims3_ray.data.images import ImageSet
from ims3_ray.data.sources import is_of_rows
from ims3_ray.display import escape_unprintable, first_few
from ims3_ray.errors import InputError
from ims3_ray.evaluation.audit import AuditedImages, imagenet_split_warnings, refuse_overlap
from ims3_ray.storage.artifacts import Directory, open_directory


def listed(name: str, images: ImageSet) -> AuditedImages:
    """The set as its listing knows it: paths, labels, hashes of the files."""
    return AuditedImages(name, images.paths, images.labels, images.ids)


def refuse_nested(train: str, scored: str, name: str) -> None:
    """InputError where `scored`, the place of `name`, lies within the training images' folder or around it.

    Rows may: of a folder with several splits one is read alone, and the same one twice `check_splits` sees.
    """
    directories = open_directory(train), open_directory(scored)
    ours, theirs = map(_place, directories)
    is_nested = f"{ours}/".startswith(f"{theirs}/") or f"{theirs}/".startswith(f"{ours}/")
    if is_nested and ours != theirs and not any(map(is_of_rows, directories)):
        raise InputError(
            f"{name}: {scored} and data.train {train} lie one within the other; "
            "give two folders side by side, or name the class folders with data.classes"
        )


def refuse_storage_within(storage: str, place: str, classes: Sequence[str] | None, name: str) -> None:
    """InputError where the storage lies in the folder `place` of `name`: what it holds would count as images.

    Where `classes` are named, it may lie beside their folders.
    """
    ours, theirs = (f"{_place(open_directory(location))}/" for location in (storage, place))
    if ours.startswith(theirs) and (
        not classes or ours == theirs or ours[len(theirs) :].split("/")[0] in classes
    ):
        raise InputError(f"storage: {storage} lies within {name} {place}; choose another storage=DIR")


def left_out(images: Mapping[str, ImageSet]) -> list[str]:
    """Sentences on files and class folders that do not count, by name."""
    lines = []
    for split, of_split in images.items():
        if bad := of_split.bad:
            files = first_few(
                (f"{escape_unprintable(path)} {why}" for path, why in bad.items()), most=3, show=str
            )
            lines.append(
                f"data.{split}: {len(bad)} of {len(of_split) + len(bad)} files are left out: {files}"
            )
        if of_split.empty:
            lines.append(
                f"data.{split}: class folders without files are left out: {first_few(of_split.empty)}"
            )
    return lines


def check_splits(images: Mapping[str, ImageSet], max_overlap: float) -> list[str]:
    """Sentences on what makes the scored images doubtful: `images` holds "train" and the scored split.

    Raises InputError for one folder as both, and where more than the share `max_overlap` of the scored files
    are training files, byte for byte.
    """
    train = listed("data.train", images["train"])
    places = {f"data.{split}": of_split.place for split, of_split in images.items()}
    warnings = []
    for split in sorted(images.keys() - {"train"}):
        scored = listed(f"data.{split}", images[split])
        is_same = _place(images[split].directory) == _place(images["train"].directory)
        # a part that is held out has no path in common
        if is_same and not set(scored.paths).isdisjoint(train.paths):
            raise InputError(
                f"{scored.name}: {places[scored.name]} is the training folder, data.train; "
                "give images that were not trained on"
            )
        warnings += refuse_overlap(train, scored, limit=max_overlap, places=places)
        if split == "test":  # a validation split is a part of the training images by intention
            warnings += imagenet_split_warnings(scored.name, scored.paths, is_training=False)
            warnings += imagenet_split_warnings(train.name, train.paths, is_training=True)
    return warnings


def _place(directory: Directory) -> str:
    """The same text for every way of writing one folder."""
    return str(Path(directory.path).resolve()) if directory.is_local else directory.uri
