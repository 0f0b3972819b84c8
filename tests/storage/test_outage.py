"""An outage of the storage is reported as one: it is no damage, and nothing is deleted for it."""

import pytest

from ims3_ray.errors import OutageError
from ims3_ray.jobs.runs.rebuild import rebuild
from ims3_ray.jobs.runs.verify import verify_storage
from ims3_ray.runs import records
from ims3_ray.storage.artifacts import Directory, check_format, complete, open_storage, read_manifest
from ims3_ray.storage.integrity import read_or_reopen, verify
from ims3_ray.storage.lease import exclusive, read_heartbeat, store_time, write_heartbeat

ARTEFACT, RECORD, LEASE = "latents/aaaaaaaaaaaa", "runs/digits-1/run.json", f".lease.{'0' * 32}.tmp"
READS = {
    "json": lambda storage: storage.read_json(RECORD),
    "format": check_format,
    "manifest": lambda storage: read_manifest(storage / ARTEFACT),
    "reopening": lambda storage: read_or_reopen(storage / ARTEFACT),
    "checksums": lambda storage: verify(storage / ARTEFACT),
    "--verify --yes": lambda storage: verify_storage(storage, removes=True),
    "--rebuild-mlflow": lambda storage: rebuild(storage, storage, print),
    "record": lambda storage: records.read_one(storage, RECORD),
    "heartbeat": lambda storage: read_heartbeat(storage / ARTEFACT, LEASE),
    "lease": lambda storage: exclusive(storage / ARTEFACT).__enter__(),
    "clock": store_time,
}


def failing_once(act):
    errors = [OutageError("s3://bucket: is away")]

    def failing(*arguments):
        if errors:
            raise errors.pop()
        return act(*arguments)

    return failing


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_an_outage_is_no_damage(tmp_path, read, monkeypatch):
    storage = open_storage(str(tmp_path))
    (storage / ARTEFACT).write("part-00000.parquet", b"rows")
    complete(storage / ARTEFACT, {"rows": 1})
    write_heartbeat(storage / ARTEFACT, LEASE)
    storage.write_json("index/000000000000.json", {})
    records.write(storage, RECORD, [ARTEFACT], key="1")
    before = {name: storage.read(name) for name in storage.files()}
    with monkeypatch.context() as away:
        for operation in ("read_path", "write"):
            away.setattr(Directory, operation, failing_once(getattr(Directory, operation)))
        with pytest.raises(OutageError):
            read(storage)
    assert {name: storage.read(name) for name in storage.files()} == before
