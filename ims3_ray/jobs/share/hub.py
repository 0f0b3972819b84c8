"""Upload to the Hugging Face hub, by its own library: `HF_TOKEN` and `HF_ENDPOINT` are the library's."""

import json
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ims3_ray.errors import InputError, describe_error
from ims3_ray.progress import spinner
from ims3_ray.storage.artifacts import MANIFEST, open_directory

from .release_files import Bundle

if TYPE_CHECKING:
    from huggingface_hub import HfApi

KIND = "dataset"
OWN_FILES = {".gitattributes"}  # the hub's, in a repository that is new


def push(bundle: Bundle, name: str, *, private: bool, replace: bool) -> bool:
    """Make the bundle the content of the data set `name` (ORG/NAME), created where it is not there.

    Gives False where it has the very content already. InputError, before anything is uploaded: no token, no
    network, no right to write there, other content while `replace` is False.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise InputError(
            f"--to {name}: no token of the Hugging Face hub is here; set HF_TOKEN, or run `hf auth login`"
        )
    api = HfApi()
    with _reaching(name):
        there = _checksums(api, name)
        if there == bundle.checksums:
            return False
        if there is not None and not replace:
            raise InputError(
                f"--to {name}: is there with other content; give another name, or --replace to commit over it"
            )
        api.create_repo(name, repo_type=KIND, private=private or None, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder, spinner("upload"):
            bundle.write(open_directory(folder))
            api.upload_folder(
                repo_id=name,
                folder_path=folder,
                repo_type=KIND,
                commit_message=f"Distilled set {bundle.details['fingerprint']}",
                delete_patterns="*",
            )
    return True


def _checksums(api: "HfApi", name: str) -> Mapping[str, str] | None:
    """Of the files there, as a manifest of ours says, {} of anything else; None where nothing is."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        entries = api.dataset_info(name).siblings or []
    except RepositoryNotFoundError:
        return None
    files = {entry.rfilename for entry in entries} - OWN_FILES
    if MANIFEST not in files:
        return {} if files else None
    with open(api.hf_hub_download(name, MANIFEST, repo_type=KIND), encoding="utf-8") as stream:
        try:
            return dict(json.load(stream)["checksums"])
        except (ValueError, LookupError, TypeError):
            return {}


@contextmanager
def _reaching(name: str) -> Generator[None, None, None]:
    """What the library raises where the hub refuses or is not reached is one line."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    try:
        yield
    except (HTTPError, OfflineModeIsEnabled) as error:
        refused = isinstance(error, HfHubHTTPError)
        remedy = "check the token's rights and the name" if refused else "check the network and HF_ENDPOINT"
        raise InputError(
            f"--to {name}: the hub {'refused' if refused else 'is not reached'} "
            f"({describe_error(error)[:200]})"
            f"; {remedy}, or write a folder: --to ./NAME"
        ) from error
