"""`--verify`: every byte of a storage against what its manifests say, and every state file read."""

from collections.abc import Iterator
from dataclasses import dataclass

from ims3_ray.errors import InputError
from ims3_ray.pipeline.steps import STAGES
from ims3_ray.progress import BAR_DELAY_S, bar
from ims3_ray.stages import embed
from ims3_ray.storage.artifacts import Directory
from ims3_ray.storage.integrity import reopen, verify

NOUNS = (*(stage.output for stage in STAGES), embed.NOUN)
STATE = ("index", "runs", "ablations", "sweeps")  # where JSON is kept beside the artefacts
CACHE = "index/"


@dataclass(frozen=True)
class Damage:
    """A file that is not as it was written; `artifact` is "" of a state file."""

    artifact: str
    file: str
    why: str

    @property
    def place(self) -> str:
        return f"{self.artifact}/{self.file}" if self.artifact else self.file

    @property
    def is_made_again(self) -> bool:
        """Whether the next run that needs it makes it, once it is gone."""
        return bool(self.artifact) or self.file.startswith(CACHE)


def verify_storage(storage: Directory, *, removes: bool) -> tuple[dict[str, object], list[str]]:
    """Damaged files, by name; `removes` those that the next run makes again.

    The document's `problem` says in a line what a person does about them; None where all is whole.
    """
    places = [f"{noun}/{name}" for noun in NOUNS for name in (storage / noun).folders()]
    damage, unknown = list(_state(storage)), 0
    with bar("verify", len(places), "artefacts", delay=BAR_DELAY_S) as shown:
        for place in places:
            damaged, without = verify(storage / place)
            damage += [Damage(place, name, why) for name, why in damaged.items()]
            unknown += without
            shown.update()
    removed = _remove(storage, damage) if removes else []
    lines = [f"{one.place} {one.why}" for one in damage]
    lines += [f"removed: {place}" for place in removed]
    if unknown:
        lines.append(f"{unknown} files have no checksum: only their sizes were compared")
    lines.append(f"{len(places)} artefacts in {storage.uri}: {len(damage) or 'no'} damaged files")
    listed = [{"place": one.place, "why": one.why} for one in damage]
    problem = _problem(storage, damage, removed)
    return {"artifacts": len(places), "damaged": listed, "removed": removed, "problem": problem}, lines


def _state(storage: Directory) -> Iterator[Damage]:
    """State files that can't be read."""
    for top in STATE:
        for name in (storage / top).files():
            if name.endswith(".json"):
                try:
                    storage.read_json(f"{top}/{name}")
                except InputError:
                    yield Damage("", f"{top}/{name}", "holds no JSON")


def _remove(storage: Directory, damage: list[Damage]) -> list[str]:
    gone = [one for one in damage if one.is_made_again]
    for one in gone:
        if one.artifact:
            reopen(storage / one.artifact, [one.file])
        else:
            (storage / one.file).delete()
    return [one.place for one in gone]


def _problem(storage: Directory, damage: list[Damage], removed: list[str]) -> str | None:
    if not damage:
        return None
    lasting = [one.place for one in damage if not one.is_made_again]
    if removed:
        remedy = "what was removed is made again by the next run that needs it"
    else:
        remedy = "--verify --yes removes what the next run makes again"
    kept = f"; mend or remove by hand: {', '.join(lasting)}" if lasting else ""
    return f"--verify: {len(damage)} files of {storage.uri} are damaged; {remedy}{kept}"
