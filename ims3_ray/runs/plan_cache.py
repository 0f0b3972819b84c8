"""A run by what its words and inputs look like from outside: found again without anything heavy.

    <root>/index/<signature>.json   the run's name, and its artefacts

To plan a run takes torch, the model and every image's hash: seconds. What was planned before under the same
recipe, the same code and over files of the same sizes and times is the same run. Where that can't be told,
as of another cluster's devices or of a branch on the hub, there is no signature.
"""

import glob
import os
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TypedDict

from ims3_ray.config.data import CACHE, HUB, TORCHVISION
from ims3_ray.config.settings import WEIGHTS, Config
from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import Directory, fingerprint, open_directory

PACKAGED, TIMM = "package://", "timm:"
DEVICES = "/dev/nvidia[0-9]*"
COMMIT = re.compile(r".+@[0-9a-f]{40}")


class CachedPlan(TypedDict):
    """`steps`: in order, the stage's name and where its artefact lies. `is_finished`: its record, too."""

    run: str
    steps: list[tuple[str, str]]
    notes: list[str]  # what is told whenever it begins
    is_finished: bool


def signature(config: Config) -> str | None:
    """Of all that a run's plan depends on; None where something of it does not show from outside."""
    if os.environ.get("RAY_ADDRESS") or config.finetune.batch_size == "auto":
        return None
    weights = [getattr(getattr(config, section), field) for section, field in WEIGHTS]
    given = [place for place in (config.data.train, config.data.validation, config.data.test) if place]
    try:
        seen = [_model(spec) for spec in weights if spec]
        seen += [_images(place, config.data.root) for place in given if not place.startswith(PACKAGED)]
    except (LookupError, OSError, InputError):
        return None
    devices = [config.workers.device, sorted(glob.glob(DEVICES)), os.environ.get("CUDA_VISIBLE_DEVICES")]
    code = _stats(Path(str(files("ims3_ray"))))
    return fingerprint([config.results(), devices, code, version("timm"), seen])


def write(
    storage: Directory,
    key: str | None,
    run: str,
    steps: Mapping[str, str],
    notes: Sequence[str],
    *,
    is_finished: bool,
) -> None:
    """Keep that what has the signature `key` is this run, whose `steps` are artefacts by stage."""
    if key:
        receipt = CachedPlan(run=run, steps=list(steps.items()), notes=list(notes), is_finished=is_finished)
        storage.write_json(_place(key), receipt)


def find(storage: Directory, config: Config) -> CachedPlan | None:
    """What was kept of a run like `config`; None where nothing was, or it is damaged."""
    key = signature(config)
    if not key or not storage.exists(_place(key)):
        return None
    try:
        kept = storage.read_json(_place(key))
        steps = [(str(name), str(artifact)) for name, artifact in kept["steps"]]
        run, is_finished = str(kept["run"]), bool(kept["is_finished"])
        return CachedPlan(run=run, steps=steps, notes=list(map(str, kept["notes"])), is_finished=is_finished)
    except (InputError, LookupError, TypeError, ValueError):
        return None


def _place(key: str) -> str:
    return f"index/{key}.json"


def _model(spec: str) -> list[object]:
    """LookupError for what the network decides."""
    path = Path(spec.removeprefix(TIMM).partition("?")[0])
    if path.exists():
        return [str(path.absolute()), _stats(path)]
    if "/" in str(path) and not spec.startswith(PACKAGED) and not COMMIT.fullmatch(str(path)):
        raise LookupError(spec)
    return [spec]


def _stats(path: Path) -> list[object]:
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    paths = [p for p in found if p.suffix != ".pyc" and p.is_file()]
    return [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in paths]


def _images(place: str, root: str | None) -> list[object]:
    """LookupError for what the hub decides."""
    if place.startswith(HUB):
        raise LookupError(place)
    if place.startswith(TORCHVISION):
        return [place, _stats(Path(root or CACHE).expanduser())]
    directory = open_directory(place)
    found = directory.files() or {"": directory.infos([directory.path])[0]}
    return [directory.uri, [[name, info.size, info.mtime_ns] for name, info in found.items()]]
