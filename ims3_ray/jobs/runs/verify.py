"""`--verify`: compare every byte of a storage with its checksums, and read every state file."""

from collections.abc import Iterator
from dataclasses import dataclass

from ims3_ray.errors import InputError, OutageError
from ims3_ray.progress import BAR_DELAY_S, bar
from ims3_ray.stages import embed
from ims3_ray.storage.artifacts import Directory
from ims3_ray.storage.integrity import reopen, verify

from .gc import NOUNS, PRETRAINED

PLACES = (*NOUNS, embed.NOUN, *PRETRAINED)
STATE = ("index", "runs", "sweeps")  # folders with JSON files
CACHE = "index/"


@dataclass(frozen=True)
class Damage:
    """A damaged file; `artifact` is "" for a state file."""

    artifact: str
    file: str
    why: str

    @property
    def place(self) -> str:
        return f"{self.artifact}/{self.file}" if self.artifact else self.file

    @property
    def is_regenerated(self) -> bool:
        """Whether a run that needs the file makes it again if it is missing."""
        return bool(self.artifact) or self.file.startswith(CACHE)


def verify_storage(storage: Directory, *, removes: bool) -> tuple[dict[str, object], list[str]]:
    """Find damaged files; with `removes`, delete those that a run makes again.

    The document's `problem` is a line with the remedy, or None without damage.
    """
    places = [f"{noun}/{name}" for noun in PLACES for name in (storage / noun).folders()]
    damage, without_checksum = list(_damaged_state_files(storage)), 0
    with bar("verify", len(places), "artefacts", delay=BAR_DELAY_S) as progress:
        for place in places:
            damaged, unchecked = verify(storage / place)
            damage += [Damage(place, name, why) for name, why in damaged.items()]
            without_checksum += unchecked
            progress.update()
    removed = _remove(storage, damage) if removes else []
    lines = [f"{one.place} {one.why}" for one in damage]
    lines += [f"removed: {place}" for place in removed]
    if without_checksum:
        lines.append(f"{without_checksum} files have no checksum: only their sizes were compared")
    lines.append(f"{len(places)} artefacts in {storage.uri}: {len(damage) or 'no'} damaged files")
    listed = [{"place": one.place, "why": one.why} for one in damage]
    problem = _problem(storage, damage, removed)
    return {"artifacts": len(places), "damaged": listed, "removed": removed, "problem": problem}, lines


def _damaged_state_files(storage: Directory) -> Iterator[Damage]:
    for top in STATE:
        for name in (storage / top).files():
            if name.endswith(".json") and "/tune/" not in name:  # Tune's hold lines of JSON
                try:
                    storage.read_json(f"{top}/{name}")
                except OutageError:
                    raise
                except FileNotFoundError:  # the heartbeat of a run that has ended since
                    continue
                except InputError:
                    yield Damage("", f"{top}/{name}", "holds no JSON")


def _remove(storage: Directory, damage: list[Damage]) -> list[str]:
    removed = [one for one in damage if one.is_regenerated]
    for one in removed:
        if one.artifact:
            reopen(storage / one.artifact, [one.file])
        else:
            (storage / one.file).delete()
    return [one.place for one in removed]


def _problem(storage: Directory, damage: list[Damage], removed: list[str]) -> str | None:
    if not damage:
        return None
    lasting = [one.place for one in damage if not one.is_regenerated]
    if removed:
        remedy = "the next run that needs the removed files makes them again"
    else:
        remedy = "--verify --yes removes those that the next run makes again"
    kept = f"; mend or remove by hand: {', '.join(lasting)}" if lasting else ""
    return f"--verify: {len(damage)} files of {storage.uri} are damaged; {remedy}{kept}"
