"""Concurrent drivers on one storage make common artefacts once, with the bytes of separate runs."""

import re
from collections import Counter

import pytest
from planned import context_of
from processes import checksums, environment, job

from ims3_ray.pipeline.steps import plan
from ims3_ray.runs import query
from ims3_ray.runs.event_log import read_events
from ims3_ray.runs.mlflow_tracker import client
from ims3_ray.storage.integrity import verify
from ims3_ray.storage.lease import exclusive

WAITS = re.compile("(latents/|runs/digits-).* is at work on it")
SHARED, OWN = ("encode", "invert", "finetune", "embed", "sample"), ("select", "export", "evaluate", "report")


@pytest.mark.chaos
def test_three_drivers_make_every_artefact_once_with_the_same_bytes(
    finished_images, cluster_environment, tiny_overrides
):
    context = context_of(tiny_overrides)
    with exclusive(plan(context)[0].directory):  # none begins before all three are there
        words = [tiny_overrides, tiny_overrides, [*tiny_overrides, "select.alpha=0.1"]]
        drivers = [job("distill", *w, env=environment() | cluster_environment) for w in words]
        waits = [next(filter(WAITS.match, driver.stderr), "none") for driver in drivers]
    ends = [driver.communicate(timeout=300) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0, 0], ends
    # the second of the one run waits for the first, which waits, as the third does, for the first stage
    assert sorted(line.split("/")[0] for line in waits) == ["latents", "latents", "runs"]
    assert not re.findall("MLflow:.*", str(ends))

    storage = context.storage
    logs = [read_events(storage / "runs" / name) for name in (storage / "runs").folders()]
    assert len(logs) == 2
    made = Counter(event["stage"] for log in logs for event in log if event["event"] == "stage finished")
    assert made == Counter([*SHARED, *OWN, *OWN])
    for artifact in {event["artifact"] for log in logs for event in log if "artifact" in event}:
        assert verify(storage / artifact) == ({}, 0)
        assert not any(name.endswith(".tmp") for name in (storage / artifact).files())
    assert [run["status"] for run in query.find_runs(client(storage))] == ["FINISHED", "FINISHED"]
    assert finished_images[0] in checksums(storage.uri)
