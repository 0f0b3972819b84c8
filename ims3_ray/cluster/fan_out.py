"""Run a stage's parts on a Ray Data actor pool; each part is one Parquet file, and an index covers them all.

The recipe fixes a part's rows: one batch of the model, or a few if there are many images. An actor writes a
part as soon as it is computed, so memory is bounded by CALLS_PER_ACTOR parts per actor, and a retried part is
replaced by the same bytes. A resumed stage makes only missing or damaged parts. Each part holds its own
checksum and, in its footer, the names of skipped rows. While one part uses the device, another is read or
written.
"""

import contextvars
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

CALLS_PER_ACTOR = 2  # concurrent, on threads; a device lock lets one of them compute
TARGET_PARTS = 2048  # enough for an even load on any number of actors
NOTES = "ims3_ray.notes"  # metadata key of a part: skipped rows and the reasons
MAX_ROWS = 512  # of a part of several batches, which an actor holds in memory
Build = Callable[..., Callable[[Any], tuple[Columns, dict[str, str]]]]  # each stage has its own payload
errors_only("ray.data")


@dataclass(frozen=True)
class Part:
    """A unit of work: the number of its rows, and a plain-data payload for the actor."""

    index: int
    rows: int
    payload: object

    @property
    def file(self) -> str:
        return f"part-{self.index:05d}.parquet"

    @property
    def item(self) -> dict[str, str]:
        """The row that is sent to the actor."""
        return {"file": self.file, "payload": json.dumps(self.payload)}


def rows_per_part(rows: int, batch_size: int) -> int:
    """Return one batch, or several if single batches would give more than TARGET_PARTS files."""
    batches = math.ceil(rows / batch_size)
    return batch_size * max(1, min(batches // TARGET_PARTS, MAX_ROWS // batch_size))


def _raise(message: str, _payload: object) -> tuple[Columns, dict[str, str]]:
    raise InputError(message)


class Worker:
    """The pool's actor: builds the stage's function once, then turns payloads into files."""

    def __init__(
        self, build: Build, arguments: Mapping[str, Any], table: Table, out: Directory, batch_field: str
    ):
        self._table, self._out = table, out
        self._batch = batch_field, arguments["batch_size"]
        try:
            work = build(**arguments)
            context = contextvars.copy_context()  # torch keeps settings of compilation by thread and context
            self._work = lambda payload: context.copy().run(work, payload)
        except InputError as error:  # raised with the first part: Ray loses the text if a constructor fails
            self._work = partial(_raise, str(error))

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[Any]]:
        (file,), (payload,) = batch["file"], batch["payload"]
        try:
            with explain_out_of_memory(*self._batch):
                columns, skipped = self._work(json.loads(payload))
            self._check_finite(columns)
            notes = json.dumps(skipped)
            data = schemas.to_parquet(columns, self._table, {NOTES: notes, KEY: BLANK})
            data = embed_checksum(data, file)
            self._out.write(file, data)
        except InputError as error:
            nothing = {"rows": [0], "checksum": [""], "keys": [b""], "notes": [""]}
            return {"file": [file], **nothing, "error": [str(error)]}
        rows, checksum = len(next(iter(columns.values()))), hashlib.sha256(data).hexdigest()
        report = {"rows": [rows], "checksum": [checksum], "keys": [pack_keys(columns, self._table)]}
        return {"file": [file], **report, "notes": [notes], "error": [""]}

    def _check_finite(self, columns: Columns) -> None:
        if odd := schemas.not_finite(columns):
            stage = self._batch[0].split(".")[0]
            raise InputError(
                f"{stage}: {odd} has values that are not finite; check the weights (model.path), "
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
    """Make each part that is missing or damaged. Returns rows, rows made now, checksums and notes.

    `build(**arguments)`, with `batch_size` among the arguments, runs once per actor. It returns a function
    from a part's payload to the columns of `table` and to {name of a skipped row: reason}. Raises InputError
    if a batch does not fit the GPU's memory or a result is not finite.
    """
    checksums: dict[str, str] = {}
    keys: dict[str, bytes] = {}
    notes: dict[str, str] = {}
    for name, data in intact_parts(out, [part.file for part in parts]):
        checksums[name], keys[name] = hashlib.sha256(data).hexdigest(), pack_part_keys(data, table)
        notes |= json.loads(schemas.read_metadata(data, NOTES) or "{}")
    todo = [part for part in parts if part.file not in checksums]
    total, rows_made = sum(part.rows for part in parts), sum(part.rows for part in todo)
    worker = {"build": build, "arguments": arguments, "table": table, "out": out}
    worker["batch_field"] = f"{stage}.batch_size.{machine.device}"
    with bar(stage, total, "images", done=total - rows_made) as progress:
        for row in _dataset(todo, worker, machine).iter_rows() if todo else ():
            if row["error"]:
                raise InputError(row["error"])
            checksums[row["file"]], keys[row["file"]] = row["checksum"], row["keys"]
            notes |= json.loads(row["notes"])
            progress.update(int(row["rows"]))
    write_index(out, keys)
    rows, notes = total - len(notes), dict(sorted(notes.items()))
    return {"rows": rows, "rows_made": rows_made, "checksums": checksums, "notes": notes}


def _dataset(parts: list[Part], worker: dict[str, object], machine: Machine) -> ray.data.Dataset:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    # the pool's utilisation is 1 if all actors work, since CALLS_PER_ACTOR limits it
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    return ray.data.from_items([part.item for part in parts], override_num_blocks=len(parts)).map_batches(
        Worker,
        batch_size=1,
        compute=actor_pool(machine, len(parts)),
        fn_constructor_kwargs=worker,
        **machine.pool_resources,
    )


def actor_pool(machine: Machine, num_parts: int) -> ActorPoolStrategy:
    """A pool that starts with all actors if there is room, and with `min_actors` otherwise.

    It grows with nodes that join later, unless `workers.actors` fixes its size.
    """
    first = min(machine.actors, num_parts)
    return ActorPoolStrategy(
        min_size=min(machine.min_actors, first),
        max_size=first if machine.workers.actors else num_parts,
        initial_size=first,
        max_concurrent_calls_per_actor=CALLS_PER_ACTOR,
        max_tasks_in_flight_per_actor=CALLS_PER_ACTOR,  # further parts wait for any actor, not for one
        enable_true_multi_threading=True,
    )
