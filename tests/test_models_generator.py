"""Loading, inspecting and saving generators: folders, original files, and everything that must be refused."""

import argparse
import json
import pickle

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, UNet2DModel
from safetensors.torch import load_file, save_file

from ims3_ray.errors import InputError
from ims3_ray.method import difffit
from ims3_ray.models import generator as generators
from ims3_ray.models.checkpoints import inspect_transformer
from ims3_ray.models.dit import DiT, DiTConfig
from ims3_ray.models.generator import (
    inspect_generator,
    load_generator,
    load_transformer,
    resolve_model,
    save_pipeline,
    with_new_classes,
)

NAMES = [f"class {label}" for label in range(10)]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def small_dit(**changes) -> DiT:
    sizes = {"sample_size": 8, "hidden_size": 32, "depth": 2, "num_heads": 4, "num_classes": 10, "frequency_shift": 1.0}
    return DiT(DiTConfig(**sizes | changes)).initialize(torch.Generator().manual_seed(0), zero_outputs=False).eval()


def small_vae(**changes) -> AutoencoderKL:
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4, "scaling_factor": 0.5}
    sizes |= {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKL(**sizes | changes).eval()


@pytest.fixture
def folder(tmp_path):
    """A pipeline folder with 10 classes, 8x8 latents and 16x16 images."""
    save_pipeline(small_dit(), small_vae(), tmp_path / "model", id2label=NAMES)
    return tmp_path / "model"


def inputs(num_classes: int = 10):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 4, 8, 8, generator=generator), torch.tensor([0, 500, 999]), torch.tensor([1, 2, num_classes])


def edit(path, change) -> None:
    """Change the JSON object in a file."""
    held = json.loads(path.read_text())
    change(held)
    path.write_text(json.dumps(held))


def original_file(path, dit: DiT | None = None, **held):
    torch.save(held or (dit or small_dit()).state_dict(), path)
    return path


def test_saved_pipeline_runs_in_diffusers_and_gives_our_output(tmp_path):
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
        torch.testing.assert_close(load_transformer(tmp_path / "out")(x, t, y), dit(x, t, y), atol=1e-5, rtol=0)
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
    assert pipeline([3], guidance_scale=4.0, num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 3)
    x, t, y = inputs()
    theirs = pipeline.transformer(x, timestep=t, class_labels=torch.where(y == 10, 1000, y)).sample
    torch.testing.assert_close(theirs, dit(x, t, y), atol=1e-5, rtol=0)
    loaded = load_generator(tmp_path / "out").transformer
    assert torch.equal(loaded.y_embedder.embedding_table.weight, dit.y_embedder.embedding_table.weight)


def test_frequency_shift_survives_saving_and_can_be_overridden(tmp_path):
    dit = small_dit(frequency_shift=0.0)
    save_pipeline(dit, small_vae(), tmp_path / "out")
    x, t, y = inputs()
    torch.testing.assert_close(load_transformer(tmp_path / "out")(x, t, y), dit(x, t, y), atol=1e-6, rtol=0)
    assert load_transformer(tmp_path / "out", frequency_shift=1.0).config.frequency_shift == 1.0


def test_half_precision_files_load_as_fp32(tmp_path):
    save_pipeline(small_dit(), small_vae(), tmp_path / "out", dtype=torch.float16)
    assert {value.dtype for value in load_file(tmp_path / "out/transformer" / WEIGHTS).values()} == {torch.float16}
    loaded = load_generator(tmp_path / "out")
    for module in (loaded.transformer, loaded.vae):
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    x, t, y = inputs()
    torch.testing.assert_close(loaded.transformer(x, t, y), small_dit()(x, t, y), atol=0.02, rtol=0)


def test_encoding_gives_the_scaled_posterior_and_decoding_undoes_the_scaling(folder):
    loaded = load_generator(folder)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, logvar = loaded.encode(images)
    posterior = small_vae().encode(images).latent_dist
    assert mean.shape == logvar.shape == (2, *loaded.latent_shape)
    torch.testing.assert_close(mean, posterior.mean * 0.5)
    torch.testing.assert_close((logvar / 2).exp(), posterior.std * 0.5)
    decoded = small_vae().decode(posterior.mean).sample
    torch.testing.assert_close(loaded.decode(mean), decoded.clamp(-1, 1), atol=1e-5, rtol=0)
    assert loaded.decode(mean * 1e4).abs().max() <= 1


def test_bf16_generator_encodes_and_decodes_fp32_tensors(folder):
    loaded = load_generator(folder, dtype=torch.bfloat16)
    mean, _ = loaded.encode(torch.zeros(1, 3, 16, 16))
    assert mean.dtype == loaded.decode(mean).dtype == torch.float32


