"""`--gc`: list the contents of a storage, and delete the artefacts that no record names.

Only stage artefacts and checkpoints of fine-tunings are deleted. Caches, records, MLflow's files, and names
that this project does not give, stay.
"""

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from ims3_ray.display import align_columns, confirm, noun
from ims3_ray.pipeline.steps import STAGES
from ims3_ray.runs import records
from ims3_ray.storage.artifacts import FINGERPRINT, MANIFEST, Directory
from ims3_ray.storage.lease import store_time

NOUNS = tuple(stage.output for stage in STAGES)
PRETRAINED = tuple(f"pretrain/{name}" for name in ("vae", "latents", "transformer", "extractor", "judge"))
HEX = FINGERPRINT.pattern
CHECKPOINTS = re.compile(rf"checkpoints/finetune-({HEX})")
ARTIFACT = re.compile(rf"({'|'.join(NOUNS)})/{HEX}")
CACHES = re.compile(
    rf"index/{HEX}\.json|digits/(train|validation|test)(\.complete)?|unpacked/{HEX}(\.complete)?|embedded/{HEX}"
    rf"|(index|digits|unpacked)/\.[^/]+\.tmp"
    rf"|{'|'.join(PRETRAINED)}|checkpoints/pretrain-(vae|transformer|extractor|judge)-{HEX}"
)
# records, MLflow's files, the format's version
KEPT = re.compile(r"(runs|sweeps|mlartifacts)/.+|format\.json|writable|mlflow\.db.*")
TOP = re.compile(
    rf"index|digits|unpacked|embedded|pretrain|checkpoints|runs|sweeps|mlartifacts|{'|'.join(NOUNS)}"
)
RECENT_S = 600  # a running stage may still write an artefact that changed less than this ago

NEEDED, UNNEEDED, KEPT_BACK = "needed", "unneeded", "kept"


@dataclass
class Entry:
    """A file, or a directory with everything below it."""

    place: str  # relative to the storage
    is_directory: bool = False
    size: int = 0  # bytes
    changed: float = 0.0  # seconds since 1970, of its latest file
    is_complete: bool = False  # has a manifest
    state: str = KEPT_BACK
    why: str = ""

    @property
    def noun(self) -> str:
        return self.place.split("/")[0]


@dataclass(frozen=True)
class Survey:
    """The contents of a storage."""

    artifacts: list[Entry]  # and checkpoints
    caches: list[Entry]
    kept: list[Entry]
    not_ours: list[Entry]
    notes: list[str] = field(default_factory=list)  # to read before anything is deleted

    @property
    def unneeded(self) -> list[Entry]:
        return [entry for entry in self.artifacts if entry.state == UNNEEDED]


def collect(storage: Directory, *, asks: bool, is_agreed: bool) -> tuple[dict[str, object], list[str]]:
    """Delete what no record names. Returns the JSON document and the last lines.

    With `asks`, prints the survey and asks the user; else deletes only if `is_agreed`.
    """
    found = survey(storage)
    if asks:
        print("\n".join(_lines(storage, found)))
    unneeded, deleted = found.unneeded, []
    if unneeded and (is_agreed or (asks and confirm(f"delete {_total(unneeded)}?"))):
        deleted = delete(storage, [entry.place for entry in unneeded])
    document = _document(storage, found) | {"deleted": _plain(deleted)}
    if not unneeded:
        return document, ["nothing to delete"]
    return document, [f"deleted {_total(deleted)}" if deleted else "nothing deleted"]


def survey(storage: Directory) -> Survey:
    """List everything below the root, and decide which artefacts are needed."""
    needed = {artifact for record in records.read(storage) for artifact in record.artifacts}
    kinds: dict[str, list[Entry]] = defaultdict(list)
    for entry in _entries(storage):
        kinds[_kind(entry)].append(entry)
    artifacts = kinds["artifacts"]
    complete = {entry.place for entry in artifacts if entry.is_complete}
    for entry in artifacts:
        _judge(entry, needed, complete)
    notes = _keep_recent(artifacts, store_time(storage))
    return Survey(artifacts, kinds["caches"], kinds["kept"], kinds["not_ours"], notes)


def delete(storage: Directory, places: Iterable[str]) -> list[Entry]:
    """Delete those of `places` that a second survey still finds unneeded; returns the deleted entries.

    The manifest is deleted first, so that a half-deleted artefact is not complete.
    """
    wanted = set(places)
    deleted = [entry for entry in survey(storage).unneeded if entry.place in wanted]
    for entry in deleted:
        directory = storage / entry.place
        # of a symbolic link, only the link is deleted
        if not (storage.is_local and os.path.islink(directory.path)):
            (directory / MANIFEST).delete()
        directory.delete()
    return deleted


