"""DiffFit: fine-tuning of a diffusion transformer by its biases, class table and a few scale vectors.

Xie et al. 2023, "DiffFit: Unlocking Transferability of Large Diffusion Models via Simple Parameter-Efficient
Fine-Tuning" (arXiv 2304.06648). Trainable are every bias, the class table, the affine values of norms where
there are any, and the scale vectors; all else is frozen.

| symbol       | here                    | scales, channel by channel                     | starts at |
|--------------|-------------------------|------------------------------------------------|-----------|
| γ of qkv     | `attn.qkv_scale` (3d,)  | the output of the qkv layer                    | 1         |
| γ of proj    | `attn.proj_scale` (d,)  | the output of the attention's projection       | 1         |
| γ_1          | `attention_scale` (d,)  | the attention branch, as it joins the residual | 1         |
| γ_2          | `mlp_scale` (d,)        | the MLP branch, as it joins the residual       | 1         |

Scales stand in the first half of the blocks (`depth // 2` of them). A model fits here if it has `blocks`,
each with `attn.qkv`, `attn.proj`, `mlp.fc2` (linear layers with biases) and the four attributes above, None
while absent.
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from ims3_ray.display import describe_mismatch

SCALED = {  # scale vector → the layer whose output it scales
    "attn.qkv_scale": "attn.qkv",
    "attn.proj_scale": "attn.proj",
    "attention_scale": "attn.proj",
    "mlp_scale": "mlp.fc2",
}
SCALE_NAMES = tuple(SCALED)
_TRAINED_WHOLE = (nn.Embedding, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # class table, affine norms


def add_scales(model: nn.Module) -> None:
    """Give the first half of the blocks scales of ones (fp32) where they have none: the output stays."""
    blocks = _blocks(model)
    for block in blocks[: len(blocks) // 2]:
        for name, layer in SCALED.items():
            owner, attribute = _owner(block, name)
            if getattr(owner, attribute) is None:
                linear = _linear(block, layer)
                ones = torch.ones(linear.out_features, dtype=torch.float32, device=linear.weight.device)
                setattr(owner, attribute, nn.Parameter(ones))


def has_scales(model: nn.Module) -> bool:
    """Whether any block of the model has a scale vector."""
    return any(name.endswith(SCALE_NAMES) for name, _ in model.named_parameters())


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that DiffFit trains, by name, in the model's own order."""
    whole = {name for name, module in model.named_modules() if isinstance(module, _TRAINED_WHOLE)}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.endswith((".bias", *SCALE_NAMES)) or name.rpartition(".")[0] in whole
    }


def prepare(model: nn.Module) -> list[str]:
    """Add scales, freeze all but the trainable parameters, keep those in fp32; gives their names.

    The frozen matrices keep their type: a model in bf16 becomes bf16 matrices with fp32 values that train.
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
    """Set the trainable values from `tensors`, adding scales where the model has none.

    Names and shapes must agree exactly: ValueError lists what is missing, left over or of another shape, and
    then nothing has been set. Values take the type of the parameter that they go to: load into fp32, fold,
    then lower the precision.
    """
    add_scales(model)
    parameters = trainable(model)
    given, needed = ({n: tuple(t.shape) for n, t in values.items()} for values in (tensors, parameters))
    if problems := describe_mismatch(given, needed):
        raise ValueError(f"the adapter does not belong to this model ({problems})")
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


@torch.no_grad()
def fold(model: nn.Module) -> None:
    """Multiply every scale into the weights and biases that it scales, and remove it; the output stays.

    Exact to round-off of the weights' type (1e-6 in fp32), so fold before lowering the precision.
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
