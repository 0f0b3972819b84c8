"""`--gc`: what lies in the storage and what no run needs, shown, and deleted once a person agrees."""

from collections.abc import Sequence

from ims3_ray.runs import query
from ims3_ray.runs.mlflow_tracker import client, describe_mlflow_error
from ims3_ray.storage.artifacts import Directory

from . import gc
from .gc import NEEDED, UNNEEDED, Entry, Survey
from .table import align


def collect(storage: Directory, *, asks: bool, is_agreed: bool) -> tuple[dict[str, object], list[str]]:
    """Survey the storage and delete what no run needs, where agreed to; the answer and the last lines.

    `asks` prints the survey and the question; without it only `is_agreed` deletes.
    """
    deleted, notes = _deleted(storage)
    survey = gc.survey(storage, deleted)
    survey.notes.extend(notes)
    if asks:
        print("\n".join(_lines(storage, survey)))
    unneeded, gone = survey.unneeded, []
    if unneeded and (is_agreed or (asks and _agrees(unneeded))):
        gone = gc.delete(storage, [entry.place for entry in unneeded], _deleted(storage)[0])
    answer = _document(storage, survey) | {"deleted": _plain(gone)}
    if not unneeded:
        return answer, ["nothing to delete"]
    return answer, [f"deleted {_counted(gone)}" if gone else "nothing deleted"]


def _deleted(storage: Directory) -> tuple[dict[str, float], list[str]]:
    """Keys of runs deleted in MLflow, none with a line to say so where it can't be asked."""
    if not query.has_tracking(storage):
        return {}, []
    try:
        return query.last_deleted(client(storage)), []
    except Exception as error:  # whatever a store or a network raises
        trouble = describe_mlflow_error(error)
        return {}, [f"MLflow can't be asked ({trouble}): what runs deleted there needed is kept"]


def _agrees(unneeded: Sequence[Entry]) -> bool:
    try:
        print(f"delete {_counted(unneeded)}? [y/N] ", end="", flush=True)  # input's own goes to stderr
        return input().strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False


def _lines(storage: Directory, survey: Survey) -> list[str]:
    rows = [["noun", "artefacts", "MB", "needed", "kept", "unneeded", "MB unneeded"]]
    for noun, entries in _by_noun(survey).items():
        states = [entry.state for entry in entries]
        unneeded = [entry for entry in entries if entry.state == UNNEEDED]
        kept = len(entries) - states.count(NEEDED) - len(unneeded)
        counts = map(str, (states.count(NEEDED), kept, len(unneeded)))
        rows.append([noun, str(len(entries)), _mb(entries), *counts, _mb(unneeded)])
    lines = [f"in {storage.uri}", *(align(rows, left=[0]) if len(rows) > 1 else ["no artefacts"]), ""]
    for head, entries in (("caches", survey.caches), ("records and tracking", survey.kept)):
        tops = sorted({entry.noun for entry in entries})
        lines.append(f"{head}, kept: {_mb(entries)} MB in {', '.join(tops)}" if tops else f"{head}: none")
    lines += [f"not ours, kept: {entry.place}, {_mb([entry])} MB" for entry in survey.not_ours]
    lines += [f"note: {note}" for note in survey.notes]
    rows = [[f"  {entry.place}", f"{_mb([entry])} MB", entry.why] for entry in survey.unneeded]
    return [*lines, "", "no run needs:", *align(rows, left=[0, 2])] if rows else lines


def _document(storage: Directory, survey: Survey) -> dict[str, object]:
    nouns = {}
    for noun, entries in _by_noun(survey).items():
        unneeded = [entry.size for entry in entries if entry.state == UNNEEDED]
        nouns[noun] = {
            "artifacts": len(entries),
            "bytes": sum(entry.size for entry in entries),
            "needed": sum(entry.state == NEEDED for entry in entries),
            "unneeded": len(unneeded),
            "unneeded_bytes": sum(unneeded),
        }
    parts = {name: _plain(getattr(survey, name)) for name in ("unneeded", "caches", "kept", "not_ours")}
    return {"storage": storage.uri, "nouns": nouns, **parts, "notes": survey.notes}


def _plain(entries: Sequence[Entry]) -> list[dict[str, str | int]]:
    return [{"place": e.place, "bytes": e.size} | ({"why": e.why} if e.why else {}) for e in entries]


def _by_noun(survey: Survey) -> dict[str, list[Entry]]:
    nouns = [*gc.NOUNS, "checkpoints"]
    entries = {noun: [entry for entry in survey.artifacts if entry.noun == noun] for noun in nouns}
    return {noun: of_noun for noun, of_noun in entries.items() if of_noun}


def _counted(entries: Sequence[Entry]) -> str:
    return f"{len(entries)} artefact{'' if len(entries) == 1 else 's'}, {_mb(entries)} MB"


def _mb(entries: Sequence[Entry]) -> str:
    return f"{sum(entry.size for entry in entries) / 1e6:.1f}"
