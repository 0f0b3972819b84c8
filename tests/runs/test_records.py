"""Records of needed artefacts: three kinds, written before the first stage."""

import pytest
from planned import config_of

from ims3_ray.errors import InputError
from ims3_ray.jobs.distill import run as distillation
from ims3_ray.jobs.distill.status import read_status
from ims3_ray.jobs.runs import gc
from ims3_ray.progress import RUN
from ims3_ray.runs import query, records
from ims3_ray.runs.mlflow_tracker import client
from ims3_ray.storage.artifacts import open_directory, open_storage

A, B, C = "latents/aaaaaaaaaaaa", "adapter/bbbbbbbbbbbb", "report/cccccccccccc"


def needed(storage):
    return {artifact for record in records.read(storage) for artifact in record.artifacts}


def test_runs_and_trials_are_read(tmp_path):
    storage = open_storage(str(tmp_path))
    records.write(storage, "runs/digits-k1/run.json", {"latents": f"s3://elsewhere/runs/{A}"}, key="k1")
    records.write(storage, "sweeps/k2/trials/0.json", [B, B], key="k2/0", state="finished")
    records.write(storage, "sweeps/k3/trials/7.json", [C], key="k3/7")
    (tmp_path / "sweeps" / "k3" / "state.json").write_text("no record")
    assert needed(storage) == {A, B, C}
    assert [record.key for record in records.read(storage)] == ["k1", "k2/0", "k3/7"]


def test_an_unreadable_record_stops_garbage_collection(tmp_path):
    storage = open_storage(str(tmp_path))
    for text in ("{", "[]", '{"key": "k"}', '{"artifacts": [3]}'):
        storage.write("runs/digits-k1/run.json", text.encode())
        with pytest.raises(InputError, match=r"run\.json"):
            gc.survey(storage)


def test_a_distillation_records_its_artefacts_before_the_first_stage_also_when_it_resumes(
    ray_cluster, tiny_overrides, monkeypatch
):
    def look(context, step):
        (record,) = records.read(context.storage)
        assert (record.state, read_status(config)["state"]) == (records.RUNNING, "running")
        assert [run["status"] for run in query.find_runs(client(context.storage))] == ["RUNNING"]
        assert RUN.get() == f"digits-{record.key}"
        assert len(record.artifacts) == 9
        assert step.artifact in record.artifacts
        raise KeyboardInterrupt

    monkeypatch.setattr(distillation, "run_step", look)
    config = config_of(tiny_overrides)
    storage = open_directory(config.storage)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            distillation.run(config, lambda line: None)
        (record,) = records.read(storage)
        assert (record.state, len(record.artifacts)) == (records.STOPPED, 9)
        assert [run["status"] for run in query.find_runs(client(storage))] == ["KILLED"]
