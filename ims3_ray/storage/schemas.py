"""The columns of every artefact, checked on write and on read.

In memory a table is a dict of numpy arrays whose first axis are the rows. In Parquet, tensors are Arrow's
fixed-shape tensors, which plain pyarrow reads.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Columns = dict[str, np.ndarray]


class SelectedClass(TypedDict):
    subgroups: list[int]
    distances_to_real: list[float]  # of each subgroup
    distance_to_real: float  # of the selection


class SelectionFile(TypedDict):
    """selection.json: the selection, its quality, and how it was made."""

    unit: str
    objective: float
    terms: dict[str, float]
    start_objective: float
    lower_bound: float | None
    gap: float | None
    gap_of_gain: float | None
    certificate: str
    solver: str
    rounds: int
    settings: dict[str, object]
    subgroup_selection: NotRequired[dict[str, float] | None]  # of the same pool, if images are selected
    selection: dict[str, int | list[list[int]]]  # per class: a subgroup, or (subgroup, index) of each image
    per_class: dict[str, SelectedClass]


@dataclass(frozen=True)
class Column:
    """One column. `shape` is the shape of a row's value; an axis of None differs between artefacts."""

    dtype: str  # numpy's name, "str" or "bytes"
    shape: tuple[int | None, ...] = ()


Table = Mapping[str, Column]

LATENT = (None, None, None)
LATENTS: Table = {
    "image_id": Column("str"),  # content hash
    "label": Column("int64"),  # class id: index among the sorted class names
    "mean": Column("float16", LATENT),  # posterior mean, times the VAE's scaling factor
    "logvar": Column("float16", LATENT),  # log-variance of the scaled posterior
}
MIRRORED_LATENTS: Table = LATENTS | {
    "mirror_mean": Column("float16", LATENT),
    "mirror_logvar": Column("float16", LATENT),
}
INVERSIONS: Table = {
    "image_id": Column("str"),
    "label": Column("int64"),
    "inversion": Column("float16", (None, *LATENT)),  # z^inv at s_1 … s_S
}
MIRRORED_INVERSIONS: Table = INVERSIONS | {"mirror_inversion": Column("float16", (None, *LATENT))}
FEATURES: Table = {"image_id": Column("str"), "label": Column("int64"), "feature": Column("float32", (None,))}
CANDIDATES: Table = {
    "label": Column("int64"),
    "subgroup": Column("int64"),
    "index": Column("int64"),
    "seed": Column("int64"),  # of the image's own noise generator
    "image": Column("bytes"),  # PNG
    "feature": Column("float32", (None,)),
}
REFINED: Table = {
    "label": Column("int64"),
    "place": Column("int64"),  # k in the class
    "subgroup": Column("int64"),  # of the candidate; -1 if it was a real image
    "index": Column("int64"),
    "seed": Column("int64"),
    "image": Column("bytes"),  # PNG
    "feature": Column("float32", (None,)),
    "start": Column("bytes"),  # PNG, before refinement
    "start_feature": Column("float32", (None,)),
    "kept": Column("bool"),  # the start is kept, since refinement made it a copy of a real image
    "loss": Column("float32", (None,)),  # of the class, mean per equal share of the steps
}


def to_parquet(columns: Columns, table: Table, metadata: Mapping[str, str] | None = None) -> bytes:
    """Returns the rows, checked against `table`, as the bytes of a Parquet file with `metadata`."""
    rows, sink = to_arrow(columns, table), io.BytesIO()
    with pq.ParquetWriter(sink, rows.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(rows)
        writer.add_key_value_metadata(dict(metadata or {}))
    return sink.getvalue()


def read_metadata(data: bytes, key: str) -> str | None:
    """Returns the value of a metadata key of a Parquet file, or None."""
    value = (pq.read_metadata(pa.BufferReader(data)).metadata or {}).get(key.encode())
    return None if value is None else value.decode()


def from_parquet(source: pa.NativeFile, table: Table, columns: Sequence[str] | None = None) -> Columns:
    """Returns the rows of a Parquet file, or only their `columns`.

    Raises ValueError, ArrowException or OSError if the file is damaged: every page has a checksum.
    """
    names = list(columns or table)
    read = pq.read_table(source, columns=names, page_checksum_verification=True)
    if missing := [name for name in names if name not in read.column_names]:
        raise ValueError(
            f"columns {', '.join(missing)} are missing; the file holds {', '.join(read.column_names)}"
        )
    return from_arrow(read, {name: table[name] for name in names})


def from_arrow(read: pa.Table, table: Table) -> Columns:
    """Returns the rows of `table`'s columns, checked against it."""
    rows = {name: _to_numpy(read[name].combine_chunks(), column) for name, column in table.items()}
    check(rows, table)
    return rows


def concatenate(parts: Iterable[Columns]) -> Columns:
    """Returns the rows of several tables, in order."""
    parts = list(parts)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def not_finite(columns: Columns) -> str | None:
    """Returns the first column with NaN or infinity, as "mean (3 of 12 rows)"; None if there is none."""
    for name, values in columns.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            rows = (~np.isfinite(values.reshape(len(values), -1))).any(axis=1).sum()
            return f"{name} ({rows} of {len(values)} rows)"
    return None


def check(columns: Columns, table: Table) -> None:
    """Raise AssertionError if `columns` differ from `table` in names, types or shapes, or in length."""
    assert set(columns) == set(table), f"columns {sorted(columns)}, expected {sorted(table)}"
    rows = len(next(iter(columns.values())))
    for name, column in table.items():
        values = columns[name]
        assert len(values) == rows, f"{name}: {len(values)} rows, others have {rows}"
        fits = [want in (None, have) for have, want in zip(values.shape[1:], column.shape, strict=False)]
        of_row = f"{name}: shape {values.shape}, a row's is {column.shape}"
        assert values.ndim == 1 + len(column.shape), of_row
        assert all(fits), of_row
        if column.dtype not in ("str", "bytes"):
            assert values.dtype == np.dtype(column.dtype), f"{name}: {values.dtype}, not {column.dtype}"


def to_arrow(columns: Columns, table: Table) -> pa.Table:
    """Returns the rows, checked against `table`."""
    check(columns, table)
    arrays = {}
    for name, column in table.items():
        values = columns[name]
        if column.shape and not len(values):
            tensor = pa.fixed_shape_tensor(pa.from_numpy_dtype(values.dtype), values.shape[1:])
            arrays[name] = pa.ExtensionArray.from_storage(tensor, pa.array([], tensor.storage_type))
        elif column.shape:
            arrays[name] = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))
        elif column.dtype in ("str", "bytes"):
            arrays[name] = pa.array(
                values.tolist(), type=pa.string() if column.dtype == "str" else pa.binary()
            )
        else:
            arrays[name] = pa.array(values)
    return pa.table(arrays)


def _to_numpy(array: pa.Array, column: Column) -> np.ndarray:
    if isinstance(array, pa.ChunkedArray):  # extension types stay chunked
        array = array.chunk(0)
    if column.shape:
        if not isinstance(array, pa.FixedShapeTensorArray):
            raise ValueError(f"holds {array.type} instead of tensors")
        return array.to_numpy_ndarray()
    values = array.to_numpy(zero_copy_only=False)
    return values.astype(object) if column.dtype in ("str", "bytes") else values
