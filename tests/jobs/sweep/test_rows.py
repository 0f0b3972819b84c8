"""A comparison of rows on the tiny model: what trials share, resume, and rows that are refused."""

import json
import os
import shutil
import signal
from pathlib import Path

import processes
import pytest
from printed import job, next_commands
from tiny import tiny_words

from ims3_ray.config.load import parse_overrides
from ims3_ray.errors import InputError
from ims3_ray.jobs.sweep.comparison import compare
from ims3_ray.jobs.sweep.plan import row_sweep
from ims3_ray.jobs.sweep.rows import read_rows
from ims3_ray.jobs.sweep.run import run
from ims3_ray.runs import records
from ims3_ray.storage.artifacts import open_directory

ROWS = """
baseline: DiT
rows:
  - {name: random real, real: random}
  - {name: medoids, real: medoids}
  - {name: DiT, overrides: {finetune.epochs: 0, select.subgroups: 1}}
  - {name: inverted, overrides: {finetune.epochs: 0, sample.start: inversion, select.unit: image}}
"""


def rows_file(tmp_path, text=ROWS):
    path = tmp_path / "rows.yaml"
    path.write_text(text)
    return str(path)


def words_of(model, images, storage):
    return [word for word in tiny_words(model, images, storage) if not word.startswith("ipc=")]


@pytest.fixture(scope="module")
def ran(ray_cluster, tiny_model, tiny_images, tmp_path_factory):
    """A finished comparison: its plan, storage, printed lines, document and folder."""
    folder = tmp_path_factory.mktemp("comparison")
    overrides = parse_overrides(words_of(tiny_model, tiny_images, folder / "runs"))
    overrides["evaluate.networks"] = ["convnet3", "mlp"]
    sweep = row_sweep("digits", overrides, read_rows(rows_file(folder)), (2, 3), (0, 1), 6)
    lines = []
    return sweep, folder / "runs", lines, *run(sweep, lines.append)


def made(lines):
    return [line for line in lines if " → " in line]


@pytest.mark.slow
def test_rows_share_what_they_have_in_common_and_a_second_run_makes_nothing(ran):
    sweep, storage, lines, document, out = ran
    counts = {name: len(list((storage / name).iterdir())) for name in ("latents", "features", "candidates")}
    # a seed draws its own subset to encode; a pool per generator and seed serves both IPCs
    assert counts == {"latents": 2, "features": 1, "candidates": 4}
    assert len([line for line in lines if ": sample →" in line]) == 4
    again = []
    second, same = run(sweep, again.append)
    assert made(again) == []
    assert all("found complete" in line for line in again)
    assert same.path == out.path
    assert (second["comparison"], second["trials"]) == (document["comparison"], document["trials"])
    gone = next((storage / "evaluation").iterdir())
    shutil.rmtree(gone)
    run(sweep, again.append)
    assert gone.is_dir()


@pytest.mark.slow
def test_every_row_is_compared_with_the_baseline_over_the_seeds(ran):
    document = ran[3]
    rows = document["comparison"]["rows"]
    assert [row["name"] for row in rows] == ["random real", "medoids", "DiT", "inverted"]
    for row in rows:
        for ipc in ("2", "3"):
            ((label, by_mlp),) = row["networks"].items()
            assert "mlp" in label
            for accuracy in (row["accuracy"], by_mlp):
                assert [len(by_seed) for by_seed in accuracy[ipc]["last"]] == [2, 2]
        assert len(row["pool"]["coverage"]) == 2
    assert json.loads(json.dumps(document)) == document
    assert compare(document["comparison"]).baseline == "DiT"
    assert (document["best"], document["split"], len(document["trials"])) == ({}, "test", 8)


@pytest.mark.slow
def test_the_command_finds_it_and_ends_with_a_command_to_run_next(ran, tmp_path, output):
    sweep, *_, out = ran
    words = [f"{name}={json.dumps(value)}" for name, value in sweep.overrides.items()]
    words += ["--recipe", "digits", "--rows", rows_file(tmp_path), "--ipc", "2,3", "--seeds", "2"]
    printed = output("sweep", *words, "--pool-images", "6")
    assert (out / "index.html").uri in printed
    command, query = job(next_commands(printed)["query"])
    assert "inverted" in output(command, *query)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("rows: []", "`baseline`"),
        ("baseline: a\nrows: [{overrides: {}}]", "no row"),
        ("baseline: a\nrows: [{name: a}, {name: a}]", "'a' stands twice"),
        ("baseline: b\nrows: [{name: a}]", "baseline 'b'"),
        ("baseline: a\nrows: [{name: a}, {name: b, real: best}]", "real='best'"),
        ("baseline: a\nrows: [{name: a, real: random}]", "rows: all"),
        ("baseline: a\nrows: [{name: a, overrides: 3}]", "overrides of 'a'"),
        ("baseline: [", "not valid YAML"),
    ],
)
def test_invalid_rows_are_refused(text, part, tmp_path):
    with pytest.raises(InputError, match=part):
        read_rows(rows_file(tmp_path, text))


