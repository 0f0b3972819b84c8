"""Model files and folders: strict reading, one-line refusals."""

import argparse
import re

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file
from tiny_generator import WEIGHTS, edit, inputs, original_file, seeded, small_dit, small_vae
from torchvision.datasets import FashionMNIST

from ims3_ray.errors import InputError
from ims3_ray.method import difffit
from ims3_ray.models.checkpoints import inspect_transformer, load_transformer
from ims3_ray.models.dit import DiT, DiTConfig
from ims3_ray.models.extractor import load_extractor
from ims3_ray.models.files import resolve_model
from ims3_ray.models.generator import inspect_generator, load_vae
from ims3_ray.models.vae import read_vae


def test_ema_weights_of_a_training_file_are_preferred(tmp_path):
    ema, model = small_dit().state_dict(), small_dit(num_classes=7).state_dict()
    arguments = argparse.Namespace(model="DiT-S/2")
    path = original_file(tmp_path / "0050000.pt", model=model, ema=ema, opt={"state": {}}, args=arguments)
    assert load_transformer(path, heads=4).config.num_classes == 10


@pytest.fixture
def tuned_original():
    """A DiT with random DiffFit scales, and its tensors under the published names."""
    dit = small_dit(frequency_shift=0.0)
    difffit.add_scales(dit)
    draws = seeded(2)
    for name, value in dit.named_parameters():
        if name.endswith(difffit.SCALE_NAMES):
            value.data.add_(0.3 * torch.randn(value.shape, generator=draws))
    names = {
        "attn.qkv_scale": "attn.gamma1",
        "attn.proj_scale": "attn.gamma2",
        "attention_scale": "gamma1",
        "mlp_scale": "gamma2",
    }
    state = {}
    for name, value in dit.state_dict().items():
        inside = name.split(".", 2)[-1] if name.startswith("blocks.") else name
        state[name.removesuffix(inside) + names.get(inside, inside)] = value
    return dit, state


def test_scales_of_a_published_fine_tuned_file_are_folded_in(tmp_path, tuned_original):
    dit, state = tuned_original
    assert sum("gamma" in name for name in state) == 4
    path = original_file(tmp_path / "0008000.pt", ema=state, args=argparse.Namespace(tag="im"))
    loaded = load_transformer(path, heads=4)
    assert not difffit.has_scales(loaded)
    torch.testing.assert_close(loaded(*inputs()), dit(*inputs()), rtol=1e-5, atol=1e-6)
    assert (loaded(*inputs()) - small_dit(frequency_shift=0.0)(*inputs())).abs().max() > 1e-3


def test_scales_that_do_not_fit_are_refused(tmp_path, tuned_original):
    _, state = tuned_original
    path = original_file(tmp_path / "DiT.pt", **state | {"blocks.0.attn.gamma1": torch.ones(32)})
    with pytest.raises(InputError, match=r"blocks\.0\.attn\.gamma1 is \(32,\), not \(96,\)"):
        load_transformer(path, heads=4)
    path = original_file(tmp_path / "DiT.pt", **state | {"blocks.7.gamma3": torch.ones(32)})
    with pytest.raises(InputError, match=r"blocks\.7"):
        load_transformer(path, heads=4)


def test_heads_are_known_only_for_published_sizes(tmp_path):
    for heads, hidden_size, depth in ((6, 384, 12), (12, 768, 12), (16, 1024, 24), (16, 1152, 28)):
        config = DiTConfig(
            sample_size=32, hidden_size=hidden_size, depth=depth, num_heads=heads, num_classes=1000
        )
        with torch.device("meta"):
            shapes = {name: value.shape for name, value in DiT(config).state_dict().items()}
        file = original_file(
            tmp_path / "DiT.pt", **{name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
        )
        assert inspect_transformer(file).config == config
    with pytest.raises(InputError, match="--heads"):
        load_transformer(original_file(tmp_path / "small.pt"))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda s: s.pop("blocks.1.attn.proj.bias"), r"missing: blocks\.1\.attn\.proj\.bias"),
        (
            lambda s: s.update({"blocks.1.attn.proj.bias": torch.ones(5)}),
            r"another shape: blocks\.1\.attn\.proj\.bias is \(5,\), not \(32,\)",
        ),
        (lambda s: s.pop("x_embedder.proj.weight"), r"x_embedder\.proj\.weight"),
    ],
)
def test_original_file_with_other_keys_is_refused(tmp_path, spoil, problem):
    state = small_dit().state_dict()
    spoil(state)
    torch.save(state, tmp_path / "DiT.pt")
    with pytest.raises(InputError, match=problem):
        load_transformer(tmp_path / "DiT.pt", heads=4)


