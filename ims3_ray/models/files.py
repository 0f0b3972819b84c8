"""What the files of a model hold: JSON and tensors, never code from outside."""

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
    import torch  # takes a second: checks of names and folders do without

Shapes = dict[str, tuple[int, ...]]

_WEIGHTS_STEM = "diffusion_pytorch_model"
_WEIGHTS_NAMES = tuple(  # the order of preference: no pickle before pickle, full precision before half
    f"{_WEIGHTS_STEM}{variant}{suffix}"
    for kind in ("safetensors", "bin")
    for variant in ("", ".fp16")
    for suffix in (f".{kind}", f".{kind}.index.json")
)
PACKAGE_SCHEME = "package://"
_HUB_ID = re.compile(rf"{NAME}(?:@[\w./-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# a missing file of such a name is never a hub id
_FILE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


def is_hub_id(text: str) -> bool:
    """Whether `text` names a model on the hub, and nothing on this machine."""
    if hub_name(text):
        return True
    return bool(_HUB_ID.fullmatch(text)) and not text.endswith(_FILE_SUFFIXES) and not Path(text).exists()


def pin_revision(path: str) -> str:
    """`path`, but a hub id with the commit that its revision (main, where it names none) means now.

    Whoever loads that, whenever and on whichever node, loads the same weights. InputError where the hub has
    no such model.
    """
    if not is_hub_id(path):
        return path
    hub_id = hub_name(path) or path
    name, _, revision = hub_id.partition("@")
    return hub_id if _COMMIT.fullmatch(revision) else f"{name}@{fetch(hub_id, ['*.json']).name}"


def download(hub_id: str) -> Path:
    """The local folder of a hub id, named by its commit: configurations, and the weights of a generator where
    it has them apart, else all weights. InputError where they can't be had.
    """
    hub_id = hub_name(hub_id) or hub_id
    folder = fetch(hub_id, ["*.json"])
    parts = [f"{part}/*" for part in ("transformer", "vae") if (folder / part).is_dir()]
    patterns = parts or ["*.safetensors", "*.bin"]
    return fetch(f"{hub_id.partition('@')[0]}@{folder.name}", ["*.json", *patterns])


def resolve_model(path: str | Path) -> Path:
    """Returns the local file or folder that `path` names.

    Only a hub id that is no local path is looked up on the network. Raises InputError if there is nothing.
    """
    text = str(path)
    if text.startswith(PACKAGE_SCHEME):
        return _packaged(text)
    if Path(text).exists():
        return Path(text)
    if is_hub_id(text):
        return download(text)
    raise InputError(
        f"{text}: no such model file or folder; give a diffusers folder, an original DiT .pt file or a hub id"
    )


def _packaged(text: str) -> Path:
    name, root = text.removeprefix(PACKAGE_SCHEME), Path(str(files("ims3_ray"))) / "pretrained"
    known = sorted(folder.name for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []
    if name not in known:
        raise InputError(f"{text}: no such model in this package; it brings {', '.join(known) or 'none'}")
    return root / name


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; InputError if the file isn't there or holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such file; a diffusers model folder has it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: must be JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold a JSON object, not a {type(value).__name__}")
    return value


def find_weights(folder: Path) -> list[Path]:
    """The weight files of a diffusers model folder: one, or the parts of a split one. Prefers safetensors."""
    for name in _WEIGHTS_NAMES:
        path = folder / name
        if not path.is_file():
            continue
        if not name.endswith(".index.json"):
            return [path]
        parts = sorted({str(part) for part in read_json(path).get("weight_map", {}).values()})
        missing = [part for part in parts if Path(part).name != part or not (folder / part).is_file()]
        if missing or not parts:
            raise InputError(
                f"{path}: names weight files that are not in its folder "
                f"({first_few(missing or ['none'], 3, str)})"
            )
        return [folder / part for part in parts]
    raise InputError(
        f"{folder}: holds no weights; {_WEIGHTS_NAMES[0]} (or .bin, or parts with an index) is needed"
    )


def read_tensors(paths: list[Path]) -> dict[str, "torch.Tensor"]:
    """All tensors by name, on the CPU. Pickled files give plain tensors: InputError for anything more.

    InputError where values are not finite, too.
    """
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for path in paths:
        if path.suffix == ".safetensors":
            with _whole(path):
                held = load_file(path)
        else:
            held = _state_dict(path, "cpu")
        check_finite(held, path)
        tensors.update(held)
    return tensors


def read_shapes(paths: list[Path]) -> Shapes:
    """Shapes by name, from headers alone."""
    shapes: Shapes = {}
    for path in paths:
        if path.suffix == ".safetensors":
            with _whole(path), safe_open(path, framework="pt") as held:
                shapes.update({name: tuple(held.get_slice(name).get_shape()) for name in held.keys()})  # noqa: SIM118
        else:
            shapes.update(shapes_of(_state_dict(path, "meta")))
    return shapes


@contextlib.contextmanager
def _whole(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except SafetensorError as error:
        raise InputError(f"{path}: is no whole safetensors file ({error}); fetch it again") from error


def _state_dict(path: Path, device: str) -> dict[str, "torch.Tensor"]:
    """The state dict in a torch file: its "ema" where it holds one, else its "model", else the file itself.

    Training files of the original DiT also hold their command line, an argparse.Namespace: the one class let
    through.
    """
    import torch

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            held = torch.load(path, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: is damaged or holds more than plain tensors, and is not opened, since pickled files "
            "can run code; save its state dict alone"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise InputError(
            f"{path}: is no whole torch file ({one_line(str(error))[:200] or 'it is empty'}); fetch it again"
        ) from error
    for key in ("ema", "model"):
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
            break
    if not isinstance(held, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in held.items()
    ):
        raise InputError(f"{path}: must hold tensors by name, by themselves or under 'ema' or 'model'")
    return held


def check_shapes(found: Shapes, expected: Shapes, source: Path, what: str) -> None:
    """InputError, with the names shortened, unless both hold the same names with the same shapes."""
    if problems := describe_mismatch(found, expected):
        raise InputError(f"{source}: is not {what} ({problems})")


def check_finite(tensors: Mapping[str, "torch.Tensor"], source: str | Path) -> None:
    """InputError, with the tensors' names, where weights are not finite."""
    import torch

    sums = {name: float(value.sum(dtype=torch.float32)) for name, value in tensors.items()}
    if odd := [name for name, total in sums.items() if not math.isfinite(total)]:  # a look at each is slow
        raise InputError(
            f"{source}: holds weights that are not finite ({first_few(odd, 3, str)}); fetch it again, or "
            "take an earlier checkpoint"
        )


def shapes_of(tensors: Mapping[str, "torch.Tensor"]) -> Shapes:
    return {name: tuple(value.shape) for name, value in tensors.items()}
