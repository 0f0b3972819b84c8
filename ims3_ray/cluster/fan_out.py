"""Fanning a stage's parts out over a Ray Data actor pool, each part one Parquet file; and an index of all.

A part is a fixed set of rows, composed by the recipe: one batch of the model, or a few where images are many.
An actor computes a part and writes it at once, so memory stays at CALLS_PER_ACTOR parts per actor, a retried
part replaces itself with the same bytes, and a stage that died goes on with the parts that are missing or
damaged. A part carries its own checksum, and in its footer the names of rows that had to be left out. While
one part has the device, another is read or written.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.data import ActorPoolStrategy

from ims3_ray.errors import InputError
from ims3_ray.models.device import explain_out_of_memory
from ims3_ray.progress import bar
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import Directory
from ims3_ray.storage.checksums import BLANK, KEY, embed_checksum
from ims3_ray.storage.integrity import intact_parts
from ims3_ray.storage.rows import pack_keys, pack_part_keys, write_index
from ims3_ray.storage.schemas import Columns, Table

from .ray_patches import errors_only
from .resources import Machine

CALLS_PER_ACTOR = 2  # at once, on threads; models.batches.Turn lets one of them compute
TARGET_PARTS = 2048  # for any number of actors to share evenly
NOTES = "ims3_ray.notes"  # key of a part's metadata: rows that had to be left out, and why
MAX_ROWS = 512  # of a part of several batches, which an actor has in memory
Build = Callable[..., Callable[[Any], tuple[Columns, dict[str, str]]]]  # of each stage's own payload
errors_only("ray.data")


@dataclass(frozen=True)
class Part:
    """One unit of work: `rows` is how many it makes, `payload` plain data that tells the actor what to do."""

    index: int
    rows: int
    payload: object

    @property
    def file(self) -> str:
        return f"part-{self.index:05d}.parquet"

    @property
    def item(self) -> dict[str, str]:
        """What travels to the actor."""
        return {"file": self.file, "payload": json.dumps(self.payload)}


def rows_per_part(rows: int, batch_size: int) -> int:
    """A batch, or several where one each would be thousands of files, which whoever reads them would open."""
    batches = math.ceil(rows / batch_size)
    return batch_size * max(1, min(batches // TARGET_PARTS, MAX_ROWS // batch_size))


def _refuse(why: str, _payload: object) -> tuple[Columns, dict[str, str]]:
    raise InputError(why)


class Worker:
    """The pool's actor: builds the stage's worker once, then turns parts into files."""

    def __init__(
        self, build: Build, arguments: Mapping[str, Any], table: Table, out: Directory, batch_field: str
    ):
        self._table, self._out = table, out
        self._batch = batch_field, arguments["batch_size"]
        try:
            self._work = build(**arguments)
        except InputError as error:  # told with the first part: of an actor that died the text is lost
            self._work = partial(_refuse, str(error))

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[Any]]:
        (file,), (payload,) = batch["file"], batch["payload"]
        try:
            with explain_out_of_memory(*self._batch):
                columns, notes = self._work(json.loads(payload))
            self._refuse_not_finite(columns)
            left_out = json.dumps(notes)
            data = schemas.to_parquet(columns, self._table, {NOTES: left_out, KEY: BLANK})
            data = embed_checksum(data, file)
            self._out.write(file, data)
        except InputError as error:
            nothing = {"rows": [0], "checksum": [""], "keys": [b""], "notes": [""]}
            return {"file": [file], **nothing, "refused": [str(error)]}
        rows, checksum = len(next(iter(columns.values()))), hashlib.sha256(data).hexdigest()
        made = {"rows": [rows], "checksum": [checksum], "keys": [pack_keys(columns, self._table)]}
        return {"file": [file], **made, "notes": [left_out], "refused": [""]}

    def _refuse_not_finite(self, columns: Columns) -> None:
        if odd := schemas.not_finite(columns):
            stage = self._batch[0].split(".")[0]
            raise InputError(
                f"{stage}: {odd} came out as values that are not finite; look at the weights (model.path), "
                "or compute with model.precision fp32"
            )


def fan_out(
    build: Build,
    arguments: Mapping[str, object],
    parts: Sequence[Part],
    *,
    table: Table,
    out: Directory,
    machine: Machine,
    stage: str,
) -> dict[str, Any]:
    """Make every part that is missing or damaged. Returns the rows, those made now, checksums and notes.

    `build(**arguments)`, its `batch_size` among them, runs once an actor and gives a function from a part's
    payload to the columns of `table` and to notes: {name of a row that had to be left out: why}. Raises
    InputError if a batch does not fit the GPU's memory, or if a result is not finite.
    """
    checksums: dict[str, str] = {}
    keys: dict[str, bytes] = {}
    notes: dict[str, str] = {}
    for name, data in intact_parts(out, [part.file for part in parts]):
        checksums[name], keys[name] = hashlib.sha256(data).hexdigest(), pack_part_keys(data, table)
        notes |= json.loads(schemas.read_metadata(data, NOTES) or "{}")
    todo = [part for part in parts if part.file not in checksums]
    total, made = sum(part.rows for part in parts), sum(part.rows for part in todo)
    worker = {"build": build, "arguments": arguments, "table": table, "out": out}
    worker["batch_field"] = f"{stage}.batch_size.{machine.device}"
    with bar(stage, total, "images", done=total - made) as shown:
        for row in _dataset(todo, worker, machine).iter_rows() if todo else ():
            if row["refused"]:
                raise InputError(row["refused"])
            checksums[row["file"]], keys[row["file"]] = row["checksum"], row["keys"]
            notes |= json.loads(row["notes"])
            shown.update(int(row["rows"]))
    write_index(out, keys)
    rows, notes = total - len(notes), dict(sorted(notes.items()))
    return {"rows": rows, "rows_made": made, "checksums": checksums, "notes": notes}


def _dataset(parts: list[Part], worker: dict[str, object], machine: Machine) -> ray.data.Dataset:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    # all actors at work, which is all that CALLS_PER_ACTOR lets it come to
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    return ray.data.from_items([part.item for part in parts], override_num_blocks=len(parts)).map_batches(
        Worker,
        batch_size=1,
        compute=actor_pool(machine, len(parts)),
        fn_constructor_kwargs=worker,
        **machine.pool_resources,
    )


def actor_pool(machine: Machine, num_parts: int) -> ActorPoolStrategy:
    """All actors at once where there is room, as few as the minimum while there is none.

    With nodes that come later the pool grows, unless `workers.actors` says how many there are.
    """
    first = min(machine.actors, num_parts)
    return ActorPoolStrategy(
        min_size=min(machine.min_actors, first),
        max_size=first if machine.workers.actors else num_parts,
        initial_size=first,
        max_concurrent_calls_per_actor=CALLS_PER_ACTOR,
        max_tasks_in_flight_per_actor=CALLS_PER_ACTOR,  # a part waits in the queue, not for one actor
        enable_true_multi_threading=True,
    )
