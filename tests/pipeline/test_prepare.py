"""Checks that precede a cluster, GPUs and stages."""

import pytest

from ims3_ray.cli import run_command
from ims3_ray.cluster import resources
from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.errors import InputError
from ims3_ray.pipeline import prepare
from ims3_ray.pipeline.steps import plan

BUCKET = "storage=s3://bucket/runs?region=us-east-1"  # a region avoids network requests
COMMANDS = {"distill": [], "sweep": ["--space", "select.alpha=0.3,0.7"]}


@pytest.mark.parametrize("command", COMMANDS)
def test_bucket_without_tracking_server_fails_before_a_cluster_starts(command, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(prepare, "connect", lambda: pytest.fail("a cluster was started"))
    assert run_command(command, [BUCKET, *COMMANDS[command]]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: storage: s3://bucket/runs")
    assert "set MLFLOW_TRACKING_URI" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("size", "remedy"),
    [
        ("finetune.stage.latent_bytes", "TMPDIR to a larger disk .* or lower encode.images_per_class"),
        ("evaluate.stage.pixels_bytes", "TMPDIR to a larger disk"),
    ],
)
def test_too_small_node_disks_fail_before_any_stage(
    ray_cluster, tiny_overrides, tmp_path, monkeypatch, size, remedy
):
    monkeypatch.setattr(f"ims3_ray.stages.{size}", lambda *_: 1e18)
    config = load_config("digits", parse_overrides(tiny_overrides))
    with pytest.raises(InputError, match=rf"rows to train on take 1\d+\.0 GB.*{remedy}"):
        prepare.prepare_runs([config], print)
    assert not list(tmp_path.rglob("*.parquet"))


def test_images_are_checked_before_waiting_for_gpus(ray_cluster, tiny_overrides, tmp_path, monkeypatch):
    """GPUs of an autoscaling cluster are billed from then on."""

    def wait(number, wait_s):
        assert list((tmp_path / "runs" / "index").iterdir())
        raise InputError("workers.gpus: none came")

    monkeypatch.setattr(resources, "wait_for_gpus", wait)
    config = load_config("digits", parse_overrides([*tiny_overrides, "workers.gpus=1"]))
    with pytest.raises(InputError, match="none came"):
        prepare.prepare_runs([config], print)


def test_workers_get_absolute_paths_of_a_relative_model(tiny_model, tiny_overrides, monkeypatch):
    monkeypatch.chdir(tiny_model.parent)
    words = [*tiny_overrides, "model.path=tiny", "embed.extractor=tiny/extractor"]
    config = load_config("digits", parse_overrides(words))
    context = prepare.prepare(config, resources.Machine("cpu", 3, 0, 8e9, config.workers))
    assert context.tuned_model().path == str(tiny_model)
    assert context.config.embed.extractor == str(tiny_model / "extractor")


def test_automatic_batch_size_is_the_same_run_as_the_fields_in_its_note(tiny_overrides):
    def prepared(*words):
        config = load_config("digits", parse_overrides([*tiny_overrides, *words]))
        return prepare.prepare(config, resources.Machine("cpu", 3, 0, 8e9, config.workers))

    auto = prepared("finetune.batch_size=auto", "workers.train_workers=4")
    (line,) = auto.notes
    assert "for 4 devices" in line
    same = prepared(*line.partition("with: ")[2].split())
    assert plan(same)[-1].artifact == plan(auto)[-1].artifact
    assert plan(prepared())[-1].artifact != plan(auto)[-1].artifact
