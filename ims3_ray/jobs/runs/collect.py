"""`--gc`: what lies in the storage and what no run needs, shown, and deleted once a person agrees."""

from collections.abc import Sequence
from typing import Any

from ims3_ray.runs import query as querying
from ims3_ray.runs.tracking import client
from ims3_ray.storage.artifacts import Directory

from . import garbage
from .garbage import NEEDED, UNNEEDED, Entry, Survey
from .table import aligned


def collect(storage: Directory, *, asks: bool, is_agreed: bool) -> tuple[dict[str, Any], list[str]]:
    """Survey the storage and, where agreed on or agreed to, delete what no run needs; the answer and the last
    lines.

    `asks` prints the survey and the question; without it only `is_agreed` deletes.
    """
    deleted, notes = _deleted(storage)
    found = garbage.survey(storage, deleted)
    found.notes.extend(notes)
    if asks:
        print("\n".join(_lines(storage, found)))
    unneeded, gone = found.unneeded, []
    if unneeded and (is_agreed or (asks and _agrees(unneeded))):
        gone = garbage.delete(storage, [entry.place for entry in unneeded], _deleted(storage)[0])
    answer = _document(storage, found) | {"deleted": [_plain(entry) for entry in gone]}
    if not unneeded:
        return answer, ["nothing to delete"]
    return answer, [f"deleted {_counted(gone)}" if gone else "nothing deleted"]


def _deleted(storage: Directory) -> tuple[dict[str, float] | None, list[str]]:
    """Keys of runs deleted in MLflow, and a line to say where it can't be asked."""
    if not querying.has_tracking(storage):
        return {}, []
    try:
        return querying.last_deleted(client(storage)), []
    except Exception as error:  # whatever a store or a network raises
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        return None, [f"MLflow can't be asked ({first}): what runs deleted there needed is kept"]


def _agrees(unneeded: Sequence[Entry]) -> bool:
    try:
        return input(f"delete {_counted(unneeded)}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False


def _lines(storage: Directory, found: Survey) -> list[str]:
    rows = [["noun", "artefacts", "MB", "needed", "kept", "unneeded", "MB unneeded"]]
    for noun, of_noun in _by_noun(found).items():
        lost = [entry for entry in of_noun if entry.state == UNNEEDED]
        needed = sum(entry.state == NEEDED for entry in of_noun)
        kept = len(of_noun) - needed - len(lost)
        rows.append(
            [noun, str(len(of_noun)), _mb(of_noun), str(needed), str(kept), str(len(lost)), _mb(lost)]
        )
    lines = [f"in {storage.uri}", *(aligned(rows, left=1) if len(rows) > 1 else ["no artefacts"]), ""]
    for head, entries in (("caches", found.caches), ("records and tracking", found.kept)):
        tops = sorted({entry.noun for entry in entries})
        lines.append(f"{head}, kept: {_mb(entries)} MB in {', '.join(tops)}" if tops else f"{head}: none")
    lines += [f"not ours, kept: {entry.place}, {_mb([entry])} MB" for entry in found.not_ours]
    lines += [f"note: {note}" for note in found.notes]
    lost = [[f"  {entry.place}", f"{_mb([entry])} MB", entry.why] for entry in found.unneeded]
    return (
        lines + ["", "no run needs:"] + [f"{place}  {size}  {why}" for place, size, why in _padded(lost)]
        if lost
        else lines
    )


def _padded(rows: list[list[str]]) -> list[tuple[str, str, str]]:
    wide = [max(len(row[place]) for row in rows) for place in (0, 1)]
    return [(place.ljust(wide[0]), size.rjust(wide[1]), why) for place, size, why in rows]


def _document(storage: Directory, found: Survey) -> dict[str, Any]:
    nouns = {}
    for noun, of_noun in _by_noun(found).items():
        states = [entry.state for entry in of_noun]
        nouns[noun] = {
            "artifacts": len(of_noun),
            "bytes": sum(entry.size for entry in of_noun),
            "needed": states.count(NEEDED),
            "unneeded": states.count(UNNEEDED),
            "unneeded_bytes": sum(entry.size for entry in of_noun if entry.state == UNNEEDED),
        }
    return {
        "storage": storage.uri,
        "nouns": nouns,
        "unneeded": [_plain(entry) for entry in found.unneeded],
        "caches": [_plain(entry) for entry in found.caches],
        "kept": [_plain(entry) for entry in found.kept],
        "not_ours": [_plain(entry) for entry in found.not_ours],
        "notes": found.notes,
    }


def _plain(entry: Entry) -> dict[str, Any]:
    return {"place": entry.place, "bytes": entry.size} | ({"why": entry.why} if entry.why else {})


def _by_noun(found: Survey) -> dict[str, list[Entry]]:
    nouns = [*garbage.NOUNS, "checkpoints"]
    held = {noun: [entry for entry in found.artifacts if entry.noun == noun] for noun in nouns}
    return {noun: entries for noun, entries in held.items() if entries}


def _counted(entries: Sequence[Entry]) -> str:
    return f"{len(entries)} artefact{'' if len(entries) == 1 else 's'}, {_mb(entries)} MB"


def _mb(entries: Sequence[Entry]) -> str:
    return f"{sum(entry.size for entry in entries) / 1e6:.1f}"
