"""The checks of a GPU run through on a CPU, so that no minute of a GPU is lost to a typo."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT

from benchmarks import gpu_check


def run(out, *words):
    script = [ROOT / "benchmarks/gpu_check.sh", "--out", out, "--device", "cpu", *words]
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(out)}
    return subprocess.run(script, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_every_check_passes_on_a_cpu_and_no_check_is_run_twice(tmp_path):
    done = run(tmp_path)
    results = json.loads((tmp_path / "gpu-check.json").read_text())
    assert {name: result.get("error") for name, result in results.items()} == dict.fromkeys(gpu_check.CHECKS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(at most ") == len(gpu_check.CHECKS)
    assert results["sample"]["ours, 25"]["images_per_s"] > 0
    again = run(tmp_path)
    assert "(at most " not in again.stdout
    assert again.stdout.splitlines() == (tmp_path / "gpu-check.md").read_text().splitlines()


def test_a_check_that_fails_or_takes_too_long_is_told_and_run_again(tmp_path, monkeypatch, capsys):
    def check(code, limit):
        words = [sys.executable, "-c", code]
        monkeypatch.setattr(gpu_check, "_command", lambda *_: words)
        monkeypatch.setattr(
            gpu_check, "CHECKS", {"tests": gpu_check.Check(limit, "Is it so?", gpu_check.tests)}
        )
        status = gpu_check.main(["--out", str(tmp_path), "--device", "cpu"])
        return status, json.loads((tmp_path / "gpu-check.json").read_text())["tests"]

    status, result = check("import sys; sys.exit('no such kernel')", 60)
    assert (status, result["passed"], result["error"]) == (1, False, "no such kernel")
    status, result = check("import time; time.sleep(60)", 1)
    assert (status, result["error"]) == (1, "over 1 s")
    assert "**no**" in capsys.readouterr().out
    passed = "import json, pathlib; pathlib.Path('PATH').write_text(json.dumps({'passed': True}))"
    assert check(passed.replace("PATH", str(tmp_path / "tests.json")), 60)[0] == 0
