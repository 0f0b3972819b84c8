"""The whole pipeline on three classes of 16-pixel images."""

import html
import json
import math
import re
import shlex
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import yaml
from planned import config_of, run, steps_of
from printed import job, parsed
from torchvision.datasets import ImageFolder

from ims3_ray import load_distilled
from ims3_ray.cli import run_command
from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.errors import InputError

TERMS = {"diffusion", "variational", "matching"}
MINIMAX = {"diversity", "representativeness"}
NO_SCORES = "evaluate.protocol=none"


def digests(folder):
    """SHA-256 of every file below `folder` except manifests, which contain times."""
    files = (p for p in Path(folder).rglob("*") if p.is_file() and p.name != "manifest.json")
    return {p.relative_to(folder).as_posix(): sha256(p.read_bytes()).hexdigest() for p in files}


def storage_of(result):
    return Path(result.distilled).parents[1]


def artifacts_of(result):
    """Locations of the run's artefacts by kind, from its record."""
    return json.loads(next(storage_of(result).glob(f"runs/*{result.key}/run.json")).read_text())["artifacts"]


def document(result, kind, name="manifest.json"):
    return json.loads(Path(artifacts_of(result)[kind], name).read_text())


def history(result):
    return document(result, "adapter")["history"]


@pytest.fixture(scope="module")
def result(finished_run):
    return finished_run[1]


def test_distilled_set_has_ipc_images_per_class_in_every_format(result):
    folders = ImageFolder(Path(result.distilled, "train"))
    assert folders.classes == ["blue", "green", "red"]
    assert np.bincount(folders.targets).tolist() == [6, 6, 6]
    loaded = load_distilled(result.distilled)
    assert (loaded.classes, loaded.targets) == (folders.classes, folders.targets)
    for ours, theirs in zip(loaded, folders, strict=True):
        assert np.array_equal(np.asarray(ours[0]), np.asarray(theirs[0]))


def test_manifest_has_checksum_and_origin_of_every_selected_image(result):
    selection = document(result, "selection", "selection.json")
    images = document(result, "distilled")["images"]
    assert len(images) == 18
    for entry in images:
        assert sha256(Path(result.distilled, entry["path"]).read_bytes()).hexdigest() == entry["sha256"]
        assert {"index", "seed"} < set(entry)
    assert {(e["class"], e["subgroup"]) for e in images} == set(selection["selection"].items())
    assert selection["lower_bound"] <= selection["objective"] <= selection["start_objective"]


def test_uncovered_images_of_the_report_agree_with_coverage(result):
    page = Path(result.report).read_text()
    uncovered = [int(count) / int(total) for count, total in re.findall(r"(\d+) of (\d+) not covered", page)]
    assert 1 - sum(uncovered) / 3 == pytest.approx(result.evaluation["coverage"]["distilled"]["coverage"])
    assert page.count("that is not covered") == sum(min(3, round(12 * share)) for share in uncovered)


def test_second_run_does_nothing(words, result):
    before = {p: p.stat().st_mtime_ns for p in Path(result.distilled).rglob("*")}
    again = run(words)
    assert not any(stage["ran"] for stage in again.stages)
    assert again.mlflow_run_id == result.mlflow_run_id
    assert {p: p.stat().st_mtime_ns for p in Path(result.distilled).rglob("*")} == before


def test_number_of_workers_does_not_change_the_bytes(words, result, tmp_path):
    workers = "workers={actors: 3, shards: 3, train_workers: 2}"
    steps = steps_of(words, f"storage={tmp_path}", workers, upto="evaluate")
    sets = steps["evaluation"].directory.read_json("evaluation.json")["sets"]
    assert result.evaluation["sets"] == sets
    for kind in ("latents", "inversions", "adapter", "features", "candidates", "distilled"):
        made = digests(tmp_path / kind)
        assert made, kind
        assert made.items() <= digests(storage_of(result) / kind).items(), kind  # which has other tests' too


@pytest.mark.slow
def test_too_many_train_workers_are_an_error(words, tmp_path, monkeypatch):
    batch = "finetune.micro_batches=8", "finetune.batch_size=8"
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    with pytest.raises(InputError, match=r"workers\.train_workers: .* room for 8 .* within 4 s"):
        run(words, *batch, f"storage={tmp_path}", NO_SCORES, "workers={train_workers: 8}")


def test_changed_alpha_repeats_only_selection_and_later_stages(words):
    changed = run(words, "select.alpha=0.7")
    assert [s["name"] for s in changed.stages if s["ran"]] == ["select", "export", "evaluate", "report"]


@pytest.mark.slow
def test_smaller_pool_is_a_subset_of_a_larger_one(words, result):
    """A candidate's noise depends on (class, subgroup, index) only."""
    from ims3_ray.storage import schemas
    from ims3_ray.storage.artifacts import open_directory
    from ims3_ray.storage.rows import read_rows

    def pool(each):
        rows = read_rows(open_directory(artifacts_of(each)["candidates"]), schemas.CANDIDATES)
        keys = zip(rows["label"], rows["subgroup"], rows["index"], strict=True)
        return dict(zip(keys, zip(rows["seed"], rows["image"], strict=True), strict=True))

    small, large = pool(result), pool(run(words, "sample.subgroups=4", "ipc=7", NO_SCORES))
    assert set(small) < set(large)
    assert all(large[key] == small[key] for key in small)