def test_damaged_files_are_refused(tmp_path, folder):
    (tmp_path / "text.pt").write_text("not a checkpoint")
    (tmp_path / "none.pt").touch()
    for name, content in {"list": [1, 2], "no": {}, "ema": {"ema": {}}, "number": {1: torch.ones(2)}}.items():
        torch.save(content, tmp_path / f"{name}.pt")
    whole = original_file(tmp_path / "whole.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    for path in tmp_path.glob("*.pt"):
        if path.name != "whole.pt":
            with pytest.raises(InputError, match=path.name):
                load_transformer(path, heads=4)
    weights = folder / "transformer" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match=WEIGHTS):
        inspect_generator(folder)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda s: s.pop("proj_out_1.bias"), r"missing: proj_out_1\.bias"),
        (
            lambda s: s["transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"].add_(1),
            r"1\.norm1\.emb\.class_embedder\.embedding_table\.weight differs",
        ),
    ],
)
def test_folder_with_other_keys_is_refused(folder, spoil, problem):
    state = load_file(folder / "transformer" / WEIGHTS)
    spoil(state)
    save_file(state, folder / "transformer" / WEIGHTS)
    with pytest.raises(InputError, match=problem):
        load_transformer(folder)


@pytest.mark.parametrize(
    ("file", "change", "problem"),
    [
        ("transformer/config.json", {"sample_size": "8"}, "sample_size must be a whole number, not '8'"),
        ("transformer/config.json", {"num_embeds_ada_norm": 12}, r"is \(11, 32\), not \(13, 32\)"),
        (
            "transformer/config.json",
            {"norm_elementwise_affine": True},
            "norm_elementwise_affine must be False",
        ),
        ("transformer/config.json", {"_class_name": "UNet2DModel"}, "not a UNet2DModel"),
        (
            "transformer/config.json",
            {"_num_classes": 11},
            "_num_classes must be a whole number from 1 to .* 10, not 11",
        ),
        ("transformer/config.json", {"patch_size": 3}, "must be a multiple of patch_size"),
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "not a StableDiffusionPipeline"),
        ("model_index.json", {"id2label": {"0": "one"}}, "id2label"),
        ("vae/config.json", {"latent_channels": 16}, "latents have 16 channels, the transformer takes 4"),
        ("vae/config.json", {"_class_name": "VQModel"}, "not a VQModel"),
        ("vae/config.json", {"shift_factor": 0.1}, "shift_factor"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "scaled_linear"}, "must be 'linear'"),
    ],
)
def test_inconsistent_folder_is_refused_before_loading(folder, file, change, problem):
    edit(folder / file, lambda config: config.update(change))
    with pytest.raises(InputError, match=problem) as caught:
        inspect_generator(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_non_finite_weights_are_refused_by_name(folder, part):
    file = folder / part / WEIGHTS
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[-1] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"{part}.*not finite \({re.escape(name)}\)"):
        load_transformer(folder) if part == "transformer" else read_vae(folder / part)


