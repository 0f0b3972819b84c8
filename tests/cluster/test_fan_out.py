"""Parts on an actor pool: bounded memory, overlapping calls, only missing parts, bad input with its field."""

import resource
import subprocess
import sys
import threading

import numpy as np
import pytest
import ray
import torch
from processes import ROOT, environment

from ims3_ray.cluster.fan_out import TARGET_PARTS, Part, Worker, actor_pool, fan_out, rows_per_part
from ims3_ray.cluster.resources import Machine, find_machine
from ims3_ray.config.settings import Workers
from ims3_ray.errors import InputError
from ims3_ray.models import device
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import open_directory
from ims3_ray.storage.rows import INDEX
from ims3_ray.storage.schemas import Column

DIM = 512
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors can't import a test


def features(rows, seed):
    """Columns of FEATURES with `rows` random vectors."""
    values = np.random.default_rng(seed).random((rows, DIM), dtype=np.float32)
    return {
        "image_id": np.array([f"{seed}-{i}" for i in range(rows)], object),
        "label": np.zeros(rows, np.int64),
        "feature": values,
    }


class Heavy:
    """Makes a part's rows; its note is the peak memory of the process."""

    def __init__(self, batch_size): ...

    def __call__(self, payload):
        columns = features(payload["rows"], payload["seed"])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return columns, {f"memory-{payload['seed']}": str(peak)}


class Meeting:
    """Passes only if an actor has two concurrent calls, of which one computes."""

    def __init__(self, batch_size):
        self._barrier, self._inside = threading.Barrier(2), 0

    def _compute(self, x):
        self._inside += 1
        assert self._inside == 1
        out = [x @ x.T @ x]
        self._inside -= 1
        return out

    def __call__(self, payload):
        self._barrier.wait(timeout=60)
        return computed(self._compute, payload)


class Relay:
    """Passes only if one call decodes while another holds the transformer's lock."""

    def __init__(self, batch_size):
        self._met = threading.Barrier(2)

    def _meet(self, x):
        self._met.wait(timeout=60)
        return [x]

    def __call__(self, payload):
        turn = device.TRANSFORMER_LOCK if payload % 2 else device.DECODER_LOCK
        return computed(self._meet, payload, turn)


class OutOfMemory:
    """Fails as on a full GPU."""

    def __init__(self, batch_size): ...

    def __call__(self, payload):
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB.")


def computed(function, seed, *turn):
    rows = features(8, seed)
    rows["feature"] = device.run_padded_batches(function, [rows["feature"]], 8, torch.device("cpu"), *turn)[0]
    return rows, {}


def run(build, parts, folder, stage="test", **workers):
    out, machine = open_directory(str(folder)), find_machine(Workers(**workers))
    options = {"table": schemas.FEATURES, "out": out, "machine": machine, "stage": stage}
    return out, fan_out(build, {"batch_size": 8}, parts, **options)


def small_parts():
    return [Part(i, 4, {"rows": 4, "seed": i}) for i in range(3)]


@pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_data_larger_than_the_object_store_streams_through(times, ray_cluster, tmp_path):
    store = int(ray_cluster.cluster_resources()["object_store_memory"])
    rows = 8192  # 16 MB a part
    count = int(-(-1.1 * times * store // (4 * DIM * rows)))  # Parquet makes it a little less
    parts = [Part(i, rows, {"rows": rows, "seed": i}) for i in range(count)]
    out, made = run(Heavy, parts, tmp_path, actors=2)
    sizes = [info.size for name, info in out.files().items() if name.endswith(".parquet")]
    assert len(sizes) == count
    assert sum(sizes) >= times * store
    assert max(float(note) for note in made["notes"].values()) < 1.5e9
    assert ray_cluster.available_resources()["object_store_memory"] > 0.5 * store


def test_calls_of_an_actor_overlap_but_only_one_computes(ray_cluster, tmp_path):
    _, made = run(Meeting, [Part(i, 8, i) for i in range(4)], tmp_path, actors=1)
    assert made["rows"] == made["rows_made"] == 32


def test_one_call_decodes_while_another_computes(ray_cluster, tmp_path):
    _, made = run(Relay, [Part(i, 8, i) for i in range(2)], tmp_path, actors=1)
    assert made["rows"] == 16


def test_only_missing_parts_are_made(ray_cluster, tmp_path):
    parts = small_parts()
    out, first = run(Heavy, parts, tmp_path)
    before = {name: info.mtime_ns for name, info in out.files().items()}
    out.filesystem.delete_file(f"{out.path}/{parts[1].file}")
    _, second = run(Heavy, parts, tmp_path)
    assert (first["rows_made"], second["rows_made"]) == (12, 4)
    changed = {name for name, info in out.files().items() if before.get(name) != info.mtime_ns}
    assert changed == {parts[1].file, INDEX}
    assert second["notes"].keys() == first["notes"].keys()


@pytest.mark.parametrize(("rows", "parts"), [(1_000, 16), (100_000, 1563), (1_281_167, 2503)])
def test_a_part_is_one_batch_until_there_are_thousands_of_parts(rows, parts):
    of_part = rows_per_part(rows, 64)
    assert of_part % 64 == 0
    assert -(-rows // of_part) == parts
    assert of_part == 64 or parts >= TARGET_PARTS


def test_a_lost_index_is_rebuilt_from_the_parts(ray_cluster, tmp_path):
    parts = small_parts()
    out, _ = run(Heavy, parts, tmp_path)
    whole = out.read(INDEX)
    for name in (INDEX, parts[1].file):
        (out / name).delete()
    run(Heavy, parts, tmp_path)
    assert out.read(INDEX) == whole


@pytest.mark.parametrize(
    ("workers", "bounds"), [({"actors": 3}, (1, 3)), ({"actors": 2, "min_actors": 5}, (2, 2))]
)
def test_a_pool_grows_between_its_bounds(workers, bounds):
    pool = actor_pool(Machine("cpu", 4, 0, 8e9, Workers(**workers)), 10)
    assert (pool.min_size, pool.max_size) == bounds
    assert pool.initial_size == bounds[1]


def answer_of(build, table, folder, payload):
    worker = Worker(build, {"batch_size": 2}, table, folder, "sample.batch_size.cpu")
    return worker({"file": ["part-00000.parquet"], "payload": [payload]})


def test_non_finite_values_are_an_error_and_never_written(tmp_path):
    table = {"label": Column("int64"), "feature": Column("float32", (None,))}

    def build(batch_size):
        return lambda odd: ({"label": np.arange(2), "feature": np.array([[1.0], [odd]], np.float32)}, {})

    out = open_directory(str(tmp_path))
    for odd in ("NaN", "Infinity"):
        assert "sample: feature (1 of 2 rows)" in answer_of(build, table, out, odd)["error"][0]
        assert not out.files()
    answer = answer_of(build, table, out, "2")
    assert answer["error"] == [""]
    assert answer["checksum"] == [out.sha256("part-00000.parquet")]


def test_bad_input_of_a_constructor_reaches_the_driver(tmp_path):
    def build(batch_size):
        raise InputError("model.path: is damaged")

    answer = answer_of(build, schemas.FEATURES, open_directory(str(tmp_path)), "2")
    assert answer["error"] == ["model.path: is damaged"]


def test_out_of_memory_in_a_pool_reaches_the_driver(ray_cluster, tmp_path):
    with pytest.raises(InputError, match=r"sample.batch_size.cpu: .* 8 .*20.00 GiB.* 79.11 GiB.*lower"):
        run(OutOfMemory, [Part(0, 1, [])], tmp_path, "sample")


@pytest.mark.chaos
def test_a_pool_grows_with_a_node_that_joins(tmp_path):
    script = ROOT / "tests" / "support" / "growing.py"
    words = [sys.executable, script, tmp_path / "out"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1:] == ["actors 2"], done.stderr[-2000:]
