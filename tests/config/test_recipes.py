"""The packaged recipes: their values, their classes and the labels of these."""

import shutil
from importlib import resources
from operator import attrgetter

import numpy as np
import planned
import pytest
from tiny import THREE
from tiny_generator import edit, small_dit, small_vae

from ims3_ray.config.load import load_config, parse_overrides, recipe_names, recipe_text
from ims3_ray.data.classes import class_map
from ims3_ray.errors import InputError
from ims3_ray.models.convert import save_pipeline
from ims3_ray.pipeline.steps import plan
from ims3_ray.stages.finetune.batch import LatentDataset, LatentSource
from ims3_ray.stages.sample.stage import Sampler
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import complete, open_directory

IMAGENET = ("imagewoof", "imagenette", "imageidc", "imagenet100", "imagenet1k")
SMALL = ("fashion", "mnist", "cifar10")  # small images, with published tables
LABELS = {
    "imagewoof": [155, 159, 162, 167, 182, 193, 207, 229, 258, 273],
    "imagenette": [0, 217, 482, 491, 497, 566, 569, 571, 574, 701],
}


SHARED = """
finetune.epochs=8 finetune.batch_size=8 finetune.lr=0.001 im.weight=0.002 model.frequency_shift=0
sample.sampler=ancestral sample.steps=50 sample.spacing=linspace sample.subgroups=5
sample.guidance_scale=4.0 sample.guidance_channels=3
select.alpha=0.4 select.beta=0.9 select.epsilon=0.0 select.normalization=none
embed.extractor=timm:resnet18.tv_in1k evaluate.protocol=ims3
"""  # by the paper and its published code; the frequency shift, since the folder was converted
PAPER = f"""{SHARED}
model.path=facebook/DiT-XL-2-256 im.minimax=null im.target=trajectory data.train=null data.test=null
"""
PUBLISHED = f"""{SHARED}
data.mirror=true encode.images_per_class=null model.vae=stabilityai/sd-vae-ft-ema
model.precision.cpu=fp32 model.precision.cuda=fp32 im.grad_ratio=null im.minimax=class im.target=one_step
finetune.ema_decay=0.9999 finetune.ema_warmup=false finetune.label_dropout=0.1 finetune.labels=position
finetune.micro_batches=1 finetune.steps=8000 refine.steps=0 select.real_images=200
"""  # run.sh and the defaults of the scripts that it calls


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """A DiT folder of ImageNet's thousand classes, tiny, with random weights."""
    folder = tmp_path_factory.mktemp("models") / "thousand"
    save_pipeline(small_dit(sample_size=4, num_classes=1000), small_vae(), folder)
    return folder


def woof_words(imagenet_tree, model):
    """A tiny run of the ImageWoof recipe on three of its classes."""
    places = {f"data.{split}": imagenet_tree / split for split in ("train", "test")}
    places |= {"model.path": model, "storage": imagenet_tree / "runs"}
    classes = f"data.classes=[{', '.join(THREE)}]"
    return [*(f"{field}={place}" for field, place in places.items()), classes, "ipc=6"]


@pytest.fixture
def context_of(imagenet_tree, thousand):
    def prepared(*words, model=thousand):
        return planned.context_of(woof_words(imagenet_tree, model), *words, recipe="imagewoof")

    return prepared


@pytest.fixture
def keys(context_of):
    """Artefact keys by stage."""
    return lambda *words, **options: {
        step.stage.name: step.fingerprint for step in plan(context_of(*words, **options))
    }


def stages_that_differ(one, other):
    return {stage for stage, key in one.items() if other[stage] != key}


def assert_values(config, words):
    expected = parse_overrides(words.split())
    assert {field: attrgetter(field)(config) for field in expected} == expected


def test_every_yaml_file_is_a_recipe_whose_header_states_hardware_and_what_was_measured():
    folder = resources.files("ims3_ray") / "recipes"
    assert {path.name for path in folder.iterdir()} == {f"{name}.yaml" for name in recipe_names()}
    others = {"digits", "digits-images", "digits-paper", "imagewoof-refined", "imagewoof-published", "real"}
    assert set(recipe_names()) == {*others, *SMALL, *IMAGENET}
    for name in recipe_names():
        header = "".join(line for line in recipe_text(name)[1].splitlines() if line.startswith("#"))
        assert "Hardware:" in header
        assert "measured" in header


def test_imagewoof_published_has_the_values_of_the_published_code():
    config = load_config("imagewoof-published")
    assert_values(config, PUBLISHED)
    assert config.data.classes == load_config("imagewoof").data.classes


@pytest.mark.parametrize("name", [*IMAGENET, "imagewoof-refined"])
def test_imagenet_recipes_have_the_values_of_the_paper(name):
    assert_values(load_config(name), PAPER)
    assert "not yet measured" in recipe_text(name)[1]


@pytest.mark.parametrize("name", SMALL)
def test_recipes_of_small_images_use_the_published_protocols_on_held_out_images(name):
    c = load_config(name)
    assert c.evaluate.protocol in (f"dc-{name}", f"dsa-{name}")
    assert (c.data.validation_split, c.data.test) == (0.1, None)  # the named set's own test images
    assert "my-" in str(c.model.path) or str(c.model.path).startswith("package://")
    assert c.model.path == c.embed.extractor