def test_packed_controls_are_scored_by_a_packed_row_whose_pool_is_larger(tmp_path):
    packed = "  - {name: tiles, overrides: {packing.factor: 2}}\n"
    control = "  - {name: medoids packed, real: medoids, packing: 2}\n"
    sweep = row_sweep("digits", {}, read_rows(rows_file(tmp_path, ROWS + packed + control)), (1, 3), (0,))
    configs = {name: sweep.config({"row": name, "ipc": 1, "seed": 0}) for name in sweep.rows.generated}
    assert sweep.trial_params({"row": "DiT", "ipc": 1, "seed": 0})["row"] == "DiT"
    assert configs["DiT"].evaluate.baselines == ("medoids", "random")
    assert configs["tiles"].evaluate.baselines == ("medoids",)
    assert configs["inverted"].evaluate.baselines == ()
    assert (configs["DiT"].pool_ipc, configs["tiles"].pool_ipc) == (3, 12)
    with pytest.raises(InputError, match=r"'medoids packed' has packing=2, but no generated row"):
        read_rows(rows_file(tmp_path, ROWS + control))
    with pytest.raises(InputError, match=r"'medoids packed' has packing 'two'"):
        read_rows(rows_file(tmp_path, ROWS + packed + control.replace("2", "two")))
    for text in (control.replace("real: medoids, ", ""), packed.replace("g.factor: 2", "g: {factor: 2}")):
        with pytest.raises(InputError, match="sets packing; write overrides"):
            read_rows(rows_file(tmp_path, ROWS + text))
    with pytest.raises(InputError, match=r"packing\.factor: rows set it"):
        row_sweep("digits", {"packing": {"factor": 2}}, read_rows(rows_file(tmp_path)), (1,), (0,))


def test_a_row_with_an_unknown_field_is_refused_before_any_work(tmp_path):
    text = "baseline: a\nrows: [{name: a, overrides: {im.wieght: 1}}]"
    wrong = row_sweep(
        "digits", {"storage": str(tmp_path / "runs")}, read_rows(rows_file(tmp_path, text)), (2,), (0,)
    )
    with pytest.raises(InputError, match=r"row=a seed=0: im.wieght.*did you mean weight"):
        run(wrong, print)
    assert not Path(tmp_path, "runs").exists()


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--rows=refine", "--space", "ipc=1"], "--rows"),
        (["--rows=refine", "--asha"], "--asha"),
        (["--space", "ipc=1,2", "--seeds", "3"], "--seeds"),
    ],
)
def test_options_of_the_other_mode_are_refused(words, option, refused):
    assert refused("sweep", *words).startswith(f"error: {option}: ")


def test_a_dry_run_lists_the_trials(output):
    lines = output("sweep", "--rows", "refine", "--ipc=1,10", "--seeds=2", "--dry-run").splitlines()
    assert len(lines) == 3 * 2 * 2
    assert lines[0] == "ipc=1 row=single images seed=0"


@pytest.mark.slow
def test_the_records_name_all_that_trials_need_before_the_first_stage(
    ray_cluster, tiny_model, tiny_images, tmp_path, monkeypatch
):
    def stop(context, step):
        raise KeyboardInterrupt

    overrides = parse_overrides(words_of(tiny_model, tiny_images, tmp_path / "runs"))
    sweep = row_sweep("digits", overrides, read_rows(rows_file(tmp_path)), (2,), (0,), 3)
    monkeypatch.setattr("ims3_ray.jobs.sweep.run.run_step", stop)
    with pytest.raises(KeyboardInterrupt):
        run(sweep, lambda line: None)
    found = records.read(open_directory(str(tmp_path / "runs")))
    named = [name.split("/")[0] for name in {name for record in found for name in record.artifacts}]
    assert [named.count(name) for name in ("candidates", "selection", "evaluation")] == [2, 3, 2]


@pytest.mark.chaos
@pytest.mark.parametrize(("stop", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_comparison_resumes_and_repeats_no_trial(
    cluster_environment, tiny_model, tiny_images, tmp_path, stop, code
):
    words = [*words_of(tiny_model, tiny_images, tmp_path / "runs"), "workers.trials=1"]
    words += ["--rows", rows_file(tmp_path), "--ipc", "2", "--seeds", "2", "--pool-images", "0"]
    env = processes.environment() | cluster_environment
    process = processes.started_until(r"^\[1/4]", "sweep", *words, env=env)
    os.kill(process.pid, stop)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert err.splitlines()[-1] == "stopped; run the same command again to go on"
    over = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/evaluation/*/manifest.json")}
    assert 1 <= len(over) < 4
    returncode, out, err = processes.finished("sweep", *words, env=env)
    assert returncode == 0, err
    assert {p: p.stat().st_mtime_ns for p in over} == over
    assert " → " not in out
    assert out.count("found complete") >= 1
