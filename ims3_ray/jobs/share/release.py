"""Find what to share: a finished run's distilled set, recipe, evaluation and models, or a pushed set."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ims3_ray.config.load import read_yaml
from ims3_ray.data.distilled import Licence
from ims3_ray.display import first_few
from ims3_ray.errors import InputError
from ims3_ray.evaluation.results import format_accuracy
from ims3_ray.runs import records
from ims3_ray.runs.mlflow_tracker import RECIPE_FILE
from ims3_ray.runs.records import Record
from ims3_ray.storage.artifacts import Directory, open_directory, read_manifest
from ims3_ray.storage.hub import fetch_set, hub_name

if TYPE_CHECKING:
    from ims3_ray.evaluation.results import Accuracies, Evaluation

DISTILLED = "distilled"  # artefact, and name of the set in an evaluation
EVALUATION = "evaluation.json"
MODELS = ("adapter", "probes", "teacher")  # artefacts pushed with the set
ARTIFACT = re.compile(r"(.+)/(distilled/[0-9a-f]{12})(\?.*)?")  # a distilled set within a storage
SECTIONS = ("data", "model", "embed", "evaluate")  # that every run's recipe has
KEY = re.compile(r"[\w.-]+")
TERMS = re.compile(r"-(nc|nd)\b|^other$")  # ids of licences that restrict sharing derived images


@dataclass(frozen=True)
class Release:
    """A distilled set with its run's recipe, evaluation and models."""

    distilled: Directory
    recipe: Mapping[str, Any]  # as in a recipe file
    evaluation: "Evaluation | None"
    models: Mapping[str, Directory] = field(default_factory=dict)  # by artefact name
    is_pushed: bool = False  # read from one folder, as it was pushed

    @property
    def licences(self) -> dict[str, Licence | None]:
        """Licences of the generator's weights and of the real images; the terms of both apply."""
        sections = {"weights": "model", "images": "data"}
        if self.recipe.get("source") == "real":
            del sections["weights"]
        return {part: self.recipe[section].get("licence") for part, section in sections.items()}

    @property
    def restricted(self) -> list[str]:
        """Licences that forbid, or may forbid, sharing what was made from weights or images."""
        stated = ((part, licence) for part, licence in self.licences.items() if licence)
        return [
            f"{part} {licence_name(licence)}" for part, licence in stated if TERMS.search(str(licence["id"]))
        ]


def licence_name(licence: Licence | None) -> str:
    return "not stated" if licence is None else str(licence.get("name") or licence["id"])


def accuracies(document: "Evaluation") -> "dict[str, Accuracies]":
    """{protocol label: last accuracy of the distilled set}, one per network."""
    networks = document.get("networks") or {document["protocol"]: document["sets"]}
    return {label: sets[DISTILLED]["last"] for label, sets in networks.items()}


def find_release(place: str, storage: str) -> Release:
    """The release at `place`.

    `place` is a pushed set (`hf://ORG/NAME` or its folder), a run's distilled set (path or URI), or the
    beginning of a key, name or set fingerprint of a run in `storage`. Raises InputError if nothing, several
    sets, or an incomplete run is found.
    """
    directory = open_directory(fetch_set(place) if hub_name(place) else place)
    if directory.exists(RECIPE_FILE):
        return _pushed(directory, place)
    if match := ARTIFACT.fullmatch(directory.uri):
        within = open_directory(match[1] + (match[3] or ""))
        return _of_run(within, _latest(within, lambda record: match[2] in record.artifacts, place))
    if not KEY.fullmatch(place) or hub_name(place):
        raise InputError(
            f"{place}: holds no distilled set; name distilled/<fingerprint> of a run's storage, the run's "
            "key beside storage=DIR, or a set that was pushed"
        )
    within = open_directory(storage)
    return _of_run(within, _latest(within, lambda record: _matches(record, place), place))


def _pushed(directory: Directory, place: str) -> Release:
    manifest = read_manifest(directory)
    if manifest is None:
        raise InputError(f"{place}: has no manifest.json, so it is incomplete; push its run again")
    recipe = read_yaml(
        directory.read(RECIPE_FILE).decode(errors="replace"),
        lambda why: InputError(f"{place}: {RECIPE_FILE} {why}; push its run again"),
    )
    if not isinstance(recipe, dict) or not all(isinstance(recipe.get(name), dict) for name in SECTIONS):
        raise InputError(f"{place}: {RECIPE_FILE} is no run's recipe; push its run again")
    evaluation = directory.read_json(EVALUATION) if EVALUATION in manifest["files"] else None
    try:
        _ = [format_accuracy(of) for of in accuracies(evaluation).values()] if evaluation else []
    except (LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{place}: {EVALUATION} states no accuracy of the set; push its run again"
        ) from error
    return Release(directory, recipe, evaluation, is_pushed=True)


def _matches(record: Record, prefix: str) -> bool:
    names = (record.key, record.place.split("/")[1], _set_of(record).partition("/")[2])
    return any(name and name.startswith(prefix) for name in names)


def _latest(storage: Directory, is_match: Callable[[Record], bool], place: str) -> Record:
    """The latest matching run, finished ones first; all must have made the same set."""
    runs = [record for record in records.read(storage) if record.place.startswith("runs/")]
    found = [record for record in runs if is_match(record)]
    if not found:
        raise InputError(
            f"{place}: no run of {storage.uri} matches; `ims3 runs` lists them, storage=DIR names another "
            "storage"
        )
    if len(sets := {_set_of(record) or "none" for record in found}) > 1:
        raise InputError(f"{place}: matches {len(sets)} sets, {first_few(sorted(sets), show=str)}; name one")
    return max(found, key=lambda record: (record.state == records.FINISHED, record.written))


def _set_of(record: Record) -> str:
    return next((artifact for artifact in record.artifacts if artifact.startswith("distilled/")), "")


def _of_run(storage: Directory, record: Record) -> Release:
    recipe = records.recipe_of(storage.read_json(record.place)["config"])
    artifacts = {artifact.split("/")[0]: storage / artifact for artifact in record.artifacts}
    names = [name for name in (DISTILLED, *MODELS, "evaluation") if name in artifacts]
    for name in names:
        if read_manifest(artifacts[name]) is None:
            raise InputError(
                f"{record.place.split('/')[1]}: its {name} is not complete; give the run's command again"
            )
    evaluation = artifacts["evaluation"].read_json(EVALUATION) if "evaluation" in names else None
    models = {name: artifacts[name] for name in MODELS if name in names}
    return Release(artifacts[DISTILLED], recipe, evaluation, models)
