"""DiT: a transformer that predicts the noise in a latent image, given its noise level and its class.

Peebles and Xie 2023, "Scalable Diffusion Models with Transformers" (arXiv 2212.09748), the adaLN-zero
variant. Parameters carry the names and shapes of the original's checkpoints. Beside those there are the scale
vectors of DiffFit (Xie et al. 2023, arXiv 2304.06648), absent (None, at no cost) until
`ims3_ray.method.difffit` adds them.

Precision: all arithmetic is done in the type of the weight matrices, the sinusoids of the timestep in fp32.
Biases, the class table and the scales may be kept in fp32 beside bf16 matrices, as values that train are.

Letters in shapes: b images, c channels, h and w latent height and width, n tokens, d hidden size.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

FREQUENCY_DIM = 256  # sinusoids per timestep, cosines first
MAX_PERIOD = 10_000
NORM_EPS = 1e-6  # of every norm but the one ahead of the MLP, where diffusers' models differ


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Sizes of a DiT, and the two constants in which checkpoints of different origin differ.

    `sample_size` is the height and width of the latents. `out_channels` is twice `in_channels` for models
    that predict the variance too. `frequency_shift` k spaces the timestep frequencies as 10000^(-i/(128 -
    k)): 0 in the original, 1 in diffusers. `norm_eps` is the epsilon of the norm ahead of the MLP: 1e-6 in
    the original, by default 1e-5 in diffusers.
    """

    sample_size: int
    hidden_size: int
    depth: int
    num_heads: int
    num_classes: int
    patch_size: int = 2
    in_channels: int = 4
    out_channels: int = 8
    mlp_ratio: float = 4.0
    frequency_shift: float = 0.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in (
            "sample_size",
            "hidden_size",
            "depth",
            "num_heads",
            "num_classes",
            "patch_size",
            "in_channels",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"DiTConfig.{name} must be 1 or more, not {getattr(self, name)}")
        if self.sample_size % self.patch_size:
            raise ValueError(
                f"DiTConfig.sample_size must be a multiple of patch_size {self.patch_size}, not {self.sample_size}"
            )
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"DiTConfig.hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if self.hidden_size % 4:
            raise ValueError(f"DiTConfig.hidden_size must be a multiple of 4, not {self.hidden_size}")
        if self.out_channels not in (self.in_channels, 2 * self.in_channels):
            raise ValueError(
                f"DiTConfig.out_channels must be in_channels {self.in_channels} or twice that, not {self.out_channels}"
            )


def timestep_sinusoids(timesteps: Num[Tensor, " b"], frequency_shift: float) -> Float[Tensor, "b 256"]:
    """Cosines, then sines, of each timestep at 128 frequencies from 1 down towards 1/10000; always fp32."""
    half = FREQUENCY_DIM // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    frequencies = torch.exp(-math.log(MAX_PERIOD) * steps / (half - frequency_shift))
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def position_table(grid_size: int, hidden_size: int) -> Float[Tensor, "1 n d"]:
    """The fixed table of a square token grid: sines and cosines of the column, then of the row (fp32, row-
    major).
    """
    quarter = hidden_size // 4
    frequencies = MAX_PERIOD ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(grid_size, dtype=torch.float64)[:, None] * frequencies
    along = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = along[None, :, :].expand(grid_size, -1, -1)
    rows = along[:, None, :].expand(-1, grid_size, -1)
    return torch.cat([columns, rows], dim=-1).reshape(1, grid_size**2, hidden_size).float()


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive norm: shift and scale, each (b, 1, d), come from the conditioning."""
    return x * (1 + scale) + shift


def scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    """`x` times a DiffFit scale vector, in x's type; `x` itself where there is none."""
    return x if scale is None else (x * scale).to(x.dtype)


class Linear(nn.Linear):
    """A linear layer whose bias may be kept in more precision than its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias.to(self.weight.dtype))


class PatchEmbedder(nn.Module):
    """One token per patch: a convolution whose stride is its kernel, done as one matrix product."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.proj = nn.Conv2d(
            config.in_channels, config.hidden_size, config.patch_size, stride=config.patch_size
        )

    def forward(self, latents: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(latents, self.patch_size).flatten(2).transpose(1, 2)
        weight = self.proj.weight
        return F.linear(patches, weight.flatten(1), self.proj.bias.to(weight.dtype))


class TimestepEmbedder(nn.Module):
    """An MLP on the sinusoids of the timestep."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.frequency_shift = config.frequency_shift
        width = config.hidden_size
        self.mlp = nn.Sequential(Linear(FREQUENCY_DIM, width), nn.SiLU(), Linear(width, width))

    def forward(self, timesteps: Tensor) -> Tensor:
        return self.mlp(timestep_sinusoids(timesteps, self.frequency_shift).to(self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    """A row per class, and a last one for "no class". Labels are never dropped here: training code replaces
    them.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(config.num_classes + 1, config.hidden_size)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)


