"""What a sweep varies: domains read, refused and drawn; the configuration of a trial."""

import pytest

from ims3_ray.config.load import load_config
from ims3_ray.errors import InputError
from ims3_ray.jobs.sweep.plan import Sweep
from ims3_ray.jobs.sweep.search_space import Choice, Range, read_space


def space(*words):
    return read_space(words, "digits", {})


def sweep(*words, search="grid", overrides=None, **options):
    return Sweep("digits", overrides or {}, space(*words), search, options.pop("trials", 5), **options)


@pytest.mark.parametrize(
    ("word", "domain"),
    [
        ("ipc=1,10", Choice((1, 10))),
        ("select.unit=subgroup,image", Choice(("subgroup", "image"))),
        ("im.minimax=image,null", Choice(("image", None))),
        ("im={weight: 0},{grad_ratio: 0.5}", Choice(({"weight": 0}, {"grad_ratio": 0.5}))),
        ("select.alpha=0:1", Range(0, 1)),
        ("sample.steps=10:50", Range(10, 50, integer=True)),
        ("finetune.lr=1e-4:1e-2:log", Range(1e-4, 1e-2, log=True)),
    ],
)
def test_values_are_read_as_yaml_and_ranges_by_what_the_field_takes(word, domain):
    assert list(space(word).domains.values()) == [domain]


def test_a_file_says_the_same_as_words(tmp_path):
    path = tmp_path / "space.yaml"
    lines = (
        "ipc: [1, 10]",
        "select.alpha: {low: 0.1, high: 0.9, log: true}",
        'select.beta: "0.1:0.9"',
        "seed: 3",
    )
    path.write_text("\n".join(lines))
    of_words = space("ipc=1,10", "select.alpha=0.1:0.9:log", "select.beta=0.1:0.9", "seed=3")
    assert read_space([str(path)], "digits", {}) == of_words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("select.alfa=0.1,0.2", r"select.alfa: unknown field; did you mean alpha\?"),
        ("selekt.alpha=0.1,0.2", "selekt: unknown field; did you mean select"),
        ("select.alpha.x=1", "select.alpha.x: unknown field"),
        ("", "--space: is empty"),
        ("ipc=", "--space ipc: has no values"),
        ("ipc", "neither field=values nor a YAML file"),
        ("ipc=1,2 seed", "'seed': is no domain"),
        ("ipc=1,2 ipc=3,4", "ipc: stands twice"),
        ("ipc=1,1", "a value stands twice"),
        ("select.alpha=0.9:0.1", "no range"),
        ("select.alpha=0:1:log", "begins above 0"),
        ("select.unit=1:2", "takes no 1"),
        ("ipc=[1", "not valid YAML"),
        ("evaluate.protocol=quick,minimax", "can't be swept"),
        ("workers.actors=1,2", "can't be swept"),
        ("storage=a,b", "can't be swept"),
    ],
)
def test_a_space_that_is_none_is_refused_in_one_line(words, said):
    with pytest.raises(InputError, match=said):
        space(*words.split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"search": "best"}, "--search: 'best' is unknown; choose one of grid"),
        ({"search": "random", "trials": 0}, "--trials: 0"),
        ({"objective": ("acuracy",)}, "'acuracy' is a metric that no trial reports; choose from accuracy"),
        ({"objective": ()}, "--objective: is empty"),
        ({"objective": ("coverage", "coverage")}, "stands twice"),
    ],
)
def test_a_sweep_that_can_not_be_is_refused_in_one_line(options, said):
    with pytest.raises(InputError, match=said):
        sweep("ipc=1,2", **options)


@pytest.mark.parametrize(
    ("words", "overrides", "said"),
    [
        (["select.alpha=0.1:0.9"], {}, "select.alpha: 0.1:0.9 is a range, and a grid needs values"),
        (
            ["select.unit=subgroup,image", "select.coverage=5,0"],
            {},
            "select.unit=subgroup select.coverage=5: select.coverage",
        ),
        (["ipc=1,2"], {"evaluate.protocol": "none"}, "evaluate.protocol: a sweep compares accuracies"),
    ],
)
def test_a_grid_that_can_not_be_is_refused_and_its_values_named(words, overrides, said):
    with pytest.raises(InputError, match=said):
        sweep(*words, overrides=overrides).points()


def test_a_grid_holds_every_combination_once_and_random_draws_are_different_and_repeat():
    points = sweep("ipc=1,10", "seed=0,1,2").points()
    assert len(points) == 6
    assert points[:2] == [{"ipc": 1, "seed": 0}, {"ipc": 1, "seed": 1}]
    words = ("select.alpha=0.1:0.9", "ipc=1,10", "sample.steps=10:12")
    drawn = sweep(*words, search="random", trials=30).points()
    assert drawn == sweep(*words, search="random", trials=30).points()
    assert drawn != sweep(*words, search="random", trials=30, overrides={"seed": 1}).points()
    assert len({str(values) for values in drawn}) == 30
    assert all(0.1 <= v["select.alpha"] <= 0.9 and v["sample.steps"] in (10, 11, 12) for v in drawn)
    assert {v["sample.steps"] for v in drawn} == {10, 11, 12}
    assert len(sweep("ipc=1,10", search="random", trials=30).points()) == 2  # there are no more


def test_every_trial_chooses_from_the_pool_that_the_largest_needs_unless_the_recipe_says():
    made = sweep("ipc=1,10,4", "sample.subgroups=2,20")
    for values in made.points():
        config = made.config(values)
        assert (config.sample.subgroups, config.sample.pool_ipc) == (20, 10)
        assert (config.select.subgroups, config.ipc) == (values["sample.subgroups"], values["ipc"])
    own = sweep("ipc=1,10", "sample.subgroups=5,20", overrides={"sample.pool_ipc": 30, "select.subgroups": 4})
    config = own.config({"ipc": 1, "sample.subgroups": 5})
    assert (config.sample.pool_ipc, config.sample.subgroups, config.select.subgroups) == (30, 5, 4)


def test_trials_are_scored_on_validation_images_and_the_winner_as_the_recipe_says():
    made = sweep("select.alpha=0.2,0.4")
    trial = made.config({"select.alpha": 0.2}).evaluate
    assert (trial.protocol, trial.full, trial.baselines) == ("quick-val", False, ())
    assert made.winner({"select.alpha": 0.2}) == load_config("digits", {"select.alpha": 0.2})
    own = {"evaluate.full": True, "evaluate.protocol": "quick-val"}
    kept = sweep("ipc=1,2", overrides=own).config({"ipc": 1}).evaluate
    assert (kept.protocol, kept.full) == ("quick-val", True)


def test_the_key_says_what_a_sweep_is():
    keys = [
        sweep("ipc=1,2").key,
        sweep("ipc=1,3").key,
        sweep("ipc=1,2", overrides={"seed": 1}).key,
        sweep("ipc=1,2", search="random").key,
        sweep("ipc=1,2", search="random", trials=6).key,
        sweep("ipc=1,2", asha=True).key,
        sweep("ipc=1,2", objective=("coverage",)).key,
    ]
    assert len(set(keys)) == len(keys)
    assert sweep("ipc=1,2", trials=9).key == keys[0]  # a grid's number of trials is its own
    assert sweep("ipc=1,2", overrides={"storage": "elsewhere", "workers.trials": 3}).key == keys[0]
