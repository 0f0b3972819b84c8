"""What lies in a storage root, what of it no run needs, and deleting that.

Artefacts of the stages and the checkpoints of fine-tunings alone are ever deleted. Caches, records, MLflow's
files, and whatever has a name that this project does not give, stay.
"""

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from ims3_ray.pipeline.steps import STAGES
from ims3_ray.runs import records
from ims3_ray.storage.artifacts import MANIFEST, Directory
from ims3_ray.storage.lease import store_time

NOUNS = tuple(stage.output for stage in STAGES)
HEX = r"[0-9a-f]{12}"
CHECKPOINTS = re.compile(rf"checkpoints/finetune-({HEX})")
ARTIFACT = re.compile(rf"({'|'.join(NOUNS)})/{HEX}")
CACHES = re.compile(
    rf"index/{HEX}\.json|digits/(train|validation|test)(\.complete)?|unpacked/{HEX}(\.complete)?|embedded/{HEX}"
    rf"|(index|digits|unpacked)/\.[^/]+\.tmp"
    rf"|pretrain/(vae|transformer|extractor|judge)|checkpoints/pretrain-(vae|transformer|extractor|judge)-{HEX}"
)
# records, MLflow's, our own
KEPT = re.compile(r"(runs|ablations|sweeps|mlartifacts)/.+|format\.json|writable|mlflow\.db.*")
TOP = re.compile(
    rf"index|digits|unpacked|embedded|pretrain|checkpoints|runs|ablations|sweeps|mlartifacts|{'|'.join(NOUNS)}"
)
RECENT_S = 600  # what is younger, and in no record, may be in the making

NEEDED, UNNEEDED, KEPT_BACK = "needed", "unneeded", "kept"


@dataclass
class Entry:
    """A file, or a directory with all below it."""

    place: str  # relative to the storage
    is_directory: bool = False
    size: int = 0  # bytes
    changed: float = 0.0  # seconds since 1970, of its latest file
    is_complete: bool = False  # holds a manifest
    state: str = KEPT_BACK
    why: str = ""

    @property
    def noun(self) -> str:
        return self.place.split("/")[0]


@dataclass(frozen=True)
class Survey:
    """What lies in a storage root."""

    artifacts: list[Entry]  # of the stages, and checkpoints
    caches: list[Entry]
    kept: list[Entry]
    not_ours: list[Entry]
    notes: list[str] = field(default_factory=list)  # what a person should know before anything is deleted

    @property
    def unneeded(self) -> list[Entry]:
        return [entry for entry in self.artifacts if entry.state == UNNEEDED]


def survey(storage: Directory, deleted: Mapping[str, float]) -> Survey:
    """Everything below the root, artefacts judged; `deleted` as in `Record.is_released`."""
    all_records = records.read(storage)
    needed = {
        place for record in all_records if not record.is_released(deleted) for place in record.artifacts
    }
    released = {place for record in all_records for place in record.artifacts} - needed
    kinds: dict[str, list[Entry]] = defaultdict(list)
    for entry in _entries(storage):
        kinds[_kind(entry)].append(entry)
    artifacts = kinds["artifacts"]
    complete = {entry.place for entry in artifacts if entry.is_complete}
    for entry in artifacts:
        _judge(entry, needed, released, complete)
    notes = _silent(kinds["kept"], [record.place for record in all_records])
    notes += _spare_recent(artifacts, needed | released, store_time(storage))
    return Survey(artifacts, kinds["caches"], kinds["kept"], kinds["not_ours"], notes)


def delete(storage: Directory, places: Iterable[str], deleted: Mapping[str, float]) -> list[Entry]:
    """Delete those of `places` that are unneeded still, on a second look; gives what was deleted.

    Each one's manifest goes first: what is half deleted is not complete.
    """
    wanted = set(places)
    gone = [entry for entry in survey(storage, deleted).unneeded if entry.place in wanted]
    for entry in gone:
        directory = storage / entry.place
        # a link goes at once, and what it leads to stays
        if not (storage.is_local and os.path.islink(directory.path)):
            (directory / MANIFEST).delete()
        directory.delete()
    return gone


