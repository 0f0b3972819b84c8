"""Publish a distilled set on the Hugging Face hub or in a folder.

    python jobs/push.py runs/distilled/… --to ORG/NAME --dry-run
    python jobs/push.py runs/distilled/… --to ORG/NAME
    python jobs/push.py d093b7e8 --to ./my-set storage=/data/runs

RUN is the distilled set as a run prints it, or the beginning of a run's key,
name or set fingerprint in storage=DIR. A target that begins with /, ./, ../ or
~, or is a URI, is a folder and needs no network. The pushed files are the set
as Parquet with its card, adapter and probes if the run has them, recipe,
evaluation, and a manifest with all checksums.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ims3_ray.config.load import load_config, storage_override
from ims3_ray.display import confirm, format_bytes, noun, one_line
from ims3_ray.errors import InputError, describe_error
from ims3_ray.jobs.next_steps import result_lines, shell_command
from ims3_ray.progress import spinner
from ims3_ray.storage.artifacts import MANIFEST, Directory, changed_files, open_directory, read_manifest_file
from ims3_ray.storage.directory import check_writable
from ims3_ray.storage.hub import NAME, SCHEME

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from .release_files import ReleaseFiles

FOLDER = re.compile(r"(/|\.{1,2}/|~|[a-z][a-z0-9+.-]*://)")  # beginning of a folder's place
MAX_LISTED = 20  # files by name
REPO_TYPE = "dataset"
HUB_FILES = {".gitattributes"}  # in every new repository


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s RUN --to ORG/NAME|DIR [option …] [storage=DIR]"
    add = parser.add_argument
    add("run", metavar="RUN", help="a distilled set, or a run by its key or name")
    add("--to", required=True, metavar="ORG/NAME|DIR", help="a data set of the hub, or a folder: ./NAME")
    add("--dry-run", action="store_true", help="list files, sizes and licences; write nothing")
    add("--replace", action="store_true", help="overwrite other content of the target")
    add("--private", action="store_true", help="make a new data set private")
    terms = "confirm that the listed licences let you share the set; otherwise asked on a terminal"
    add("--accept-licence", action="store_true", help=terms)
    add("overrides", nargs="*", metavar="storage=DIR", help="the run's storage (default ./runs)")


def run(arguments: argparse.Namespace) -> None:
    overrides = storage_override(arguments.overrides)
    hub_name = parse_target(arguments.to)
    with spinner("imports"):  # heavy: torch
        from .release import find_release, licence_name
        from .release_files import release_files

    release = find_release(arguments.run, load_config("digits", overrides).storage)
    files = release_files(release)
    print(*file_lines({name: file.size for name, file in files.files.items()}), sep="\n")
    print(*(f"{part:<14} {licence_name(of)}" for part, of in release.licences.items()), sep="\n", flush=True)
    if arguments.dry_run:
        return
    if hub_name:
        if release.restricted and not arguments.accept_licence:
            _confirm(release.restricted)
        place = f"{SCHEME}{hub_name}"
        is_new = upload(files, hub_name, private=arguments.private, replace=arguments.replace)
    else:
        out = open_directory(arguments.to)
        place, is_new = out.uri, _prepare_folder(out, files.checksums, replace=arguments.replace)
        if is_new:
            files.write(out)
    result = {"pushed" if is_new else "there already": place}
    print("", *result_lines(result, {"verify": shell_command("verify", place)}), sep="\n")


def parse_target(place: str) -> str | None:
    """ORG/NAME on the hub; None for a folder. Raises InputError if it is neither."""
    name = place.removeprefix(SCHEME)
    if re.fullmatch(NAME, name) and (name != place or not FOLDER.match(place)):
        return name
    if FOLDER.match(place) and not place.startswith(SCHEME):
        return None
    raise InputError(
        f"--to: {place!r} is neither ORG/NAME of the hub nor a folder, which begins with ./, /, ~ or is a URI"
    )


def file_lines(sizes: Mapping[str, int]) -> list[str]:
    """Number and total size of the files, and the first MAX_LISTED by name."""
    lines = [f"{len(sizes)} {noun(len(sizes), 'files')}, {format_bytes(sum(sizes.values()))}, and {MANIFEST}"]
    lines += [
        f"  {one_line(name):<40} {format_bytes(of):>8}" for name, of in list(sizes.items())[:MAX_LISTED]
    ]
    return lines + ([f"  and {len(sizes) - MAX_LISTED} more"] if len(sizes) > MAX_LISTED else [])


def _confirm(licences: list[str]) -> None:
    """Raise InputError unless the user confirms that the licences permit sharing."""
    text = f"licences with terms for sharing: {', '.join(licences)}"
    if not sys.stdin.isatty():
        raise InputError(f"--to: {text}; read them, and give --accept-licence if they permit it")
    if not confirm(f"{text}. Do they permit it?"):
        raise InputError("--to: nothing was pushed; write a local folder instead: --to ./NAME")


def _prepare_folder(out: Directory, checksums: dict[str, str], *, replace: bool) -> bool:
    """Whether to write the folder; False if it has this content already.

    With `replace`, deletes the files of an earlier push. Raises InputError for any other content.
    """
    check_writable(out, f"--to: {out.uri}")
    if not (found := out.files()):
        return True
    manifest = read_manifest_file(out) or {}
    is_same = manifest.get("checksums") == checksums
    if is_same and not changed_files(out, manifest["files"]):
        return False
    pushed = {MANIFEST, *manifest.get("files", ())}
    is_push = "recipe.yaml" in pushed and pushed >= set(found)
    if not replace or not is_push:
        remedy = "or give --replace" if is_push else "empty or not there yet"
        raise InputError(f"--to: {out.uri} holds other content; name another folder, {remedy}")
    for name in (MANIFEST, *(found.keys() - {MANIFEST})):  # a manifest's own names may lead elsewhere
        (out / name).delete()
    return True


def upload(files: "ReleaseFiles", name: str, *, private: bool, replace: bool) -> bool:
    """Make `files` the content of the hub's data set `name`, created if needed; False if it is already.

    Raises InputError, before any upload: no token, no network, no permission, or other content without
    `replace`. The hub's library reads `HF_TOKEN` and `HF_ENDPOINT`.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise InputError(f"--to {name}: no Hugging Face token; set HF_TOKEN, or run `hf auth login`")
    api = HfApi()
    with _hub_errors(name):
        checksums = _hub_checksums(api, name)
        if checksums == files.checksums:
            return False
        if checksums is not None and not replace:
            raise InputError(
                f"--to {name}: has other content; give another name, or --replace to commit over it"
            )
        api.create_repo(name, repo_type=REPO_TYPE, private=private or None, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder, spinner("upload"):
            files.write(open_directory(folder))
            api.upload_folder(
                repo_id=name,
                folder_path=folder,
                repo_type=REPO_TYPE,
                commit_message=f"Distilled set {files.details['fingerprint']}",
                delete_patterns="*",
            )
    return True


def _hub_checksums(api: "HfApi", name: str) -> Mapping[str, str] | None:
    """Checksums in the repository's manifest; {} for other content, None if it is absent or empty."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        entries = api.dataset_info(name).siblings or []
    except RepositoryNotFoundError:
        return None
    files = {entry.rfilename for entry in entries} - HUB_FILES
    if MANIFEST not in files:
        return {} if files else None
    with open(api.hf_hub_download(name, MANIFEST, repo_type=REPO_TYPE), encoding="utf-8") as stream:
        try:
            return dict(json.load(stream)["checksums"])
        except (ValueError, LookupError, TypeError):
            return {}


@contextmanager
def _hub_errors(name: str) -> Generator[None, None, None]:
    """Turn the library's network and permission errors into InputError."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    try:
        yield
    except (HTTPError, OfflineModeIsEnabled) as error:
        is_refused = isinstance(error, HfHubHTTPError)
        problem, remedy = "the hub is not reachable", "check the network and HF_ENDPOINT"
        if is_refused:
            problem, remedy = "the hub refused", "check the token's rights and the name"
        raise InputError(
            f"--to {name}: {problem} ({describe_error(error)[:200]}); {remedy}, or "
            "write a folder: --to ./NAME"
        ) from error
