"""The jobs as a person would run them: as processes, by their words, output and exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import checksums, environment, finished, job

STAGES = ("encode", "invert", "finetune", "embed", "sample", "select", "export", "evaluate", "report")


@pytest.mark.chaos
def test_a_run_killed_in_every_stage_ends_as_an_undisturbed_one(
    finished_run, cluster_environment, tiny_overrides, tmp_path
):
    undisturbed, killed = Path(finished_run[1].distilled).parents[1], tmp_path / "killed"
    env = environment() | cluster_environment
    for stage in STAGES:
        process = job("distill", *tiny_overrides, f"storage={killed}", env=env)
        for line in process.stdout:
            if f"] {stage} " in line:
                break
        else:
            pytest.fail(f"{stage} never began: {process.stderr.read()}")
        time.sleep(1.0)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    code, out, err = finished("distill", *tiny_overrides, f"storage={killed}")  # in a cluster of its own
    assert code == 0, err
    assert "accuracy on the test images" in out
    assert "query" in out
    assert checksums(killed) == checksums(undisturbed) != []


def heeds_ctrl_c():
    """A shell's background job ignores it, and so would what is started there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_ctrl_c_stops_a_run_in_and_after_fine_tuning_and_it_goes_on(
    cluster_environment, finished_run, tiny_overrides, tmp_path
):
    env = environment() | cluster_environment
    for stage in ("finetune", "sample"):
        process = job("distill", *tiny_overrides, env=env, preexec_fn=heeds_ctrl_c)
        assert any(f"] {stage} " in line for line in process.stdout), process.stderr.read()
        time.sleep(1.0)
        os.kill(process.pid, signal.SIGINT)
        err = process.communicate(timeout=120)[1]
        assert (
            process.returncode == 130
            and err.splitlines()[-1] == "stopped; run the same command again to go on"
        ), err
    code, _, err = finished("distill", *tiny_overrides, env=env)
    assert code == 0, err
    assert checksums(tmp_path / "runs") == checksums(Path(finished_run[1].distilled).parents[1]) != []


def test_a_dry_run_prints_the_recipe_and_each_stage_and_starts_nothing(tiny_overrides, tmp_path):
    code, out, err = finished("distill", "--dry-run", *tiny_overrides)
    assert code == 0, err
    assert "subgroups: 3" in out
    for stage in STAGES:
        assert f"  {stage} " in out
    assert out.count("would run") == len(STAGES)
    assert "estimated time" in out
    assert not (tmp_path / "runs" / "latents").exists()


def bad(tmp_path, tiny_model, tiny_images):
    """Bad words → what the one line must name."""
    empty, one, junk, few, wide = (tmp_path / n for n in ("empty", "one", "junk", "few", "wide"))
    empty.mkdir()
    (one / "only").mkdir(parents=True)
    (one / "only" / "a.png").write_bytes((tiny_images / "train" / "red" / "000.png").read_bytes())
    for name in ("blue", "green", "red"):
        for folder, count, data in ((junk, 6, b"no image"), (few, 2, None)):
            (folder / name).mkdir(parents=True)
            for i in range(count):
                (folder / name / f"{i}.png").write_bytes(
                    data or (tiny_images / "train" / name / f"{i:03d}.png").read_bytes()
                )
    (tmp_path / "unet" / "transformer").mkdir(parents=True)
    (tmp_path / "unet" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    for name in ("cat", "dog"):
        (wide / name).mkdir(parents=True)
        for i in range(6):
            (wide / name / f"{i}.png").write_bytes(
                (tiny_images / "train" / "red" / f"{i:03d}.png").read_bytes()
            )
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "format.json").write_text('{"format": 2}')
    return [
        (["--recipe", "nope"], ["recipe", "nope", "digits"]),
        (["sample.subgroup=3"], ["sample.subgroup", "subgroups"]),
        (["nonsense"], ["nonsense", "field=value"]),
        (["ipc=0"], ["ipc", "0", "1"]),
        (["sample.subgroups=0"], ["sample.subgroups", "0"]),
        (["workers.device=cuda"], ["workers.device", "cuda"]),
        ([f"data.train={tmp_path / 'missing'}"], ["data.train", "missing", "does not exist"]),
        ([f"data.train={empty}"], ["data.train", "empty"]),
        ([f"data.train={one}"], ["data.train", "only", "2 class"]),
        ([f"data.train={junk}"], ["data.train", "max_bad_fraction", "blue/0.png"]),
        ([f"data.train={few}"], ["data.train", "'blue'", "ipc=6"]),
        ([f"data.train={wide}", f"data.test={wide}"], ["'cat'", "data.class_map"]),
        ([f"data.test={tiny_images / 'train'}"], ["data.test", "training folder"]),
        ([f"data.test={few}"], ["data.test", "6 of 6", "few", "blue/0.png = blue/000.png"]),
        ([f"model.path={tmp_path / 'missing'}"], ["missing", "model"]),
        ([f"model.path={tmp_path / 'unet'}"], ["StableDiffusionPipeline"]),
        ([f"storage={newer}"], ["storage", "format 2"]),
        (["storage=/proc/nowhere"], ["storage", "/proc/nowhere"]),
        (["evaluate.protocol=best"], ["best", "minimax"]),
        (["sample.guidance_channels=5"], ["guidance_channels", "4"]),
        (["finetune.batch_size=100"], ["finetune.batch_size", "100"]),
    ]


def test_bad_input_gives_one_line_that_names_it_and_exit_code_2(
    tiny_overrides, tiny_model, tiny_images, tmp_path
):
    """All at once in one process: each would take seconds of imports alone."""
    cases = bad(tmp_path, tiny_model, tiny_images)
    script = (
        "import json, sys\nfrom ims3_ray.cli import main\n"
        "for words in json.load(sys.stdin):\n"
        "    print(json.dumps(main(['distill', '--dry-run', *words])), file=sys.stderr)\n"
    )
    words = json.dumps([[*tiny_overrides, *extra] for extra, _ in cases])
    options = {"capture_output": True, "text": True, "env": environment(), "timeout": 300}
    done = subprocess.run([sys.executable, "-c", script], input=words, **options)
    lines = done.stderr.splitlines()
    assert len(lines) == 2 * len(cases), done.stderr
    for (extra, named), line, code in zip(cases, lines[::2], lines[1::2], strict=True):
        assert code == "2" and line.startswith("error: "), (extra, line)
        for word in named:
            assert word in line, (extra, word, line)
    assert not list((tmp_path / "runs").glob("latents"))


def test_a_bad_word_stops_the_real_job_with_exit_code_2():
    code, out, err = finished("distill", "ipc=-1")
    assert (code, out) == (2, "")
    assert err == "error: ipc: should be greater than or equal to 1, got -1\n"


def test_unreadable_images_within_the_limit_are_listed_and_skipped(tiny_images, tmp_path):
    import shutil

    from ims3_ray.data.images import open_images
    from ims3_ray.storage.artifacts import open_storage

    folder = tmp_path / "some-bad"
    shutil.copytree(tiny_images / "train", folder)
    (folder / "red" / "zzz.png").write_bytes(b"no image")
    (folder / "blue" / "000.png").write_bytes((folder / "blue" / "001.png").read_bytes()[:60])
    images = open_images(
        str(folder), open_storage(str(tmp_path / "s")), name="data.train", seed=0, max_bad_fraction=0.1
    )
    assert sorted(images.bad) == ["blue/000.png", "red/zzz.png"]
    assert images.counts().tolist() == [11, 12, 12]
