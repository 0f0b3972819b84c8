"""Recipes, overrides, environment and defaults: precedence, errors by field, fingerprinted values."""

from functools import partial

import pytest
import yaml

from ims3_ray.config import load
from ims3_ray.config.load import load_config, load_settings, parse_overrides, recipe_names
from ims3_ray.config.pretrain import Pretrain
from ims3_ray.config.sections import PAPER_BATCH, Finetune
from ims3_ray.errors import InputError

ONE_STEP = "im.target=one_step finetune.micro_batches=1"


def test_precedence_is_overrides_recipe_environment_defaults(monkeypatch):
    monkeypatch.setenv("IMS3_SAMPLE__GUIDANCE_SCALE", "7.0")  # the recipe sets 1.5
    monkeypatch.setenv("IMS3_SELECT__ALPHA", "0.25")  # the recipe sets nothing
    config = load_config("digits", parse_overrides(["ipc=3"]))
    assert (config.ipc, config.sample.guidance_scale) == (3, 1.5)
    assert (config.select.alpha, config.select.beta) == (0.25, 0.9)
    monkeypatch.setenv("IMS3_EVALUATE__BASELINES", "herding")
    with pytest.raises(InputError, match=r"evaluate.*as JSON"):
        load_config("digits")


@pytest.mark.parametrize(
    ("recipe", "train", "expected"),
    [
        ("digits", "package://digits/train", "digits"),
        ("digits", "/data/flowers/train", "flowers"),
        ("digits", "s3://bucket/flowers", "flowers"),
        ("digits", "/data/flowers/data/train-00000-of-00001.parquet", "flowers"),
        ("digits", "/data/flowers.parquet", "flowers"),
        ("digits", "/train", "train"),
        ("imagewoof", "/data/imagenet/train", "imagewoof"),  # a recipe without images of its own
    ],
)
def test_the_subject_is_the_recipe_unless_other_images_replace_its_own(recipe, train, expected):
    assert load.subject(load_config(recipe, {"data.train": train})) == expected


def test_the_words_of_overrides_give_the_same_overrides():
    values = [
        None,
        True,
        3,
        1e-5,
        "0",
        "yes",
        "",
        "a: b #c",
        "/data/x=1",
        "s3://b/p?r=x",
        ["0", "1"],
        {"a": 1},
    ]
    overrides = {f"field_{'abcdefghijkl'[place]}": value for place, value in enumerate(values)}
    assert parse_overrides(load.override_words(overrides)) == overrides


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_survives_a_round_trip(name, tmp_path):
    config = load_config(name)
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(f"{tmp_path}/{name}.yaml") == config


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("sample.subgroup=2", ["sample.subgroup", "did you mean subgroups", "guidance_scale"]),
        ("sample.sampler=euler", ["sample.sampler", "'ancestral', 'ddim' or 'dpm'", "'euler'"]),
        ("finetune.batch_size=9", ["finetune.batch_size", "9", "micro_batches 2"]),
        ("select.alpha=-1", ["select.alpha", "greater than or equal to 0", "-1"]),
        ("finetune.lr=.inf", ["finetune.lr", "finite number"]),
        ("data.max_bad_fraction=2", ["data.max_bad_fraction", "less than or equal to 1"]),
        ("evaluate.seeds=0", ["evaluate.seeds", "1"]),
        ("data.train.deep=1", ["data.train.deep", "plain value"]),
        ("sample", ["sample", "field=value"]),
        (f"{ONE_STEP} finetune.batch_size=auto", ["im.target: one_step", "whole batch"]),
        ("Sample.steps=3", ["Sample.steps"]),
        ("sample.steps={", ["sample.steps", "quote"]),
        *((f"{old}=1", [old, new]) for old, new in load.RENAMED.items()),
        *((f"{old}=1", [old, "removed", str(value)]) for old, value in load.REMOVED.items()),
    ],
)
def test_a_wrong_override_is_refused_with_field_rule_and_value(words, expected):
    is_pretraining = words.partition(".")[0] in ("transformer", "vae", "extractor")
    read = partial(load_settings, Pretrain) if is_pretraining else partial(load_config, "digits")
    with pytest.raises(InputError) as refused:
        read(parse_overrides(words.split()))
    assert all(part in str(refused.value) for part in expected)


def test_a_value_for_one_device_keeps_the_other_devices_default():
    sample = load_config("digits", parse_overrides(["sample.batch_size.cuda=64"])).sample
    default = load_config("digits").sample
    assert (sample.batch_size.cuda, sample.batch_size.cpu) == (64, default.batch_size.cpu)


def test_a_recipe_replaces_fields_of_its_base(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: digits\ndata: {train: /mine}\nsample: {steps: 7}\n")
    config, base = load_config(str(path), {"ipc": 3}), load_config("digits")
    assert (config.recipe, config.ipc, config.sample.steps, config.data.train) == ("mine", 3, 7, "/mine")
    assert (config.sample.subgroups, config.model.licence) == (base.sample.subgroups, base.model.licence)
    assert (config.data.licence, config.data.validation, config.data.test) == (None,) * 3  # of other images


@pytest.mark.parametrize(("text", "expected"), [("- 1", "mapping"), ("base: nowhere", "base: 'nowhere'")])
def test_a_recipe_is_a_mapping_and_its_base_a_named_recipe(tmp_path, text, expected):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=expected):
        load_config(str(path))


def test_overrides_are_not_modified():
    overrides = {"select": {"coverage": 0}, "select.alpha": 0.3}
    load_config("digits", overrides)
    assert overrides == {"select": {"coverage": 0}, "select.alpha": 0.3}


def test_speed_and_place_are_no_part_of_the_results():
    results = load_config("digits", {"workers.actors": 7, "storage": "/elsewhere"}).results()
    assert results == load_config("digits").results()
    assert not {"workers", "storage"} & set(results)


def test_fingerprinted_values_do_not_depend_on_the_spelling_of_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    for path in ("model", "./model", "link", "model/../model", str(tmp_path / "model")):
        identity = load_config("digits", {"model.path": path, "embed.extractor": path}).identity()
        assert identity["model"]["path"] == identity["embed"]["extractor"] == str(tmp_path / "model")
    config = load_config("digits", {"model.path": "facebook/DiT-XL-2-256"})
    assert config.identity()["model"] == config.results()["model"]


@pytest.mark.parametrize("devices", [1, 2])
def test_an_automatic_batch_on_one_or_two_devices_is_the_papers(devices):
    assert Finetune(batch_size="auto").scaled_to(devices) == Finetune(batch_size=PAPER_BATCH)


def test_four_times_the_batch_takes_a_quarter_of_the_steps_and_twice_the_learning_rate():
    scaled = Finetune(batch_size="auto", lr=1e-3, ema_decay=0.99, steps=100).scaled_to(8)
    assert (scaled.latents, scaled.micro_batches, scaled.steps) == (32, 8, 25)
    assert scaled.lr == pytest.approx(2e-3)
    assert scaled.ema_decay == pytest.approx(0.99**4)
    assert Finetune(batch_size=8).scaled_to(64) == Finetune(batch_size=8)
