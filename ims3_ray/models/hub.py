"""Models on the Hugging Face hub, `org/name` or `org/name@revision`: what is fetched, and of which commit."""

import re
from pathlib import Path
from typing import Any

from ims3_ray.errors import InputError
from ims3_ray.progress import on_screen

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@[\w./-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# a missing file of such a name is never a hub id
_FILE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


def is_hub_id(text: str) -> bool:
    """Whether `text` names a model on the hub, and nothing on this machine."""
    return bool(_HUB_ID.fullmatch(text)) and not text.endswith(_FILE_SUFFIXES) and not Path(text).exists()


def pin(path: str) -> str:
    """`path`, but a hub id with the commit that its revision (main, where it names none) means now.

    Whoever loads that, whenever and on whichever node, loads the same weights. InputError where the hub has
    no such model.
    """
    name, _, revision = path.partition("@")
    if not is_hub_id(path) or _COMMIT.fullmatch(revision):
        return path
    return f"{name}@{_fetched(path, ['*.json']).name}"


def download(hub_id: str) -> Path:
    """The local folder of a hub id, named by its commit: configurations, and the weights of a generator where
    it has them apart, else all weights. InputError where they can't be had.
    """
    folder = _fetched(hub_id, ["*.json"])
    parts = [f"{part}/*" for part in ("transformer", "vae") if (folder / part).is_dir()]
    patterns = parts or ["*.safetensors", "*.bin"]
    return _fetched(f"{hub_id.partition('@')[0]}@{folder.name}", ["*.json", *patterns])


def _fetched(hub_id: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *given: Any, **options: Any):
            super().__init__(*given, **options | on_screen())

    name, _, revision = hub_id.partition("@")
    wanted: dict[str, Any] = {"revision": revision or None, "allow_patterns": patterns}
    try:
        return Path(snapshot_download(name, tqdm_class=Bar, **wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{hub_id}: no such folder here, and not to be had from the Hugging Face hub ({reason}); "
            "give a local folder, or check the id, its revision and the network"
        ) from error
