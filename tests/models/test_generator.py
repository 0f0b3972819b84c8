"""Generators: loading, saving, encoding, new classes."""

import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline
from safetensors.torch import load_file
from tiny_generator import NAMES, WEIGHTS, edit, inputs, original_file, seeded, small_dit, small_vae

from ims3_ray.errors import InputError
from ims3_ray.method import difffit
from ims3_ray.models.checkpoints import load_transformer
from ims3_ray.models.convert import save_pipeline
from ims3_ray.models.diffusers_layout import export_transformer
from ims3_ray.models.finetuned import with_new_classes
from ims3_ray.models.generator import inspect_generator, load_vae


def vae_of(folder, dtype=torch.float32):
    return load_vae(folder, device=torch.device("cpu"), dtype=dtype)


def test_saved_pipeline_runs_in_diffusers_with_our_output(tmp_path):
    dit = small_dit()
    difffit.prepare(dit)
    for name, parameter in dit.named_parameters():
        if name.endswith(difffit.SCALE_NAMES):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    x, t, y = inputs()
    with torch.no_grad():
        expected = dit(x, t, y)
        save_pipeline(dit, small_vae(), tmp_path / "out", id2label=NAMES)
        assert torch.equal(dit(x, t, y), expected)
        pipeline = DiTPipeline.from_pretrained(tmp_path / "out")
        theirs = pipeline.transformer(x, timestep=t, class_labels=y).sample
        for output in (theirs, load_transformer(tmp_path / "out")(x, t, y)):
            torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
    assert pipeline.get_label_ids(["class 3"]) == [3]
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    schedule = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    assert schedule.items() <= pipeline.scheduler.config.items()
    assert pipeline.scheduler.config.clip_sample is False
    images = pipeline([3, 4], guidance_scale=1.0, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 16, 16, 3)


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


def test_half_precision_files_load_as_fp32(tmp_path):
    save_pipeline(small_dit(), small_vae(), tmp_path / "out", dtype=torch.float16)
    stored = load_file(tmp_path / "out/transformer" / WEIGHTS).values()
    assert {value.dtype for value in stored} == {torch.float16}
    dit = load_transformer(tmp_path / "out")
    for module in (dit, vae_of(tmp_path / "out").model):
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    torch.testing.assert_close(dit(*inputs()), small_dit()(*inputs()), atol=0.02, rtol=0)


def test_encoding_scales_the_posterior_and_decoding_undoes_it(folder):
    vae = vae_of(folder)
    images = torch.rand(2, 3, 16, 16, generator=seeded(0)) * 2 - 1
    mean, logvar = vae.encode(images)
    posterior = small_vae().encode(images).latent_dist
    assert mean.shape == logvar.shape == (2, *inspect_generator(folder).config.latent_shape)
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
    assert (info.kind, info.image_size, info.id2label) == ("diffusers", 16, NAMES)
    assert (info.config, info.config.num_classes, info.config.latent_shape) == (dit.config, 10, (4, 8, 8))
    assert info.transformer_parameters == sum(p.numel() for p in dit.parameters())
    assert info.vae_parameters == sum(p.numel() for p in vae_of(folder).model.parameters())


def test_loading_needs_no_network_and_no_global_generator(folder, monkeypatch):
    for name in ("socket.connect", "getaddrinfo"):
        monkeypatch.setattr(f"socket.{name}", lambda *args, **kwargs: pytest.fail("network call"))
    before = torch.get_rng_state()
    load_transformer(folder)
    vae_of(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_original_file_loads_with_a_vae(tmp_path, folder):
    dit = small_dit(frequency_shift=0.0)
    path = original_file(tmp_path / "DiT.pt", dit)
    info = inspect_generator(path, vae=folder, heads=4)
    assert (info.kind, info.image_size, info.config.frequency_shift) == ("original", 16, 0.0)
    assert info.id2label is None
    assert torch.equal(load_transformer(path, heads=4)(*inputs()), dit(*inputs()))


def test_new_classes_share_the_null_row_and_all_else():
    dit = small_dit()
    extended = with_new_classes(dit, 3, seeded(0))
    table, old = extended.y_embedder.embedding_table.weight, dit.y_embedder.embedding_table.weight
    assert extended.config.num_classes == 3
    assert table.shape == (4, 32)
    assert torch.equal(table[-1], old[-1])
    assert (table[:3] - old[:-1].mean(0)).std().item() == pytest.approx(0.02, rel=0.3)
    x, t, _ = inputs()
    null = torch.full((3,), 10)
    assert torch.equal(extended(x, t, torch.full((3,), 3)), dit(x, t, null))
    again = with_new_classes(dit, 3, seeded(0))
    assert torch.equal(again.y_embedder.embedding_table.weight, table)
    assert dit.y_embedder.embedding_table.weight.shape == (11, 32)


def test_saving_never_overwrites_and_leaves_no_partial_folder(tmp_path, monkeypatch):
    kept = tmp_path / "out" / "kept.txt"
    kept.parent.mkdir()
    kept.write_text("kept")
    with pytest.raises(InputError, match="new or empty"):
        save_pipeline(small_dit(), small_vae(), tmp_path / "out")

    def fail(*args, **kwargs):
        raise RuntimeError("disk full")

    monkeypatch.setattr(DiTPipeline, "save_pretrained", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        save_pipeline(small_dit(), small_vae(), tmp_path / "new")
    assert list(tmp_path.rglob("*")) == [kept.parent, kept]


def test_class_names_must_fit_the_saved_model(tmp_path):
    with pytest.raises(InputError, match=r"id2label: .*9"):
        save_pipeline(small_dit(), small_vae(), tmp_path / "out", id2label=NAMES[:9])