def test_fine_tuning_logs_unweighted_terms_and_the_gradient_ratio(result):
    logged = history(result)
    assert [entry["step"] for entry in logged] == [4, 6]
    assert TERMS | {"grad_ratio/matching", "weight/matching", "images_per_s"} <= set(logged[0])
    assert 0 < logged[0]["grad_ratio/matching"] < 0.1


@pytest.mark.slow
def test_gradient_ratio_is_reached(words):
    elastic = "workers={train_workers: 2, min_train_workers: 1}"
    last = history(run(words, "im.grad_ratio=0.3", "im.minimax=image", NO_SCORES, elastic))[-1]
    assert last["grad_ratio/matching"] == pytest.approx(0.3, rel=1e-4)
    assert set(last) >= MINIMAX


@pytest.mark.slow
def test_published_settings_need_no_inversions(words):
    tuning = "finetune={micro_batches: 1, steps: 5, ema_warmup: false, labels: position}"
    result = run(words, "im={target: one_step, minimax: class}", NO_SCORES, tuning)
    assert "inversions" not in artifacts_of(result)
    logged = history(result)
    assert [entry["step"] for entry in logged] == [4, 5]
    assert all(math.isfinite(logged[-1][term]) for term in TERMS | MINIMAX)


def test_mlflow_has_parameters_metrics_artifacts_and_dataset(result):
    from mlflow import MlflowClient

    client = MlflowClient(result.tracking_uri)
    logged = client.get_run(result.mlflow_run_id)
    metrics = logged.data.metrics
    assert logged.info.status == "FINISHED"
    assert (logged.data.params["ipc"], logged.data.params["sample.subgroups"]) == ("6", "3")
    assert metrics["accuracy"] == result.figures["accuracy"]
    assert {"finetune/diffusion", "select/objective", "sample/rows_per_s", "coverage/distilled"} <= {*metrics}
    files = {artifact.path for artifact in client.list_artifacts(result.mlflow_run_id)}
    assert files == {"index.html", "contact-sheet.png", "recipe.yaml"}
    assert [d.dataset.name for d in logged.inputs.dataset_inputs] == ["distilled"]
    assert [m.step for m in client.get_metric_history(result.mlflow_run_id, "finetune/diffusion")] == [4, 6]


def test_run_is_reproducible_and_gc_keeps_its_artefacts(words, result, monkeypatch):
    from mlflow import MlflowClient

    from ims3_ray.config import reproduce as reproducing
    from ims3_ray.jobs.runs import gc
    from ims3_ray.runs import query as querying
    from ims3_ray.storage.artifacts import open_directory

    client = MlflowClient(result.tracking_uri)
    found = querying.resolve(querying.find_runs(client), result.key)
    assert (found["kind"], found["protocol"]) == ("distillation", result.evaluation["protocol"])
    recipe = querying.logged_file(client, result.mlflow_run_id, "recipe.yaml")
    command = reproducing.reproduce(recipe)
    results = config_of(words).results()
    assert command.notes == []
    assert load_config(command.recipe, command.overrides).results() == results
    assert load_config("digits", yaml.safe_load(recipe)).results() == results
    again, find = map(html.unescape, re.findall("<pre>(.*?)</pre>", Path(result.report).read_text()))
    arguments = parsed(*job(shlex.split(again)))
    same = load_config(arguments.recipe, parse_overrides(arguments.overrides))
    assert same.results() == results
    assert same.storage == str(storage_of(result))
    assert run_command(*job(shlex.split(find))) == 0
    later = time.time() + 2 * gc.RECENT_S
    monkeypatch.setattr(gc, "store_time", lambda _: later)
    survey = gc.survey(open_directory(same.storage))
    assert "checkpoints" in {entry.noun for entry in survey.unneeded}
    assert set(artifacts_of(result)) == set(gc.NOUNS) - {"probes", "refined", "teacher"}
    records = (json.loads(path.read_text()) for path in storage_of(result).glob("runs/*/run.json"))
    kept = [Path(place).parts[-2:] for record in records for place in record["artifacts"].values()]
    unneeded, places = ({x.place for x in some} for some in (survey.unneeded, survey.artifacts))
    assert unneeded == places - {"/".join(parts) for parts in kept}
    assert survey.not_ours == survey.notes == []


@pytest.mark.slow
def test_selected_single_images_are_exported(words):
    result = run(words, "select={unit: image, coverage: 0.5}", NO_SCORES)
    selection = document(result, "selection", "selection.json")
    assert selection["objective"] <= selection["subgroup_selection"]["objective"]
    images = document(result, "distilled")["images"]
    exported = sorted((e["class"], e["subgroup"], e["index"]) for e in images)
    assert exported == sorted((name, *place) for name, of in selection["selection"].items() for place in of)
    assert len(exported) == 18


def test_newer_storage_format_is_an_error_and_unchanged(words, tmp_path):
    (tmp_path / "format.json").write_text('{"format": 99}')
    with pytest.raises(InputError, match="format 99"):
        run(words, f"storage={tmp_path}")
    assert [p.name for p in tmp_path.iterdir()] == ["format.json"]