def test_inspecting_tells_what_loading_gives(folder):
    info, loaded = inspect_generator(folder), load_generator(folder)
    assert (info.kind, info.num_classes, info.image_size, info.id2label) == ("diffusers", 10, 16, NAMES)
    assert (info.config, info.latent_shape) == (loaded.transformer.config, (4, 8, 8))
    assert (info.image_size, info.num_classes) == (loaded.image_size, loaded.num_classes)
    assert info.transformer_parameters == sum(p.numel() for p in loaded.transformer.parameters())
    assert info.vae_parameters == sum(p.numel() for p in loaded.vae.parameters())


def test_inspecting_and_loading_need_no_network_and_leave_the_global_generator_alone(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("network call")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    before = torch.get_rng_state()
    inspect_generator(folder)
    load_generator(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_original_file_loads_with_a_vae(tmp_path, folder):
    path = original_file(tmp_path / "DiT.pt", small_dit(frequency_shift=0.0))
    info = inspect_generator(path, vae=folder, heads=4)
    assert (info.kind, info.image_size, info.config.frequency_shift, info.id2label) == ("original", 16, 0.0, None)
    x, t, y = inputs()
    loaded = load_generator(path, vae=folder / "vae", heads=4).transformer
    assert torch.equal(loaded(x, t, y), small_dit(frequency_shift=0.0)(x, t, y))


def test_ema_weights_are_preferred_in_a_training_file(tmp_path):
    ema, model = small_dit().state_dict(), small_dit(num_classes=7).state_dict()
    arguments = argparse.Namespace(model="DiT-S/2")
    path = original_file(tmp_path / "0050000.pt", model=model, ema=ema, opt={"state": {}}, args=arguments)
    assert load_transformer(path, heads=4).config.num_classes == 10


def test_heads_of_the_published_sizes_are_known_and_others_asked_for(tmp_path):
    for heads, hidden_size, depth in ((6, 384, 12), (12, 768, 12), (16, 1024, 24), (16, 1152, 28)):
        config = DiTConfig(sample_size=32, hidden_size=hidden_size, depth=depth, num_heads=heads, num_classes=1000)
        with torch.device("meta"):
            shapes = {name: value.shape for name, value in DiT(config).state_dict().items()}
        file = original_file(
            tmp_path / "DiT.pt", **{name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
        )
        assert inspect_transformer(file).config == config
    with pytest.raises(InputError, match="give it as heads"):
        load_transformer(original_file(tmp_path / "small.pt"))


def test_pickled_code_is_refused_and_not_run(tmp_path):
    ran = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return open, (str(ran), "w")

    torch.save({"ema": small_dit().state_dict(), "extra": Bomb()}, tmp_path / "zip.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    for name in ("zip.pt", "bare.pt"):
        with pytest.raises(InputError, match="holds more than plain tensors"):
            load_transformer(tmp_path / name, heads=4)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda s: s.pop("blocks.1.attn.proj.bias"), r"missing: blocks\.1\.attn\.proj\.bias"),
        (lambda s: s.update({"blocks.0.extra": torch.ones(1)}), r"left over: blocks\.0\.extra"),
        (
            lambda s: s.update({"blocks.1.attn.proj.bias": torch.ones(5)}),
            r"another shape: blocks\.1\.attn\.proj\.bias is \(5,\), not \(32,\)",
        ),
        (lambda s: s.pop("x_embedder.proj.weight"), "no original DiT checkpoint"),
    ],
)
def test_every_key_of_an_original_file_is_accounted_for(tmp_path, spoil, told):
    state = small_dit().state_dict()
    spoil(state)
    torch.save(state, tmp_path / "DiT.pt")
    with pytest.raises(InputError, match=told):
        load_transformer(tmp_path / "DiT.pt", heads=4)


def test_damaged_files_are_refused(tmp_path, folder):
    (tmp_path / "text.pt").write_text("not a checkpoint")
    torch.save([1, 2], tmp_path / "list.pt")
    whole = original_file(tmp_path / "whole.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    for name in ("text.pt", "list.pt", "half.pt"):
        with pytest.raises(InputError, match=name):
            load_transformer(tmp_path / name, heads=4)
    weights = folder / "transformer" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="no whole safetensors file"):
        inspect_generator(folder)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda s: s.pop("proj_out_1.bias"), r"missing: proj_out_1\.bias"),
        (lambda s: s.update({"extra": torch.ones(1)}), "left over: extra"),
        (
            lambda s: s["transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"].add_(1),
            r"transformer_blocks\.1\.norm1\.emb\.class_embedder\.embedding_table\.weight differs from that of block 0",
        ),
        (
            lambda s: s["transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias"].add_(1),
            r"timestep_embedder\.linear_2\.bias differs from that of block 0",
        ),
    ],
)
def test_every_key_of_a_folder_is_accounted_for(folder, spoil, told):
    state = load_file(folder / "transformer" / WEIGHTS)
    spoil(state)
    save_file(state, folder / "transformer" / WEIGHTS)
    with pytest.raises(InputError, match=told):
        load_generator(folder)


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("transformer/config.json", {"sample_size": "8"}, "sample_size must be a whole number, not '8'"),
        ("transformer/config.json", {"num_layers": 3}, "missing: transformer_blocks.2"),
        ("transformer/config.json", {"num_embeds_ada_norm": 12}, r"is \(11, 32\), not \(13, 32\)"),
        ("transformer/config.json", {"norm_elementwise_affine": True}, "norm_elementwise_affine must be False"),
        ("transformer/config.json", {"_class_name": "UNet2DModel"}, "describes a UNet2DModel"),
        ("transformer/config.json", {"patch_size": 3}, "must be a multiple of patch_size"),
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "is a StableDiffusionPipeline"),
        ("model_index.json", {"id2label": {"0": "one"}}, "must name the labels 0 to 9"),
        ("vae/config.json", {"latent_channels": 16}, "latents have 16 channels, the transformer takes 4"),
        ("vae/config.json", {"_class_name": "VQModel"}, "describes a VQModel"),
        ("vae/config.json", {"shift_factor": 0.1}, "never shifted"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "scaled_linear"}, "must be 'linear'"),
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, "must be 'epsilon'"),
    ],
)
def test_folder_that_does_not_fit_is_refused_before_loading(folder, file, change, told):
    edit(folder / file, lambda held: held.update(change))
    with pytest.raises(InputError, match=told) as caught:
        inspect_generator(folder)
    assert "\n" not in str(caught.value)


