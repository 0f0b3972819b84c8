"""jobs/runs.py on an MLflow SQLite database."""

import io
import json
import shlex
import sys
import time

import pytest
import yaml
from printed import FENCE, ROOT
from processes import python

from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.jobs.runs import gc
from ims3_ray.runs import query, records, tags
from ims3_ray.runs.event_log import EventLog
from ims3_ray.runs.mlflow_tracker import RECIPE_FILE, Tracker, client
from ims3_ray.storage.artifacts import complete, open_storage
from ims3_ray.storage.lease import heartbeat

A, B = "a" * 12, "b" * 12
SPREAD = "coverage/distilled"
RUNS = {  # key → overrides, metrics, tags
    "k1aa": ({"ipc": 1}, {"accuracy": 0.5, SPREAD: 0.4, "finetune/s": 9.0}, {"version.ray": "1"}),
    "k2bb": ({"ipc": 10, "sample.subgroups": 20}, {"accuracy": 0.8, SPREAD: 0.2}, {"version.ray": "2"}),
    "k2cc": ({"ipc": 10}, {"accuracy": 0.9, SPREAD: 0.1}, {}),
    "k3dd": ({"ipc": 10}, {"accuracy": 0.7, SPREAD: 0.1}, {}),
    "v1aa": ({"ipc": 10}, {"accuracy": 0.95, SPREAD: 0.9}, {tags.PROTOCOL: "quick-val-v1/n"}),
    "o1aa": ({"ipc": 10}, {"accuracy": 0.99}, {tags.SCORED: "others"}),
}


TRIALS = {"1": (0.3, 0.5, 0.2), "2": (0.999, 0.1, 0.8), "3": (0.5, None, 0.4)}  # accuracy, coverage, β


def track(storage, key, overrides, metrics, own_tags, parent=None, params=None):
    tracker = Tracker(storage, pytest.fail)
    known = {tags.KIND: "distillation", tags.PROTOCOL: "quick-v1/n", tags.SCORED: "ours"}
    recipe = load_config("digits", overrides).results()
    tracker.start(key, f"digits-{key}", recipe | (params or {}), known | own_tags, parent)
    tracker.log(0, metrics)
    if overrides:  # not for a sweep
        tracker.log_file(RECIPE_FILE, yaml.safe_dump(recipe).encode())
    tracker.finish("FINISHED")
    return tracker.run_id


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """Six distillations, and a sweep of two trials."""
    root = open_storage(str(tmp_path_factory.mktemp("100%41?")))
    for key, (overrides, metrics, own_tags) in RUNS.items():
        track(root, key, overrides, metrics, own_tags)
    space = {"space.ipc": "1", "space.select": "2", "objective": "coverage,accuracy"}
    sweep = track(root, "s9", {}, {}, {tags.KIND: "sweep"}, params=space)
    for trial, (accuracy, spread, beta) in TRIALS.items():
        figures = {"accuracy": accuracy} | ({SPREAD: spread} if spread else {})
        varied = {"ipc": 10, "select.beta": beta}
        track(root, f"s9/{trial}", varied, figures, {tags.KIND: "trial"}, sweep)
    return root


@pytest.fixture
def ask(storage, output):
    """Run the command; returns standard output."""
    return lambda *words: output("runs", *words, f"storage={storage.path}")


def names(out):
    return [line.split()[0] for line in out.splitlines() if line.split()[0].startswith("digits-")]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--order accuracy --where ipc=10 --where accuracy>0.75", "o1aa v1aa k2cc k2bb"),
        ("--order sample.subgroups --where ipc=10 --where accuracy<0.95", "k2bb k3dd k2cc"),
        ("--where data.mirror=false --where accuracy>=0.95", "o1aa v1aa"),
        ("--where protocol=quick-v1/n --order accuracy", "o1aa k2cc k2bb k3dd k1aa s9"),
        ("--where protocol!=quick-v1/n", "v1aa"),
        ("--where select.coverage=0 --order accuracy", "o1aa v1aa k2cc k2bb k3dd k1aa s9"),
        ("--where select.exclude_copies=true", ""),
        ("--where kind=trial --order accuracy", "s9/2 s9/3 s9/1"),
        ("--where run=s9/1", "s9/1"),
        ("--where evaluate.baselines=[random,k_medoids] --where accuracy<1e17 --where ipc=1", "k1aa"),
        ("--sweep s9", "s9/1 s9/2 s9/3"),  # the last without the objective
        ("--sweep s9 --order accuracy", "s9/2 s9/3 s9/1"),
    ],
)
def test_runs_are_filtered_and_sorted(ask, words, expected):
    assert names(ask(*words.split())) == [f"digits-{key}" for key in expected.split()]


