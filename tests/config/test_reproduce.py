"""The command that reproduces a run gives its parameters back."""

import shlex

import pytest
import yaml

from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.config.reproduce import reproduce

MANY = [f"class {number:03d}: =+-@'\"" for number in range(60)]  # more than MLflow takes as a parameter


def reproduced(config):
    """The command for a run that logged this configuration as its recipe."""
    return reproduce(yaml.safe_dump(config.results()).encode())


def typed(command):
    """The configuration that a shell and jobs/distill.py make of the command."""
    python, job, option, recipe, *words = shlex.split(command)
    assert (python, job, option) == ("python", "jobs/distill.py", "--recipe")
    return load_config(recipe, parse_overrides(words))


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"ipc": 5, "sample.subgroups": 20, "finetune.lr": 1e-5, "sample.guidance_scale": 3.0},
        {
            "encode.images_per_class": None,
            "im.minimax": "image",
            "data.mirror": True,
            "evaluate.networks": ["resnet18"],
        },
        {
            "sample.batch_size": {"cpu": 7, "cuda": 9},
            "data.classes": MANY,
            "evaluate.baselines": [],
        },
        {
            "data.train": "/data/my images; rm -rf /",
            "data.test": "1: 2",
            "model.path": "no",
            "data.class_map": "new",
        },
        {"data.licence": {"id": "other", "name": "My Own", "link": "https://example.org"}, "recipe": "123"},
        {"model.licence": None, "data.validation": None, "data.max_bad_fraction": 1e-7},
    ],
)
@pytest.mark.parametrize("recipe", ["digits", "imagewoof"])
def test_the_command_gives_the_runs_parameters(recipe, overrides):
    config = load_config(recipe, overrides)
    made = reproduced(config)
    assert made.notes == []
    assert typed(made.command).results() == config.results()


def test_the_command_names_the_storage_as_a_shell_takes_it():
    made = reproduce(yaml.safe_dump(load_config("digits").results()).encode(), "/data/my runs")
    assert typed(made.command).storage == "/data/my runs"


def test_only_fields_that_differ_are_said():
    assert reproduced(load_config("imagewoof")).words[2:] == ["--recipe", "imagewoof"]
    changed = load_config("digits", {"ipc": 5, "data.train": "/elsewhere"})
    # dropped with the images that it speaks of: it follows, and is not said
    assert changed.data.licence is None
    assert set(reproduced(changed).overrides) == {"ipc", "data.train"}


def test_a_recipe_of_ones_own_is_said_as_changes_of_a_named_one(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("ipc: 3\nmodel: {licence: mit}\nim: {minimax: class}\nfinetune: {micro_batches: 1}\n")
    config = load_config(str(own))
    made = reproduced(config)
    assert made.overrides["recipe"] == "mine"
    assert made.notes == []
    assert typed(made.command).results() == config.results()


def test_fields_that_one_version_alone_knows_are_said_and_the_rest_is_given():
    recipe = load_config("digits", {"ipc": 5}).results()
    recipe["sample"]["flavour"] = "sweet"
    del recipe["select"]["coverage_by"]
    made = reproduce(yaml.safe_dump(recipe).encode())
    assert made.overrides["ipc"] == 5
    assert "sample.flavour" not in made.overrides
    assert any(note.startswith("sample.flavour: unknown to this version") for note in made.notes)
    assert any(note.startswith("select.coverage_by: unknown to the run's version") for note in made.notes)


def test_the_environment_bends_nothing(monkeypatch):
    config = load_config("digits", {"seed": 3})
    monkeypatch.setenv("IMS3_SEED", "3")
    assert reproduced(config).overrides == {"seed": 3}
    assert load_config("digits").seed == 3  # and the environment is as before
