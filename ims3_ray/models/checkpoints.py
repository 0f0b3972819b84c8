"""Transformer checkpoints: original DiT files and diffusers folders, read strictly; diffusers models, made.

Our parameter names are the original's. diffusers has its own names, splits qkv in three, and holds a copy of
the timestep and class embedders in every block. Original files show every size but the number of heads.
"""

import copy
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from ims3_ray.errors import InputError
from ims3_ray.method import difffit

from .dit import DiT, DiTConfig, position_table
from .files import check_shapes, find_weights, read_json, read_shapes, read_tensors, resolve_model, shapes_of

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel

# DiT-S, B, L, XL by (hidden size, depth)
KNOWN_HEADS = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1152, 28): 16}
CLASS_TABLE = "y_embedder.embedding_table.weight"

# Layers of ours -> diffusers'.
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
_COPIED = {  # held once in ours, by every block in diffusers'
    "t_embedder.mlp.0": "norm1.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "norm1.emb.timestep_embedder.linear_2",
}
_QKV = ("attn1.to_q", "attn1.to_k", "attn1.to_v")  # the thirds of our attn.qkv
DIFFUSERS_DEFAULTS = {  # of DiTTransformer2DModel, for configurations that leave a value out
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
# those whose defaults this architecture fixes
_FIXED = ("norm_type", "activation_fn", "attention_bias", "norm_elementwise_affine", "dropout")
_SIZES = (
    *("sample_size", "patch_size", "in_channels", "num_layers"),
    *("num_attention_heads", "attention_head_dim", "num_embeds_ada_norm"),
)
# What diffusers' configuration has no word for. It ignores names with an underscore.
_SHIFT_KEY, _CLASSES_KEY = "_frequency_shift", "_num_classes"


class Checkpoint(NamedTuple):
    """A transformer checkpoint whose names and shapes were checked, its tensors not yet read."""

    kind: Literal["diffusers", "original"]
    files: list[Path]
    config: DiTConfig
    # of the class table as stored; more than classes + 1 where diffusers' pipeline needs padding
    table_rows: int


def load_transformer(path: str | Path, heads: int | None = None, frequency_shift: float | None = None) -> DiT:
    """The transformer of a diffusers folder, pipeline or not, original DiT file or hub id: fp32, CPU, eval.

    `heads` tells the number of attention heads of an original file of unusual size. `frequency_shift`
    overrides the one that goes with the checkpoint's kind (diffusers 1, original 0). Raises InputError that
    lists the keys that are missing, left over or of another shape.
    """
    checkpoint = inspect_transformer(resolve_model(path), heads, frequency_shift)
    tensors = read_tensors(checkpoint.files)
    if checkpoint.kind == "diffusers":
        tensors = _from_diffusers(tensors, checkpoint)
    with torch.device("meta"):
        dit = DiT(checkpoint.config)
    dit.load_state_dict(
        {name: value.to(torch.float32, copy=True) for name, value in tensors.items()}, assign=True
    )
    return dit.requires_grad_(True).eval()


def inspect_transformer(
    path: Path, heads: int | None = None, frequency_shift: float | None = None
) -> Checkpoint:
    """What a local checkpoint is, from JSON and file headers; InputError as in `load_transformer`."""
    try:
        return (_inspect_folder if path.is_dir() else _inspect_original)(path, heads, frequency_shift)
    except InputError:
        raise
    except ValueError as error:  # a size that DiTConfig refuses
        raise InputError(f"{path}: {error}") from error


def _inspect_original(path: Path, heads: int | None, frequency_shift: float | None) -> Checkpoint:
    shapes = read_shapes([path])
    patches, mlp, final = "x_embedder.proj.weight", "blocks.0.mlp.fc1.weight", "final_layer.linear.weight"
    needed = (patches, "pos_embed", CLASS_TABLE, mlp, final)
    if missing := [name for name in needed if name not in shapes]:
        raise InputError(
            f"{path}: is no original DiT checkpoint (it has no {missing[0]}); give such a file or a folder"
        )
    (hidden_size, in_channels, patch_size, _), rows = shapes[patches], shapes[CLASS_TABLE][0]
    depth = 1 + max(int(match[1]) for name in shapes if (match := re.match(r"blocks\.(\d+)\.", name)))
    heads = KNOWN_HEADS.get((hidden_size, depth)) if heads is None else heads
    if heads is None:
        raise InputError(
            f"{path}: hidden size {hidden_size} and depth {depth} are of no known DiT, and the file does not "
            "show the number of attention heads; give it as heads (--heads, model.heads)"
        )
    config = DiTConfig(
        sample_size=math.isqrt(shapes["pos_embed"][1]) * patch_size,
        patch_size=patch_size,
        in_channels=in_channels,
        out_channels=shapes[final][0] // patch_size**2,
        hidden_size=hidden_size,
        depth=depth,
        num_heads=heads,
        num_classes=rows - 1,
        mlp_ratio=shapes[mlp][0] / hidden_size,
        frequency_shift=0.0 if frequency_shift is None else frequency_shift,
        norm_eps=1e-6,
    )
    check_shapes(shapes, shapes_of(_meta_state(config)), path, f"an original DiT of {depth} blocks")
    return Checkpoint("original", [path], config, rows)


def _inspect_folder(path: Path, heads: int | None, frequency_shift: float | None) -> Checkpoint:
    if (path / "model_index.json").is_file():
        held = read_json(path / "model_index.json").get("_class_name")
        if held != "DiTPipeline":
            raise InputError(f"{path}: must be a class-conditional DiTPipeline, but is a {held}")
        path = path / "transformer"
    elif (path / "transformer" / "config.json").is_file():
        path = path / "transformer"
    settings = _diffusers_settings(path / "config.json")
    if heads not in (None, settings["num_attention_heads"]):
        raise InputError(
            f"heads is {heads}, but {path}/config.json says {settings['num_attention_heads']}; leave it out"
        )
    rows = settings["num_embeds_ada_norm"] + 1
    config = DiTConfig(
        sample_size=settings["sample_size"],
        patch_size=settings["patch_size"],
        in_channels=settings["in_channels"],
        out_channels=settings["out_channels"] or settings["in_channels"],
        hidden_size=settings["num_attention_heads"] * settings["attention_head_dim"],
        depth=settings["num_layers"],
        num_heads=settings["num_attention_heads"],
        num_classes=settings[_CLASSES_KEY],
        frequency_shift=settings.get(_SHIFT_KEY, 1.0) if frequency_shift is None else frequency_shift,
        norm_eps=settings["norm_eps"],
    )
    weights = find_weights(path)
    expected = shapes_of(_to_diffusers(_meta_state(config), config, rows))
    check_shapes(read_shapes(weights), expected, path, "the model that its config.json describes")
    return Checkpoint("diffusers", weights, config, rows)


def _diffusers_settings(path: Path) -> dict[str, Any]:
    """The configuration of a diffusers transformer, defaults filled in; InputError unless it is a DiT."""
    given = read_json(path)
    # the latter: before 2024
    if given.get("_class_name") not in ("DiTTransformer2DModel", "Transformer2DModel"):
        raise InputError(
            f"{path}: must describe a DiTTransformer2DModel, but describes a {given.get('_class_name')}"
        )
    settings: dict[str, Any] = DIFFUSERS_DEFAULTS | given
    for name in _FIXED:
        if settings[name] != (value := DIFFUSERS_DEFAULTS[name]):
            raise InputError(f"{path}: {name} must be {value!r} for a DiT, not {settings[name]!r}")
    for name in _SIZES:
        if not isinstance(settings[name], int):
            raise InputError(f"{path}: {name} must be a whole number, not {settings[name]!r}")
    most = settings["num_embeds_ada_norm"]
    classes = settings.setdefault(_CLASSES_KEY, most)
    if not isinstance(classes, int) or not 1 <= classes <= most:
        raise InputError(
            f"{path}: {_CLASSES_KEY} must be a whole number from 1 to num_embeds_ada_norm {most}, not "
            f"{classes!r}"
        )
    return settings


def export_transformer(dit: DiT, null_label: int | None = None) -> "DiTTransformer2DModel":
    """diffusers' model with the same values (fp32, CPU, eval), scales folded in; `dit` stays as it is.

    Its output is that of `dit` to round-off where the frequency shift is 1, diffusers' own. Another shift is
    noted in the configuration for `load_transformer`. `null_label` pads the class table with copies of the
    null row up to that label, since diffusers' pipeline guides with label 1000 however many classes there
    are; the number of classes is noted then. Raises InputError for a DiT that diffusers' model cannot
    express.
    """
    if difffit.has_scales(dit) or any(
        p.device.type != "cpu" or p.dtype != torch.float32 for p in dit.parameters()
    ):
        dit = copy.deepcopy(dit).to("cpu", torch.float32)
        difffit.fold(dit)
    config = dit.config
    classes = max(config.num_classes, null_label or 0)
    if not torch.allclose(dit.pos_embed, dit.fixed_positions(), atol=1e-4):
        raise InputError(
            "this DiT's position table is not the fixed one that diffusers' models compute for themselves"
        )
    if config.mlp_ratio != 4:
        raise InputError(
            f"a DiT with mlp_ratio {config.mlp_ratio} has no form in diffusers, whose models have 4"
        )
    from diffusers import DiTTransformer2DModel  # seconds to import, and needed here alone

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
    if config.frequency_shift != 1:
        exported.register_to_config(**{_SHIFT_KEY: config.frequency_shift})
    if classes != config.num_classes:
        exported.register_to_config(**{_CLASSES_KEY: config.num_classes})
    exported.load_state_dict(_to_diffusers(dit.state_dict(), config, classes + 1), assign=True)
    cast(nn.Module, exported.pos_embed).pos_embed = dit.pos_embed.clone()
    return exported.requires_grad_(True).eval()


def _diffusers_names(depth: int) -> dict[str, tuple[str, int | None]]:
    """Every tensor of diffusers' model -> the one of ours that holds it, and which third (None: all)."""
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


def _to_diffusers(state: Mapping[str, Tensor], config: DiTConfig, table_rows: int) -> dict[str, Tensor]:
    """Copies of our tensors under diffusers' names, the class table padded with its null row."""
    table = state[CLASS_TABLE]
    state = {**state, CLASS_TABLE: torch.cat([table, table[-1:].expand(table_rows - len(table), -1)])}
    return {
        theirs: (state[ours] if third is None else state[ours].chunk(3)[third]).clone()
        for theirs, (ours, third) in _diffusers_names(config.depth).items()
    }


def _from_diffusers(tensors: Mapping[str, Tensor], checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Tensors of a diffusers model whose names were checked, under ours.

    InputError where the embedders of its blocks differ (ours holds one), or where rows that pad the class
    table are not the null row.
    """
    config, source = checkpoint.config, checkpoint.files[0]
    state: dict[str, Tensor] = {}
    for theirs, (ours, third) in _diffusers_names(config.depth).items():  # thirds come in order
        if third:
            state[ours] = torch.cat([state[ours], tensors[theirs]])
        elif ours in state and not torch.equal(state[ours], tensors[theirs]):
            raise InputError(
                f"{source}: {theirs} differs from that of block 0; such a model, tuned block by block, can't "
                "be loaded"
            )
        else:
            state[ours] = tensors[theirs]
    table = state[CLASS_TABLE]
    if not torch.equal(table[config.num_classes :], table[-1:].expand(len(table) - config.num_classes, -1)):
        raise InputError(
            f"{source}: has {len(table) - 1} classes, not the {config.num_classes} of {_CLASSES_KEY} in its "
            "config.json"
        )
    state[CLASS_TABLE] = table[[*range(config.num_classes), -1]]
    state["pos_embed"] = position_table(config.sample_size // config.patch_size, config.hidden_size)
    return state


def _meta_state(config: DiTConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return DiT(config).state_dict()
