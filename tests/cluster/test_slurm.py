"""cluster/slurm.sh in a real Slurm: stopped before its wall time, queued again, done with the same bytes."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm
from processes import ROOT, checksums, environment

SCRIPT = ROOT / "cluster" / "slurm.sh"


def wait_until(is_so, limit_s=240):
    end = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.skipif(not slurm.is_installed(), reason="needs Slurm and root (Debian: slurm-wlm, munge)")
def test_a_job_that_slurm_stops_is_queued_again_and_ends_with_the_same_bytes(
    finished_images, tiny_overrides, tmp_path
):
    log, storage = tmp_path / "job.log", tmp_path / "runs"
    with slurm.running(tmp_path / "slurm") as found:
        path = f"{Path(sys.executable).parent}:{found['PATH']}"
        env = {**environment(), "SLURM_CONF": found["SLURM_CONF"], "PATH": path}

        def command(*words):
            return subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout

        def state():
            return command("squeue", "-h", "-j", number, "-o", "%T").strip()

        options = "--parsable", "--cpus-per-task=2", "--mem=3500", f"--output={log}"
        number = command("sbatch", *options, str(SCRIPT), "distill", *tiny_overrides).strip()
        wait_until(lambda: log.exists() and "] invert " in log.read_text())
        command("scancel", "--batch", "--signal=TERM", number)  # as --signal=B:TERM@… before the wall time
        wait_until(lambda: state() == "PENDING")
        assert "run the same command again to go on" in log.read_text()
        time.sleep(5)  # else Slurm finds the credential revoked; by itself it waits for two minutes
        command("scontrol", "update", f"JobId={number}", "StartTime=now")
        wait_until(lambda: "accuracy on the test images" in log.read_text())
        wait_until(lambda: state() in ("COMPLETED", "COMPLETING", ""))
    assert log.read_text().count("] encode ") == 1
    assert checksums(storage) == finished_images


def test_the_script_is_valid_and_offers_what_the_page_says():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    page = (SCRIPT.parents[1] / "docs" / "slurm.md").read_text()
    for option in ("--signal=B:TERM@300", "--requeue"):
        assert option in page
        assert f"#SBATCH {option}" in SCRIPT.read_text()
