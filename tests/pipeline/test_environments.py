"""Artefacts and nodes of different environments give a warning, or an error with workers.strict."""

from dataclasses import asdict, replace

import pytest
from planned import config_of

from ims3_ray.cluster.environment import (
    Environment,
    cpu_model,
    find_environment,
    hardware,
    machine_environment,
    versions,
)
from ims3_ray.cluster.resources import Machine, find_machine
from ims3_ray.config.settings import Workers
from ims3_ray.errors import InputError
from ims3_ray.jobs.distill.result import find_complete
from ims3_ray.jobs.distill.run import run
from ims3_ray.pipeline import prepare
from ims3_ray.pipeline.checks import check_environments
from ims3_ray.pipeline.steps import STAGES, Step
from ims3_ray.storage.artifacts import open_directory

A100 = Environment("NVIDIA A100-SXM4-40GB", "EPYC", "2.13.0", "0.2.0")
H100 = replace(A100, gpu="NVIDIA H100 80GB HBM3")
NEWER = replace(A100, torch="2.14.0")
CPU = Environment(None, "EPYC", "2.13.0", "0.2.0")
XEON = replace(CPU, cpu="Xeon")


def machine(*environments, strict=False):
    kind = "cuda" if environments[0].gpu else "cpu"
    return Machine(kind, 2, 2, 4e9, Workers(strict=strict), environments=environments)


def steps(*environments, here=0):
    """Complete steps from these environments (None: not recorded), and `here` missing steps."""
    manifests = [{"environment": asdict(each)} if each else {"device": "cpu"} for each in environments]
    manifests += [None] * here
    return [
        Step(stage, open_directory("/x"), {}, manifest and {**manifest, "stage": stage.name}, {})
        for stage, manifest in zip(STAGES, manifests, strict=False)
    ]


@pytest.mark.parametrize(
    ("here", "planned"),
    [
        (A100, steps(A100, A100, here=2)),
        (A100, steps(None, A100, here=2)),  # from an earlier version
        (A100, steps(replace(A100, cpu="Xeon", package="0.3.0"), here=2)),  # neither changes results on a GPU
        (H100, steps(A100, A100)),  # nothing runs here
        (CPU, steps(replace(CPU, package="0.3.0"), here=1)),
    ],
)
def test_a_single_environment_gives_no_warning(here, planned):
    assert check_environments(machine(here, here, strict=True), planned) == []


@pytest.mark.parametrize(
    ("here", "planned", "words"),
    [
        (H100, steps(A100, A100, here=1), ["encode, invert", A100.name, "finetune", H100.name]),
        (NEWER, steps(A100, here=1), ["encode", A100.name, "invert", NEWER.name]),
        (XEON, steps(CPU, here=1), ["encode", CPU.name, "invert", XEON.name]),
        (CPU, steps(A100, here=1), [A100.name, CPU.name]),
        (A100, steps(A100, H100), ["encode", "invert", H100.name]),  # complete, from two kinds of GPU
    ],
)
def test_mixed_environments_are_named_with_their_stages(here, planned, words):
    (line,) = check_environments(machine(here), planned)
    assert all(word in line for word in words)
    with pytest.raises(InputError, match=r"workers\.strict") as refused:
        check_environments(machine(here, strict=True), planned)
    assert all(word in str(refused.value) for word in words)


def test_different_nodes_are_named_if_any_stage_runs():
    (line,) = check_environments(machine(A100, H100, A100), steps(here=3))
    assert f"2 of {A100.name}" in line
    assert f"1 of {H100.name}" in line
    with pytest.raises(InputError, match=r"workers\.strict"):
        check_environments(machine(A100, H100, strict=True), steps(here=3))
    assert check_environments(machine(A100, H100, strict=True), steps(A100, A100)) == []


def test_environment_of_mixed_nodes_names_both_models():
    mixed = machine_environment(machine(A100, H100))
    assert mixed.gpu == f"{A100.gpu} + {H100.gpu}"
    assert (mixed.cpu, mixed.torch) == (A100.cpu, A100.torch)


def test_machine_has_the_environments_of_its_nodes(ray_cluster):
    cluster = find_machine(Workers(device="cpu"))
    assert cluster.environments == (find_environment(False),)
    assert cluster.environments[0].torch == versions()["torch"]
    assert hardware(cluster)["cpu_model"] == cpu_model() != ""
    assert "gpu_model" not in hardware(cluster)


def test_run_records_its_environment_and_strict_refuses_another(finished_run, monkeypatch):
    words, result = finished_run
    storage = open_directory(result.distilled).path.rsplit("/", 2)[0]
    place = open_directory(storage)
    manifest = place.read_json(f"distilled/{result.distilled.rsplit('/', 1)[-1]}/manifest.json")
    assert manifest["environment"] == asdict(find_environment(False))
    record = place.read_json(f"runs/digits-{result.key}/run.json")
    assert record["hardware"]["cpu_model"] == cpu_model()
    page = place.read(f"report/{result.key}/index.html").decode()
    assert f"<dd>{cpu_model()}</dd>" in page
    assert f"<dd>{versions()['torch']}</dd>" in page

    monkeypatch.setattr("ims3_ray.cluster.resources.find_environment", lambda on_gpu: XEON)
    other = [*words, "select.alpha=0.123"]
    strict = config_of(other, "workers.strict=true")
    assert find_complete(strict) is None
    with pytest.raises(InputError, match=r"workers\.strict"):
        run(strict, lambda _: pytest.fail("starts"))
    lines = []
    prepare.prepare_runs([config_of(other)], lines.append)
    assert sum(XEON.name in line for line in lines) == 1
