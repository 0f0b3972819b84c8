"""Cache of a run's plan, keyed by its configuration, the code, and the sizes and times of its input files.

    <root>/index/<signature>.json   the run's name, and its artefacts

Planning takes seconds: torch, the model, and a hash of each image. Inputs that can change without a trace in
file stats (another cluster's devices, a branch on the hub) have no signature; their plans are not cached.
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
    """`steps` are (stage, artefact), in order. `is_finished` includes the run's record and MLflow run."""

    run: str
    steps: list[tuple[str, str]]
    notes: list[str]  # printed whenever the run starts
    is_finished: bool


def signature(config: Config) -> str | None:
    """Return a hash of everything that the plan depends on, or None if something has no file stats."""
    if os.environ.get("RAY_ADDRESS") or config.finetune.batch_size == "auto":
        return None
    weights = [getattr(getattr(config, section), field) for section, field in WEIGHTS]
    data = config.data
    places = [place for place in (data.train, data.validation, data.test) if place]
    try:
        inputs = [_model_stats(spec) for spec in weights if spec]
        inputs += [_image_stats(place, data.root) for place in places if not place.startswith(PACKAGED)]
        if isinstance(data.class_map, str) and data.class_map != "new":
            inputs.append(_stats(Path(data.class_map)))
    except (LookupError, OSError, InputError):
        return None
    devices = [config.workers.device, sorted(glob.glob(DEVICES)), os.environ.get("CUDA_VISIBLE_DEVICES")]
    code = _stats(Path(str(files("ims3_ray"))))
    return fingerprint([config.results(), devices, code, version("timm"), inputs])


def write(
    storage: Directory,
    key: str | None,
    run: str,
    steps: Mapping[str, str],
    notes: Sequence[str],
    *,
    is_finished: bool,
) -> None:
    """Cache a plan under `key` (a signature); `steps` are artefacts by stage."""
    if key:
        plan = CachedPlan(run=run, steps=list(steps.items()), notes=list(notes), is_finished=is_finished)
        storage.write_json(_place(key), plan)


def find(storage: Directory, config: Config) -> CachedPlan | None:
    """Return the cached plan of `config`, or None if there is none or it is damaged."""
    key = signature(config)
    if not key or not storage.exists(_place(key)):
        return None
    try:
        plan = storage.read_json(_place(key))
        steps = [(str(name), str(artifact)) for name, artifact in plan["steps"]]
        run, is_finished = str(plan["run"]), bool(plan["is_finished"])
        return CachedPlan(run=run, steps=steps, notes=list(map(str, plan["notes"])), is_finished=is_finished)
    except (InputError, LookupError, TypeError, ValueError):
        return None


def _place(key: str) -> str:
    return f"index/{key}.json"


def _model_stats(spec: str) -> list[object]:
    """Raises LookupError for a model on the hub without a commit."""
    path = Path(spec.removeprefix(TIMM).partition("?")[0])
    if path.exists():
        return [str(path.absolute()), _stats(path)]
    if "/" in str(path) and not spec.startswith(PACKAGED) and not COMMIT.fullmatch(str(path)):
        raise LookupError(spec)
    return [spec]


def _stats(path: Path) -> list[object]:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    paths = [p for p in files if p.suffix != ".pyc" and p.is_file()]
    return [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in paths]


def _image_stats(place: str, root: str | None) -> list[object]:
    """Raises LookupError for a data set on the hub, and for a tensor file: others may lie beside it."""
    if place.startswith(HUB) or place.partition("?")[0].endswith(".pt"):
        raise LookupError(place)
    if place.startswith(TORCHVISION):
        return [place, _stats(Path(root or CACHE).expanduser())]
    directory = open_directory(place)
    infos = directory.files() or {"": directory.infos([directory.path])[0]}
    return [directory.uri, [[name, info.size, info.mtime_ns] for name, info in infos.items()]]
