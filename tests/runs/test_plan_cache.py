"""A plan is cached by configuration and file stats."""

import os

import pytest

from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.runs import plan_cache
from ims3_ray.storage.artifacts import open_directory


@pytest.fixture
def words(tmp_path):
    for place in ("train/cat", "train/dog", "test/cat", "test/dog", "model"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "a").write_bytes(b"1")
    model = tmp_path / "model"
    return [
        *(f"data.{split}={tmp_path / split}" for split in ("train", "test")),
        *("data.validation=null", f"model.path={model}", f"embed.extractor={model}"),
    ]


def signature(words, *more):
    return plan_cache.signature(load_config("digits", parse_overrides([*words, *more])))


def test_files_and_fields_change_the_signature_but_workers_do_not(words, tmp_path):
    found = [signature(words)]
    assert found == [signature(words, "workers.actors=7", f"storage={tmp_path}/elsewhere")]
    found += [signature(words, "select.alpha=0.3"), signature(words, "workers.device=cuda")]
    for file in ("train/cat/a", "test/dog/a", "model/a"):
        os.utime(tmp_path / file, ns=(0, 0))
        found.append(signature(words))
    (tmp_path / "train" / "dog" / "b").write_bytes(b"2")
    found.append(signature(words))
    table = tmp_path / "map.yaml"
    for text in ("cat: 1", "cat: 22"):
        table.write_text(text)
        found.append(signature(words, f"data.class_map={table}"))
    assert len(set(found)) == 9


def test_a_single_file_of_images_changes_the_signature(words, tmp_path):
    table = tmp_path / "train.parquet"
    table.write_bytes(b"1")
    found = [signature(words, f"data.train={table}")]
    os.utime(table, ns=(0, 0))
    found.append(signature(words, f"data.train={table}"))
    assert None not in found
    assert found[0] != found[1]


def test_inputs_without_file_stats_have_no_signature(words, tmp_path, monkeypatch):
    assert signature(words, "model.path=some/model") is None
    assert signature(words, f"model.path=some/model@{'0' * 40}") is not None
    assert signature(words, "finetune.batch_size=auto") is None
    assert signature(words, f"data.test={tmp_path}/images_best.pt?mean=0.5") is None
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert signature(words) is None


def test_a_damaged_plan_is_ignored(words, tmp_path):
    storage, config = open_directory(str(tmp_path / "runs")), load_config("digits", parse_overrides(words))
    key, steps = plan_cache.signature(config), {"encode": "latents/0"}
    plan_cache.write(storage, key, "digits-0", steps, ["note"], is_finished=True)
    kept = {"run": "digits-0", "steps": list(steps.items()), "notes": ["note"], "is_finished": True}
    assert plan_cache.find(storage, config) == kept
    (place,) = (tmp_path / "runs" / "index").iterdir()
    for damage in ("", "{}", "[]", '{"run": 1, "steps": 3, "notes": [], "is_finished": true}'):
        place.write_text(damage)
        assert plan_cache.find(storage, config) is None
