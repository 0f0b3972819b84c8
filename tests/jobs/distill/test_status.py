"""State of a run from its storage, its event log, and Prometheus gauges of its stages."""

import json
import os
import shutil
import time
import urllib.request
from pathlib import Path

import pytest
from planned import config_of

from ims3_ray.jobs.distill.status import read_status
from ims3_ray.progress import bar, run_name
from ims3_ray.runs import plan_cache
from ims3_ray.runs.event_log import LOG, EventLog, read_events
from ims3_ray.storage.artifacts import open_directory
from ims3_ray.storage.lease import DEAD_AFTER_S, HEARTBEAT, heartbeat, write_heartbeat


@pytest.fixture
def folder(finished_run):
    """The folder of the finished run, restored afterwards."""
    made = finished_run[1]  # its storage holds other tests' runs, too
    (place,) = Path(made.distilled).parents[1].glob(f"runs/*-{made.key}/run.json")
    before = {name: (place.parent / name).read_bytes() for name in ("run.json", LOG)}
    yield place.parent
    for name, data in before.items():
        (place.parent / name).write_bytes(data)
    (place.parent / HEARTBEAT).unlink(missing_ok=True)


def test_a_finished_run_is_complete_and_logs_every_stage(finished_run, folder):
    words, made = finished_run
    found = read_status(config_of(words))
    assert (found["state"], found["run"]) == ("finished", made.key)
    assert [stage["state"] for stage in found["stages"]] == ["complete"] * 9
    stages = [stage["name"] for stage in found["stages"]]
    log = read_events(open_directory(str(folder)))
    # other tests may have found it complete since
    first = log[: [e["event"] for e in log].index("run finished") + 1]
    assert [e["event"] for e in first if "stage" not in e] == ["run started", "run finished"]
    for event in ("stage started", "stage finished"):
        assert [e["stage"] for e in first if e["event"] == event] == stages
    assert (found["last_event"], found["log"]) == (log[-1], f"{folder}/{LOG}")


def set_state(folder, state):
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"state": state}))


def test_a_running_run_without_a_heartbeat_is_dead(words, folder):
    config = config_of(words)
    set_state(folder, "running")
    write_heartbeat(open_directory(str(folder)))
    os.utime(folder / HEARTBEAT, (time.time() - DEAD_AFTER_S - 1,) * 2)
    assert read_status(config)["state"] == "dead"
    with heartbeat(open_directory(str(folder))):
        found = read_status(config)
    assert found["state"] == "running"
    assert found["seconds_since_alive"] < 60


def test_a_run_on_another_kind_of_device_is_found(finished_run, folder, tmp_path, monkeypatch):
    config, other = config_of(finished_run[0]), folder.with_name("digits-f00d")
    record = json.loads((folder / "run.json").read_text()) | {"device": "cuda"}
    monkeypatch.setattr(plan_cache, "find", lambda *_: None)
    shutil.copytree(folder, other)
    (other / "run.json").write_text(json.dumps(record))
    assert read_status(config)["run"] == finished_run[1].key
    folder.rename(tmp_path / "away")
    try:
        assert (read_status(config)["run"], read_status(config)["state"]) == ("f00d", "finished")
    finally:
        shutil.rmtree(other)
        (tmp_path / "away").rename(folder)


def test_states_of_a_new_and_a_failed_run(words, folder, tmp_path, output):
    out = output("distill", "--status", *words, f"storage={tmp_path / 'new'}")
    assert (": not started" in out, out.count("missing")) == (True, 9)
    set_state(folder, "failed")
    EventLog(open_directory(str(folder))).write("run failed", error="OSError: disk full")
    found = json.loads(output("distill", "--status", "--json", *words))
    assert (found["state"], found["last_event"]["error"]) == ("failed", "OSError: disk full")
    assert "resumes it" in output("distill", "--status", *words)


def test_the_status_of_a_run_on_gpus_needs_none_here(words, tmp_path, output, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    more = ("workers.device=cuda", f"storage={tmp_path / 'new'}")
    assert ": not started" in output("distill", "--status", *words, *more)


@pytest.mark.slow
def test_prometheus_gauges_count_rows_until_the_stage_ends(ray_cluster):
    node = ray_cluster.nodes()[0]
    place = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    def exported():
        text = urllib.request.urlopen(place, timeout=10).read().decode()
        ours = [line for line in text.splitlines() if 'run="digits-seen"' in line and 'stage="seen"' in line]
        return {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in ours}

    def wait_for(rows, goal):
        for _ in range(90):
            if (found := exported()) == {"ray_ims3_rows": rows, "ray_ims3_rows_goal": goal}:
                return
            time.sleep(1)
        pytest.fail(str(found))

    with run_name("digits-seen"), bar("seen", 100, "images") as shown:
        shown.update(30)
        shown.update(12)
        wait_for(42, 100)
    wait_for(0, 0)
