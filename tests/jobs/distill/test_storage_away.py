"""A run with a storage that fails: an unreachable bucket, a full disk."""

import subprocess
import sys
import threading
import time

import pytest
from loopback_store import BUCKET, Store, in_bucket
from processes import ROOT, checksums, environment, job
from tiny import tiny_words

AWAY_S = 10.0
MESSAGE = "answers with an error"


@pytest.mark.chaos
def test_a_run_waits_for_an_unreachable_bucket(finished_images, tiny_model, tiny_images, tmp_path):
    with Store().running() as store:
        words = [*in_bucket(tiny_model, tiny_images), "workers.actors=1"]
        tracked = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/m.db"}
        process, lines = job("distill", *words, env=environment() | store.variables | tracked), []
        listener = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
        listener.start()
        outages = 0
        for line in process.stdout:
            if "] encode " in line or "] finetune " in line:
                outages += 1
                refused, store.is_away, began = store.refused, True, time.monotonic()
                while time.monotonic() - began < AWAY_S or store.refused == refused:
                    assert time.monotonic() - began < 100, lines
                    time.sleep(0.1)
                store.is_away = False
        listener.join()
        assert process.wait() == 0, lines
        assert outages == 2
        assert 1 <= sum(MESSAGE in line for line in lines) <= 2, (
            lines
        )  # one soon after another is not written again
        assert checksums(f"s3://{BUCKET}/runs") == finished_images


@pytest.mark.chaos
def test_a_run_on_a_full_disk_stops_with_a_line_and_goes_on_once_there_is_space(
    finished_images, tiny_model, tiny_images, tmp_path
):
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    kept.mkdir()
    if subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("no file system can be mounted here")
    script = """
        mount -t tmpfs -o size=$SMALL tmpfs "$0"
        "$@" 2> "$KEPT/first.err"; echo $? > "$KEPT/first.code"
        find "$0" -name '*.tmp' > "$KEPT/half-written"
        mount -o remount,size=100m "$0"
        "$@" 2> "$KEPT/second.err"; echo $? > "$KEPT/second.code"
        cp -r "$0/runs/distilled" "$KEPT"; du -sk "$0" > "$KEPT/size"
    """
    run = [sys.executable, ROOT / "jobs" / "distill.py", *tiny_words(tiny_model, tiny_images, disk / "runs")]
    tracked = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/m.db",
        "KEPT": str(kept),
        "SMALL": "300k",
    }  # full when the images are written
    words = ["unshare", "-rm", "bash", "-c", script, disk, *run]
    subprocess.run(words, env=environment() | tracked, stdout=subprocess.DEVNULL, timeout=600, check=True)
    written = {path.name: path.read_text() for path in kept.iterdir() if path.is_file()}
    *bars, line = written["first.err"].splitlines()
    assert written["first.code"] == "2\n", written["first.err"]
    assert not any("rror" in each for each in bars), written["first.err"]
    assert line.startswith(f"error: {disk}/runs/")
    assert "no space left" in line
    assert line.endswith("again to go on")
    assert written["half-written"] == ""
    assert written["second.code"] == "0\n", written["second.err"]
    assert checksums(kept) == finished_images
