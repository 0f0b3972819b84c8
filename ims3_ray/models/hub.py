"""Where a model lies: a local path, `package://NAME` in this package, or the Hugging Face hub.

A hub id is `org/name` or `org/name@revision`, with `hf://` before it or without.
"""

import re
from importlib.resources import files
from pathlib import Path

from ims3_ray.errors import InputError
from ims3_ray.storage.hub import NAME, fetch, hub_name

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


def pin(path: str) -> str:
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