def test_folders_of_another_kind_are_refused(tmp_path, folder):
    with pytest.raises(InputError, match="no such model file or folder"):
        inspect_generator(tmp_path / "absent")
    UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=["DownBlock2D"],
        up_block_types=["UpBlock2D"],
    ).save_pretrained(tmp_path / "unet")
    with pytest.raises(InputError, match="not a UNet2DModel"):
        inspect_generator(tmp_path / "unet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        inspect_generator(tmp_path / "empty")
    with pytest.raises(InputError, match="--vae"):
        inspect_generator(folder / "transformer")
    for part in ("vae", "transformer"):
        (folder / part / WEIGHTS).unlink()
        with pytest.raises(InputError, match=f"{part}: has no weights"):
            inspect_generator(folder)


def test_hub_ids_of_transformer_and_vae_load_only_their_files(hub, monkeypatch, tmp_path, folder):
    (folder / "samples").mkdir()
    (folder / "samples" / "dog.png").write_bytes(b"large")
    monkeypatch.chdir(tmp_path)
    x, t, y = inputs()
    on = {"device": torch.device("cpu"), "dtype": torch.float32}
    hub.push("someone/pipeline", folder)
    hub.push("someone/vae", folder / "vae")
    assert torch.equal(load_transformer("someone/pipeline")(x, t, y), small_dit()(x, t, y))
    assert not list((tmp_path / "cache").rglob("*.png"))
    original = original_file(tmp_path / "DiT.pt")
    assert load_vae(original, vae="someone/vae", heads=4, **on).image_size == 16


def test_packaged_models_are_names_not_paths(tmp_path, monkeypatch):
    (tmp_path / "pretrained" / "digits").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    monkeypatch.setattr("ims3_ray.models.files.files", lambda package: tmp_path)
    assert resolve_model("package://digits") == tmp_path / "pretrained" / "digits"
    for name in ("package://other", "package://../outside", "package://"):
        with pytest.raises(InputError, match="choose from: digits"):
            resolve_model(name)


@pytest.mark.parametrize(
    ("name", "classes", "licence"),
    [("digits", "0123456789", "apache-2.0"), ("fashion", FashionMNIST.classes, "mit")],
)
def test_packaged_model_is_small_licensed_and_has_class_names(name, classes, licence):
    folder = resolve_model(f"package://{name}")
    info = inspect_generator(folder)
    assert set(info.id2label or ()) == {label.replace("/", "-") for label in classes}
    assert info.image_size == 32
    load_extractor(f"package://{name}")
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 10e6
    assert f"license: {licence}\n" in (folder / "README.md").read_text()
    weights = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}


def test_vae_of_another_image_size_is_refused_if_the_size_is_known(tmp_path, folder):
    deeper = {"block_out_channels": (8,) * 3, "down_block_types": ["DownEncoderBlock2D"] * 3}
    small_vae(**deeper, up_block_types=["UpDecoderBlock2D"] * 3).save_pretrained(tmp_path / "deeper")
    with pytest.raises(InputError, match=r"32 pixels, but .* is for 16 pixels"):
        inspect_generator(folder, vae=tmp_path / "deeper")
    named = original_file(tmp_path / "DiT-S-2-16x16.pt")
    assert inspect_generator(named, vae=folder, heads=4).image_size == 16
    with pytest.raises(InputError, match=r"DiT-S-2-16x16\.pt is for 16 pixels"):
        inspect_generator(named, vae=tmp_path / "deeper", heads=4)
    unnamed = original_file(tmp_path / "mine.pt")
    assert inspect_generator(unnamed, vae=tmp_path / "deeper", heads=4).image_size == 32


def test_path_without_a_vae_is_refused(tmp_path, folder):
    file = original_file(tmp_path / "DiT.pt")
    for vae, problem in (
        (file, r"DiT\.pt/config\.json: no such file"),
        (tmp_path, r"config\.json: no such file"),
    ):
        with pytest.raises(InputError, match=problem):
            inspect_generator(file, vae=vae, heads=4)
    with pytest.raises(InputError, match="--vae"):
        inspect_generator(file, heads=4)


def test_vae_weights_with_older_attention_names_load(folder):
    """The VAEs published for DiT (sd-vae-ft-ema and -mse) have these names."""
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(folder / "vae" / WEIGHTS)
    for new, old in older.items():
        for name in [name for name in state if f".{new}." in name]:
            state[name.replace(f".{new}.", f".{old}.")] = state.pop(name)
    assert any(".proj_attn." in name for name in state)
    before = read_vae(folder / "vae").state_dict()
    save_file(state, folder / "vae" / WEIGHTS)
    after = read_vae(folder / "vae").state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
