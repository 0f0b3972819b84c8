"""Generators: loading, saving, encoding, new classes."""

import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline
from safetensors.torch import load_file
from tiny_generator import NAMES, WEIGHTS, edit, inputs, original_file, small_dit, small_vae

from ims3_ray.errors import InputError
from ims3_ray.method import difffit
from ims3_ray.models.checkpoints import load_transformer
from ims3_ray.models.convert import save_pipeline
from ims3_ray.models.diffusers_layout import export_transformer
from ims3_ray.models.finetuned import with_new_classes
from ims3_ray.models.generator import inspect_generator, load_vae


@pytest.fixture
def folder(tmp_path):
    """A pipeline folder with 10 classes, 8x8 latents and 16x16 images."""
    save_pipeline(small_dit(), small_vae(), tmp_path / "model", id2label=NAMES)
    return tmp_path / "model"


def vae_of(folder, dtype=torch.float32):
    return load_vae(folder, device=torch.device("cpu"), dtype=dtype)


def test_saved_pipeline_runs_in_diffusers_with_our_output(tmp_path):
    dit = small_dit()
    difffit.prepare(dit)
    for name, parameter in dit.named_parameters():
        if name.endswith(difffit.SCALE_NAMES):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    save_pipeline(dit, small_vae(), tmp_path / "out", id2label=NAMES)
    pipeline = DiTPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    x, t, y = inputs()
    with torch.no_grad():
        theirs = pipeline.transformer(x, timestep=t, class_labels=y).sample
        torch.testing.assert_close(theirs, dit(x, t, y), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            load_transformer(tmp_path / "out")(x, t, y), dit(x, t, y), atol=1e-5, rtol=0
        )
    assert pipeline.get_label_ids(["class 3"]) == [3]
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    schedule = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    assert {name: pipeline.scheduler.config[name] for name in schedule} == schedule
    assert pipeline.scheduler.config.clip_sample is False
    images = pipeline([3, 4], guidance_scale=1.0, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 16, 16, 3)


def test_padded_pipeline_is_guided_by_diffusers_and_loads_unpadded(tmp_path):
    dit = small_dit()
    save_pipeline(dit, small_vae(), tmp_path / "out", id2label=NAMES, null_label=1000)
    pipeline = DiTPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    guided = pipeline([3], guidance_scale=4.0, num_inference_steps=2, output_type="np").images
    assert guided.shape == (1, 16, 16, 3)
    x, t, y = inputs()
    theirs = pipeline.transformer(x, timestep=t, class_labels=torch.where(y == 10, 1000, y)).sample
    torch.testing.assert_close(theirs, dit(x, t, y), atol=1e-5, rtol=0)
    loaded = load_transformer(tmp_path / "out")
    assert torch.equal(loaded.y_embedder.embedding_table.weight, dit.y_embedder.embedding_table.weight)


def test_folder_that_may_be_converted_from_an_original_needs_a_frequency_shift(tmp_path):
    """diffusers' conversion drops the shift of a DiT-S/2; folders written by ims3 record it."""
    sizes = {"hidden_size": 384, "depth": 12, "num_heads": 6, "num_classes": 3, "sample_size": 4}
    original = original_file(tmp_path / "DiT.pt", small_dit(**sizes, frequency_shift=0.0))
    folder = tmp_path / "converted"
    export_transformer(load_transformer(original)).save_pretrained(folder)
    assert load_transformer(folder).config.frequency_shift == 0
    edit(folder / "config.json", lambda held: [held.pop(name) for name in ("_frequency_shift", "norm_eps")])
    with pytest.raises(InputError, match=r"model\.frequency_shift"):
        load_transformer(folder)
    assert load_transformer(folder, frequency_shift=0).config == load_transformer(original).config


def test_frequency_shift_survives_saving_and_can_be_overridden(tmp_path):
    dit = small_dit(frequency_shift=0.0)
    save_pipeline(dit, small_vae(), tmp_path / "out")
    x, t, y = inputs()
    torch.testing.assert_close(load_transformer(tmp_path / "out")(x, t, y), dit(x, t, y), atol=1e-6, rtol=0)
    assert load_transformer(tmp_path / "out").config.frequency_shift == 0.0
    assert load_transformer(tmp_path / "out", frequency_shift=1.0).config.frequency_shift == 1.0


