"""`ims3 convert`: plain diffusers loads the folder and samples the same images."""

import ast
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiTPipeline
from printed import next_commands
from safetensors.torch import load_file
from tiny_generator import NAMES, WEIGHTS, inputs, original_file, seeded, small_adapter, small_dit, small_vae

from ims3_ray.cli import main
from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.method import difffit
from ims3_ray.method.ddim import ddim_step, noise_of, with_guidance
from ims3_ray.method.schedule import alphas_bar
from ims3_ray.models.checkpoints import load_transformer
from ims3_ray.models.convert import save_pipeline
from ims3_ray.models.generator import inspect_generator
from ims3_ray.models.vae import Vae, read_vae
from ims3_ray.stages.finetune import stage as finetune

SCALE = 4.0


def tuned_dit(values, **changes):
    dit = small_dit(**changes)
    difffit.load_adapter(dit, values)
    return dit.requires_grad_(False)


@pytest.fixture
def convert(tmp_path, capsys):
    """convert(checkpoint, *options, out="out", code=0) → the folder and all output."""

    def convert(checkpoint, *options, out="out", code=0):
        words = ["--checkpoint", checkpoint, *options, "--out", tmp_path / out]
        assert main(["convert", *map(str, words)]) == code
        return tmp_path / out, "".join(capsys.readouterr())

    return convert


def plain(path):
    pipeline = DiTPipeline.from_pretrained(path)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def output_in_diffusers(path):
    """Output of the pipeline's model for `inputs()`; its null label is 1000."""
    x, t, y = inputs()
    return plain(path).transformer(x, timestep=t, class_labels=torch.where(y == 10, 1000, y)).sample


def sampled_by_diffusers(path, labels):
    """Images (b, 3, height, width) in [0, 1] after two guided steps of the plain pipeline."""
    draws = seeded(5)
    return plain(path)(
        labels, guidance_scale=SCALE, num_inference_steps=2, generator=draws, output_type="pt"
    ).images


@torch.no_grad()
def sampled_by_us(dit, folder, labels):
    """The same two DDIM steps, 500 → 0 → clean, by this package."""
    z = torch.randn(len(labels), 4, 8, 8, generator=seeded(5))
    abar = alphas_bar()
    predict = with_guidance(dit, dit.null_label, scale=SCALE, channels=z.shape[1])
    for t, abar_to in ((500, abar[0]), (0, torch.tensor(1.0))):
        eps = noise_of(predict(z, torch.full((len(z),), t), torch.tensor(labels)), z.shape[1])
        z = ddim_step(z, eps, abar_from=abar[t].float(), abar_to=abar_to.float())
    return Vae(read_vae(folder / "vae"), 16).decode(z) / 2 + 0.5


def stated_difference(printed):
    return float(printed.split("differ from ours by ")[1].split()[0])


def test_an_original_file_samples_the_same_images_in_diffusers(convert, folder, original):
    out, printed = convert(original, "--vae", folder / "vae", "--heads", 4)
    images = sampled_by_diffusers(out, [3, 7])
    assert images.shape == (2, 3, 16, 16)
    assert images.std() > 0.01
    dit = load_transformer(out, frequency_shift=1.0)
    torch.testing.assert_close(images, sampled_by_us(dit, out, [3, 7]), atol=1e-4, rtol=0)
    assert "10 classes" in printed


@pytest.mark.parametrize("weights", ["ema", "last"])
def test_a_folder_with_an_adapter_samples_the_same_images_in_diffusers(convert, tmp_path, folder, weights):
    values = small_adapter(tmp_path / "adapter")
    out, printed = convert(folder, "--adapter", tmp_path / "adapter", "--weights", weights)
    images, dit = sampled_by_diffusers(out, [3, 7]), tuned_dit(values[weights])
    torch.testing.assert_close(images, sampled_by_us(dit, out, [3, 7]), atol=1e-4, rtol=0)
    torch.testing.assert_close(output_in_diffusers(out), dit(*inputs()), atol=1e-5, rtol=1e-5)
    assert (images - sampled_by_us(load_transformer(folder), folder, [3, 7])).abs().max() > 0.01
    assert f"{weights} values of the adapter merged" in printed
    ast.parse(next_commands(printed)["look"][2])


def test_the_outputs_of_a_diffusers_checkpoint_differ_only_by_round_off(convert, folder):
    _, printed = convert(folder)
    assert stated_difference(printed) < 1e-5
    assert "fp32 round-off" in printed
    assert "frequency shift" not in printed


