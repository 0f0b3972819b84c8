"""Read transformer checkpoints strictly: original DiT files, with our parameter names, and diffusers folders.

Files of the published code of Minimax Diffusion and IMS3 are original files with DiffFit scales. The scales
are folded into their layers, so every checkpoint is read as a plain DiT.
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

# DiT-S, B, L, XL by (hidden size, depth); original files do not hold the number of heads
KNOWN_HEADS = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1152, 28): 16}
# DiffFit scale in a block of a published file → layer whose output it scales
PUBLISHED_SCALES = {
    "attn.gamma1": "attn.qkv",
    "attn.gamma2": "attn.proj",
    "gamma1": "attn.proj",
    "gamma2": "mlp.fc2",
}


class Checkpoint(NamedTuple):
    """A transformer checkpoint with checked names and shapes; its tensors are not read yet."""

    kind: Literal["diffusers", "original"]
    files: list[Path]
    config: DiTConfig


def load_transformer(path: str | Path, heads: int | None = None, frequency_shift: float | None = None) -> DiT:
    """Load the transformer of a diffusers folder, original DiT file or hub id: fp32, CPU, eval.

    `heads` is needed for an original file of unusual size. `frequency_shift` overrides the checkpoint's: 0
    for an original file; for a folder that in its configuration, else diffusers' 1. With 0, a folder that
    records no shift is read as one converted from an original file. Raises InputError, listing missing,
    unexpected and misshapen keys, and for a folder that may have been converted so if no shift is known.
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
    """Describe a local checkpoint from JSON and file headers. Raises InputError as `load_transformer`."""
    try:
        return (_inspect_folder if path.is_dir() else _inspect_original)(path, heads, frequency_shift)
    except InputError:
        raise
    except ValueError as error:  # from DiTConfig
        raise InputError(f"{path}: {error}") from error


def _inspect_original(path: Path, heads: int | None, frequency_shift: float | None) -> Checkpoint:
    shapes = read_shapes([path])
    patches, mlp, final = "x_embedder.proj.weight", "blocks.0.mlp.fc1.weight", "final_layer.linear.weight"
    needed = (patches, "pos_embed", CLASS_TABLE, mlp, final)
    if missing := [name for name in needed if name not in shapes]:
        raise InputError(
            f"{path}: is no original DiT checkpoint ({missing[0]} is missing); give such a file or a folder"
        )
    if misshapen := [n for n, size in zip(needed, (4, 3, 2, 2, 2), strict=True) if len(shapes[n]) != size]:
        shape = f"{misshapen[0]} is {shapes[misshapen[0]]}"
        raise InputError(f"{path}: is no original DiT checkpoint ({shape}); give such a file or a folder")
    (hidden_size, in_channels, patch_size, _), rows = shapes[patches], shapes[CLASS_TABLE][0]
    depth = 1 + max(int(match[1]) for name in shapes if (match := re.match(r"blocks\.(\d+)\.", name)))
    heads = KNOWN_HEADS.get((hidden_size, depth)) if heads is None else heads
    if heads is None:
        raise InputError(
            f"{path}: the number of attention heads is unknown for hidden size {hidden_size}, depth {depth}; "
            "give it as heads (--heads, model.heads)"
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
    return Checkpoint("original", [path], config)


def _inspect_folder(path: Path, heads: int | None, frequency_shift: float | None) -> Checkpoint:
    if (path / "model_index.json").is_file():
        kind = read_json(path / "model_index.json").get("_class_name")
        if kind != "DiTPipeline":
            raise InputError(f"{path}: must be a DiTPipeline, not a {kind}")
        path = path / "transformer"
    elif (path / "transformer" / "config.json").is_file():
        path = path / "transformer"
    settings = read_settings(path / "config.json")
    if heads not in (None, settings["num_attention_heads"]):
        raise InputError(
            f"heads: is {heads}, but {path}/config.json has {settings['num_attention_heads']}; omit it"
        )
    rows = settings["num_embeds_ada_norm"] + 1
    hidden_size = settings["num_attention_heads"] * settings["attention_head_dim"]
    if (
        frequency_shift == 0 and SHIFT_KEY not in settings
    ):  # converted from an original: diffusers' default does not apply
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
    check_shapes(read_shapes(weights), expected, path, "the model of its config.json")
    return Checkpoint("diffusers", weights, config)


def _published_scales(names: Iterable[str]) -> dict[str, str]:
    """Map DiffFit's scales among an original file's tensors to the layers whose outputs they scale."""
    found: dict[str, str] = {}
    for name in names:
        block = re.match(r"blocks\.\d+\.", name)
        if block and name.removeprefix(block[0]) in PUBLISHED_SCALES:
            found[name] = block[0] + PUBLISHED_SCALES[name.removeprefix(block[0])]
    return found


def _fold_published_scales(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fold an original file's DiffFit scales into weights and biases, in fp64."""
    scales = _published_scales(tensors)
    folded = {name: value for name, value in tensors.items() if name not in scales}
    for name, layer in scales.items():
        scale = tensors[name].double()
        folded[f"{layer}.weight"] = folded[f"{layer}.weight"].double() * scale[:, None]
        folded[f"{layer}.bias"] = folded[f"{layer}.bias"].double() * scale
    return folded


def _frequency_shift(path: Path, settings: Mapping[str, Any], hidden_size: int) -> float:
    """Return a diffusers folder's recorded shift, or diffusers' own for sizes that only diffusers trains.

    diffusers' conversion keeps an original checkpoint's weights and silently drops its timestep frequencies.
    So InputError is raised for a folder of an original size that records none.
    """
    if SHIFT_KEY not in settings and (hidden_size, settings["num_layers"]) in KNOWN_HEADS:
        raise InputError(
            f"{path}: does not record the timestep frequencies of its training; give model.frequency_shift "
            "(--frequency-shift): 0 if converted from original DiT weights, as facebook/DiT-XL-2-256 was, 1 "
            "if trained by diffusers"
        )
    return settings.get(SHIFT_KEY, DIFFUSERS_SHIFT)


def _meta_state(config: DiTConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return DiT(config).state_dict()
