"""Trials without a cluster: which one runs, who is stopped, what Tune draws, what is best and shared."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from ray import tune
from ray.tune.schedulers import TrialScheduler

from ims3_ray.errors import InputError, describe_error
from ims3_ray.jobs.sweep import trial as trials
from ims3_ray.jobs.sweep.plan import Sweep
from ims3_ray.jobs.sweep.results import describe_sweep, trials_csv
from ims3_ray.jobs.sweep.run import pin_models
from ims3_ray.jobs.sweep.search_space import read_space
from ims3_ray.jobs.sweep.trial import EVAL, NEVER, Run, Trainable, Trial, read_trial, read_trials
from ims3_ray.jobs.sweep.tuner import AshaByIpc, PoolActor, search_algorithm
from ims3_ray.runs.records import FAILED, FINISHED, RUNNING, STOPPED
from ims3_ray.storage.artifacts import open_directory

SPACE = read_space(["select.alpha=0.1:0.9", "select={unit: image},{unit: subgroup}"], "digits", {})
SWEEP = Sweep(recipe="digits", overrides={}, space=SPACE, search="bayes", trials=4)
VALUES = {"select.alpha": 0.2, "select": {"unit": "image"}}


@pytest.fixture
def folder(tmp_path):
    return open_directory(str(tmp_path))


@pytest.mark.parametrize(
    ("state", "owner", "is_mine"),
    [
        (FINISHED, ("other", "t1"), False),
        (STOPPED, ("other", "t1"), False),
        (FAILED, ("other", "t1"), True),  # the next command tries it again
        (FAILED, ("session", "t1"), False),
        ("running", ("other", "t1"), True),  # its driver died
        ("running", ("session", "t1"), True),  # its process died
        ("running", ("session", "t2"), False),  # equal values run as another trial
        ("planned", (), True),
    ],
)
def test_a_trial_runs_unless_it_is_over_or_runs_elsewhere(folder, state, owner, is_mine):
    Trial(3, VALUES, state=state, owner=owner, artifacts=["candidates/ab"]).write(folder)
    actor = PoolActor(SWEEP, None, folder, "session")
    trial, got_it = actor.claim(VALUES, "t1")
    assert (trial.number, got_it) == (3, is_mine)
    assert read_trial(folder, VALUES).artifacts == ["candidates/ab"]  # still protected from deletion
    assert (trial.began is not None) == is_mine
    fresh = [actor.claim(VALUES | {"select.alpha": alpha}, "t3")[0].number for alpha in (0.3, 0.4, 0.3)]
    assert fresh == [4, 5, 4]


def test_a_failed_trial_is_recorded_with_its_error_and_reported_without_a_result(folder, monkeypatch):
    reports, refuse = [], Mock(side_effect=InputError("select.alpha: too much\nof it"))
    monkeypatch.setattr(trials, "prepare", refuse)
    monkeypatch.setattr(trials.tune, "report", reports.append)
    Run(Trainable(SWEEP, None, folder, None), Trial(0, VALUES)).run()
    (record,) = read_trials(folder)
    assert (record.state, record.error) == (FAILED, "InputError: select.alpha: too much of it")
    assert [report[EVAL] for report in reports] == [NEVER]


def test_asha_compares_trials_of_one_ipc():
    accuracies = {"small": (1, 0.3), "smaller": (1, 0.2), "large": (10, 0.9), "larger": (10, 0.95)}
    options = {"time_attr": EVAL, "metric": "accuracy", "mode": "max", "max_t": 9}
    scheduler, verdicts = AshaByIpc(lambda trial: accuracies[trial.trial_id][0], options), {}
    for name in ("large", "larger", "small", "smaller"):
        trial = SimpleNamespace(trial_id=name)
        scheduler.on_trial_add(None, trial)
        verdicts[name] = scheduler.on_trial_result(None, trial, {EVAL: 1, "accuracy": accuracies[name][1]})
    assert {name for name, verdict in verdicts.items() if verdict == TrialScheduler.STOP} == {"smaller"}


def test_a_bayesian_search_starts_from_all_trials_of_an_earlier_driver(folder):
    known = [VALUES, {"select.alpha": 0.7, "select": {"unit": "subgroup"}}, VALUES | {"select.alpha": 0.3}]
    for number, (values, state) in enumerate(zip(known, (FINISHED, RUNNING, FAILED), strict=True)):
        Trial(number, values, state=state).write(folder)
    search = search_algorithm(SWEEP, folder, 4)
    search.set_search_properties("accuracy", "max", SPACE.tune(is_grid=False))
    assert [SPACE.decode(search.suggest(str(number))) for number in range(3)] == known
    assert SPACE.decode(search.suggest("3")) not in known


@pytest.mark.parametrize("search", ["grid", "random"])
def test_the_recorded_points_are_those_that_tunes_generator_draws(folder, search):
    is_grid = search == "grid"
    words = ["sample.subgroups=2,3", "ipc=1,5,10", *["select.alpha=0.1:0.9"] * (not is_grid)]
    space = read_space(words, "digits", {})
    sweep = Sweep(recipe="digits", overrides={"seed": 3}, space=space, search=search, trials=7)
    generator, drawn = search_algorithm(sweep, folder, 0), []
    tune.register_trainable("nothing", lambda config: None)
    spec = {"run": "nothing", "config": space.tune(is_grid=is_grid), "num_samples": 1 if is_grid else 7}
    generator.add_configurations({"name": spec | {"storage_path": folder.path}})
    while trial := generator.next_trial():
        drawn.append(space.decode(trial.config))
    assert drawn == sweep.points()


def document(records, **options):
    space = read_space(["ipc=2,10,4"], "digits", {"ipc": 4})
    sweep = Sweep(recipe="digits", overrides={"ipc": 4}, space=space, **options)
    machine = SimpleNamespace(device="cpu", trials=2)
    config, root = sweep.config({"ipc": 2}), open_directory("/my runs")
    context = SimpleNamespace(config=config, machine=machine, storage=root)
    return describe_sweep(sweep, context, root / "sweeps" / "s", records, 12.0)


def finished(number, ipc, accuracy, coverage=0.5):
    metrics = {"accuracy": accuracy, "coverage": coverage}
    upstream = {"latents/l": 5.0, "candidates/p": 20.0}
    return Trial(number, {"ipc": ipc}, FINISHED, metrics, pool="p", upstream=upstream)


def test_the_best_of_each_ipc_is_the_earliest_of_the_highest():
    stopped = Trial(4, {"ipc": 2}, STOPPED, {"accuracy": 0.99})
    trials = [finished(0, 10, 0.7), finished(1, 10, 0.8), finished(2, 10, 0.8), finished(3, 2, 0.4), stopped]
    found = document(trials)
    assert list(found["best"].items()) == [("2", 3), ("10", 1)]
    assert found["commands"]["2"].endswith("--recipe '/my runs/sweeps/s/best-ipc2.yaml' 'storage=/my runs'")
    assert found["pareto"] == []
    front = document([*trials[:2], finished(2, 2, 0.1, 0.9)], objective=("accuracy", "coverage"))["pareto"]
    assert front == [1, 2]


def test_shared_artefacts_are_counted_once():
    failed = Trial(2, {"ipc": 10}, FAILED, error="it broke")
    found = document([finished(0, 2, 0.5), finished(1, 4, 0.5), failed])
    assert found["pools"] == [{"fingerprint": "p", "seconds": 20.0, "trials": 2}]
    assert found["saved_seconds"] == 25.0
    lines = trials_csv(found).decode().splitlines()
    assert lines[0].startswith("trial,status,ipc,accuracy,coverage,")
    assert lines[3] == "2,failed,10" + "," * 10 + "it broke"


def test_every_trial_takes_a_hub_model_at_one_commit(hub, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    commit = hub.push("facebook/DiT-XL-2-256", tmp_path / "model")
    sweep = pin_models(Sweep(recipe="imagewoof", overrides={}, space=SPACE, search="bayes"))
    for config in (sweep.config(VALUES), sweep.winner(VALUES)):
        assert config.model.path == f"facebook/DiT-XL-2-256@{commit}"
    branch = Sweep(recipe="imagewoof", overrides={"model.path": "facebook/DiT-XL-2-256@main"}, space=SPACE)
    assert pin_models(branch).base.model.path == f"facebook/DiT-XL-2-256@{commit}"
    assert pin_models(SWEEP) == SWEEP


def test_what_a_recipe_says_of_a_local_model_holds_for_its_trials(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    text = "base: imagewoof\nmodel: {path: model, licence: mit, frequency_shift: 0}"
    (tmp_path / "mine.yaml").write_text(text)
    sweep = pin_models(Sweep(recipe="mine.yaml", overrides={}, space=SPACE, search="bayes"))
    model = sweep.config(VALUES).model
    assert (model.licence.id, model.frequency_shift) == ("mit", 0)


def test_a_record_has_the_bad_input_of_a_worker_instead_of_rays_trace():
    error = RuntimeError("a trace")
    error.cause = InputError("ipc: 0")
    assert describe_error(error) == "InputError: ipc: 0"
