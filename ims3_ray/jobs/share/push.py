"""Publish a distilled set on the Hugging Face hub or in a folder.

    python jobs/push.py runs/distilled/… --to ORG/NAME --dry-run
    python jobs/push.py runs/distilled/… --to ORG/NAME
    python jobs/push.py d093b7e8 --to ./my-set storage=/data/runs

RUN is the distilled set as a run prints it, or the beginning of a run's key
or name, or of its set's fingerprint, in storage=DIR. A place that begins with
/, ./, ../ or ~, or is a URI, is a folder: no network is needed. Pushed are the
set as Parquet with its card, the adapter and the probes where there are any,
recipe, evaluation, and a manifest with all checksums.
"""

import argparse
import re
import sys

from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.display import format_bytes, noun, one_line
from ims3_ray.errors import InputError
from ims3_ray.jobs.next_steps import result_lines, shell_command
from ims3_ray.progress import spinner
from ims3_ray.storage.artifacts import MANIFEST, Directory, open_directory, read_manifest
from ims3_ray.storage.directory import check_writable
from ims3_ray.storage.hub import NAME, SCHEME

FOLDER = re.compile(r"(/|\.{1,2}/|~|[a-z][a-z0-9+.-]*://)")  # what its place begins with
MOST = 20  # files that are listed by name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s RUN --to ORG/NAME|DIR [option …] [storage=DIR]"
    add = parser.add_argument
    add("run", metavar="RUN", help="a distilled set, or a run by its key or name")
    add("--to", required=True, metavar="ORG/NAME|DIR", help="a data set of the hub, or a folder: ./NAME")
    add("--dry-run", action="store_true", help="list files, sizes and licences, and write nothing")
    add("--replace", action="store_true", help="write over other content that is there")
    add("--private", action="store_true", help="of a data set that is created: for its owners alone")
    terms = "you may give the set on under the licences that are listed; asked on a terminal"
    add("--accept-licence", action="store_true", help=terms)
    add("overrides", nargs="*", metavar="storage=DIR", help="where the run is (default ./runs)")


def run(arguments: argparse.Namespace) -> None:
    overrides = parse_overrides(arguments.overrides)
    if unknown := set(overrides) - {"storage"}:
        raise InputError(f"{', '.join(sorted(unknown))}: not known here; only storage=DIR is")
    hub_name = read_target(arguments.to)
    with spinner("imports"):  # heavy: torch
        from . import hub
        from .release import find_product, name_of
        from .release_files import bundle

    product = find_product(arguments.run, load_config("digits", overrides).storage)
    tree = bundle(product)
    print(*file_lines({name: file.size for name, file in tree.files.items()}), sep="\n")
    print(*(f"{what:<14} {name_of(of)}" for what, of in product.licences.items()), sep="\n", flush=True)
    if arguments.dry_run:
        return
    if hub_name:
        if product.terms and not arguments.accept_licence:
            _ask(product.terms)
        is_new = hub.push(tree, hub_name, private=arguments.private, replace=arguments.replace)
        place = f"{SCHEME}{hub_name}"
    else:
        out = open_directory(arguments.to)
        place, is_new = out.uri, _make_room(out, tree.checksums, replace=arguments.replace)
        if is_new:
            tree.write(out)
    made = {"pushed" if is_new else "there already": place}
    print("", *result_lines(made, {"verify": shell_command("verify", place)}), sep="\n")


def read_target(place: str) -> str | None:
    """ORG/NAME of the hub; None of a folder. InputError for what is neither."""
    name = place.removeprefix(SCHEME)
    if re.fullmatch(NAME, name) and (name != place or not FOLDER.match(place)):
        return name
    if FOLDER.match(place) and not place.startswith(SCHEME):
        return None
    raise InputError(
        f"--to: {place!r} is neither ORG/NAME of the hub nor a folder, which begins with ./, /, ~ or is a URI"
    )


def file_lines(sizes: dict[str, int]) -> list[str]:
    """The files by name, the first MOST of them."""
    lines = [f"{len(sizes)} {noun(len(sizes), 'files')}, {format_bytes(sum(sizes.values()))}, and {MANIFEST}"]
    lines += [f"  {one_line(name):<40} {format_bytes(of):>8}" for name, of in list(sizes.items())[:MOST]]
    return lines + ([f"  and {len(sizes) - MOST} more"] if len(sizes) > MOST else [])


def _ask(terms: list[str]) -> None:
    """InputError unless a person says that the set may be given on."""
    told = f"licences with terms for whoever gives the set on: {', '.join(terms)}"
    if not sys.stdin.isatty():
        raise InputError(f"--to: {told}; read them, and give --accept-licence if they let you")
    print(f"{told}. Do they let you? [y/N] ", end="", flush=True)
    if input().strip().lower() not in ("y", "yes"):
        raise InputError("--to: nothing was pushed; write a folder of your own in place: --to ./NAME")


def _make_room(out: Directory, checksums: dict[str, str], *, replace: bool) -> bool:
    """Whether the folder is to be written: False where it holds the very content. Of other content, the files
    of an earlier push are deleted, with `replace` alone.
    """
    check_writable(out, f"--to: {out.uri}")
    if not out.files():
        return True
    manifest = read_manifest(out) or {}
    if manifest.get("checksums") == checksums:
        return False
    if not replace or "files" not in manifest:
        remedy = "or --replace to write over it" if "files" in manifest else "which is empty or not there"
        raise InputError(f"--to: {out.uri} holds other content; name another folder, {remedy}")
    for name in (MANIFEST, *manifest["files"]):
        (out / name).delete()
    return True
