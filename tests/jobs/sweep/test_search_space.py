"""The search space, and the configuration of a search's trials."""

import pytest

from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.errors import InputError
from ims3_ray.jobs.sweep.plan import Sweep, as_words
from ims3_ray.jobs.sweep.search_space import Choice, Range, read_space
from ims3_ray.stages.evaluate.teacher import check_settings


def space(*words):
    return read_space(words, "digits", {})


def sweep(*words, search="grid", overrides=None, **options):
    options = {"trials": 5} | options
    return Sweep(recipe="digits", overrides=overrides or {}, space=space(*words), search=search, **options)


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
def test_values_are_yaml_and_ranges_are_of_integers_if_the_field_takes_nothing_else(word, domain):
    assert list(space(word).domains.values()) == [domain]


def test_the_words_of_a_trial_are_overrides():
    values = {"select.subgroups": None, "select.exclude_copies": True, "sample.steps": 20}
    assert parse_overrides(as_words(values).split()) == values


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ("select.alfa=0.1,0.2", "select.alfa"),
        ("select.alpha.x=1", "select.alpha.x"),
        ("", "--space"),
        ("ipc=", "--space ipc"),
        ("ipc", "--space 'ipc'"),
        ("ipc=1,2 ipc=3,4", "--space ipc"),
        ("ipc=1,1", "--space ipc"),
        ("ipc=5,5.0", "--space ipc"),
        ("ipc=1-10", "--space ipc"),
        ("ipc=true,5", "--space ipc"),
        ("sample.subgroups=a,b", "--space sample.subgroups"),
        ("select.alpha=0.9:0.1", "--space select.alpha"),
        ("select.alpha=0:1:log", "--space select.alpha"),
        ("select.unit=1:2", "--space select.unit"),
        ("ipc=[1", "--space ipc"),
        ("evaluate.protocol=quick,minimax", "--space evaluate.protocol"),
        ("workers.actors=1,2", "--space workers.actors"),
        ("data.validation_split=0.1,0.3", "--space data.validation_split"),
    ],
)
def test_an_invalid_space_is_refused_with_its_field(words, field):
    with pytest.raises(InputError) as refused:
        space(*words.split())
    assert str(refused.value).startswith(f"{field}:")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"search": "best"}, "--search: 'best'"),
        ({"search": "random", "trials": 0}, "--trials: 0"),
        ({"objective": ("acuracy",)}, "--objective: 'acuracy'"),
        ({"objective": ()}, "--objective"),
        ({"objective": ("coverage", "coverage")}, "--objective: coverage"),
    ],
)
def test_an_invalid_search_is_refused_with_its_option(options, option):
    with pytest.raises(InputError, match=option):
        sweep("ipc=1,2", **options)


@pytest.mark.parametrize(
    ("words", "overrides", "values"),
    [
        (["select.alpha=0.1:0.9"], {}, "select.alpha: 0.1:0.9 is a range"),
        (["select.unit=subgroup,image", "select.coverage=5,0"], {}, "select.unit=subgroup select.coverage=5"),
        (["ipc=1,2"], {"evaluate.protocol": "none"}, "evaluate.protocol"),
        (["ipc=1,x"], {}, "ipc: takes no 'x'"),
    ],
)
def test_a_grid_with_an_invalid_combination_is_refused_with_its_values(words, overrides, values):
    with pytest.raises(InputError, match=values):
        sweep(*words, overrides=overrides).points()


def test_a_grid_has_every_combination_once_and_random_draws_repeat_by_the_seed():
    points = sweep("ipc=1,10", "seed=0,1,2").points()
    assert sorted(tuple(values.values()) for values in points) == [(i, s) for i in (1, 10) for s in (0, 1, 2)]
    words = ("select.alpha=0.1:0.9", "ipc=1,10", "sample.steps=10:12")
    drawn = sweep(*words, search="random", trials=30).points()
    assert drawn == sweep(*words, search="random", trials=30).points()
    assert drawn != sweep(*words, search="random", trials=30, overrides={"seed": 1}).points()
    assert len({str(values) for values in drawn}) == 30
    assert all(0.1 <= v["select.alpha"] <= 0.9 for v in drawn)
    assert {v["sample.steps"] for v in drawn} == {10, 11, 12}
    assert len(sweep("ipc=1,10", search="random", trials=30).points()) == 2  # there are no more


def test_trials_share_the_pool_that_the_largest_needs_unless_the_recipe_sets_it():
    made = sweep("ipc=1,10,4", "sample.subgroups=2,20")
    for values in made.points():
        config = made.config(values)
        assert (config.sample.subgroups, config.sample.pool_ipc) == (20, 10)
        assert (config.select.subgroups, config.ipc) == (values["sample.subgroups"], values["ipc"])
    own = sweep("ipc=1,10", "sample.subgroups=5,20", overrides={"sample.pool_ipc": 30, "select.subgroups": 4})
    config = own.config({"ipc": 1, "sample.subgroups": 5})
    assert (config.sample.pool_ipc, config.sample.subgroups, config.select.subgroups) == (30, 5, 4)
    packed = sweep("ipc=1,10", overrides={"packing.factor": 2, "refine.steps": 0})
    assert packed.config({"ipc": 1}).sample.pool_ipc == 40


def test_trials_are_scored_on_validation_images_and_the_winner_as_the_recipe_says():
    made = sweep("select.alpha=0.2,0.4")
    trial = made.config({"select.alpha": 0.2}).evaluate
    assert (trial.protocol, trial.full, trial.baselines) == ("quick-val", False, ())
    assert made.winner({"select.alpha": 0.2}) == load_config("digits", {"select.alpha": 0.2})
    own = sweep("ipc=1,2", overrides={"evaluate.full": True, "evaluate.protocol": "quick-val"})
    assert own.config({"ipc": 1}).evaluate.full
    soft = sweep("ipc=1,2", overrides={"evaluate.protocol": "soft-32"}).config({"ipc": 1})
    check_settings(soft.evaluate, trains=True)


def test_the_key_covers_all_that_decides_trials_and_scores():
    options = [{}, {"overrides": {"seed": 1}}, {"search": "random"}, {"search": "random", "trials": 6}]
    options += [{"asha": True}, {"objective": ("coverage",)}, {"evaluations": "of other images"}]
    keys = [*(sweep("ipc=1,2", **changes).key for changes in options), sweep("ipc=1,3").key]
    assert len(set(keys)) == len(keys)
    assert sweep("ipc=1,2", trials=9).key == keys[0]  # a grid has a number of trials of its own
    assert sweep("ipc=1,2", overrides={"storage": "elsewhere", "workers.trials": 3}).key == keys[0]
