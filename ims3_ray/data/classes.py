"""Class folders: their names, and the labels that the generator knows them by, one map for every stage."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ims3_ray.config.load import Refuse, read_text, read_yaml
from ims3_ray.display import UNPRINTABLE, first_few
from ims3_ray.errors import InputError

NEW = "new"
UNSAFE_NAME = re.compile(rf'\A\.|[/\\:*?"<>|{UNPRINTABLE}]|[. ]\Z')
DEVICES = re.compile(
    r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE
)  # no folders on Windows
MOST_BYTES = 255  # of a name, on the usual filesystems


def is_folder_name(name: str) -> bool:
    """Whether it can be one folder's name everywhere: no path, not hidden, no orders to a screen."""
    return bool(name) and not (
        UNSAFE_NAME.search(name) or DEVICES.fullmatch(name) or len(name.encode()) > MOST_BYTES
    )


def check_class_names(classes: Sequence[str]) -> None:
    """InputError for a class whose name can't be a folder's name everywhere."""
    for name in classes:
        if not is_folder_name(name):
            raise InputError(
                f"data.train: class folder {name!r} can't be a folder's name in the distilled set; rename it"
            )


def class_map(
    classes: tuple[str, ...],
    model_names: tuple[str, ...] | None,
    num_labels: int,
    given: str | Mapping[str, int] | None,
) -> list[int]:
    """The model's label of every class, in the order of `classes`.

    Without `given`, folders are mapped by name: equal to the model's class names (but not to one that two
    classes bear, as ImageNet's cranes do), or ImageNet ids (n01440764 …) where the model has ImageNet's 1000
    classes. `given` is a table of folder name → label, the path of one in YAML or JSON, or "new": own classes
    then get labels 0 … C − 1 of a fresh class table. InputError says which folders have no label.
    """
    if given == NEW:
        return list(range(len(classes)))
    if given is not None:
        table, named = (_read(given), f" {given}") if isinstance(given, str) else (given, "")
        return _from_table(classes, num_labels, table, f"data.class_map:{named}")
    bearers = Counter(model_names)
    known = {name: label for label, name in enumerate(model_names or ()) if bearers[name] == 1}
    if num_labels == 1000:
        known |= imagenet_labels()
    if missing := [name for name in classes if name not in known]:
        raise InputError(
            f"data.train: class folders {first_few(missing)} match none of the generator's {num_labels} "
            "classes; give data.class_map=TABLE.yaml (folder name: label), or data.class_map=new "
            "to train rows for them"
        )
    labels = [known[name] for name in classes]
    if len(set(labels)) < len(labels):
        raise InputError(
            "data.train: two class folders map to one label of the generator; give data.class_map=TABLE.yaml"
        )
    return labels


def imagenet_labels() -> dict[str, int]:
    """ImageNet id (wnid) → its place among the 1000 sorted ids."""
    from timm.data.imagenet_info import ImageNetInfo  # heavy, and needed for ImageNet alone

    return {wnid: label for label, wnid in enumerate(sorted(ImageNetInfo().label_names()))}


def imagenet_names() -> list[str]:
    """Words for ImageNet's 1000 classes, by label: "great white shark, white shark, …"."""
    from timm.data.imagenet_info import ImageNetInfo  # as above

    info = ImageNetInfo()
    return [info.label_name_to_description(wnid) for wnid in imagenet_labels()]


def _read(given: str) -> Mapping[str, object]:
    path = Path(given)
    if not path.is_file():
        raise InputError(f"data.class_map: {given} is neither a file nor 'new'")

    def refuse(why: str) -> InputError:
        return InputError(f"data.class_map: {given} {why}; give YAML or JSON")

    text = read_text(path, refuse)
    table = _from_json(text, refuse) if path.suffix == ".json" else read_yaml(text, refuse)
    if not isinstance(table, dict):
        raise InputError(
            f"data.class_map: {given} holds a {type(table).__name__}; give a table of folder name: label"
        )
    return {str(name): label for name, label in table.items()}


def _from_table(
    classes: tuple[str, ...], num_labels: int, table: Mapping[str, object], where: str
) -> list[int]:
    if missing := [name for name in classes if name not in table]:
        raise InputError(f"{where} has no label for class folders {first_few(missing)}")
    labels: list[int] = []
    for name in classes:
        label = table[name]
        if type(label) is not int or not 0 <= label < num_labels:
            raise InputError(
                f"{where} {name!r} has label {label!r}; the generator knows 0 … {num_labels - 1}"
            )
        labels.append(label)
    if len(set(labels)) < len(labels):
        raise InputError(f"{where} gives one label to two class folders")
    return labels


def _from_json(text: str, refuse: Refuse) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refuse(f"is no JSON ({error})") from error
