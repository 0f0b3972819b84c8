"""Locate and read model files: local paths, `package://NAME`, Hugging Face ids; JSON and tensors, never code.

A hub id is `org/name` or `org/name@revision`, optionally prefixed with `hf://`.
"""

import argparse
import contextlib
import json
import math
import pickle
import re
import zipfile
from collections.abc import Generator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from ims3_ray.display import describe_mismatch, first_few, one_line
from ims3_ray.errors import InputError
from ims3_ray.storage.hub import NAME, fetch, hub_name

if TYPE_CHECKING:
    import torch  # slow import; not needed to check names and folders

Shapes = dict[str, tuple[int, ...]]

_WEIGHTS_STEM = "diffusion_pytorch_model"
_WEIGHTS_NAMES = tuple(  # preferred first: safetensors before pickle, full precision before half
    f"{_WEIGHTS_STEM}{variant}{suffix}"
    for kind in ("safetensors", "bin")
    for variant in ("", ".fp16")
    for suffix in (f".{kind}", f".{kind}.index.json")
)
PACKAGE_SCHEME = "package://"
_HUB_ID = re.compile(rf"{NAME}(?:@[\w./-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# such a name is never a hub id, even if the file is missing
_FILE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


def is_hub_id(text: str) -> bool:
    """Return whether `text` names a model on the hub and nothing on this machine."""
    if hub_name(text):
        return True
    return bool(_HUB_ID.fullmatch(text)) and not text.endswith(_FILE_SUFFIXES) and not Path(text).exists()


def pin_revision(path: str) -> str:
    """Add to a hub id the commit that its revision (default main) means now; return other paths unchanged.

    Every node then loads the same weights. Raises InputError if the hub has no such model.
    """
    if not is_hub_id(path):
        return path
    hub_id = hub_name(path) or path
    name, _, revision = hub_id.partition("@")
    return hub_id if _COMMIT.fullmatch(revision) else f"{name}@{fetch(hub_id, ['*.json']).name}"


def download(hub_id: str) -> Path:
    """Download a hub model; return its local folder, named by the commit.

    Fetches JSON files and weights; of a generator only its parts. Raises InputError on
    failure.
    """
    hub_id = hub_name(hub_id) or hub_id
    folder = fetch(hub_id, ["*.json"])
    parts = [f"{part}/*" for part in ("transformer", "vae", "extractor") if (folder / part).is_dir()]
    patterns = parts or ["*.safetensors", "*.bin"]
    return fetch(f"{hub_id.partition('@')[0]}@{folder.name}", ["*.json", *patterns])


def resolve_model(path: str | Path) -> Path:
    """Return the local file or folder that `path` names.

    Uses the network only for hub ids that are no local path. Raises InputError if nothing is found.
    """
    text = str(path)
    if text.startswith(PACKAGE_SCHEME):
        return _packaged_model(text)
    if (local := Path(text).expanduser()).exists():
        return local
    if is_hub_id(text):
        return download(text)
    raise InputError(
        f"{text}: no such model file or folder; give a diffusers folder, an original DiT .pt file or a hub id"
    )


def _packaged_model(text: str) -> Path:
    name, root = text.removeprefix(PACKAGE_SCHEME), Path(str(files("ims3_ray"))) / "pretrained"
    names = sorted(folder.name for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []
    if name not in names:
        raise InputError(f"{text}: no such packaged model; choose from: {', '.join(names) or 'none'}")
    return root / name


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises InputError if the file is missing or holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such file; a diffusers model folder needs it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: invalid JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold a JSON object, not a {type(value).__name__}")
    return value


def find_weights(folder: Path) -> list[Path]:
    """Return the weight files of a diffusers model folder, one or several shards; safetensors preferred."""
    for name in _WEIGHTS_NAMES:
        path = folder / name
        if not path.is_file():
            continue
        if not name.endswith(".index.json"):
            return [path]
        shards = sorted({str(part) for part in read_json(path).get("weight_map", {}).values()})
        missing = [part for part in shards if Path(part).name != part or not (folder / part).is_file()]
        if missing or not shards:
            raise InputError(
                f"{path}: lists missing weight files ({first_few(missing or ['all'], 3, str)}); fetch them"
            )
        return [folder / part for part in shards]
    raise InputError(
        f"{folder}: has no weights; it needs {_WEIGHTS_NAMES[0]} (or .bin, or shards with an index)"
    )


def read_tensors(paths: list[Path]) -> dict[str, "torch.Tensor"]:
    """Read all tensors by name to the CPU. Pickled files may hold plain tensors only.

    Raises InputError for other pickled content and for values that are not finite.
    """
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for path in paths:
        if path.suffix == ".safetensors":
            with safetensors_errors(path):
                content = load_file(path)
        else:
            content = _state_dict(path, "cpu")
        check_finite(content, path)
        tensors.update(content)
    return tensors


def read_shapes(paths: list[Path]) -> Shapes:
    """Read all shapes by name from file headers."""
    shapes: Shapes = {}
    for path in paths:
        if path.suffix == ".safetensors":
            with safetensors_errors(path), safe_open(path, framework="pt") as content:
                shapes.update({name: tuple(content.get_slice(name).get_shape()) for name in content.keys()})  # noqa: SIM118
        else:
            shapes.update(shapes_of(_state_dict(path, "meta")))
    return shapes


@contextlib.contextmanager
def safetensors_errors(path: str | Path) -> Generator[None, None, None]:
    try:
        yield
    except SafetensorError as error:
        raise InputError(f"{path}: damaged safetensors file ({error}); fetch it again") from error


def _state_dict(path: Path, device: str) -> dict[str, "torch.Tensor"]:
    """Return the "ema" of a torch file if there is one, else its "model", else the file itself.

    Training files of the original DiT hold their command line, an argparse.Namespace: the only class allowed.
    """
    import torch

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: damaged, or holds more than plain tensors; pickled files can run code: save only the "
            "state dict"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise InputError(
            f"{path}: damaged torch file ({one_line(str(error))[:200] or 'empty'}); fetch it again"
        ) from error
    for key in ("ema", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise InputError(f"{path}: must hold named tensors, at the top or under 'ema' or 'model'")
    return content


def check_shapes(found: Shapes, expected: Shapes, source: Path, what: str) -> None:
    """Raise InputError, listing the differences, unless names and shapes agree."""
    if problems := describe_mismatch(found, expected):
        raise InputError(f"{source}: is not {what} ({problems})")


def check_finite(tensors: Mapping[str, "torch.Tensor"], source: str | Path) -> None:
    """Raise InputError, naming the tensors, if weights are not finite."""
    import torch

    sums = {name: float(value.sum(dtype=torch.float32)) for name, value in tensors.items()}
    if damaged := [name for name, total in sums.items() if not math.isfinite(total)]:
        raise InputError(
            f"{source}: weights are not finite ({first_few(damaged, 3, str)}); fetch it again, or "
            "take an earlier checkpoint"
        )


def shapes_of(tensors: Mapping[str, "torch.Tensor"]) -> Shapes:
    return {name: tuple(value.shape) for name, value in tensors.items()}
