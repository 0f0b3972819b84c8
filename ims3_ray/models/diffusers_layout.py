"""Convert our DiT to diffusers' layout and back: names, configuration, tensors.

diffusers uses other names, splits qkv in three, and copies the timestep and class embedders into every block.
Its class table is padded if its pipeline must guide with label 1000.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ims3_ray.errors import InputError
from ims3_ray.method import difffit

from .dit import DiT, DiTConfig, position_table
from .files import read_json

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel

CLASS_TABLE = "y_embedder.embedding_table.weight"

# our layer → diffusers' layer
_WHOLE = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
_PER_BLOCK = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
_COPIED = {  # one in ours, one per block in diffusers'
    "t_embedder.mlp.0": "norm1.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "norm1.emb.timestep_embedder.linear_2",
}
_QKV = ("attn1.to_q", "attn1.to_k", "attn1.to_v")  # thirds of our attn.qkv
DIFFUSERS_DEFAULTS = {  # of DiTTransformer2DModel, for values missing in a configuration
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "dropout": 0.0,
    "norm_num_groups": 32,
    "attention_bias": True,
    "sample_size": 32,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "upcast_attention": False,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-5,
}
# must have their default values
_FIXED = ("norm_type", "activation_fn", "attention_bias", "norm_elementwise_affine", "dropout")
_SIZES = (
    *("sample_size", "patch_size", "in_channels", "num_layers"),
    *("num_attention_heads", "attention_head_dim", "num_embeds_ada_norm"),
)
# Facts that diffusers' configuration cannot express; it ignores names with an underscore.
SHIFT_KEY, CLASSES_KEY = "_frequency_shift", "_num_classes"
DIFFUSERS_SHIFT = 1.0  # of the timestep frequencies that diffusers computes, see DiTConfig


def read_settings(path: Path) -> dict[str, Any]:
    """Return the configuration of a diffusers DiT, defaults filled in. Raises InputError for other models."""
    stored = read_json(path)
    if stored.get("_class_name") not in (
        "DiTTransformer2DModel",
        "Transformer2DModel",
    ):  # the latter before 2024
        raise InputError(f"{path}: must describe a DiTTransformer2DModel, not a {stored.get('_class_name')}")
    settings: dict[str, Any] = DIFFUSERS_DEFAULTS | stored
    for name in _FIXED:
        if settings[name] != (value := DIFFUSERS_DEFAULTS[name]):
            raise InputError(f"{path}: {name} must be {value!r} for a DiT, not {settings[name]!r}")
    for name in _SIZES:
        if not isinstance(settings[name], int):
            raise InputError(f"{path}: {name} must be a whole number, not {settings[name]!r}")
    max_classes = settings["num_embeds_ada_norm"]
    classes = settings.setdefault(CLASSES_KEY, max_classes)
    if not isinstance(classes, int) or not 1 <= classes <= max_classes:
        raise InputError(
            f"{path}: {CLASSES_KEY} must be a whole number from 1 to num_embeds_ada_norm {max_classes}, not "
            f"{classes!r}"
        )
    return settings


def export_transformer(dit: DiT, null_label: int | None = None) -> "DiTTransformer2DModel":
    """Return diffusers' model with the same values (fp32, CPU, eval), scales folded in; `dit` is not changed.

    The outputs agree to round-off if the frequency shift is 1, diffusers' own; the configuration records the
    shift for `load_transformer`. `null_label` pads the class table with copies of the null row up to that
    label, because diffusers' pipeline always guides with label 1000; the number of classes is recorded then.
    Raises InputError for a DiT that diffusers' model cannot express.
    """
    if difffit.has_scales(dit) or any(
        p.device.type != "cpu" or p.dtype != torch.float32 for p in dit.parameters()
    ):
        dit = copy.deepcopy(dit).to("cpu", torch.float32)
        difffit.fold(dit)
    config = dit.config
    classes = max(config.num_classes, null_label or 0)
    if not torch.allclose(dit.pos_embed, dit.fixed_positions(), atol=1e-4):
        raise InputError("position table: is not the fixed one, which diffusers' models compute themselves")
    if config.mlp_ratio != 4:
        raise InputError(f"mlp_ratio: must be 4 for diffusers, not {config.mlp_ratio}")
    from diffusers import DiTTransformer2DModel  # slow import

    with torch.device("meta"):
        exported = DiTTransformer2DModel(
            num_attention_heads=config.num_heads,
            attention_head_dim=config.hidden_size // config.num_heads,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            num_layers=config.depth,
            sample_size=config.sample_size,
            patch_size=config.patch_size,
            num_embeds_ada_norm=classes,
            norm_eps=config.norm_eps,
        )
    exported.register_to_config(**{SHIFT_KEY: config.frequency_shift})
    if classes != config.num_classes:
        exported.register_to_config(**{CLASSES_KEY: config.num_classes})
    exported.load_state_dict(to_diffusers(dit.state_dict(), config, classes + 1), assign=True)
    cast(nn.Module, exported.pos_embed).pos_embed = dit.pos_embed.clone()
    return exported.requires_grad_(True).eval()


def _diffusers_names(depth: int) -> dict[str, tuple[str, int | None]]:
    """Map each tensor of diffusers' model to ours and to its third of it (None: all of it)."""
    layers: dict[str, tuple[str, int | None]] = {theirs: (ours, None) for ours, theirs in _WHOLE.items()}
    names: dict[str, tuple[str, int | None]] = {}
    for i in range(depth):
        block = f"transformer_blocks.{i}"
        names[f"{block}.norm1.emb.class_embedder.embedding_table.weight"] = (CLASS_TABLE, None)
        layers |= {f"{block}.{theirs}": (ours, None) for ours, theirs in _COPIED.items()}
        layers |= {f"{block}.{theirs}": (f"blocks.{i}.{ours}", None) for ours, theirs in _PER_BLOCK.items()}
        layers |= {f"{block}.{theirs}": (f"blocks.{i}.attn.qkv", third) for third, theirs in enumerate(_QKV)}
    for theirs, (ours, third) in layers.items():
        for part in ("weight", "bias"):
            names[f"{theirs}.{part}"] = (f"{ours}.{part}", third)
    return names


