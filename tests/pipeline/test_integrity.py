"""A damaged artefact is reported, repaired, and verifies afterwards."""

import json

import pytest
from planned import context_of

from ims3_ray.cli import run_command
from ims3_ray.pipeline.steps import plan, run_step
from ims3_ray.storage.artifacts import MANIFEST
from ims3_ray.storage.rows import part_names


def verify(storage, capsys):
    """Exit code of `runs --verify`, and the damaged files."""
    capsys.readouterr()
    code = run_command("runs", ["--verify", "--json", f"storage={storage}"])
    return code, {entry["place"] for entry in json.loads(capsys.readouterr().out)["damaged"]}


@pytest.mark.parametrize("lost", ["part", pytest.param("manifest", marks=pytest.mark.slow)])
def test_damaged_parts_are_reported_and_only_they_are_computed_again(
    ray_cluster, tiny_overrides, tmp_path, capsys, lost
):
    context = context_of(tiny_overrides, "embed.batch_size={cpu: 12, cuda: 12}")
    (planned,) = (step for step in plan(context, "embed") if step.stage.name == "embed")
    step = run_step(context, planned)
    out = step.directory
    before = {name: out.read(name) for name in out.files() if name != MANIFEST}
    flipped, deleted, kept = part_names(out)
    time_of_kept = out.files()[kept].mtime_ns

    out.write(flipped, before[flipped][:100] + bytes(50) + before[flipped][150:])
    (out / (deleted if lost == "part" else MANIFEST)).delete()
    expected = {flipped, deleted} if lost == "part" else {flipped}
    assert verify(context.config.storage, capsys) == (2, {f"{step.artifact}/{name}" for name in expected})

    again = run_step(context, step.refreshed())
    assert again.ran
    assert {name: out.read(name) for name in out.files() if name != MANIFEST} == before
    assert again.manifest["rows_made"] == 12 * len(expected)
    assert out.files()[kept].mtime_ns == time_of_kept
    assert verify(context.config.storage, capsys) == (0, set())
