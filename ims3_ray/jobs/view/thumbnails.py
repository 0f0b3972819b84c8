"""Images of a run as data URIs: the distilled set, a class's candidates, images before and after refinement.

Large images become thumbnails. No address leads to a file.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from ims3_ray.data.distilled import is_selected
from ims3_ray.report import plots
from ims3_ray.report.images import PAGE_IMAGES, Strip, data_uri, is_enlarged
from ims3_ray.report.inputs import PAGE_CLASSES, shown_classes
from ims3_ray.runs.query import Run, metric_value
from ims3_ray.stages.selected import KEYS
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import Directory, read_manifest
from ims3_ray.storage.rows import Index, part_names, read_index
from ims3_ray.storage.schemas import SelectionFile

from .run_store import RunStore

MAX_CANDIDATES = 600  # per class, on its page


@dataclass(frozen=True)
class Subgroup:
    """Candidates of a subgroup: (data URI, whether it is selected), and the number that is not shown."""

    number: int
    distance: float | None  # of its centroid to the real class
    is_selected: bool
    images: list[tuple[str, bool]]
    hidden: int
    is_small: bool


@dataclass(frozen=True)
class RefinedImage:
    """An image before and after refinement; `kept` if it stayed, since its refinement was a copy."""

    before: str
    after: str
    kept: bool
    is_small: bool


def classes(store: RunStore, run: Run) -> list[str]:
    """Class names by label, as far as the run's artefacts name them."""
    if (exported := store.complete(run, "export")) and (
        names := list(dict.fromkeys(name for name, _ in _entries(exported)))
    ):
        return names
    if document := selection(store, run):
        return sorted(document["selection"])
    index = _index(store.partial(run, "sample"), schemas.CANDIDATES, ["label"])
    return [f"class {label}" for label in range(index.keys["label"].max() + 1)] if index else []


def selection(store: RunStore, run: Run) -> SelectionFile | None:
    artifact = store.complete(run, "select")
    return artifact.read_json("selection.json") if artifact else None


def distilled(store: RunStore, run: Run, names: Sequence[str] | None = None, lists: int = 1) -> list[Strip]:
    """The set by class: of `names`, or of evenly spaced classes. A page shows `lists` such lists."""
    exported = store.complete(run, "export")
    if not exported:
        return []
    paths: dict[str, list[str]] = {}
    for name, path in _entries(exported):
        paths.setdefault(name, []).append(path)
    all_names = list(paths)
    if names is None:
        names = [all_names[label] for label in shown_classes(all_names, PAGE_CLASSES)]
    limit, strips = max(1, PAGE_IMAGES // (lists * max(1, len(names)))), list[Strip]()
    for name in names:
        files = paths.get(name, [])
        pngs = [exported.read(path) for path in files[:limit]]
        label = all_names.index(name) if name in paths else -1
        is_small, hidden = any(map(is_enlarged, pngs[:1])), max(0, len(files) - limit)
        strips.append(Strip(name, list(map(data_uri, pngs)), hidden, label=label, is_small=is_small))
    return strips


def _entries(exported: Directory) -> list[tuple[str, str]]:
    """Class and path of every image that is a file of the set."""
    manifest = read_manifest(exported)
    assert manifest, exported.uri
    entries = ((str(entry["class"]), str(entry["path"])) for entry in manifest.get("images", []))
    return [(name, path) for name, path in entries if path in manifest["files"]]


def _index(directory: Directory | None, table: schemas.Table, keys: Sequence[str]) -> Index | None:
    """The existing rows, also of an incomplete artefact; None if there are none."""
    return read_index(directory, table, keys) if directory and part_names(directory) else None


def candidates(store: RunStore, run: Run, names: Sequence[str], label: int) -> list[Subgroup]:
    """A class's subgroups; of many candidates a part, selected ones first."""
    index = _index(store.partial(run, "sample"), schemas.CANDIDATES, KEYS)
    if index is None:
        return []
    pool = index.take(np.flatnonzero(index.keys["label"] == label))
    document = selection(store, run)
    selected = is_selected(document, names, pool.keys) if document else np.zeros(len(pool), bool)
    distances: dict[int, float] = {}
    if document:
        results = document["per_class"][names[label]]
        distances = dict(zip(results["subgroups"], results["distances_to_real"], strict=True))
    numbers = np.unique(pool.keys["subgroup"])
    limit, subgroups = max(1, MAX_CANDIDATES // max(1, len(numbers))), list[Subgroup]()
    for number in numbers.tolist():
        rows = np.flatnonzero(pool.keys["subgroup"] == number)
        first = rows[np.lexsort((pool.keys["index"][rows], ~selected[rows]))][:limit]
        first = first[np.argsort(pool.keys["index"][first])]
        pngs = pool.take(first).read("image").tolist()
        images = [(data_uri(png), bool(selected[row])) for png, row in zip(pngs, first, strict=True)]
        hidden, is_small = len(rows) - len(first), is_enlarged(pngs[0])
        subgroups.append(
            Subgroup(number, distances.get(number), bool(selected[rows].any()), images, hidden, is_small)
        )
    return subgroups


def refinement(store: RunStore, run: Run, label: int) -> tuple[list[RefinedImage], Markup | None]:
    """A class's images before and after refinement, and a plot of the loss."""
    index = _index(store.partial(run, "refine"), schemas.REFINED, ["label", "place", "kept"])
    if index is None or not (rows := np.flatnonzero(index.keys["label"] == label)).size:
        return [], None
    refined = index.take(rows[np.argsort(index.keys["place"][rows])][:PAGE_IMAGES])
    columns = refined.read("start").tolist(), refined.read("image").tolist(), refined.keys["kept"].tolist()
    images = [
        RefinedImage(data_uri(before), data_uri(after), kept, is_enlarged(before))
        for before, after, kept in zip(*columns, strict=True)
    ]
    losses = refined.read("loss").mean(axis=0).tolist()
    step = metric_value(run, "refine.steps") / len(losses)
    history = [{"step": (part + 1) * step, "matching": loss} for part, loss in enumerate(losses)]
    return images, plots.losses(history, "refinement") if len(losses) > 1 and step == step else None
