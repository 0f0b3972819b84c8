import pytest
import yaml

from ims3_ray.config.load import load_config, load_settings, parse_overrides, recipe_names, subject
from ims3_ray.config.settings import Config, Pretrain
from ims3_ray.errors import InputError


def test_overrides_beat_the_recipe_the_recipe_the_environment_and_that_the_defaults(monkeypatch):
    monkeypatch.setenv("IMS3_SAMPLE__GUIDANCE_SCALE", "7.0")  # the recipe says 1.5
    monkeypatch.setenv("IMS3_SELECT__ALPHA", "0.25")  # the recipe is silent
    config = load_config("digits", parse_overrides(["ipc=3"]))
    assert (config.ipc, config.sample.guidance_scale) == (3, 1.5)
    assert (config.select.alpha, config.select.beta) == (0.25, 0.9)


@pytest.mark.parametrize(
    ("recipe", "train", "named"),
    [
        ("digits", "package://digits/train", "digits"),
        ("digits", "/data/flowers/train", "flowers"),
        ("digits", "s3://bucket/flowers", "flowers"),
        ("digits", "/data/flowers/data/train-00000-of-00001.parquet", "flowers"),
        ("digits", "/data/flowers.parquet", "flowers"),
        ("digits", "/train", "train"),
        ("imagewoof", "/data/imagenet/train", "imagewoof"),  # which brings no images
    ],
)
def test_a_run_is_about_its_recipe_or_the_images_in_place_of_the_recipes_own(recipe, train, named):
    assert subject(load_config(recipe, {"data.train": train})) == named


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_survives_a_round_trip(name, tmp_path):
    config = load_config(name)
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(str(path)) == config


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["sample.subgroup=2"], ["sample.subgroup", "did you mean subgroups", "guidance_scale"]),
        (["sample.sampler=euler"], ["sample.sampler", "'ancestral', 'ddim' or 'dpm'", "'euler'"]),
        (["finetune.batch_size=9"], ["finetune.batch_size", "9", "micro_batches 2"]),
        (["select.alpha=-1"], ["select.alpha", "greater than or equal to 0", "-1"]),
        (["finetune.lr=.inf"], ["finetune.lr", "finite number"]),
        (["sample.guidance_scale=.inf"], ["sample.guidance_scale", "finite number"]),
        (["data.max_bad_fraction=2"], ["data.max_bad_fraction", "less than or equal to 1"]),
        (["evaluate.seeds=1"], ["evaluate.seeds", "2"]),
        (["data.train.deep=1"], ["data.train.deep", "plain value"]),
        (["sample"], ["sample", "field=value"]),
        (["Sample.steps=3"], ["Sample.steps"]),
        (["sample.steps={"], ["sample.steps", "quote"]),
    ],
)
def test_a_wrong_override_is_refused_with_field_rule_and_value(words, named):
    with pytest.raises(InputError) as refused:
        load_config("digits", parse_overrides(words))
    for word in named:
        assert word in str(refused.value)


def test_one_device_s_value_may_be_given_alone():
    sample = load_config("digits", parse_overrides(["sample.batch_size.cuda=64"])).sample
    assert (sample.batch_size.cuda, sample.batch_size.cpu) == (
        64,
        load_config("digits").sample.batch_size.cpu,
    )


def test_a_recipe_that_is_no_mapping_is_refused(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("- 1")
    with pytest.raises(InputError, match="mapping"):
        load_config(str(path))


def test_published_traps_are_off_by_default():
    """A silent Minimax memory, an off-trajectory target, a selection that grows with the classes."""
    config = Config()
    assert config.im.minimax is None
    assert config.im.target == "trajectory"
    assert config.select.normalization == "per_class"


def test_speed_and_place_are_no_part_of_the_results():
    results = load_config("digits", {"workers.actors": 7, "storage": "/elsewhere"}).results()
    assert results == load_config("digits").results()
    assert not {"workers", "storage"} & set(results)


def test_pretraining_is_configured_by_the_same_words():
    assert load_settings(Pretrain, parse_overrides(["transformer.steps=7"])).transformer.steps == 7
    with pytest.raises(InputError, match="did you mean steps"):
        load_settings(Pretrain, parse_overrides(["transformer.step=7"]))


def test_what_fingerprints_are_made_of_does_not_depend_on_how_a_path_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    spellings = ("model", "./model", "link", "model/../model", str(tmp_path / "model"))
    told = [load_config("digits", {"model.path": path, "embed.extractor": path}) for path in spellings]
    assert all(config.identity() == told[0].identity() for config in told)
    assert told[0].identity()["model"]["path"] == str(tmp_path / "model")
    named = load_config("digits", {"model.path": "facebook/DiT-XL-2-256"})
    assert named.identity()["model"] == named.results()["model"]
