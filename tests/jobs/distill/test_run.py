"""The distill command: arguments, output, exit codes, and resuming after a kill or stop."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from monkey import STAGES
from planned import config_of
from printed import job as job_of
from printed import next_commands
from processes import checksums, environment, python, started_until
from tiny import CLASSES, write_images

from ims3_ray.jobs.distill.result import find_complete

REMADE = ("candidates", "selection", "distilled", "evaluation", "report", "runs", "mlflow*")
GO_ON = "stopped; run the same command again to go on"


def end(process):
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_a_run_killed_in_sampling_keeps_its_parts_and_ends_with_the_same_bytes(
    finished_run, finished_images, cluster_environment, tiny_overrides, tmp_path, output
):
    storage, whole = tmp_path / "runs", Path(finished_run[1].distilled).parents[1]
    shutil.copytree(whole, storage, ignore=shutil.ignore_patterns(*REMADE))

    def parts():
        return {path: path.stat().st_mtime_ns for path in storage.glob("candidates/*/*.parquet")}

    env = environment() | cluster_environment
    process = started_until("] sample ", "distill", *tiny_overrides, env=env)
    while not parts():
        time.sleep(0.02)
    end(process)
    drawn = parts()
    out = output("distill", *tiny_overrides)
    assert "accuracy on the test images" in out
    assert "] finetune " not in out
    assert drawn.items() <= parts().items()
    assert checksums(storage) == finished_images


def accept_sigint():
    """A shell's background job ignores SIGINT, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_ctrl_c_stops_a_run_in_and_after_fine_tuning_and_it_resumes(
    cluster_environment, finished_images, tiny_overrides, tmp_path, output
):
    env = environment() | cluster_environment
    for stage in ("finetune", "sample"):
        options = {"env": env, "preexec_fn": accept_sigint}
        process = started_until(f"] {stage} ", "distill", *tiny_overrides, **options)
        time.sleep(1.0)
        os.kill(process.pid, signal.SIGINT)
        err = process.communicate(timeout=120)[1]
        assert (process.returncode, err.splitlines()[-1]) == (130, GO_ON), err
    output("distill", *tiny_overrides)
    assert checksums(tmp_path / "runs") == finished_images


def test_a_dry_run_takes_measured_rates_and_names_their_file(tiny_overrides, tmp_path, output, refused):
    seconds, path = [], tmp_path / "gpu-check.json"
    for rate in (1.0, 2.0):
        slow = {"passed": True, "ours, 8": {"images_per_s": rate, "operations_per_image": 1e4}}
        path.write_text(json.dumps({"finetune": slow, "sample": {"passed": False}}))
        out = output("distill", "--dry-run", "--rates", path, *tiny_overrides)
        assert f"(finetune by {path})" in out
        seconds.append(int(re.findall(r"finetune .* (\d+) s ", out)[0]))
    assert seconds[0] > 1.9 * seconds[1] > 1000
    for text, reason in (("{}", "has no passed check"), ("[]", "is no gpu-check.json")):
        path.write_text(text)
        assert reason in refused("distill", "--dry-run", "--rates", path, *tiny_overrides)


def test_a_dry_run_prints_recipe_and_stages_and_makes_nothing(tiny_overrides, tmp_path, output):
    out = output("distill", "--dry-run", *tiny_overrides)
    assert re.findall(r"^ *(\w+) .*would run", out, re.MULTILINE) == list(STAGES)
    assert "subgroups: 3" in out
    assert "estimated time" in out
    assert not (tmp_path / "runs" / "latents").exists()


def test_a_dry_run_for_future_gpus_prints_the_gpus_of_each_stage(tiny_overrides, output):
    out = output("distill", "--dry-run", *tiny_overrides, "workers={gpus: 4, actors: null}")
    held = {line.split()[0]: line for line in out.splitlines() if "would run" in line}
    assert max(map(len, held.values())) <= 80
    for stage, gpus in (("finetune", [" 2 of 4 "]), ("sample", [" 4 of 4 "]), ("select", [])):
        assert re.findall(r" \d of 4 ", held[stage]) == gpus
    assert "finetune: 2 of 4 GPUs: " in out


