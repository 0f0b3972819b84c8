"""Our DiT against diffusers' model and the paper's equations."""

import inspect
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel
from tiny_generator import seeded

from ims3_ray.models.checkpoints import load_transformer
from ims3_ray.models.diffusers_layout import DIFFUSERS_DEFAULTS
from ims3_ray.models.dit import DiT, DiTConfig

SIZES = {"sample_size": 8, "hidden_size": 48, "depth": 3, "num_heads": 4, "num_classes": 10}


def small_dit() -> DiT:
    """A random DiT without zero values."""
    generator = seeded(0)
    dit = DiT(DiTConfig(**SIZES)).eval().initialize(generator, zero_outputs=False)
    for name, parameter in dit.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return dit


def inputs(dit: DiT):
    """Latents at several timesteps, with first, last and null labels."""
    config = dit.config
    labels = torch.tensor([0, dit.null_label, config.num_classes - 1, 3, dit.null_label])
    shape = (len(labels), config.in_channels, config.sample_size, config.sample_size)
    latents = torch.randn(shape, generator=seeded(1))
    return latents, torch.tensor([0, 1, 37, 500, 999]), labels


def paper_dit(state: dict[str, torch.Tensor], heads: int, latents, timesteps, labels):
    """DiT with adaLN-zero, as the paper and its checkpoints define it."""

    def linear(name, x):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()

    def attention(name, x):
        batch, tokens, width = x.shape
        query, key, value = (
            part.reshape(batch, tokens, heads, -1).transpose(1, 2)
            for part in linear(f"{name}.qkv", x).split(width, -1)
        )
        weights = (query @ key.transpose(-1, -2) / math.sqrt(width // heads)).softmax(-1)
        return linear(f"{name}.proj", (weights @ value).transpose(1, 2).reshape(batch, tokens, width))

    patch = state["x_embedder.proj.weight"].shape[-1]
    x = F.conv2d(latents, state["x_embedder.proj.weight"], state["x_embedder.proj.bias"], stride=patch)
    side = x.shape[-1]
    x = x.flatten(2).transpose(1, 2) + state["pos_embed"]
    angles = timesteps[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    sinusoids = torch.cat([angles.cos(), angles.sin()], 1).to(latents.dtype)
    conditioning = linear("t_embedder.mlp.0", sinusoids)
    conditioning = (
        linear("t_embedder.mlp.2", F.silu(conditioning)) + state["y_embedder.embedding_table.weight"][labels]
    )
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    for i in range(depth):
        modulation = linear(f"blocks.{i}.adaLN_modulation.1", F.silu(conditioning))[:, None]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.chunk(6, -1)
        x = x + gate_a * attention(f"blocks.{i}.attn", norm(x) * (1 + scale_a) + shift_a)
        hidden = linear(f"blocks.{i}.mlp.fc1", norm(x) * (1 + scale_m) + shift_m)
        x = x + gate_m * linear(f"blocks.{i}.mlp.fc2", F.gelu(hidden, approximate="tanh"))
    shift, scale = linear("final_layer.adaLN_modulation.1", F.silu(conditioning))[:, None].chunk(2, -1)
    x = linear("final_layer.linear", norm(x) * (1 + scale) + shift)
    # b, row, column, patch row, patch column, c
    rows = x.unflatten(-1, (patch, patch, -1)).unflatten(1, (side, side))
    return rows.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def original_state() -> dict[str, torch.Tensor]:
    """Random tensors with the names and shapes of a published checkpoint: width 48, depth 2, 10 classes."""
    generator = seeded(0)
    layers = {"t_embedder.mlp.0": (48, 256), "t_embedder.mlp.2": (48, 48), "x_embedder.proj": (48, 4, 2, 2)}
    layers |= {"final_layer.linear": (32, 48), "final_layer.adaLN_modulation.1": (96, 48)}
    for i in range(2):
        layers |= {f"blocks.{i}.attn.qkv": (144, 48), f"blocks.{i}.attn.proj": (48, 48)}
        layers |= {f"blocks.{i}.mlp.fc1": (192, 48), f"blocks.{i}.mlp.fc2": (48, 192)}
        layers |= {f"blocks.{i}.adaLN_modulation.1": (288, 48)}
    shapes = {"y_embedder.embedding_table.weight": (11, 48)}
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    state = {name: torch.randn(shape, generator=generator) * 0.15 for name, shape in shapes.items()}
    return state | {"pos_embed": fixed_positions(4, 48)}


def fixed_positions(side: int, width: int) -> torch.Tensor:
    """The paper's table by entries: one half for the column, one for the row; sines, then cosines."""
    quarter = width // 4
    table = torch.empty(1, side * side, 2, 2, quarter)
    for row, column, k in itertools.product(range(side), range(side), range(quarter)):
        for half, position in enumerate((column, row)):
            angle = position / 10000 ** (k / quarter)
            values = torch.tensor([math.sin(angle), math.cos(angle)])
            table[0, row * side + column, half, :, k] = values
    return table.flatten(2)


def test_original_checkpoint_equals_the_papers_equations(tmp_path):
    state = original_state()
    torch.save(state, tmp_path / "DiT.pt")
    dit = load_transformer(tmp_path / "DiT.pt", heads=4).double()
    x, t, y = inputs(dit)
    expected = paper_dit({name: value.double() for name, value in state.items()}, 4, x.double(), t, y)
    assert expected.std() > 0.1
    torch.testing.assert_close(dit(x.double(), t, y), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("norm_eps", [1e-6, 1e-1])
def test_output_equals_diffusers_model_in_eval_mode(tmp_path, norm_eps):
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 4, "attention_head_dim": 12, "num_layers": 3, "sample_size": 8}
    sizes |= {"in_channels": 4, "out_channels": 8, "num_embeds_ada_norm": 10}
    theirs = DiTTransformer2DModel(**sizes, norm_eps=norm_eps).eval()
    for name, parameter in theirs.named_parameters():  # diffusers initialises the embedders per block
        torch.nn.init.normal_(parameter, std=0.15)
        if ".norm1.emb." in name:
            part = name.split(".norm1.emb.")[1]
            parameter.data.copy_(theirs.get_parameter(f"transformer_blocks.0.norm1.emb.{part}"))
    theirs.save_pretrained(tmp_path)
    dit = load_transformer(tmp_path)
    x, t, y = inputs(dit)
    with torch.no_grad():
        expected = theirs(x, timestep=t, class_labels=y).sample
        assert expected.std() > 0.1
        torch.testing.assert_close(dit(x, t, y), expected, atol=1e-5, rtol=0)


def test_default_settings_equal_diffusers():
    parameters = inspect.signature(DiTTransformer2DModel.__init__).parameters.values()
    assert {p.name: p.default for p in parameters if p.name != "self"} == DIFFUSERS_DEFAULTS


def test_fresh_model_predicts_zero_unless_outputs_are_drawn():
    dit = DiT(DiTConfig(**SIZES))
    x, t, y = inputs(dit)
    assert dit.initialize(seeded(0))(x, t, y).abs().max() == 0
    assert dit.initialize(seeded(0), zero_outputs=False)(x, t, y).std() > 0.1


def test_initial_values_depend_only_on_the_generator():
    def drawn(seed, global_seed):
        torch.manual_seed(global_seed)
        return DiT(DiTConfig(**SIZES)).initialize(seeded(seed)).state_dict()

    first, again, other = drawn(0, 1), drawn(0, 2), drawn(3, 1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])


def test_latents_of_another_size_are_refused():
    dit = small_dit()
    with pytest.raises(ValueError, match=r"latents: must be \(batch, 4, 8, 8\)"):
        dit(torch.zeros(1, 4, 16, 16), torch.zeros(1), torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize(
    ("field", "value", "num_heads"),
    [
        ("num_heads", 5, 5),
        ("sample_size", 7, 4),
        ("depth", 0, 4),
        ("out_channels", 5, 4),
        ("hidden_size", 50, 5),
    ],
)
def test_impossible_sizes_are_refused(field, value, num_heads):
    with pytest.raises(ValueError, match="DiTConfig"):
        DiTConfig(**SIZES | {"num_heads": num_heads, field: value})