def test_the_list_has_kind_and_protocol_and_no_trials(ask):
    listed = ask("--order", "accuracy").splitlines()
    assert listed[2].split()[:3] == ["digits-v1aa", "distillation", "quick-val-v1/n"]
    assert not any("/" in name for name in names("\n".join(listed)))


def test_the_list_of_a_sweep_has_the_swept_fields(ask):
    head, *lines = ask("--sweep", "s9").splitlines()
    assert head.split()[4:8] == ["ipc", "select.beta", "coverage", "accuracy"]
    assert [line.split()[5] for line in lines] == ["0.2", "0.8", "0.4"]


@pytest.fixture
def running(storage):
    """RUNNING in MLflow: a run without a heartbeat, one of another storage, a sweep, its trial."""
    trackers = {}
    for name, kind in (("digits-gone", tags.DISTILLATION), ("digits-far", tags.DISTILLATION),
                       ("sweep-digits-w", tags.SWEEP), ("digits-w-000", tags.TRIAL)):  # fmt: skip
        trackers[name] = Tracker(storage, pytest.fail)
        trackers[name].start(f"w-{name}", name, {}, {tags.KIND: kind})
    gone = EventLog(storage / "runs" / "digits-gone")
    gone.write("stage started", stage="finetune")
    yield storage / "sweeps" / "digits-w"
    for tracker in trackers.values():
        client(storage).delete_run(tracker.run_id)
    (storage / "runs").delete()
    (storage / "sweeps").delete()


def test_only_a_run_of_this_storage_without_a_heartbeat_is_dead(running, ask):
    with heartbeat(running):
        runs = json.loads(ask("--json"))["runs"] + json.loads(ask("--where", "kind=trial", "--json"))["runs"]
    states = {run["name"]: (run["status"], run["stage"], run["end_time"]) for run in runs}
    running = dict.fromkeys(("digits-far", "sweep-digits-w", "digits-w-000"), ("RUNNING", None, None))
    assert (running | {"digits-gone": ("DEAD", "finetune", None)}).items() <= states.items()
    assert states["digits-k1aa"][0] == "FINISHED"


def test_all_pages_are_read(storage, monkeypatch):
    monkeypatch.setattr(query, "PAGE", 2)
    assert len(query.find_runs(client(storage))) == len(RUNS) + 1 + len(TRIALS)


def test_best_never_mixes_protocols_or_scored_images(ask):
    found = json.loads(ask("--best", "--json"))["best"]
    assert [" ".join((row["protocol"], row["scored"], row["ipc"], row["run"]["key"])) for row in found] == [
        "quick-v1/n others 10 o1aa",
        "quick-v1/n ours 1 k1aa",
        "quick-v1/n ours 10 k2cc",
        "quick-val-v1/n ours 10 v1aa",
    ]
    assert names(ask("--best")) == ["digits-o1aa", "digits-k1aa", "digits-k2cc", "digits-v1aa"]
    smallest = json.loads(ask("--best", "--metric=-accuracy", "--json"))["best"]
    assert [(row["run"]["key"], row["value"]) for row in smallest][2] == ("k3dd", 0.7)


def test_diff_has_exactly_the_differences(ask):
    found = json.loads(ask("--diff", "k1aa", "digits-k2bb", "--json"))
    assert found["params"] == {"ipc": ["1", "10"], "sample.subgroups": ["5", "20"]}
    assert found["tags"] == {"version.ray": ["1", "2"]}
    # and no stage's seconds
    assert found["metrics"] == {"accuracy": [0.5, 0.8], "coverage/distilled": [0.4, 0.2]}
    assert "+0.3000" in ask("--diff", "k1aa", "k2bb")


def test_a_run_is_found_by_key_prefix_name_or_id(storage):
    runs = query.find_runs(client(storage))
    run = query.resolve(runs, "k2bb")
    for text in ("k2b", "digits-k2bb", run["run_id"]):
        assert query.resolve(runs, text) == run
    assert query.resolve(runs, "s9")["key"] == "s9"  # keys of trials begin so, too