def _entries(storage: Directory) -> list[Entry]:
    """Return files of the root, and the files and directories one level below."""
    tops = storage.folders()
    folders = {f"{top}/{name}": info for top in tops for name, info in (storage / top).folders().items()}
    entries: dict[str, Entry] = {}
    for place, info in {**folders, **storage.files()}.items():
        parts = place.split("/")
        entry = entries.setdefault("/".join(parts[:2]), Entry("/".join(parts[:2])))
        entry.is_directory |= len(parts) > 2 or place in folders
        entry.is_complete |= parts[2:] == [MANIFEST]
        entry.size += info.size or 0
        entry.changed = max(entry.changed, info.mtime.timestamp() if info.mtime else 0.0)
    empty = {top for top in tops if not TOP.fullmatch(top)} - {entry.noun for entry in entries.values()}
    entries |= {top: Entry(top, is_directory=True) for top in empty}
    return sorted(entries.values(), key=lambda entry: entry.place)


def _kind(entry: Entry) -> str:
    if entry.is_directory and (ARTIFACT.fullmatch(entry.place) or CHECKPOINTS.fullmatch(entry.place)):
        return "artifacts"
    if CACHES.fullmatch(entry.place):
        return "caches"
    return "kept" if KEPT.fullmatch(entry.place) else "not_ours"


def _judge(entry: Entry, needed: Collection[str], complete: Collection[str]) -> None:
    """Set state and reason of an artefact. Checkpoints are needed until their adapter is complete."""
    if match := CHECKPOINTS.fullmatch(entry.place):
        is_done = f"adapter/{match[1]}" in complete
        entry.state = UNNEEDED if is_done else NEEDED
        entry.why = "its adapter is complete" if is_done else "its adapter is not complete"
    elif entry.place in needed:
        entry.state, entry.why = NEEDED, "a run needs it"
    else:
        half = "" if entry.is_complete else "half-written, "
        entry.state, entry.why = UNNEEDED, f"{half}no record names it"


def _keep_recent(artifacts: list[Entry], now: float) -> list[str]:
    """Keep every artefact without a record while one of them is recent: its stage may read the others."""
    unnamed = [
        entry for entry in artifacts if entry.state == UNNEEDED and not CHECKPOINTS.fullmatch(entry.place)
    ]
    latest = max(unnamed, key=lambda entry: entry.changed, default=None)
    age = now - latest.changed if latest else RECENT_S
    if latest is None or age >= RECENT_S:
        return []
    for entry in unnamed:
        entry.state = KEPT_BACK
    return [
        f"{latest.place}, which no record names, changed {max(0, age):.0f} s ago and may be in the making: "
        f"{len(unnamed)} without a record are kept until {RECENT_S // 60} minutes have passed"
    ]


def _lines(storage: Directory, found: Survey) -> list[str]:
    rows = [["noun", "artefacts", "MB", "needed", "kept", "unneeded", "MB unneeded"]]
    for name, entries in _by_noun(found).items():
        states = [entry.state for entry in entries]
        counts = [str(states.count(state)) for state in (NEEDED, KEPT_BACK, UNNEEDED)]
        unneeded = [entry for entry in entries if entry.state == UNNEEDED]
        rows.append([name, str(len(entries)), _mb(entries), *counts, _mb(unneeded)])
    lines = [f"in {storage.uri}", *(align_columns(rows, left=[0]) if len(rows) > 1 else ["no artefacts"]), ""]
    for head, entries in (("caches", found.caches), ("records and tracking", found.kept)):
        tops = sorted({entry.noun for entry in entries})
        lines.append(f"{head}, kept: {_mb(entries)} MB in {', '.join(tops)}" if tops else f"{head}: none")
    lines += [f"not ours, kept: {entry.place}, {_mb([entry])} MB" for entry in found.not_ours]
    lines += [f"note: {note}" for note in found.notes]
    rows = [[entry.place, f"{_mb([entry])} MB", entry.why] for entry in found.unneeded]
    return [*lines, "", "no run needs:", *align_columns(rows, left=[0, 2], indent=2)] if rows else lines


def _document(storage: Directory, found: Survey) -> dict[str, object]:
    nouns = {}
    for name, entries in _by_noun(found).items():
        unneeded = [entry.size for entry in entries if entry.state == UNNEEDED]
        nouns[name] = {
            "artifacts": len(entries),
            "bytes": sum(entry.size for entry in entries),
            "needed": sum(entry.state == NEEDED for entry in entries),
            "unneeded": len(unneeded),
            "unneeded_bytes": sum(unneeded),
        }
    parts = {name: _plain(getattr(found, name)) for name in ("unneeded", "caches", "kept", "not_ours")}
    return {"storage": storage.uri, "nouns": nouns, **parts, "notes": found.notes}


def _plain(entries: Sequence[Entry]) -> list[dict[str, str | int]]:
    return [{"place": e.place, "bytes": e.size} | ({"why": e.why} if e.why else {}) for e in entries]


def _by_noun(found: Survey) -> dict[str, list[Entry]]:
    groups = {name: [e for e in found.artifacts if e.noun == name] for name in (*NOUNS, "checkpoints")}
    return {name: entries for name, entries in groups.items() if entries}


def _total(entries: Sequence[Entry]) -> str:
    return f"{len(entries)} {noun(len(entries), 'artefacts')}, {_mb(entries)} MB"


def _mb(entries: Sequence[Entry]) -> str:
    return f"{sum(entry.size for entry in entries) / 1e6:.1f}"
