"""The whole pipeline on three classes of 16-pixel images."""

import hashlib
import html
import json
import math
import re
import shlex
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from printed import job, parsed
from torchvision.datasets import ImageFolder

from ims3_ray import load_distilled
from ims3_ray.cli import run_command
from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.errors import InputError
from ims3_ray.jobs.distill import run as distillation


def run(overrides, *more):
    lines = []
    return distillation.run(load_config("digits", parse_overrides([*overrides, *more])), lines.append)


def digests(folder):
    """SHA-256 of every file below `folder` except manifests, which contain times."""
    files = sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.name != "manifest.json")
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def artifacts_of(result):
    """Locations of the run's artefacts by kind, from its record."""
    record = next(Path(result.distilled).parents[1].glob(f"runs/*{result.key}/run.json"))
    return json.loads(record.read_text())["artifacts"]


def test_distilled_set_has_ipc_images_per_class_in_every_format(finished_run):
    _, result = finished_run
    folders = ImageFolder(Path(result.distilled, "train"))
    assert folders.classes == ["blue", "green", "red"]
    assert np.bincount(folders.targets).tolist() == [6, 6, 6]
    loaded = load_distilled(result.distilled)
    assert loaded.classes == folders.classes
    assert loaded.targets == folders.targets
    for ours, theirs in zip(loaded, folders, strict=True):
        assert np.array_equal(np.asarray(ours[0]), np.asarray(theirs[0]))


def test_manifest_has_checksum_and_origin_of_every_image(finished_run):
    _, result = finished_run
    manifest = json.loads(Path(result.distilled, "manifest.json").read_text())
    assert len(manifest["images"]) == 18
    for entry in manifest["images"]:
        assert (
            hashlib.sha256(Path(result.distilled, entry["path"]).read_bytes()).hexdigest() == entry["sha256"]
        )
        assert {"class", "subgroup", "index", "seed"} <= set(entry)


def test_uncovered_images_of_the_report_agree_with_coverage(finished_run):
    _, result = finished_run
    page = Path(result.report).read_text()
    uncovered = [int(count) / int(total) for count, total in re.findall(r"(\d+) of (\d+) not covered", page)]
    assert 1 - sum(uncovered) / 3 == pytest.approx(result.evaluation["coverage"]["distilled"]["coverage"])
    assert page.count("that is not covered") == sum(min(3, round(12 * share)) for share in uncovered)


def test_second_run_does_nothing(finished_run):
    overrides, result = finished_run
    before = {p: p.stat().st_mtime_ns for p in Path(result.distilled).rglob("*")}
    again = run(overrides)
    assert not any(stage["ran"] for stage in again.stages)
    assert again.mlflow_run_id == result.mlflow_run_id
    assert {p: p.stat().st_mtime_ns for p in Path(result.distilled).rglob("*")} == before


def test_number_of_workers_does_not_change_the_bytes(finished_run, tmp_path):
    overrides, result = finished_run
    other = run([*overrides, f"storage={tmp_path}"], "workers={actors: 3, shards: 3, train_workers: 2}")
    assert Path(other.distilled).name == Path(result.distilled).name
    one, many = Path(result.distilled).parents[1], Path(tmp_path)
    for kind in ("latents", "inversions", "adapter", "features", "candidates", "distilled"):
        assert digests(one / kind) == digests(many / kind), kind
    assert result.evaluation["sets"] == other.evaluation["sets"]


@pytest.mark.slow
def test_too_many_train_workers_are_an_error(finished_run, tmp_path, monkeypatch):
    overrides, _ = finished_run
    batch = ("finetune.micro_batches=8", "finetune.batch_size=8")
    words = [*overrides, *batch, f"storage={tmp_path}", "evaluate.protocol=none"]
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    line = r"workers\.train_workers: the cluster had no room for 8 .* within 4 s; ask for fewer"
    with pytest.raises(InputError, match=line):
        run(words, "workers={train_workers: 8}")


def test_changed_alpha_repeats_only_selection_and_later_stages(finished_run):
    overrides, _ = finished_run
    changed = run(overrides, "select.alpha=0.7")
    assert [s["name"] for s in changed.stages if s["ran"]] == ["select", "export", "evaluate", "report"]


@pytest.mark.slow
def test_smaller_pool_is_a_subset_of_a_larger_one(finished_run, tmp_path):
    """A candidate's noise depends on (class, subgroup, index) only."""
    from ims3_ray.storage import schemas
    from ims3_ray.storage.artifacts import open_directory
    from ims3_ray.storage.rows import read_rows

    overrides, result = finished_run
    larger = run(overrides, "sample.subgroups=4", "ipc=7", "evaluate.protocol=none")
    pools = [
        read_rows(open_directory(artifacts_of(each)["candidates"]), schemas.CANDIDATES)
        for each in (result, larger)
    ]
    names = ("label", "subgroup", "index", "seed", "image")
    small, large = (
        {(c, g, k): (seed, png) for c, g, k, seed, png in zip(*(p[n] for n in names), strict=True)}
        for p in pools
    )
    assert set(small) < set(large)
    assert all(large[key] == small[key] for key in small)


def test_fine_tuning_logs_unweighted_terms_and_the_gradient_ratio(finished_run):
    history = json.loads(Path(artifacts_of(finished_run[1])["adapter"], "manifest.json").read_text())[
        "history"
    ]
    assert [entry["step"] for entry in history] == [4, 6]
    terms = {"diffusion", "variational", "matching"}
    assert terms | {"grad_ratio/matching", "weight/matching", "images_per_s"} <= set(history[0])
    assert 0 < history[0]["grad_ratio/matching"] < 0.1


