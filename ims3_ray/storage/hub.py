"""Downloads repositories of the Hugging Face hub into local folders that are named by their commit.

    hf://ORG/NAME, hf://ORG/NAME@REVISION      a revision is a commit, a tag or a branch; `main` by default

The hub library reads `HF_ENDPOINT`, `HF_TOKEN` and `HF_HOME`.
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
    """Returns ORG/NAME[@REVISION] of a hub address; None for any other location."""
    match = ADDRESS.fullmatch(location)
    return match[1] if match else None


def fetch(
    hub_id: str, patterns: list[str] | None = None, kind: Literal["model", "dataset"] = "model"
) -> Path:
    """Download "org/name" or "org/name@revision", only files like `patterns` if given.

    Returns the local folder, which is named by the commit. Raises InputError if the download fails.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **options | tqdm_options())

    name, _, revision = hub_id.partition("@")
    options: dict[str, Any] = {"revision": revision or None, "allow_patterns": patterns, "repo_type": kind}
    try:
        return Path(snapshot_download(name, tqdm_class=Bar, **options))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{hub_id}: no such folder here, and the Hugging Face hub does not serve it ({reason}); "
            "give a local folder, or check the id, its revision and the network"
        ) from error


def fetch_set(location: str) -> str:
    """Returns where to read the data set `hf://ORG/NAME`.

    A set that this project pushed is downloaded and verified: its local folder. Any other set is for
    `datasets` to read: "hf:ORG/NAME". Raises InputError if the download fails or checksums differ.
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
            f"{location}: differs from its manifest: {found}; remove {folder} and fetch it again, or ask its "
            "author"
        )
    return str(folder)


def _is_ours(manifest: Path) -> bool:
    try:
        return {"format", "fingerprint", "files"} <= set(json.loads(manifest.read_bytes()))
    except (OSError, ValueError, TypeError):
        return False
