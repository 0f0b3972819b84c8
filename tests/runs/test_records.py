"""Records of what runs need: of all three kinds, written before the first stage, released by a deletion."""

import json
import time

import pytest
from tiny import tiny_words

from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.errors import InputError
from ims3_ray.jobs.ablate import run as ablation
from ims3_ray.jobs.ablate.plan import Plan, Row, Rows
from ims3_ray.jobs.distill import run as distillation
from ims3_ray.jobs.runs import gc
from ims3_ray.runs import records
from ims3_ray.storage.artifacts import open_directory, open_storage

A, B, C = "latents/aaaaaaaaaaaa", "adapter/bbbbbbbbbbbb", "report/cccccccccccc"


def needed(storage, deleted=None):
    kept = [record for record in records.read(storage) if not record.is_released(deleted or {})]
    return {artifact for record in kept for artifact in record.artifacts}


def test_runs_ablations_and_trials_are_read(tmp_path):
    storage = open_storage(str(tmp_path))
    records.write(storage, "runs/digits-k1/run.json", {"latents": f"s3://elsewhere/runs/{A}"}, key="k1")
    records.write(
        storage, "ablations/digits-k2/artifacts.json", [B, B], key="digits-k2", state=records.FINISHED
    )
    records.write(storage, "sweeps/k3/trials/7.json", records.artifact_names([storage / C]), key="k3/7")
    (tmp_path / "sweeps" / "k3" / "state.json").write_text("no record")
    assert needed(storage) == {A, B, C}


def test_a_record_of_an_earlier_version_is_read(tmp_path):
    storage = open_storage(str(tmp_path))
    storage.write_json("runs/digits-k1/run.json", {"key": "k1", "artifacts": {"latents": f"{tmp_path}/{A}"}})
    assert needed(storage) == {A}
    assert needed(storage, {"k1": 0.0}) == set()


@pytest.mark.parametrize("deleted", ["k1", "digits-k2", "k3", "k3/7"])
def test_a_deleted_run_needs_nothing_and_the_others_theirs(tmp_path, deleted):
    storage = open_storage(str(tmp_path))
    kinds = {
        A: ("runs/digits-k1/run.json", "k1"),
        B: ("ablations/digits-k2/artifacts.json", "digits-k2"),
        C: ("sweeps/k3/trials/7.json", "k3/7"),
    }
    for artifact, (place, key) in kinds.items():
        records.write(storage, place, [artifact], key=key, state=records.FINISHED)
    lost = next(
        artifact for artifact, (place, key) in kinds.items() if deleted == key or deleted in place.split("/")
    )
    assert needed(storage, {deleted: 0.0}) == {A, B, C} - {lost}


def test_a_run_that_began_after_the_deletion_is_safe(tmp_path):
    storage = open_storage(str(tmp_path))
    records.write(storage, "runs/digits-k1/run.json", [A], key="k1")
    assert needed(storage, {"k1": time.time() - 60}) == {A}
    assert needed(storage, {"k1": time.time() + 60}) == set()  # killed, and deleted by a person


def test_a_record_that_can_not_be_read_stops_everything(tmp_path):
    storage = open_storage(str(tmp_path))
    for text in ("{", "[]", '{"key": "k"}', '{"artifacts": [3]}'):
        storage.write("runs/digits-k1/run.json", text.encode())
        with pytest.raises(InputError, match=r"run\.json is no readable record.*mend or remove it"):
            gc.survey(storage, {})


def stop(context, step):
    raise KeyboardInterrupt


def test_a_distillation_names_all_that_it_needs_before_its_first_stage(
    ray_cluster, tiny_overrides, monkeypatch
):
    def look(context, step):
        (record,) = records.read(context.storage)
        assert record.is_unended
        assert len(record.artifacts) == 9
        assert step.artifact in record.artifacts
        stop(context, step)

    monkeypatch.setattr(distillation, "run_step", look)
    config = load_config("digits", parse_overrides(tiny_overrides))
    with pytest.raises(KeyboardInterrupt):
        distillation.run(config, lambda line: None)
    (record,) = records.read(open_directory(config.storage))
    assert (record.is_unended, len(record.artifacts)) == (False, 9)


def test_an_ablation_names_what_all_cells_need_before_the_first(
    ray_cluster, tiny_model, tiny_images, tmp_path, monkeypatch
):
    words = [w for w in tiny_words(tiny_model, tiny_images, tmp_path / "runs") if not w.startswith("ipc=")]
    one, two = (
        Row(name, {"finetune.epochs": 0, "select.alpha": a}) for name, a in (("one", 0.2), ("two", 0.1))
    )
    plan = Plan("digits", parse_overrides(words), Rows((one, two), "one"), (2,), (0,), None)
    monkeypatch.setattr(ablation, "run_step", stop)
    with pytest.raises(KeyboardInterrupt):
        ablation.run(plan, lambda line: None)
    (written,) = (tmp_path / "runs" / "ablations").glob("*/artifacts.json")
    named = json.loads(written.read_text())["artifacts"]
    nouns = [place.split("/")[0] for place in named]
    assert [nouns.count(noun) for noun in ("candidates", "selection", "evaluation")] == [1, 2, 2]
    assert needed(open_directory(str(tmp_path / "runs"))) == set(named)