@pytest.mark.slow
def test_gradient_ratio_is_reached(finished_run, tmp_path):
    overrides, _ = finished_run
    elastic = "workers={train_workers: 2, min_train_workers: 1}"
    result = run(overrides, "im.grad_ratio=0.3", "im.minimax=image", "evaluate.protocol=none", elastic)
    history = json.loads(Path(artifacts_of(result)["adapter"], "manifest.json").read_text())["history"]
    assert history[-1]["grad_ratio/matching"] == pytest.approx(0.3, rel=1e-4)
    assert {"representativeness", "diversity"} <= set(history[-1])


@pytest.mark.slow
def test_published_settings_need_no_inversions(finished_run):
    overrides, _ = finished_run
    words = ["im={target: one_step, minimax: class}", "evaluate.protocol=none"]
    words += ["finetune={micro_batches: 1, steps: 5, ema_warmup: false, labels: position}"]
    result = run(overrides, *words)
    artifacts = artifacts_of(result)
    assert "inversions" not in artifacts
    history = json.loads(Path(artifacts["adapter"], "manifest.json").read_text())["history"]
    assert [entry["step"] for entry in history] == [4, 5]
    terms = ("diffusion", "variational", "matching", "representativeness", "diversity")
    assert all(math.isfinite(history[-1][term]) for term in terms)


def test_mlflow_has_parameters_metrics_artifacts_and_dataset(finished_run):
    from mlflow import MlflowClient

    _, result = finished_run
    client = MlflowClient(result.tracking_uri)
    mlflow_run = client.get_run(result.mlflow_run_id)
    assert mlflow_run.info.status == "FINISHED"
    assert mlflow_run.data.params["ipc"] == "6"
    assert mlflow_run.data.params["sample.subgroups"] == "3"
    assert mlflow_run.data.metrics["accuracy"] == result.figures["accuracy"]
    assert {"finetune/diffusion", "select/objective", "sample/rows_per_s", "coverage/distilled"} <= set(
        mlflow_run.data.metrics
    )
    files = {artifact.path for artifact in client.list_artifacts(result.mlflow_run_id)}
    assert files == {"index.html", "contact-sheet.png", "recipe.yaml"}
    assert [d.dataset.name for d in mlflow_run.inputs.dataset_inputs] == ["distilled"]
    assert [m.step for m in client.get_metric_history(result.mlflow_run_id, "finetune/diffusion")] == [4, 6]


def test_run_is_reproducible_and_gc_finds_only_checkpoints_unneeded(finished_run, monkeypatch):
    from mlflow import MlflowClient

    from ims3_ray.config import reproduce as reproducing
    from ims3_ray.jobs.runs import gc
    from ims3_ray.runs import query as querying
    from ims3_ray.storage.artifacts import open_directory

    overrides, result = finished_run
    client = MlflowClient(result.tracking_uri)
    mlflow_run = querying.resolve(querying.find_runs(client), result.key)
    assert (mlflow_run["kind"], mlflow_run["protocol"]) == ("distillation", result.evaluation["protocol"])
    recipe = querying.logged_file(client, result.mlflow_run_id, "recipe.yaml")
    command = reproducing.reproduce(recipe)
    results = load_config("digits", parse_overrides(overrides)).results()
    assert command.notes == []
    assert load_config(command.recipe, command.overrides).results() == results
    assert load_config("digits", yaml.safe_load(recipe)).results() == results
    again, find = map(html.unescape, re.findall("<pre>(.*?)</pre>", Path(result.report).read_text()))
    name, words = job(shlex.split(again))
    arguments = parsed(name, words)
    same = load_config(arguments.recipe, parse_overrides(arguments.overrides))
    assert same.results() == results
    assert same.storage == str(Path(result.distilled).parents[1])
    assert run_command(*job(shlex.split(find))) == 0
    later = time.time() + 2 * gc.RECENT_S
    monkeypatch.setattr(gc, "store_time", lambda _: later)
    survey = gc.survey(open_directory(str(Path(result.distilled).parents[1])))
    unrefined = set(gc.NOUNS) - {"probes", "refined", "teacher"}
    assert {entry.noun for entry in survey.artifacts} == unrefined | {"checkpoints"}
    assert {entry.noun for entry in survey.unneeded} == {"checkpoints"}
    assert survey.not_ours == []
    assert survey.notes == []


def test_exported_images_are_the_selected_candidates(finished_run):
    _, result = finished_run
    selection = json.loads(Path(artifacts_of(result)["selection"], "selection.json").read_text())
    manifest = json.loads(Path(result.distilled, "manifest.json").read_text())
    assert {(e["class"], e["subgroup"]) for e in manifest["images"]} == set(selection["selection"].items())
    assert selection["lower_bound"] <= selection["objective"] <= selection["start_objective"]


@pytest.mark.slow
def test_selected_single_images_are_exported(finished_run):
    overrides, _ = finished_run
    result = run(
        overrides, "select={unit: image, coverage: 0.5, coverage_neighbours: 3}", "evaluate.protocol=none"
    )
    selection = json.loads(Path(artifacts_of(result)["selection"], "selection.json").read_text())
    assert selection["objective"] <= selection["subgroup_selection"]["objective"]
    manifest = json.loads(Path(result.distilled, "manifest.json").read_text())
    exported = sorted((e["class"], e["subgroup"], e["index"]) for e in manifest["images"])
    assert exported == sorted(
        (name, g, k) for name, chosen in selection["selection"].items() for g, k in chosen
    )
    assert len(exported) == 18


def test_newer_storage_format_is_an_error_and_unchanged(finished_run, tmp_path):
    overrides, _ = finished_run
    (tmp_path / "format.json").write_text('{"format": 99}')
    with pytest.raises(InputError, match="format 99"):
        run(overrides, f"storage={tmp_path}")
    assert [p.name for p in tmp_path.iterdir()] == ["format.json"]
