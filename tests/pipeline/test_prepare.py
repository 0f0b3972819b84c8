"""Checks that precede clusters, GPUs and stages."""

import pytest
from planned import config_of

from ims3_ray.cluster import resources
from ims3_ray.errors import InputError
from ims3_ray.pipeline import prepare
from ims3_ray.pipeline.steps import plan

BUCKET = "storage=s3://bucket/runs?region=us-east-1"  # a region avoids network requests
COMMANDS = {"distill": [], "sweep": ["--space", "select.alpha=0.3,0.7"]}


def prepared(*words):
    config = config_of(*words)
    return prepare.prepare(config, resources.Machine("cpu", 3, 0, 8e9, config.workers))


@pytest.mark.parametrize("command", COMMANDS)
def test_bucket_without_tracking_server_fails_before_a_cluster_starts(command, monkeypatch, refused):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(prepare, "connect", lambda: pytest.fail("a cluster was started"))
    line = refused(command, BUCKET, *COMMANDS[command])
    assert line.startswith("error: storage: s3://bucket/runs")
    assert "MLFLOW_TRACKING_URI" in line


@pytest.mark.parametrize(
    ("size", "remedy"),
    [
        ("finetune.stage.latent_bytes", "TMPDIR .* encode.images_per_class"),
        ("evaluate.stage.pixels_bytes", "TMPDIR"),
    ],
)
def test_too_small_node_disks_fail_before_any_stage(
    ray_cluster, tiny_overrides, tmp_path, monkeypatch, size, remedy
):
    monkeypatch.setattr(f"ims3_ray.stages.{size}", lambda *_: 1e18)
    with pytest.raises(InputError, match=rf"rows to train on take 1\d+\.0 GB.*{remedy}"):
        prepare.prepare_runs([config_of(tiny_overrides)], print)
    assert not list(tmp_path.rglob("*.parquet"))


def test_images_are_checked_before_waiting_for_gpus(ray_cluster, tiny_overrides, tmp_path, monkeypatch):
    """GPUs of an autoscaling cluster are billed from then on."""

    def wait(*_):
        assert list((tmp_path / "runs" / "index").iterdir())
        raise InputError("workers.gpus: none came")

    monkeypatch.setattr(resources, "wait_for_gpus", wait)
    with pytest.raises(InputError, match="none came"):
        prepare.prepare_runs([config_of(tiny_overrides, "workers.gpus=1")], print)


def test_workers_get_absolute_paths_of_a_relative_model(tiny_model, tiny_overrides, monkeypatch):
    monkeypatch.chdir(tiny_model.parent)
    context = prepared(tiny_overrides, "model.path=tiny", "embed.extractor=tiny/extractor")
    assert context.tuned_model().path == str(tiny_model)
    assert context.config.embed.extractor == str(tiny_model / "extractor")


def test_automatic_batch_size_is_the_same_run_as_the_fields_in_its_note(tiny_overrides):
    auto = prepared(tiny_overrides, "finetune.batch_size=auto", "workers.train_workers=4")
    (line,) = auto.notes
    assert "for 4 devices" in line
    same = prepared(tiny_overrides, *line.partition("with: ")[2].split())
    made = [plan(run)[-1].artifact for run in (same, auto, prepared(tiny_overrides))]
    assert made[0] == made[1] != made[2]
    medoids = "refine.steps=1", "refine.start=medoids", "probe.checkpoint_steps=[0]"
    assert not prepared(tiny_overrides, "finetune.batch_size=auto", *medoids).notes
