"""jobs/ablate.py on the tiny model: what rows share, what the table says, and rows that are refused."""

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import processes
import pytest
from printed import job, next_commands
from tiny import tiny_words

from ims3_ray.cli import run_command
from ims3_ray.config.load import parse_overrides
from ims3_ray.errors import InputError
from ims3_ray.jobs.ablate import run as ablation
from ims3_ray.jobs.ablate.comparison import compare
from ims3_ray.jobs.ablate.plan import Plan, read_rows
from ims3_ray.jobs.ablate.tables import markdown

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


@pytest.fixture(scope="module")
def ran(ray_cluster, tiny_model, tiny_images, tmp_path_factory):
    """A finished ablation: its plan, storage, what it said, document and folder."""
    folder = tmp_path_factory.mktemp("ablation")
    overrides = parse_overrides(tiny_words(tiny_model, tiny_images, folder / "runs"))
    del overrides["ipc"]
    overrides["evaluate.networks"] = ["convnet3", "mlp"]
    plan = Plan("digits", overrides, read_rows(rows_file(folder)), (2, 3), (0, 1), 6, agreement=True)
    said = []
    return plan, folder / "runs", said, *ablation.run(plan, said.append)


@pytest.mark.slow
def test_rows_share_what_they_have_in_common_and_a_second_run_makes_nothing(ran):
    plan, storage, said, document, out = ran
    counts = {noun: len(list((storage / noun).iterdir())) for noun in ("latents", "features", "candidates")}
    # encoded once a seed (a subset is drawn), embedded once; a pool a generator and seed, for both IPCs
    assert counts == {"latents": 2, "features": 1, "candidates": 4}
    assert len([line for line in said if ": sample →" in line]) == 4
    again = []
    second, same = ablation.run(plan, again.append)
    assert again == []
    assert same.path == out.path
    assert {**second, "written": ""} == {**document, "written": ""}


@pytest.mark.slow
def test_the_table_compares_every_row_with_the_baseline_over_the_seeds(ran):
    document = ran[3]
    assert [row["name"] for row in document["rows"]] == ["random real", "medoids", "DiT", "inverted"]
    for row in document["rows"]:
        for ipc in ("2", "3"):
            ((label, by_mlp),) = row["networks"].items()
            assert "mlp" in label
            for accuracy in (row["accuracy"], by_mlp):
                assert [len(of_seed) for of_seed in accuracy[ipc]["last"]] == [2, 2]
        assert len(row["pool"]["coverage"]) == 2
        assert ("agreement" in row["pool"]) == (not row["is_real"])
    assert document["yardsticks"]["ceiling"]["coverage"] >= document["yardsticks"]["random"]["coverage"]
    assert json.loads(json.dumps(document)) == document
    assert compare(document).baseline == "DiT"
    assert "inverted" in markdown(document)


@pytest.mark.slow
def test_differences_to_another_row_need_no_new_runs(ran):
    plan, _, _, document, out = ran
    said = []
    other, place = ablation.run(replace(plan, rows=replace(plan.rows, baseline="medoids")), said.append)
    assert said == []
    assert place.path != out.path
    assert other["rows"] == document["rows"]
    assert compare(other).baseline == "medoids"


@pytest.mark.slow
def test_the_command_finds_it_and_ends_with_what_one_would_run_next(ran, tmp_path, capsys):
    plan, *_, out = ran
    words = [f"{name}={json.dumps(value)}" for name, value in plan.overrides.items()]
    words += ["--recipe", "digits", "--rows", rows_file(tmp_path), "--ipc", "2,3", "--seeds", "2"]
    words += ["--pool-images", "6", "--agreement"]
    assert run_command("ablate", words) == 0
    shown = capsys.readouterr().out
    assert (out / "index.html").uri in shown
    assert run_command(*job(next_commands(shown)["query"])) == 0
    assert out.name in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rows: []", "`baseline`"),
        ("baseline: a\nrows: [{overrides: {}}]", "no row"),
        ("baseline: a\nrows: [{name: a}, {name: a}]", "stands twice"),
        ("baseline: b\nrows: [{name: a}]", "baseline 'b'"),
        ("baseline: a\nrows: [{name: a}, {name: b, real: best}]", "choose one of random"),
        ("baseline: a\nrows: [{name: a, real: random}]", "add one that is generated"),
        ("baseline: a\nrows: [{name: a, overrides: 3}]", "fields and values"),
        ("baseline: [", "not valid YAML"),
    ],
)
def test_rows_that_are_none_are_refused_in_one_line(text, said, tmp_path):
    with pytest.raises(InputError, match=said):
        read_rows(rows_file(tmp_path, text))


def test_a_row_with_an_unknown_field_is_refused_before_any_work(tmp_path):
    text = "baseline: a\nrows: [{name: a, overrides: {im.wieght: 1}}]"
    rows = read_rows(rows_file(tmp_path, text))
    wrong = Plan("digits", {"storage": str(tmp_path / "runs")}, rows, (2,), (0,), None)
    with pytest.raises(InputError, match=r"im.wieght.*did you mean weight"):
        ablation.run(wrong, print)
    assert not Path(tmp_path, "runs").exists()


@pytest.mark.chaos
def test_sigterm_ends_an_ablation_while_its_evaluations_are_at_work(tiny_model, tiny_images, tmp_path):
    words = [*tiny_words(tiny_model, tiny_images, tmp_path / "runs"), "evaluate.protocol=dc-mnist"]  # minutes
    words = [word for word in words if not word.startswith("ipc=")]
    options = ("--rows", rows_file(tmp_path), "--ipc", "2", "--seeds", "1", "--pool-images", "0")
    process = processes.job("ablate", *options, *words)
    try:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("runs/evaluation/*/*")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        time.sleep(5)  # classifiers are training
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143, (out, err)
    assert err.splitlines()[-1] == "stopped; run the same command again to go on"