def test_torchvisions_names_of_digits_map_to_the_digits_labels():
    from torchvision.datasets import MNIST

    classes = tuple(sorted(MNIST.classes))
    mapping = load_config("mnist").data.class_map
    assert class_map(classes, tuple("0123456789"), 10, mapping) == list(range(10))


@pytest.mark.parametrize("name", IMAGENET[:4])
def test_a_subset_keeps_imagenets_labels(name):
    classes = load_config(name).data.classes
    labels = class_map(classes, None, 1000, None)
    assert list(classes) == sorted(classes)
    assert labels == sorted(labels)
    assert len(labels) == (100 if name == "imagenet100" else 10)
    assert labels == LABELS.get(name, labels)
    if name == "imageidc":
        assert set(classes) < set(load_config("imagenet100").data.classes)


@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_a_recipe_without_images_names_the_missing_field(words, tmp_path, refused):
    command = ["distill", "--recipe", "imagewoof", *words, f"storage={tmp_path / 'runs'}"]
    assert refused(*command).startswith("error: data.train: ")
    assert refused(*command, "data.train=/nowhere").startswith("error: data.test: ")
    assert not (tmp_path / "runs").exists()


def test_keys_depend_on_the_named_classes_and_not_on_their_order(keys):
    all_three, two = keys(), keys(f"data.classes=[{THREE[0]}, {THREE[1]}]")
    assert keys(f"data.classes=[{', '.join(reversed(THREE))}]") == all_three
    assert stages_that_differ(all_three, two) == set(all_three)


def test_named_classes_apply_to_training_and_test_images(imagenet_tree, context_of):
    context = context_of()
    assert context.images["train"].classes == context.images["test"].classes == THREE
    assert context.model_labels == [155, 159, 162]
    (imagenet_tree / "test" / THREE[0]).rename(imagenet_tree / "test" / "renamed")
    with pytest.raises(InputError, match=r"data\.test: .* 1 of the 3 "):
        context_of()


def test_fine_tuning_and_sampling_use_the_same_labels(imagenet_tree, context_of):
    """The data set's labels 0, 1, 2 are the model's 155, 159, 162."""
    words = ("invert.steps=2", "data.mirror=false", "sample.steps=2", "embed.extractor=package://digits")
    context = context_of(*words)
    rows = {"image_id": np.array(["a", "b", "c"], dtype=object), "label": np.array([2, 0, 1])}
    latent, inversion = np.zeros((3, 4, 4, 4), np.float16), np.zeros((3, 2, 4, 4, 4), np.float16)
    latents, inversions = (open_directory(str(imagenet_tree / noun)) for noun in ("latents", "inversions"))
    for directory, columns, table in (
        (latents, {"mean": latent, "logvar": latent}, schemas.LATENTS),
        (inversions, {"inversion": inversion}, schemas.INVERSIONS),
    ):
        directory.write("part-0.parquet", schemas.to_parquet(rows | columns, table))
        complete(directory, {"rows": 3})
    source = LatentSource(latents, inversions, mirror=False, points=2, model_labels=context.model_labels)
    dataset = LatentDataset(source, context.config.finetune, seed=0)
    assert dataset.labels(np.arange(3)).tolist() == [162, 155, 159]

    shared = {"model": context.tuned_model(), "model_labels": context.model_labels}
    sampler = Sampler(context.config, classes=context.classes, batch_size=3, **shared)
    requested, predict = [], sampler._predict
    sampler._predict = lambda z, t, labels: requested.append(labels.tolist()) or predict(z, t, labels)
    sampler([[2, 0, 0], [0, 0, 0], [1, 0, 0]])
    assert requested == [[162, 155, 159]] * 2


def test_a_dry_run_of_a_recipe_needs_no_gpu_and_no_network(imagenet_tree, thousand, monkeypatch, output):
    import timm

    create = timm.create_model

    def offline(name, *, pretrained, **options):
        assert not pretrained
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    out = output("distill", "--dry-run", "--recipe", "imagewoof", *woof_words(imagenet_tree, thousand))
    assert "guidance_channels: 3" in out
    assert out.count("would run") == 9


def test_a_licence_changes_only_the_keys_of_the_export_and_later_stages(keys):
    assert stages_that_differ(keys(), keys("model.licence=mit")) == {"export", "evaluate", "report"}


def test_a_models_card_changes_no_key_and_its_configuration_all_but_that_of_embed(keys, thousand, tmp_path):
    model = shutil.copytree(thousand, tmp_path / "model")
    before = keys(model=model)
    (model / "README.md").write_text("a card")
    assert keys(model=model) == before
    edit(model / "model_index.json", lambda index: index.update(_diffusers_version="0"))
    assert stages_that_differ(before, keys(model=model)) == set(before) - {"embed"}


def test_a_recipes_frequency_shift_does_not_apply_to_other_weights():
    def shift(*words):
        return planned.config_of(words, recipe="imagewoof").model.frequency_shift

    assert shift() == shift("model.licence=mit") == 0
    assert shift("model.path=/my/DiT") is None
    assert shift("model.path=/my/DiT", "model.frequency_shift=0") == 0
