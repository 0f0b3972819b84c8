"""jobs/verify.py: what is said of a set, held against what is there."""

import copy

import pytest

from ims3_ray.cli import main
from ims3_ray.config.load import load_config, load_settings
from ims3_ray.config.settings import Evaluating
from ims3_ray.jobs.share.verify import agrees, compare, settings_of
from ims3_ray.storage.artifacts import complete, open_directory


def measured(evaluation, mean, interval=0.004, **more):
    document = copy.deepcopy(evaluation) | more
    document["sets"]["distilled"]["last"] |= {"mean": mean, "interval": interval}
    return document


def test_accuracies_agree_where_their_intervals_meet(evaluation):
    stated = evaluation["sets"]["distilled"]["last"]
    for mean, interval, is_so in ((0.943, 0.0, True), (0.9424, 0.0, False), (0.935, 0.0076, True)):
        assert agrees(stated, {**stated, "mean": mean, "interval": interval}) is is_so
    assert agrees({**stated, "interval": None}, stated)  # of a single seed


def test_stated_and_measured_stand_in_one_line_a_network(evaluation):
    lines, problems = compare(evaluation, measured(evaluation, 0.943))
    assert lines == ["smoke-v2/convnet3-w8: stated 94.50 ± 0.25, measured 94.30 ± 0.40: as stated"]
    assert not problems
    lines, problems = compare(evaluation, measured(evaluation, 0.5))
    assert lines == problems
    assert lines[0].endswith("measured 50.00 ± 0.40: not as stated")


def test_another_protocol_s_accuracy_is_not_held_against_what_is_stated(evaluation):
    lines, problems = compare(evaluation, measured(evaluation, 0.5, protocol="smoke-v3/convnet3-w8"))
    assert not problems
    assert lines == [
        "smoke-v2/convnet3-w8: stated 94.50 ± 0.25, not measured: the protocol here is smoke-v3/convnet3-w8"
    ]


@pytest.mark.parametrize("recipe", ["digits", "imagewoof", "mnist"])
def test_a_set_is_scored_by_its_run_s_own_recipe_on_few_seeds(recipe):
    config = load_config(recipe, {"seed": 7})
    ours = load_settings(Evaluating, {"evaluate.seeds": 2}, settings_of(config.results()))
    assert (ours.seed, ours.data, ours.embed) == (7, config.data, config.embed)
    assert ours.evaluate.protocol == config.evaluate.protocol
    assert (ours.evaluate.seeds, ours.evaluate.baselines, ours.evaluate.full) == (2, (), False)


def test_an_accuracy_that_is_not_as_stated_ends_in_an_error(make_run, evaluation, monkeypatch, capsys):
    order = {"audit": {"classes": {"distilled": {"own_share": 1.0, "real_share": 1.0}}}}
    monkeypatch.setattr("ims3_ray.jobs.share.verify._score", lambda *_, **__: document)
    for mean, code in ((0.943, 0), (0.5, 2)):
        document = measured(evaluation, mean) | order
        assert main(["verify", make_run()[1].uri]) == code
    out, err = capsys.readouterr()
    assert "measured 94.30 ± 0.40: as stated" in out
    assert err.count("\n") == 1
    assert "accuracy is not as stated: smoke-v2/convnet3-w8: stated 94.50" in err


def test_a_damaged_set_is_refused_before_anything_is_scored(make_run, tmp_path, refused):
    main(["push", make_run()[1].uri, "--to", str(tmp_path / "mine")])
    card = tmp_path / "mine" / "README.md"
    card.write_bytes(card.read_bytes().replace(b"94.50", b"99.50"))
    assert "README.md holds other bytes than were written" in refused("verify", tmp_path / "mine")


def test_a_set_of_which_no_accuracy_is_stated_has_its_bytes_checked_alone(make_run, output):
    storage, made = make_run()
    (name,) = (storage / "runs").folders()
    record = storage.read_json(f"runs/{name}/run.json")
    del record["artifacts"]["evaluation"]
    storage.write_json(f"runs/{name}/run.json", record)
    assert output("verify", made.uri).splitlines() == [
        f"checksums      {len(made.files()) - 1} files as written",
        "accuracy       none is stated: not measured",
    ]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("recipe.yaml", b"- a\n- list\n", "recipe.yaml is no run's recipe"),
        ("evaluation.json", b'{"protocol": "x", "sets": {}}', "evaluation.json states no accuracy"),
        ("evaluation.json", b"[1]", "evaluation.json states no accuracy"),
    ],
)
def test_what_somebody_else_wrote_is_one_line_where_it_is_no_set(
    make_run, tmp_path, refused, name, content, told
):
    main(["push", make_run()[1].uri, "--to", str(tmp_path / "mine")])
    folder = open_directory(str(tmp_path / "mine"))
    folder.write(name, content)
    complete(folder, {"fingerprint": "of-somebody-else"})
    assert told in refused("verify", tmp_path / "mine")


@pytest.mark.slow
def test_a_run_s_set_is_as_its_run_states_wherever_it_lies(finished_run, tmp_path, output):
    """The few seeds are the first of the run's own: with as many, what is measured is what was."""
    _, run = finished_run
    output("push", run.distilled, "--to", tmp_path / "mine")
    stated = run.evaluation["sets"]["distilled"]["last"]["mean"]
    for place in (run.distilled, tmp_path / "mine"):
        out = output("verify", place, "evaluate.seeds=2", f"storage={tmp_path / 'storage'}")
        assert "files as written" in out
        assert "% of its images look like their own class" in out
        assert out.count(f"{100 * stated:.2f} ±") == 2
        ours = [line for line in out.rstrip().splitlines() if "(raylet)" not in line]
        assert ours[-1].endswith(": as stated")