@pytest.fixture
def bad(tmp_path, tiny_images):
    """Bad arguments, and words that the error line must contain."""
    (tmp_path / "empty").mkdir()
    one, wide, other = (tmp_path / name for name in ("one", "wide", "other"))
    write_images(one, 1, 0, classes=["only"])
    for seed, folder in enumerate((wide, other)):
        write_images(folder, 6, seed, classes=["cat", "dog"])
    for name in CLASSES:
        source, few = tiny_images / "train" / name, tmp_path / "few" / name
        shutil.copytree(source, few, ignore=lambda _, names: names[2:])
        (tmp_path / "junk" / name).mkdir(parents=True)
        (tmp_path / "junk" / name / "0.png").write_bytes(b"no image")
    (tmp_path / "unet" / "transformer").mkdir(parents=True)
    (tmp_path / "unet" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "format.json").write_text('{"format": 2}')
    few = min((tmp_path / "few" / "blue").iterdir()).name
    return [
        ("--recipe nope", "recipe nope digits"),
        ("sample.subgroup=3", "sample.subgroup subgroups"),
        ("nonsense", "nonsense field=value"),
        ("ipc=0", "ipc 0 1"),
        ("workers.device=cuda", "workers.device cuda"),
        (f"data.train={tmp_path}/missing", "data.train missing does not exist"),
        (f"data.train={tmp_path}/empty", "data.train empty"),
        (f"data.train={one}", "data.train only 2 class"),
        (f"data.train={tmp_path}/junk", "data.train max_bad_fraction blue/0.png"),
        (f"data.train={tmp_path}/few", "data.train 'blue' ipc=6"),
        (f"data.train={wide} data.test={other}", "'cat' data.class_map"),
        (f"data.test={tiny_images}/train", "data.test training folder"),
        (f"data.test={tmp_path}/few", f"data.test 6 of 6 few blue/{few} = blue/{few}"),
        (f"model.path={tmp_path}/unet", "StableDiffusionPipeline"),
        (f"storage={tmp_path}/newer", "storage format 2"),
        ("sample.guidance_channels=5", "guidance_channels 4"),
        ("finetune.batch_size=100", "finetune.batch_size 100"),
    ]


def test_bad_input_gives_one_line_that_names_it_and_exit_code_2(bad, tiny_overrides, tmp_path, refused):
    for extra, named in bad:
        line = refused("distill", "--dry-run", *tiny_overrides, *extra.split())
        assert all(word in line for word in named.split()), (extra, named, line)
    assert not list((tmp_path / "runs").glob("latents"))


def test_a_complete_run_is_found_without_ray_torch_or_mlflow(finished_run, output):
    words, made = finished_run
    printed = output("distill", *words)
    script = (
        "import sys; from ims3_ray.cli import run_command; code = run_command('distill', sys.argv[1:]); "
        "sys.exit(code or sum(name in sys.modules for name in ('ray', 'torch', 'mlflow', 'diffusers')))"
    )

    def found(*options):
        return python(script, *options, *words, check=True).stdout

    assert found() == printed
    assert (printed.count("found complete"), made.distilled in printed) == (9, True)
    assert list(next_commands(printed)) == ["query", "look"]
    command, query = job_of(next_commands(printed)["query"])
    assert made.key in output(command, *query)
    for option in ("--status", "--dry-run"):
        assert f"run {made.key}: finished" in found(option)


def test_a_run_with_a_missing_file_is_not_complete(finished_run, tmp_path, output):
    words, made = finished_run
    output("distill", *words)
    root = shutil.copytree(Path(made.distilled).parents[1], tmp_path / "copy")
    copied, one = config_of(words, f"storage={root}"), f"{made.key}/run.json"
    next(root.glob(f"runs/*{one}")).rename(root / "record")
    assert find_complete(copied) is None  # --gc would delete its artefacts
    (root / "record").rename(root / "runs" / f"{copied.recipe}-{one}")
    assert find_complete(copied).key == made.key
    next(root.glob(f"distilled/{Path(made.distilled).name}/train/*/*.png")).unlink()
    assert find_complete(copied) is None
