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

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ims3_ray.text import some

SCALE_NAMES = ("attn.qkv_scale", "attn.proj_scale", "attention_scale", "mlp_scale")
_TRAINED_WHOLE = (nn.Embedding, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # class table, affine norms


def add_scales(model: nn.Module) -> None:
    """Give the first half of the blocks scale vectors of ones (fp32) where they have none: the output stays."""
    for block in model.blocks[: len(model.blocks) // 2]:
        hidden_size, device = block.attn.proj.out_features, block.attn.proj.weight.device
        for name in SCALE_NAMES:
            owner, attribute = _owner(block, name)
            if getattr(owner, attribute) is None:
                size = 3 * hidden_size if attribute == "qkv_scale" else hidden_size
                setattr(owner, attribute, nn.Parameter(torch.ones(size, dtype=torch.float32, device=device)))


def has_scales(model: nn.Module) -> bool:
    """Whether any block of the model has a scale vector."""
    return any(name.endswith(SCALE_NAMES) for name, _ in model.named_parameters())


def trainable_names(model: nn.Module) -> list[str]:
    """Names of the parameters that DiffFit trains, in the model's own order."""
    whole = {name for name, module in model.named_modules() if isinstance(module, _TRAINED_WHOLE)}
    return [
        name
        for name, _ in model.named_parameters()
        if name.endswith((".bias", *SCALE_NAMES)) or name.rpartition(".")[0] in whole
    ]


def prepare(model: nn.Module) -> list[str]:
    """Add scales, freeze all but the trainable parameters, keep those in fp32; gives their names.

    The frozen matrices keep their type: a model in bf16 becomes bf16 matrices with fp32 values that train.
    """
    add_scales(model)
    names = trainable_names(model)
    model.requires_grad_(False)
    for _, parameter in _parameters(model, names):
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return names


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the trainable values by name (fp32, on the CPU): all that tuning changed."""
    if not has_scales(model):
        raise ValueError(
            "the model has no DiffFit scales: add_scales or prepare it before its adapter is read"
        )
    return {
        name: parameter.detach().to("cpu", torch.float32, copy=True)
        for name, parameter in _parameters(model, trainable_names(model))
    }


@torch.no_grad()
def load_adapter(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Set the trainable values from `tensors`, adding scales where the model has none.

    Names and shapes must agree exactly: ValueError lists what is missing, left over or of another shape, and
    then nothing has been set. Values take the type of the parameter that they go to: load into fp32, fold,
    then lower the precision.
    """
    had_scales = has_scales(model)
    add_scales(model)
    parameters = dict(_parameters(model, trainable_names(model)))
    shapes = [
        f"{name} is {tuple(tensors[name].shape)}, the model's {tuple(parameter.shape)}"
        for name, parameter in parameters.items()
        if name in tensors and tensors[name].shape != parameter.shape
    ]
    problems = {
        "missing": [name for name in parameters if name not in tensors],
        "left over": [name for name in tensors if name not in parameters],
        "of another shape": shapes,
    }
    found = "; ".join(f"{what}: {some(names, 3, str)}" for what, names in problems.items() if names)
    if found:
        if not had_scales:
            _remove_scales(model)
        raise ValueError(f"the adapter does not belong to this model ({found})")
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


@torch.no_grad()
def fold(model: nn.Module) -> None:
    """Multiply every scale vector into the weights and biases that it scales, and remove it; the output stays
    the same.

    Exact to round-off of the weights' type (1e-6 in fp32), so fold before lowering the precision.
    """
    for block in model.blocks:
        for name, layer in (
            ("attn.qkv_scale", block.attn.qkv),
            ("attn.proj_scale", block.attn.proj),
            ("attention_scale", block.attn.proj),
            ("mlp_scale", block.mlp.fc2),
        ):
            scale = getattr(*_owner(block, name))
            if scale is not None:
                layer.weight.copy_(layer.weight.double() * scale.double()[:, None])
                layer.bias.copy_(layer.bias.double() * scale.double())
    _remove_scales(model)


def _remove_scales(model: nn.Module) -> None:
    for block in model.blocks:
        for name in SCALE_NAMES:
            setattr(*_owner(block, name), None)


def _owner(block: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return block.get_submodule(path), attribute


def _parameters(model: nn.Module, names: Iterable[str]) -> Iterable[tuple[str, nn.Parameter]]:
    parameters = dict(model.named_parameters())
    return ((name, parameters[name]) for name in names)