@pytest.mark.slow
def test_the_mlflow_snippet_of_the_page_works_after_the_first_run(tmp_path):
    page = (ROOT / "docs/query.md").read_text(encoding="utf-8")
    (snippet,) = (body for word, body in FENCE.findall(page) if word == "python")
    own = open_storage(str(tmp_path / "runs"))
    track(own, "k1aa", {"ipc": 10}, {"accuracy": 0.945, SPREAD: 0.069}, {})
    script = snippet.replace("/absolute/path", str(tmp_path)) + "print(len(runs), differing, len(recipe) > 0)"
    ran = python(script, cwd=tmp_path)  # its database is a process's
    assert ran.stdout == "1 {} True\n", ran.stderr
    assert (tmp_path / "runs.csv").is_file()


def test_the_printed_command_reproduces_the_run(ask, storage):
    python, job, _, recipe, *words = shlex.split(ask("--reproduce", "k2bb"))
    expected = ["sample.subgroups=20", f"storage={storage.uri}"]
    assert (python, job, words) == ("ims3", "distill", expected)
    assert load_config(recipe, parse_overrides(words[:-1])) == load_config("digits", RUNS["k2bb"][0])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--best --metric acuracy", "mean accuracy?"),
        ("--order speed", "speed: "),
        ("--order a`b", "--order"),
        ("--nonsense", "--nonsense"),
        ("--diff k2 k1", "2 runs"),
        ("--diff nobody k1", "'nobody'"),
        ("--reproduce k2", "digits-k2bb (key k2bb, MLflow id"),
        ("--reproduce s9", "recipe.yaml"),
        ("--sweep k1aa", "'k1aa'"),
        ("--metric accuracy", "--metric: "),
        ("--yes", "--yes: "),
        ("--where ipc~1", "ipc~1"),
        ("--where kind=nonsense", "distillation"),
        ("--where accuracy>inf", "number"),
        ("ipc=3", "storage="),
    ],
)
def test_bad_arguments_give_one_line_and_exit_code_2(storage, refused, words, expected):
    assert expected in refused("runs", *words.split(), f"storage={storage.path}")


@pytest.mark.parametrize("words", [(), ("--gc",)])
def test_a_query_creates_no_database(tmp_path, output, words):
    open_storage(str(tmp_path))
    assert output("runs", *words, f"storage={tmp_path}").splitlines()[-1].startswith("no")
    assert not (tmp_path / "mlflow.db").exists()


@pytest.fixture
def filled(storage):
    """The storage with an artefact that k1aa needs and one without a record."""
    for key in (A, B):
        (storage / "latents" / key).write("part-00000.parquet", b"x" * 2_000_000)
        complete(storage / "latents" / key, {})
    records.write(storage, "runs/digits-k1aa/run.json", [f"latents/{A}"], key="k1aa", state=records.FINISHED)
    yield storage
    (storage / "latents").delete()
    (storage / "runs").delete()


@pytest.fixture
def later(monkeypatch):
    now = time.time() + gc.RECENT_S + 60
    monkeypatch.setattr(gc, "store_time", lambda _: now)


@pytest.mark.parametrize(("typed", "is_gone"), [("y\n", True), ("n\n", False), ("", False)])
def test_gc_lists_and_deletes_only_if_confirmed(filled, ask, later, monkeypatch, typed, is_gone):
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    out = ask("--gc")
    assert "delete 1 artefact, 2.0 MB? [y/N]" in out
    assert f"latents/{B}" in out
    assert (filled / "latents").has_directory(B) != is_gone
    assert (filled / "latents").has_directory(A)


def test_gc_with_json_deletes_only_with_yes(filled, ask, later):
    for words, deleted in (((), []), (("--yes",), [f"latents/{B}"])):
        answer = json.loads(ask("--gc", "--json", *words))
        latents = answer["nouns"]["latents"]
        assert [latents[name] for name in ("artifacts", "needed", "unneeded")] == [2, 1, 1]
        assert 2_000_000 <= latents["unneeded_bytes"] < latents["bytes"]
        assert [gone["place"] for gone in answer["deleted"]] == deleted
        assert (filled / "latents").has_directory(B) != bool(deleted)


def test_an_unreachable_server_without_records_is_an_error(storage, refused, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert "MLFLOW_TRACKING_URI: http://127.0.0.1:9" in refused("runs", f"storage={storage.path}")


def test_a_child_run_is_found_again(storage):
    runs = query.find_runs(client(storage))
    sweep, trial = query.resolve(runs, "s9"), query.resolve(runs, "s9/1")
    assert track(storage, "s9/1", {}, {}, {}, sweep["run_id"]) == trial["run_id"]