class Attention(nn.Module):
    """Multi-head self-attention. Scales of DiffFit: `qkv_scale` (3d,) and `proj_scale` (d,), on the two
    outputs.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = Linear(config.hidden_size, config.hidden_size)
        self.register_parameter("qkv_scale", None)
        self.register_parameter("proj_scale", None)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        qkv = scaled(self.qkv(x), self.qkv_scale)
        query, key, value = qkv.reshape(b, n, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        return scaled(self.proj(attended.transpose(1, 2).reshape(b, n, d)), self.proj_scale)


class Mlp(nn.Module):
    """Two layers with a GELU (tanh approximation) between them."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = int(config.hidden_size * config.mlp_ratio)
        self.fc1 = Linear(config.hidden_size, width)
        self.fc2 = Linear(width, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class DiTBlock(nn.Module):
    """Attention and MLP, each modulated and gated by the conditioning (adaLN-zero).

    Scales of DiffFit: `attention_scale` and `mlp_scale` (d,), on the two branches ahead of their gates.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=NORM_EPS)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=config.norm_eps)
        self.mlp = Mlp(config)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 6 * width))
        self.register_parameter("attention_scale", None)
        self.register_parameter("mlp_scale", None)

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (
            self.adaLN_modulation(conditioning).unsqueeze(1).chunk(6, dim=-1)
        )
        x = x + gate_1 * scaled(self.attn(modulate(self.norm1(x), shift_1, scale_1)), self.attention_scale)
        return x + gate_2 * scaled(self.mlp(modulate(self.norm2(x), shift_2, scale_2)), self.mlp_scale)


class FinalLayer(nn.Module):
    """From tokens (b, n, d) to the values of their patches (b, n, patch * patch * out channels)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=NORM_EPS)
        self.linear = Linear(width, config.patch_size**2 * config.out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 2 * width))

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(conditioning).unsqueeze(1).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(nn.Module):
    """The whole model. Its matrices hold torch's default values until `initialize` or a checkpoint sets them."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = PatchEmbedder(config)
        self.t_embedder = TimestepEmbedder(config)
        self.y_embedder = LabelEmbedder(config)
        self.register_buffer(
            "pos_embed", position_table(config.sample_size // config.patch_size, config.hidden_size)
        )
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)

    @property
    def null_label(self) -> int:
        """The label that stands for "no class", one after the last class."""
        return self.config.num_classes

    def forward(
        self, latents: Float[Tensor, "b c h w"], timesteps: Num[Tensor, " b"], labels: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c_out h w"]:
        """Predicted noise (and variance values after it, where the model has them) of scaled latents.

        Timesteps count from 0 (clean) to 999, whole or fractional; labels from 0 to `null_label`. The output
        has the type of the weight matrices. Raises ValueError for latents of another size.
        """
        config = self.config
        if latents.shape[1:] != (config.in_channels, config.sample_size, config.sample_size):
            raise ValueError(
                f"latents must be (batch, {config.in_channels}, {config.sample_size}, {config.sample_size}), "
                f"not {tuple(latents.shape)}"
            )
        dtype = self.x_embedder.proj.weight.dtype
        x = self.x_embedder(latents.to(dtype)) + self.pos_embed.to(dtype)
        conditioning = self.t_embedder(timesteps) + self.y_embedder(labels).to(dtype)
        for block in self.blocks:
            x = block(x, conditioning)
        return self.unpatchify(self.final_layer(x, conditioning))

    def unpatchify(self, x: Float[Tensor, "b n p"]) -> Float[Tensor, "b c h w"]:
        """Lay the tokens' values (each patch row, patch column, channel) out as images."""
        side, patch = self.config.sample_size // self.config.patch_size, self.config.patch_size
        x = x.reshape(-1, side, side, patch, patch, self.config.out_channels).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(-1, self.config.out_channels, side * patch, side * patch)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator, *, zero_outputs: bool = True) -> "DiT":
        """Draw every weight from `generator` (on the model's device) as the paper does; biases are zero.

        Xavier-uniform matrices, normal (0.02) class table and timestep MLP, zero modulation and output
        layers. With `zero_outputs=False` those last are drawn as well, so that a random model does work that
        shows in its output.
        """
        for name, module in self.named_modules():
            if not isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
                continue
            is_output = "adaLN_modulation" in name or name == "final_layer.linear"
            if is_output and zero_outputs:
                module.weight.zero_()
            elif isinstance(module, nn.Embedding) or name.startswith("t_embedder"):
                module.weight.normal_(std=0.02, generator=generator)
            else:
                nn.init.xavier_uniform_(module.weight.flatten(1), generator=generator)
            if not isinstance(module, nn.Embedding):
                module.bias.zero_()
        grid_size = self.config.sample_size // self.config.patch_size
        self.pos_embed.copy_(position_table(grid_size, self.config.hidden_size))
        return self
