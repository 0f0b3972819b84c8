"""DiffFit: fine-tune a diffusion transformer's biases, class table and a few scale vectors.

Xie et al. 2023 (arXiv 2304.06648). Trainable: all biases, the class table, affine norm parameters and the
scale vectors. Everything else is frozen.

| symbol       | here                    | scales, per channel                            | starts at |
|--------------|-------------------------|------------------------------------------------|-----------|
| γ of qkv     | `attn.qkv_scale` (3d,)  | output of the qkv layer                        | 1         |
| γ of proj    | `attn.proj_scale` (d,)  | output of the attention's projection           | 1         |
| γ_1          | `attention_scale` (d,)  | attention branch before the residual sum       | 1         |
| γ_2          | `mlp_scale` (d,)        | MLP branch before the residual sum             | 1         |

Scales exist in the first `depth // 2` blocks. A model needs `blocks`, each with `attn.qkv`, `attn.proj`,
`mlp.fc2` (linear layers with biases) and the four attributes above, None if absent.
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from ims3_ray.display import describe_mismatch

SCALED = {  # scale vector → layer whose output it scales
    "attn.qkv_scale": "attn.qkv",
    "attn.proj_scale": "attn.proj",
    "attention_scale": "attn.proj",
    "mlp_scale": "mlp.fc2",
}
SCALE_NAMES = tuple(SCALED)
_TRAINED_WHOLE = (nn.Embedding, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # class table, affine norms


def add_scales(model: nn.Module) -> None:
    """Add missing scales of ones (fp32) to the first half of the blocks; the output does not change."""
    blocks = _blocks(model)
    for block in blocks[: len(blocks) // 2]:
        for name, layer in SCALED.items():
            owner, attribute = _owner(block, name)
            if getattr(owner, attribute) is None:
                linear = _linear(block, layer)
                ones = torch.ones(linear.out_features, dtype=torch.float32, device=linear.weight.device)
                setattr(owner, attribute, nn.Parameter(ones))


def has_scales(model: nn.Module) -> bool:
    return any(name.endswith(SCALE_NAMES) for name, _ in model.named_parameters())


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that DiffFit trains, by name, in the model's order."""
    whole = {name for name, module in model.named_modules() if isinstance(module, _TRAINED_WHOLE)}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.endswith((".bias", *SCALE_NAMES)) or name.rpartition(".")[0] in whole
    }


def prepare(model: nn.Module) -> list[str]:
    """Add scales, freeze all other parameters, keep trainable ones in fp32; return the trainable names.

    Frozen matrices keep their type: a bf16 model becomes bf16 matrices with fp32 trainable values.
    """
    add_scales(model)
    model.requires_grad_(False)
    parameters = trainable(model)
    for parameter in parameters.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return list(parameters)


@torch.no_grad()
def load_adapter(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` into the trainable parameters, adding scales if the model has none.

    Raises ValueError, listing missing, unexpected and misshapen tensors, before anything is copied. Values
    take the parameter's type: load into fp32, fold, then lower the precision.
    """
    add_scales(model)
    parameters = trainable(model)
    found, expected = ({n: tuple(t.shape) for n, t in values.items()} for values in (tensors, parameters))
    if problems := describe_mismatch(found, expected):
        raise ValueError(f"adapter: does not fit this model ({problems})")
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


@torch.no_grad()
def fold(model: nn.Module) -> None:
    """Multiply each scale into the weight and bias of its layer and remove it; the output does not change.

    Exact to round-off of the weights' type (1e-6 in fp32): fold before lowering the precision.
    """
    for block in _blocks(model):
        for name, layer in SCALED.items():
            owner, attribute = _owner(block, name)
            scale: Tensor | None = getattr(owner, attribute)
            if scale is not None:
                linear = _linear(block, layer)
                linear.weight.copy_(linear.weight.double() * scale.double()[:, None])
                linear.bias.copy_(linear.bias.double() * scale.double())
                setattr(owner, attribute, None)


def _blocks(model: nn.Module) -> list[nn.Module]:
    return list(model.get_submodule("blocks").children())


def _linear(block: nn.Module, name: str) -> nn.Linear:
    return cast(nn.Linear, block.get_submodule(name))


def _owner(block: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return block.get_submodule(path), attribute