def to_diffusers(state: Mapping[str, Tensor], config: DiTConfig, table_rows: int) -> dict[str, Tensor]:
    """Copy our tensors under diffusers' names; the class table is padded with its null row."""
    table = state[CLASS_TABLE]
    state = {**state, CLASS_TABLE: torch.cat([table, table[-1:].expand(table_rows - len(table), -1)])}
    return {
        theirs: (state[ours] if third is None else state[ours].chunk(3)[third]).clone()
        for theirs, (ours, third) in _diffusers_names(config.depth).items()
    }


def from_diffusers(tensors: Mapping[str, Tensor], config: DiTConfig, source: Path) -> dict[str, Tensor]:
    """Return a diffusers model's tensors, names already checked, under our names.

    Raises InputError if the blocks' embedders differ, because ours has one, or if padding rows of the class
    table are not the null row.
    """
    state: dict[str, Tensor] = {}
    for theirs, (ours, third) in _diffusers_names(config.depth).items():  # thirds come in order
        if third:
            state[ours] = torch.cat([state[ours], tensors[theirs]])
        elif ours in state and not torch.equal(state[ours], tensors[theirs]):
            raise InputError(
                f"{source}: {theirs} differs from that of block 0; models with embedders per block are not "
                "supported"
            )
        else:
            state[ours] = tensors[theirs]
    table = state[CLASS_TABLE]
    if not torch.equal(table[config.num_classes :], table[-1:].expand(len(table) - config.num_classes, -1)):
        raise InputError(
            f"{source}: has {len(table) - 1} classes, but config.json has {CLASSES_KEY} {config.num_classes}"
        )
    state[CLASS_TABLE] = table[[*range(config.num_classes), -1]]
    state["pos_embed"] = position_table(config.sample_size // config.patch_size, config.hidden_size)
    return state
