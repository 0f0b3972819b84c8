"""What is shared of a finished run: its distilled set, and what belongs to it, wherever it lies."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ims3_ray.config.load import read_yaml
from ims3_ray.config.reproduce import NO_RESULT
from ims3_ray.data.distilled import Licence
from ims3_ray.display import first_few
from ims3_ray.errors import InputError
from ims3_ray.evaluation.table import in_words
from ims3_ray.runs import records
from ims3_ray.runs.mlflow_tracker import RECIPE_FILE
from ims3_ray.runs.records import Record
from ims3_ray.storage.artifacts import Directory, open_directory, read_manifest
from ims3_ray.storage.hub import fetch_set, hub_name

from .claims import accuracies

if TYPE_CHECKING:
    from ims3_ray.evaluation.results import Evaluation

EVALUATION = "evaluation.json"
MODELS = ("adapter", "probes", "teacher")  # nouns: what the set was drawn, refined and scored with
ARTIFACT = re.compile(r"(.+)/(distilled/[0-9a-f]{12})(\?.*)?")  # a distilled set of a storage
SECTIONS = ("data", "model", "embed", "evaluate")  # that a run's recipe has
KEY = re.compile(r"[\w.-]+")
TERMS = re.compile(r"-(nc|nd)\b|^other$")  # identifiers of licences that bind whoever gives images on


@dataclass(frozen=True)
class Product:
    """`recipe` as a recipe's file says it; `models` are artefacts by noun."""

    distilled: Directory
    recipe: Mapping[str, Any]
    evaluation: "Evaluation | None"
    models: Mapping[str, Directory] = field(default_factory=dict)
    is_shared: bool = False  # all of it lies in one folder, as it was pushed

    @property
    def licences(self) -> dict[str, Licence | None]:
        """Of the generator's weights and of the real images, both of whose terms apply."""
        return {
            "weights": self.recipe["model"].get("licence"),
            "images": self.recipe["data"].get("licence"),
        }

    @property
    def terms(self) -> list[str]:
        """Those among the licences that forbid, or may forbid, to give what is made of them on to anybody."""
        stated = ((what, licence) for what, licence in self.licences.items() if licence)
        return [f"{what} {name_of(licence)}" for what, licence in stated if TERMS.search(str(licence["id"]))]


def name_of(licence: Licence | None) -> str:
    """As a line says it."""
    return "not stated" if licence is None else str(licence.get("name") or licence["id"])


def find_product(place: str, storage: str) -> Product:
    """What `place` names: a set that was pushed (`hf://ORG/NAME`, or its folder), a run's distilled set by
    its path or URI, or a run of `storage` by the beginning of its key, its name or its set's fingerprint.

    InputError where nothing is found, more than one, or what is not complete.
    """
    directory = open_directory(fetch_set(place) if hub_name(place) else place)
    if directory.exists(RECIPE_FILE):
        return _shared(directory, place)
    if match := ARTIFACT.fullmatch(directory.uri):
        within = open_directory(match[1] + (match[3] or ""))
        return _of_run(within, _newest(within, lambda record: match[2] in record.artifacts, place))
    if not KEY.fullmatch(place) or hub_name(place):
        raise InputError(
            f"{place}: holds no distilled set; name distilled/<fingerprint> of a run's storage, the run's "
            "key beside storage=DIR, or a set that was pushed"
        )
    within = open_directory(storage)
    return _of_run(within, _newest(within, lambda record: _is_called(record, place), place))


def _shared(directory: Directory, place: str) -> Product:
    manifest = read_manifest(directory)
    if manifest is None:
        raise InputError(f"{place}: has no manifest.json: it was never written whole; push its run again")
    recipe = read_yaml(
        directory.read(RECIPE_FILE).decode(errors="replace"),
        lambda why: InputError(f"{place}: {RECIPE_FILE} {why}; push its run again"),
    )
    if not isinstance(recipe, dict) or not all(isinstance(recipe.get(name), dict) for name in SECTIONS):
        raise InputError(f"{place}: {RECIPE_FILE} is no run's recipe; push its run again")
    scored = directory.read_json(EVALUATION) if EVALUATION in manifest["files"] else None
    try:
        _ = [in_words(of) for of in accuracies(scored).values()] if scored else []
    except (LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{place}: {EVALUATION} states no accuracy of the set; push its run again"
        ) from error
    return Product(directory, recipe, scored, is_shared=True)


def _is_called(record: Record, name: str) -> bool:
    run = record.place.split("/")[1]
    sets = [artifact.split("/")[1] for artifact in record.artifacts if artifact.startswith("distilled/")]
    return any(own.startswith(name) for own in (record.key, run, *sets))


def _newest(storage: Directory, is_meant: Callable[[Record], bool], place: str) -> Record:
    """The record of the run that is meant, of several of one set the latest; finished ones first."""
    runs = [record for record in records.read(storage) if record.place.startswith("runs/")]
    found = [record for record in runs if is_meant(record)]
    if not found:
        raise InputError(
            f"{place}: no run of {storage.uri} is called so or made it; `ims3 runs` lists them, storage=DIR "
            "names another storage"
        )
    if len(sets := {_set_of(record.artifacts) for record in found}) > 1:
        raise InputError(
            f"{place}: stands for {len(sets)} sets, {first_few(sorted(sets), show=str)}; name one"
        )
    return max(found, key=lambda record: (record.state != records.RUNNING, record.written))


def _set_of(artifacts: Collection[str]) -> str:
    return next((artifact for artifact in artifacts if artifact.startswith("distilled/")), "none")


def _of_run(storage: Directory, record: Record) -> Product:
    config = storage.read_json(record.place).get("config", {})
    recipe = {name: value for name, value in config.items() if name not in NO_RESULT}
    recipe["data"] = {name: value for name, value in recipe["data"].items() if name != "root"}
    made = {artifact.split("/")[0]: storage / artifact for artifact in record.artifacts}
    wanted = [noun for noun in ("distilled", *MODELS, "evaluation") if noun in made]
    for noun in wanted:
        if read_manifest(made[noun]) is None:
            raise InputError(
                f"{record.place.split('/')[1]}: its {noun} is not complete; give the run's command again"
            )
    scored = made["evaluation"].read_json(EVALUATION) if "evaluation" in wanted else None
    models = {noun: made[noun] for noun in MODELS if noun in wanted}
    return Product(made["distilled"], recipe, scored, models)