def _entries(storage: Directory) -> list[Entry]:
    """Files of the root, and what lies one below it, or deeper where the first is a file there.

    A link that leads nowhere, or to a folder that counts already, is no directory.
    """
    files, odd = storage.list_files()
    tops = [name for name in storage.folders() if name not in odd]
    folders = {f"{top}/{name}": info for top in tops for name, info in (storage / top).folders().items()}
    entries: dict[str, Entry] = {}
    for place, info in {**dict.fromkeys(odd), **folders, **files}.items():
        parts = place.split("/")
        entry = entries.setdefault("/".join(parts[:2]), Entry("/".join(parts[:2])))
        entry.is_directory |= len(parts) > 2 or (place in folders and place not in odd)
        entry.is_complete |= parts[2:] == [MANIFEST]
        if info is not None:
            entry.size += info.size or 0
            entry.changed = max(entry.changed, info.mtime.timestamp() if info.mtime else 0.0)
    bare = {top for top in tops if not TOP.fullmatch(top)} - {entry.noun for entry in entries.values()}
    entries |= {top: Entry(top, is_directory=True) for top in bare}
    return sorted(entries.values(), key=lambda entry: entry.place)


def _kind(entry: Entry) -> str:
    if entry.is_directory and (ARTIFACT.fullmatch(entry.place) or CHECKPOINTS.fullmatch(entry.place)):
        return "artifacts"
    if CACHES.fullmatch(entry.place):
        return "caches"
    return "kept" if KEPT.fullmatch(entry.place) else "not_ours"


def _judge(
    entry: Entry, needed: Collection[str], released: Collection[str], complete: Collection[str]
) -> None:
    """State and reason of an artefact, or of a fine-tuning's checkpoints: those serve until the adapter is
    complete.
    """
    of_tuning = CHECKPOINTS.fullmatch(entry.place)
    place = f"adapter/{of_tuning[1]}" if of_tuning else entry.place
    if of_tuning and place in complete:
        entry.state, entry.why = UNNEEDED, "its adapter is complete"
    elif place in needed:
        entry.state, entry.why = NEEDED, "its adapter is not complete" if of_tuning else "a run needs it"
    elif place in released:
        entry.state, entry.why = UNNEEDED, "its runs were deleted in MLflow"
    elif of_tuning:
        entry.state, entry.why = NEEDED, "its adapter is not complete"
    else:
        half = "" if entry.is_complete else "half-written, "
        entry.state, entry.why = UNNEEDED, f"{half}no record names it"


def _spare_recent(artifacts: list[Entry], recorded: Collection[str], now: float) -> list[str]:
    """Keep all that no record names while some of it is recent: what makes it may need the rest."""
    unnamed = [
        entry
        for entry in artifacts
        if entry.state == UNNEEDED and entry.place not in recorded and not CHECKPOINTS.fullmatch(entry.place)
    ]
    latest = max(unnamed, key=lambda entry: entry.changed, default=None)
    age = now - latest.changed if latest else RECENT_S
    if latest is None or age >= RECENT_S:
        return []
    for entry in unnamed:
        entry.state = KEPT_BACK
    return [
        f"{latest.place}, which no record names, changed {max(0, age):.0f} s ago and may be in the making: "
        f"{len(unnamed)} that no record names are kept until {RECENT_S // 60} minutes have passed"
    ]


def _silent(kept: list[Entry], known: Collection[str]) -> list[str]:
    """Folders of runs and ablations without a record: an earlier version wrote one at the end, or none."""
    folders = [entry.place for entry in kept if entry.is_directory and entry.noun in ("runs", "ablations")]
    silent = [place for place in folders if not any(record.startswith(f"{place}/") for record in known)]
    remedy = "run it again to have one, or what it alone needs counts as unneeded"
    return [f"{place} has no record of what it needs; {remedy}" for place in silent]