def test_half_precision_files_load_as_fp32(tmp_path):
    save_pipeline(small_dit(), small_vae(), tmp_path / "out", dtype=torch.float16)
    assert {value.dtype for value in load_file(tmp_path / "out/transformer" / WEIGHTS).values()} == {
        torch.float16
    }
    dit = load_transformer(tmp_path / "out")
    for module in (dit, vae_of(tmp_path / "out").model):
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    x, t, y = inputs()
    torch.testing.assert_close(dit(x, t, y), small_dit()(x, t, y), atol=0.02, rtol=0)


def test_encoding_scales_the_posterior_and_decoding_undoes_it(folder):
    vae = vae_of(folder)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, logvar = vae.encode(images)
    posterior = small_vae().encode(images).latent_dist
    assert mean.shape == logvar.shape == (2, *inspect_generator(folder).latent_shape)
    torch.testing.assert_close(mean, posterior.mean * 0.5)
    torch.testing.assert_close((logvar / 2).exp(), posterior.std * 0.5)
    decoded = small_vae().decode(posterior.mean).sample
    torch.testing.assert_close(vae.decode(mean), decoded.clamp(-1, 1), atol=1e-5, rtol=0)
    assert vae.decode(mean * 1e4).abs().max() <= 1


def test_bf16_vae_encodes_and_decodes_fp32_tensors(folder):
    vae = vae_of(folder, torch.bfloat16)
    mean, _ = vae.encode(torch.zeros(1, 3, 16, 16))
    assert mean.dtype == vae.decode(mean).dtype == torch.float32


def test_inspected_facts_equal_the_loaded_model(folder):
    info, dit = inspect_generator(folder), load_transformer(folder)
    assert (info.kind, info.num_classes, info.image_size, info.id2label) == ("diffusers", 10, 16, NAMES)
    assert (info.config, info.latent_shape) == (dit.config, (4, 8, 8))
    assert info.transformer_parameters == sum(p.numel() for p in dit.parameters())
    assert info.vae_parameters == sum(p.numel() for p in vae_of(folder).model.parameters())


def test_loading_needs_no_network_and_no_global_generator(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("network call")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    before = torch.get_rng_state()
    load_transformer(folder)
    vae_of(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_original_file_loads_with_a_vae(tmp_path, folder):
    path = original_file(tmp_path / "DiT.pt", small_dit(frequency_shift=0.0))
    info = inspect_generator(path, vae=folder, heads=4)
    assert (info.kind, info.image_size, info.config.frequency_shift) == ("original", 16, 0.0)
    assert info.id2label is None
    x, t, y = inputs()
    loaded = load_transformer(path, heads=4)
    assert torch.equal(loaded(x, t, y), small_dit(frequency_shift=0.0)(x, t, y))


def test_new_classes_share_the_null_row_and_all_else():
    dit = small_dit()
    extended = with_new_classes(dit, 3, torch.Generator().manual_seed(0))
    table, old = extended.y_embedder.embedding_table.weight, dit.y_embedder.embedding_table.weight
    assert extended.config.num_classes == 3
    assert table.shape == (4, 32)
    assert torch.equal(table[-1], old[-1])
    assert (table[:3] - old[:-1].mean(0)).std().item() == pytest.approx(0.02, rel=0.3)
    x, t, _ = inputs()
    null = torch.full((3,), 10)
    assert torch.equal(extended(x, t, torch.full((3,), 3)), dit(x, t, null))
    again = with_new_classes(dit, 3, torch.Generator().manual_seed(0))
    assert torch.equal(again.y_embedder.embedding_table.weight, table)
    assert dit.y_embedder.embedding_table.weight.shape == (11, 32)


def test_saving_never_overwrites_and_leaves_no_partial_folder(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "kept.txt").write_text("kept")
    with pytest.raises(InputError, match="new or empty folder"):
        save_pipeline(small_dit(), small_vae(), out)
    assert [path.name for path in out.iterdir()] == ["kept.txt"]

    def fail(*args, **kwargs):
        raise RuntimeError("disk full")

    monkeypatch.setattr(DiTPipeline, "save_pretrained", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        save_pipeline(small_dit(), small_vae(), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_class_names_must_fit_the_saved_model(tmp_path):
    with pytest.raises(InputError, match="id2label: has 9 names for 10 classes"):
        save_pipeline(small_dit(), small_vae(), tmp_path / "out", id2label=NAMES[:9])
