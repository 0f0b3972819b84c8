"""Repositories of the Hugging Face hub as folders of this machine: fetched once, each named by its commit.

    hf://ORG/NAME, hf://ORG/NAME@REVISION      a revision is a commit, a tag or a branch; main without one

`HF_ENDPOINT`, `HF_TOKEN` and `HF_HOME` are the hub library's own.
"""

import json
import re
from pathlib import Path
from typing import Any, Literal

from ims3_ray.display import first_few
from ims3_ray.errors import InputError
from ims3_ray.progress import tqdm_options

from .artifacts import MANIFEST, open_directory
from .integrity import verify

SCHEME = "hf://"
NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
ADDRESS = re.compile(rf"{SCHEME}(?:datasets/)?({NAME}(?:@[\w./-]+)?)")


def hub_name(location: str) -> str | None:
    """ORG/NAME, and @REVISION where it has one, of an address as above; None of any other place."""
    match = ADDRESS.fullmatch(location)
    return match[1] if match else None


def fetch(
    hub_id: str, patterns: list[str] | None = None, kind: Literal["model", "dataset"] = "model"
) -> Path:
    """The local folder, named by its commit, of "org/name" or "org/name@revision": files like `patterns`, or
    all. InputError where they can't be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *given: Any, **options: Any):
            super().__init__(*given, **options | tqdm_options())

    name, _, revision = hub_id.partition("@")
    wanted: dict[str, Any] = {"revision": revision or None, "allow_patterns": patterns, "repo_type": kind}
    try:
        return Path(snapshot_download(name, tqdm_class=Bar, **wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{hub_id}: no such folder here, and not to be had from the Hugging Face hub ({reason}); "
            "give a local folder, or check the id, its revision and the network"
        ) from error


def fetch_set(location: str) -> str:
    """Where the data set `hf://ORG/NAME` is read: of one that this project pushed its local folder, once all
    bytes are as its manifest says; of any other "hf:ORG/NAME", which `datasets` reads.

    InputError where it can't be had, and where checksums differ.
    """
    hub_id = hub_name(location)
    assert hub_id, location
    name, _, revision = hub_id.partition("@")
    folder = fetch(hub_id, [MANIFEST], "dataset")
    if not _is_ours(folder / MANIFEST):
        return f"hf:{name}{f'?revision={revision}' if revision else ''}"
    folder = fetch(f"{name}@{folder.name}", kind="dataset")
    damaged, _ = verify(open_directory(str(folder)))
    if damaged:
        found = first_few((f"{file} {why}" for file, why in damaged.items()), 3, str)
        raise InputError(
            f"{location}: is not as it was pushed: {found}; remove {folder} and fetch it again, or ask who "
            "pushed it"
        )
    return str(folder)


def _is_ours(manifest: Path) -> bool:
    try:
        return {"format", "fingerprint", "files"} <= set(json.loads(manifest.read_bytes()))
    except (OSError, ValueError, TypeError):
        return False
