"""Transformer checkpoints, read strictly: original DiT files, whose parameter names are ours, and diffusers
folders. Original files show every size but the number of heads.

Files that the published code of Minimax Diffusion and IMS3 tuned are original files with DiffFit's scales,
which are folded into the layers that they scale: tuned or not, a checkpoint is read as a plain DiT.
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ims3_ray.errors import InputError

from .diffusers_layout import (
    CLASS_TABLE,
    CLASSES_KEY,
    DIFFUSERS_SHIFT,
    SHIFT_KEY,
    from_diffusers,
    read_settings,
    to_diffusers,
)
from .dit import NORM_EPS, DiT, DiTConfig
from .files import check_shapes, find_weights, read_json, read_shapes, read_tensors, resolve_model, shapes_of

# DiT-S, B, L, XL by (hidden size, depth), which the original code trains and diffusers folders come from
KNOWN_HEADS = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1152, 28): 16}
# DiffFit's scales in a block, as published files name them → the layer whose output each scales
PUBLISHED_SCALES = {
    "attn.gamma1": "attn.qkv",
    "attn.gamma2": "attn.proj",
    "gamma1": "attn.proj",
    "gamma2": "mlp.fc2",
}


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
    overrides the one that goes with the checkpoint: 0 for an original file; for a folder the one that its
    configuration notes, else diffusers' 1. 0 for a folder that notes none says that it was converted from an
    original file, as which it is read. Raises InputError that lists the keys that are missing, left over or
    of another shape, and where a folder may have been converted so and notes no shift.
    """
    checkpoint = inspect_transformer(resolve_model(path), heads, frequency_shift)
    tensors = read_tensors(checkpoint.files)
    if checkpoint.kind == "diffusers":
        tensors = from_diffusers(tensors, checkpoint.config, checkpoint.files[0])
    else:
        tensors = _fold_published_scales(tensors)
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
    if odd := [n for n, size in zip(needed, (4, 3, 2, 2, 2), strict=True) if len(shapes[n]) != size]:
        shape = f"its {odd[0]} is {shapes[odd[0]]}"
        raise InputError(f"{path}: is no original DiT checkpoint ({shape}); give such a file or a folder")
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
        norm_eps=NORM_EPS,
    )
    expected = shapes_of(_meta_state(config))
    scales = {name: expected[f"{layer}.bias"] for name, layer in _published_scales(shapes).items()}
    check_shapes(shapes, expected | scales, path, f"an original DiT of {depth} blocks")
    return Checkpoint("original", [path], config, rows)


def _inspect_folder(path: Path, heads: int | None, frequency_shift: float | None) -> Checkpoint:
    if (path / "model_index.json").is_file():
        held = read_json(path / "model_index.json").get("_class_name")
        if held != "DiTPipeline":
            raise InputError(f"{path}: must be a class-conditional DiTPipeline, but is a {held}")
        path = path / "transformer"
    elif (path / "transformer" / "config.json").is_file():
        path = path / "transformer"
    settings = read_settings(path / "config.json")
    if heads not in (None, settings["num_attention_heads"]):
        raise InputError(
            f"heads is {heads}, but {path}/config.json says {settings['num_attention_heads']}; leave it out"
        )
    rows = settings["num_embeds_ada_norm"] + 1
    hidden_size = settings["num_attention_heads"] * settings["attention_head_dim"]
    if (
        frequency_shift == 0 and SHIFT_KEY not in settings
    ):  # converted: diffusers' default is not the original's
        settings["norm_eps"] = NORM_EPS
    if frequency_shift is None:
        frequency_shift = _frequency_shift(path, settings, hidden_size)
    config = DiTConfig(
        sample_size=settings["sample_size"],
        patch_size=settings["patch_size"],
        in_channels=settings["in_channels"],
        out_channels=settings["out_channels"] or settings["in_channels"],
        hidden_size=hidden_size,
        depth=settings["num_layers"],
        num_heads=settings["num_attention_heads"],
        num_classes=settings[CLASSES_KEY],
        frequency_shift=frequency_shift,
        norm_eps=settings["norm_eps"],
    )
    weights = find_weights(path)
    expected = shapes_of(to_diffusers(_meta_state(config), config, rows))
    check_shapes(read_shapes(weights), expected, path, "the model that its config.json describes")
    return Checkpoint("diffusers", weights, config, rows)


def _published_scales(names: Iterable[str]) -> dict[str, str]:
    """DiffFit's scales among an original file's tensors → the layer whose output each scales."""
    found: dict[str, str] = {}
    for name in names:
        block = re.match(r"blocks\.\d+\.", name)
        if block and name.removeprefix(block[0]) in PUBLISHED_SCALES:
            found[name] = block[0] + PUBLISHED_SCALES[name.removeprefix(block[0])]
    return found


def _fold_published_scales(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """An original file's tensors without DiffFit's scales, each multiplied into weight and bias, in fp64."""
    scales = _published_scales(tensors)
    folded = {name: value for name, value in tensors.items() if name not in scales}
    for name, layer in scales.items():
        scale = tensors[name].double()
        folded[f"{layer}.weight"] = folded[f"{layer}.weight"].double() * scale[:, None]
        folded[f"{layer}.bias"] = folded[f"{layer}.bias"].double() * scale
    return folded


def _frequency_shift(path: Path, settings: Mapping[str, Any], hidden_size: int) -> float:
    """That a folder's configuration notes, or diffusers' own where its size shows that diffusers trained it.

    diffusers' conversion keeps the weights of an original checkpoint and drops its timestep frequencies
    without a word: InputError for a folder of the original code's sizes that notes none.
    """
    if SHIFT_KEY not in settings and (hidden_size, settings["num_layers"]) in KNOWN_HEADS:
        raise InputError(
            f"{path}: does not say for which timestep frequencies its weights were trained; give "
            "model.frequency_shift (--frequency-shift): 0 where they were converted from original DiT "
            "weights, as facebook/DiT-XL-2-256 was, 1 where diffusers trained them"
        )
    return settings.get(SHIFT_KEY, DIFFUSERS_SHIFT)


def _meta_state(config: DiTConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return DiT(config).state_dict()
