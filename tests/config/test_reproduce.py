"""The printed command reproduces the parameters of a run."""

import shlex

import pytest
import yaml

from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.config.reproduce import reproduce

MANY = [f"class {number:03d}: =+-@'\"" for number in range(60)]  # more than one MLflow parameter can hold


def reproduced(results, *storage):
    """The reproduction by the recipe.yaml that a run logs."""
    return reproduce(yaml.safe_dump(results).encode(), *storage)


def parsed(command):
    """The configuration that the command has in a shell."""
    python, job, option, recipe, *words = shlex.split(command)
    assert (python, job, option) == ("ims3", "distill", "--recipe")
    return load_config(recipe, parse_overrides(words))


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"ipc": 5, "sample.subgroups": 20, "finetune.lr": 1e-5, "encode.images_per_class": None},
        {"im.minimax": "image", "data.mirror": True, "evaluate.networks": ["resnet18"]},
        {"sample.batch_size": {"cpu": 7, "cuda": 9}, "data.classes": MANY, "evaluate.baselines": []},
        {"data.train": "/data/my images; rm -rf /", "data.test": "1: 2", "model.path": "no"},
        {"data.licence": {"id": "other", "name": "My Own", "link": "https://example.org"}, "recipe": "123"},
        {"model.licence": None, "data.validation": None, "data.max_bad_fraction": 1e-7},
    ],
)
@pytest.mark.parametrize("recipe", ["digits", "imagewoof"])
def test_the_command_reproduces_all_parameters(recipe, overrides):
    config = load_config(recipe, overrides)
    reproduction = reproduced(config.results(), "/data/my runs")
    again = parsed(reproduction.command)
    assert reproduction.notes == []
    assert (again.results(), again.storage) == (config.results(), "/data/my runs")


def test_only_fields_that_differ_and_do_not_follow_from_others_are_in_the_command():
    assert reproduced(load_config("imagewoof").results()).words[2:] == ["--recipe", "imagewoof"]
    config = load_config("digits", {"ipc": 5, "data.train": "/elsewhere"})
    assert config.data.licence is None  # follows from data.train
    assert set(reproduced(config.results()).overrides) == {"ipc", "data.train"}


def test_a_run_of_a_recipe_file_is_reproduced_by_changes_of_a_named_recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("ipc: 3\nmodel: {licence: mit}\nim: {minimax: class}\nfinetune: {micro_batches: 1}\n")
    config = load_config(str(path))
    reproduction = reproduced(config.results())
    assert (reproduction.overrides["recipe"], reproduction.notes) == ("mine", [])
    assert parsed(reproduction.command).results() == config.results()


def test_fields_that_only_one_version_has_are_noted_and_the_others_reproduced():
    recipe = load_config("digits", {"ipc": 5}).results()
    recipe["sample"]["flavour"] = "sweet"
    del recipe["select"]["coverage"]
    reproduction = reproduced(recipe)
    assert reproduction.overrides["ipc"] == 5
    assert "sample.flavour" not in reproduction.overrides
    assert {note.partition(":")[0] for note in reproduction.notes} == {"sample.flavour", "select.coverage"}


def test_renamed_and_removed_fields_of_an_older_run_are_reproduced():
    config = load_config("digits", {"invert.steps": 7, "evaluate.random_subsets": 9})
    recipe = config.results()
    recipe["invert"] |= {"points": recipe["invert"].pop("steps"), "substeps": 1}
    recipe["evaluate"]["draws"] = recipe["evaluate"].pop("random_subsets")
    recipe["refine"]["stay"] = 0.0
    recipe["model"] |= {"compile": {"cpu": False, "cuda": True}}
    recipe["model"]["graphs"] = {"cpu": False, "cuda": recipe["model"].pop("cuda_graphs")}
    recipe["im"]["minimax"] = {"representativeness": 0.002, "extreme": "image"}
    reproduction = reproduced(recipe)
    assert reproduction.notes == []
    assert reproduction.overrides == {"invert.steps": 7, "evaluate.random_subsets": 9, "im.minimax": "image"}


def test_the_command_does_not_depend_on_environment_variables(monkeypatch):
    config = load_config("digits", {"seed": 3})
    monkeypatch.setenv("IMS3_SEED", "3")
    assert reproduced(config.results()).overrides == {"seed": 3}
    assert load_config("digits").seed == 3  # the environment is restored
