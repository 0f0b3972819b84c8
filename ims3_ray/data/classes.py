"""Names of class folders, and the map from classes to the generator's labels, which all stages share."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ims3_ray.config.load import read_text, read_yaml
from ims3_ray.display import UNPRINTABLE, first_few
from ims3_ray.errors import InputError

NEW = "new"
UNSAFE_NAME = re.compile(rf'\A\.|[/\\:*?"<>|{UNPRINTABLE}]|[. ]\Z')
DEVICES = re.compile(
    r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE
)  # not allowed on Windows
MAX_BYTES = 255  # per name, on common filesystems


def is_folder_name(name: str) -> bool:
    """Returns True if it is valid on every system: no path, not hidden, no control characters."""
    return bool(name) and not (
        UNSAFE_NAME.search(name) or DEVICES.fullmatch(name) or len(name.encode()) > MAX_BYTES
    )


def check_class_names(classes: Sequence[str]) -> None:
    """Raise InputError for a class whose name is not valid on every system."""
    for name in classes:
        if not is_folder_name(name):
            raise InputError(
                f"data.train: class folder {name!r} can't be a folder's name in the distilled set; rename it"
            )


def class_map(
    classes: tuple[str, ...],
    model_names: tuple[str, ...] | None,
    num_labels: int,
    mapping: str | Mapping[str, int] | None,
) -> list[int]:
    """Returns the model's label of every class, in the order of `classes`.

    `mapping` is {folder name: label}, the path of such a table in YAML or JSON, or "new": labels 0 … C − 1 of
    a new class table. None maps by name: the model's class names (except names of two classes, such as
    ImageNet's crane), and ImageNet ids (n01440764 …) if the model has 1000 classes. Raises InputError for
    classes without a label.
    """
    if mapping == NEW:
        return list(range(len(classes)))
    if mapping is not None:
        table, path = (_read(mapping), f" {mapping}") if isinstance(mapping, str) else (mapping, "")
        return _from_table(classes, num_labels, table, f"data.class_map:{path}")
    counts = Counter(model_names)
    label_of = {name: label for label, name in enumerate(model_names or ()) if counts[name] == 1}
    if num_labels == 1000:
        label_of |= imagenet_labels()
    if missing := [name for name in classes if name not in label_of]:
        raise InputError(
            f"data.train: class folders {first_few(missing)} match none of the generator's {num_labels} "
            "classes; give data.class_map=TABLE.yaml (folder name: label), or data.class_map=new "
            "to train rows for them"
        )
    labels = [label_of[name] for name in classes]
    if len(set(labels)) < len(labels):
        raise InputError(
            "data.train: two class folders map to one label of the generator; give data.class_map=TABLE.yaml"
        )
    return labels


def imagenet_labels() -> dict[str, int]:
    """Returns {ImageNet id (wnid): index among the 1000 sorted ids}."""
    from timm.data.imagenet_info import ImageNetInfo  # slow to import

    return {wnid: label for label, wnid in enumerate(sorted(ImageNetInfo().label_names()))}


def imagenet_names() -> list[str]:
    """Returns ImageNet's 1000 class names by label: "great white shark, white shark, …"."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    return [info.label_name_to_description(wnid) for wnid in imagenet_labels()]


def _read(location: str) -> Mapping[str, object]:
    path = Path(location).expanduser()
    if not path.is_file():
        raise InputError(f"data.class_map: {location} is neither a file nor 'new'")

    def refuse(why: str) -> InputError:
        return InputError(f"data.class_map: {location} {why}; give YAML or JSON")

    table = read_yaml(read_text(path, refuse), refuse)  # JSON is YAML
    if not isinstance(table, dict):
        raise InputError(
            f"data.class_map: {location} holds a {type(table).__name__}; give a table of folder name: label"
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