def test_vae_with_missing_weights_is_refused(folder):
    state = load_file(folder / "vae" / WEIGHTS)
    state.pop("decoder.conv_in.bias")
    save_file(state, folder / "vae" / WEIGHTS)
    with pytest.raises(InputError, match=r"missing: decoder\.conv_in\.bias"):
        load_generator(folder)


def test_folders_of_another_kind_are_refused(tmp_path, folder):
    with pytest.raises(InputError, match="no such model file or folder"):
        inspect_generator(tmp_path / "absent")
    UNet2DModel(
        sample_size=8, block_out_channels=(8,), norm_num_groups=4, down_block_types=["DownBlock2D"],
        up_block_types=["UpBlock2D"],
    ).save_pretrained(tmp_path / "unet")  # fmt: skip
    with pytest.raises(InputError, match="describes a UNet2DModel"):
        inspect_generator(tmp_path / "unet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        inspect_generator(tmp_path / "empty")
    with pytest.raises(InputError, match="brings no VAE"):
        inspect_generator(folder / "transformer")
    (folder / "transformer" / WEIGHTS).unlink()
    with pytest.raises(InputError, match="holds no weights"):
        inspect_generator(folder)


def test_hub_id_out_of_reach_is_told_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="someone/some-model: no such folder here") as caught:
        resolve_model("someone/some-model")
    assert "\n" not in str(caught.value)


def test_models_of_the_package_are_named_not_pathed(tmp_path, monkeypatch):
    (tmp_path / "pretrained" / "digits").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    monkeypatch.setattr("ims3_ray.models.files.files", lambda package: tmp_path)
    assert resolve_model("package://digits") == tmp_path / "pretrained" / "digits"
    for name in ("package://other", "package://../outside", "package://"):
        with pytest.raises(InputError, match="it brings digits"):
            resolve_model(name)


def test_new_classes_keep_the_null_row_and_all_else():
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


def test_saving_never_overwrites_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "kept.txt").write_text("kept")
    with pytest.raises(InputError, match="new or empty folder"):
        save_pipeline(small_dit(), small_vae(), out)
    assert [path.name for path in out.iterdir()] == ["kept.txt"]

    def fail(*args, **kwargs):
        raise RuntimeError("disk full")

    monkeypatch.setattr(generators.DiTPipeline, "save_pretrained", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        save_pipeline(small_dit(), small_vae(), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_class_names_must_fit_the_model_that_is_saved(tmp_path):
    with pytest.raises(InputError, match="id2label has 9 names, the model 10 classes"):
        save_pipeline(small_dit(), small_vae(), tmp_path / "out", id2label=NAMES[:9])
