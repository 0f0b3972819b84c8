"""Images of a run as its pages show them: the set, a class's candidates, and what refinement did.

All are data URIs, thumbnails where they are large: no address leads to a file.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from ims3_ray.data.distilled import is_selected
from ims3_ray.report import plots
from ims3_ray.report.images import PAGE_IMAGES, data_uri, is_enlarged
from ims3_ray.report.inputs import PAGE_CLASSES, Selection, shown_classes
from ims3_ray.runs.query import Run, metric_value
from ims3_ray.stages.selected import KEYS
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import Directory, part_names, read_manifest
from ims3_ray.storage.index import Index, read_index

from .run_store import Catalogue

MOST_CANDIDATES = 600  # of a class on its page


@dataclass(frozen=True)
class Strip:
    """Images of a class, and how many more it has."""

    label: int
    name: str
    images: list[str]
    hidden: int
    is_small: bool


@dataclass(frozen=True)
class Subgroup:
    """Candidates: each with whether it was chosen, and how many more there are."""

    number: int
    distance: float | None  # of its centroid to the real class
    is_chosen: bool
    images: list[tuple[str, bool]]
    hidden: int
    is_small: bool


@dataclass(frozen=True)
class Moved:
    """An image before and after refinement; `kept`: what came of it was a copy, so it stayed."""

    before: str
    after: str
    kept: bool
    is_small: bool


def classes(catalogue: Catalogue, run: Run) -> list[str]:
    """The names that labels count, as far as the run tells them yet."""
    if (made := catalogue.made(run, "export")) and (
        names := list(dict.fromkeys(n for n, _ in _entries(made)))
    ):
        return names
    if document := selection(catalogue, run):
        return sorted(document["selection"])
    candidates = _index(catalogue.begun(run, "sample"), schemas.CANDIDATES, ["label"])
    return [f"class {label}" for label in range(candidates.keys["label"].max() + 1)] if candidates else []


def selection(catalogue: Catalogue, run: Run) -> Selection | None:
    made = catalogue.made(run, "select")
    return made.read_json("selection.json") if made else None


def distilled(
    catalogue: Catalogue, run: Run, wanted: Sequence[str] | None = None, of: int = 1
) -> list[Strip]:
    """The set by class: of `wanted` names, else of evenly spaced ones; a page shows `of` such lists."""
    made = catalogue.made(run, "export")
    if not made:
        return []
    paths: dict[str, list[str]] = {}
    for name, path in _entries(made):
        paths.setdefault(name, []).append(path)
    names = list(paths)
    chosen = [names[label] for label in shown_classes(names, PAGE_CLASSES)] if wanted is None else wanted
    limit, strips = max(1, PAGE_IMAGES // (of * max(1, len(chosen)))), []
    for name in chosen:
        pngs = [made.read(path) for path in paths.get(name, [])[:limit]]
        label, hidden = names.index(name) if name in paths else -1, max(0, len(paths.get(name, ())) - limit)
        strips.append(Strip(label, name, list(map(data_uri, pngs)), hidden, any(map(is_enlarged, pngs[:1]))))
    return strips


def _entries(made: Directory) -> list[tuple[str, str]]:
    """Class and path of every image, of those alone that are files of the set."""
    manifest = read_manifest(made)
    assert manifest, made.uri
    entries = ((str(entry["class"]), str(entry["path"])) for entry in manifest.get("images", []))
    return [(name, path) for name, path in entries if path in manifest["files"]]


def _index(directory: Directory | None, table: schemas.Table, keys: Sequence[str]) -> Index | None:
    """The rows that there are, also while they are made; None where there is none yet."""
    return read_index(directory, table, keys) if directory and part_names(directory) else None


def candidates(catalogue: Catalogue, run: Run, names: Sequence[str], label: int) -> list[Subgroup]:
    """A class's subgroups with those that were chosen; of many candidates a part, the chosen first."""
    index = _index(catalogue.begun(run, "sample"), schemas.CANDIDATES, KEYS)
    if index is None:
        return []
    own = index.at(np.flatnonzero(index.keys["label"] == label))
    document = selection(catalogue, run)
    chosen = is_selected(document, names, own.keys) if document else np.zeros(len(own), bool)
    of_class = document["per_class"][names[label]] if document else None
    distances = (
        dict(zip(of_class["subgroups"], of_class["distances_to_real"], strict=True)) if of_class else {}
    )
    numbers = np.unique(own.keys["subgroup"])
    limit, found = max(1, MOST_CANDIDATES // max(1, len(numbers))), []
    for number in numbers.tolist():
        rows = np.flatnonzero(own.keys["subgroup"] == number)
        first = rows[np.lexsort((own.keys["index"][rows], ~chosen[rows]))][:limit]
        places = first[np.argsort(own.keys["index"][first])]
        pngs = own.at(places).read("image").tolist()
        images = [(data_uri(png), bool(chosen[place])) for png, place in zip(pngs, places, strict=True)]
        whole, small = bool(chosen[rows].any()), is_enlarged(pngs[0])
        found.append(Subgroup(number, distances.get(number), whole, images, len(rows) - len(places), small))
    return found


def refinement(catalogue: Catalogue, run: Run, label: int) -> tuple[list[Moved], Markup | None]:
    """A class's images before and after, and the loss on the way."""
    index = _index(catalogue.begun(run, "refine"), schemas.REFINED, ["label", "place", "kept"])
    if index is None or not (places := np.flatnonzero(index.keys["label"] == label)).size:
        return [], None
    own = index.at(places[np.argsort(index.keys["place"][places])][:PAGE_IMAGES])
    before, after, kept = own.read("start").tolist(), own.read("image").tolist(), own.keys["kept"].tolist()
    moved = [
        Moved(data_uri(start), data_uri(end), stays, is_enlarged(start))
        for start, end, stays in zip(before, after, kept, strict=True)
    ]
    losses = own.read("loss").mean(axis=0).tolist()
    step = metric_value(run, "refine.steps") / len(losses)
    history = [{"step": (part + 1) * step, "matching": loss} for part, loss in enumerate(losses)]
    return moved, plots.losses(history, "refinement") if len(losses) > 1 and step == step else None
