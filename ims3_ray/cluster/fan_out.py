"""Fanning a stage's parts out over a Ray Data actor pool, each part one Parquet file.

A part is a fixed set of rows, composed by the recipe: one batch of the model. An actor computes a part and
writes it at once, so memory stays at CALLS_PER_ACTOR parts per actor, a retried part replaces itself with the
same bytes, and a stage that died goes on with the parts that are missing. While one part has the device,
another is read or written.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import ActorPoolStrategy

from ims3_ray import progress
from ims3_ray.errors import InputError
from ims3_ray.models.memory import batch_must_fit
from ims3_ray.storage import tables
from ims3_ray.storage.artifacts import Directory, part_names
from ims3_ray.storage.tables import Columns, Table

from .machine import Machine

NOTES = ".notes.json"
CALLS_PER_ACTOR = 2  # at once, on threads; models.batches.Turn lets one of them compute
logging.getLogger("ray.data").setLevel(logging.ERROR)  # its own import sets the level, so after it


@dataclass(frozen=True)
class Part:
    """One unit of work: `rows` is how many it makes, `payload` plain data that tells the actor what to do."""

    index: int
    rows: int
    payload: Any

    @property
    def file(self) -> str:
        return f"part-{self.index:05d}.parquet"

    @property
    def item(self) -> dict[str, str]:
        """What travels to the actor."""
        return {"file": self.file, "payload": json.dumps(self.payload)}


class Worker:
    """The pool's actor: builds the stage's worker once, then turns parts into files."""

    def __init__(
        self,
        build: Callable[..., Callable[[Any], tuple[Columns, dict[str, str]]]],
        arguments: dict,
        table: Table,
        out: Directory,
        batch_field: str,
    ):
        self._work, self._table, self._out = build(**arguments), table, out
        self._batch = batch_field, arguments["batch_size"]

    def __call__(self, batch: dict) -> dict:
        (file,), (payload,) = batch["file"], batch["payload"]
        try:
            with batch_must_fit(*self._batch):
                columns, notes = self._work(json.loads(payload))
            if notes:
                self._out.write(file + NOTES, json.dumps(notes).encode())
            self._out.write(file, tables.to_parquet(columns, self._table))
        except InputError as error:
            # as a value: of an exception, Ray Data brings the driver no more than the text
            return {"file": [file], "rows": [0], "refused": [str(error)]}
        return {"file": [file], "rows": [len(next(iter(columns.values())))], "refused": [""]}


def fan_out(
    build: Callable[..., Callable[[Any], tuple[Columns, dict[str, str]]]],
    arguments: dict[str, Any],
    parts: Sequence[Part],
    *,
    table: Table,
    out: Directory,
    machine: Machine,
    stage: str,
    unit: str = "images",
) -> dict[str, Any]:
    """Make every part that is not there yet; gives the number of rows, of those made now, and the rows left
    out.

    `build(**arguments)`, its `batch_size` among them, runs once an actor and gives a function from a part's
    payload to the columns of `table` and to notes: {name of a row that had to be left out: why}. InputError
    where a batch does not fit the GPU's memory.
    """
    there = set(part_names(out))
    todo = [part for part in parts if part.file not in there]
    total, made = sum(part.rows for part in parts), sum(part.rows for part in todo)
    with progress.bar(stage, total, unit, done=total - made) as shown:
        if todo:
            field = f"{stage}.batch_size.{machine.device}"
            for row in _dataset(build, arguments, todo, table, out, machine, field).iter_rows():
                if row["refused"]:
                    raise InputError(row["refused"])
                shown.update(int(row["rows"]))
    notes: dict[str, str] = {}
    for name in out.files():
        if name.endswith(NOTES):
            notes |= out.read_json(name)
    return {"rows": total - len(notes), "rows_made": made, "notes": notes}


def _dataset(build, arguments, todo, table, out, machine, batch_field) -> "ray.data.Dataset":
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    return ray.data.from_items([part.item for part in todo], override_num_blocks=len(todo)).map_batches(
        Worker,
        batch_size=1,
        compute=actor_pool(machine, len(todo)),
        fn_constructor_kwargs={
            "build": build,
            "arguments": arguments,
            "table": table,
            "out": out,
            "batch_field": batch_field,
        },
        **machine.actor_resources,
    )


def actor_pool(machine: Machine, num_parts: int) -> ActorPoolStrategy:
    """All actors at once where there is room, and as few as the minimum while there is none or a node is
    lost.
    """
    most = min(machine.actors, num_parts)
    return ActorPoolStrategy(
        min_size=min(machine.min_actors, most),
        max_size=most,
        initial_size=most,
        max_concurrent_calls_per_actor=CALLS_PER_ACTOR,
        max_tasks_in_flight_per_actor=CALLS_PER_ACTOR,  # a part waits in the queue, not for one actor
        enable_true_multi_threading=True,
    )