def test_the_outputs_of_an_original_checkpoint_differ_by_the_frequency_shift(
    convert, tmp_path, folder, original
):
    # the second time from the converted folder
    for checkpoint, name in ((original, "one"), (tmp_path / "one", "two")):
        out, printed = convert(checkpoint, "--vae", folder, "--heads", 4, out=name)
        with torch.no_grad():
            theirs, ours = output_in_diffusers(out), load_transformer(original, heads=4)(*inputs())
        measured = float((theirs - ours).norm() / ours.norm())  # on other inputs than the command's
        assert 1e-3 < measured < 0.5
        assert measured / 3 < stated_difference(printed) < measured * 3
        assert "frequency shift" in printed
        assert float(printed.split("timestep frequencies ")[1].split(":")[0]) < 1e-5


def test_a_padded_folder_loads_without_its_padding(convert, tmp_path, folder):
    out, _ = convert(folder)
    table = load_file(out / "transformer" / WEIGHTS)
    assert table["transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"].shape[0] == 1001
    plain(out).save_pretrained(tmp_path / "again")  # diffusers keeps the extra fields
    for path in (out, tmp_path / "again", tmp_path / "again" / "transformer"):
        dit = load_transformer(path)
        assert (dit.config.num_classes, dit.null_label) == (10, 10)
        expected = small_dit().state_dict()
        assert all(torch.equal(value, dit.state_dict()[name]) for name, value in expected.items())
    assert inspect_generator(out).id2label == NAMES


def test_class_names_are_the_checkpoints_the_runs_or_imagenets(convert, tmp_path, folder):
    assert plain(convert(folder)[0]).get_label_ids(["class 3"]) == [3]
    values = small_adapter(tmp_path / "adapter", own_classes=["blue", "red"], num_classes=2)
    out, _ = convert(folder, "--adapter", tmp_path / "adapter", out="own")
    assert plain(out).get_label_ids(["red"]) == [1]
    table = load_transformer(out).y_embedder.embedding_table.weight
    assert torch.equal(table, values["ema"]["y_embedder.embedding_table.weight"])
    file = original_file(tmp_path / "imagenet.pt", small_dit(num_classes=1000, frequency_shift=0.0))
    out, _ = convert(file, "--vae", folder, "--heads", 4, out="imagenet")
    assert plain(out).get_label_ids(["white shark", "umbrella"]) == [2, 879]
    assert inspect_generator(out).config.num_classes == 1000


def test_more_classes_than_the_pipelines_null_label_allow_no_guidance(convert, tmp_path):
    save_pipeline(small_dit(num_classes=1200), small_vae(), tmp_path / "many")
    out, printed = convert(tmp_path / "many")
    assert "guidance_scale=1" in printed
    assert load_transformer(out).config.num_classes == 1200
    images = plain(out)([1100], guidance_scale=1.0, num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 16, 16, 3)


def test_half_precision_is_stored_and_weights_beyond_its_range_are_refused(convert, tmp_path, folder):
    out, printed = convert(folder, "--dtype", "fp16")
    assert {value.dtype for value in load_file(out / "transformer" / WEIGHTS).values()} == {torch.float16}
    assert 1e-5 < stated_difference(printed) < 1e-2
    assert "fp16 round-off" in printed
    large = small_dit()
    large.blocks[0].attn.proj.bias.data.fill_(1e6)  # beyond fp16
    save_pipeline(large, small_vae(), tmp_path / "large")
    before = sorted(tmp_path.iterdir())
    assert "dtype" in convert(tmp_path / "large", "--dtype", "fp16", out="other", code=2)[1]
    assert sorted(tmp_path.iterdir()) == before


def test_an_adapter_keeps_the_frequency_shift_of_its_training(convert, tmp_path, folder):
    values = small_adapter(tmp_path / "adapter", frequency_shift=0)
    out, printed = convert(folder, "--adapter", tmp_path / "adapter")
    assert "frequency shift" in printed
    ours, expected = load_transformer(out), tuned_dit(values["ema"], frequency_shift=0.0)
    torch.testing.assert_close(ours(*inputs()), expected(*inputs()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("class_map", "own"), [("new", ["blue", "red"]), ("null", None)])
def test_fine_tuning_records_classes_and_frequency_shift_of_its_adapter(
    tmp_path, monkeypatch, class_map, own
):
    monkeypatch.setattr(finetune, "train", lambda *a, **k: [])
    monkeypatch.setattr(finetune, "read_manifest", lambda directory: {"rows": 8})
    monkeypatch.setattr(finetune.LatentSource, "load_metadata", lambda source: None)
    config = load_config(
        "digits", parse_overrides([f"data.class_map={class_map}", "model.frequency_shift=0"])
    )
    context = SimpleNamespace(
        config=config,
        classes=("blue", "red"),
        model_labels=[0, 1],
        machine=None,
        storage=tmp_path,
        tuned_model=lambda: None,
        on_metrics=print,
    )
    details = finetune.run(context, tmp_path / "out", None, None)
    assert (details["own_classes"], details["frequency_shift"]) == (own, 0)
