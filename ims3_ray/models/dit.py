"""DiT: predicts the noise in latents from their noise level and class.

Peebles and Xie 2023 (arXiv 2212.09748), adaLN-zero. Parameters have the names and shapes of the original
checkpoints. `ims3_ray.method.difffit` may add the scale vectors of DiffFit (Xie et al. 2023, arXiv
2304.06648), which are None at no cost before.

Precision: arithmetic uses the type of the weight matrices, timestep sinusoids fp32. Trainable values (biases,
class table, scales) and the patch embedder may be fp32 beside bf16 matrices.

Shapes: B images, C channels, H and W latent height and width, p patch, N tokens, D hidden size.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

FREQUENCY_DIM = 256  # sinusoids per timestep, cosines first
MAX_PERIOD = 10_000
_POSITIVE = ("sample_size", "hidden_size", "depth", "num_heads", "num_classes", "patch_size", "in_channels")
NORM_EPS = 1e-6  # of every norm but the one before the MLP, which has DiTConfig.norm_eps


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Sizes of a DiT, and two constants that depend on a checkpoint's origin.

    `sample_size` is the height and width of the latents. `out_channels` is 2 · `in_channels` for models that
    also predict the variance. `frequency_shift` k spaces the timestep frequencies as 10000^(-i/(128 - k)): 0
    in the original, 1 in diffusers. `norm_eps` is that of the norm before the MLP: 1e-6 in the original, by
    default 1e-5 in diffusers.
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

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one latent."""
        return self.in_channels, self.sample_size, self.sample_size

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise ValueError(f"DiTConfig.{name}: must be 1 or more, not {getattr(self, name)}")
        for name, divisor in (("sample_size", "patch_size"), ("hidden_size", "num_heads")):
            value, unit = getattr(self, name), getattr(self, divisor)
            if value % unit:
                raise ValueError(f"DiTConfig.{name}: must be a multiple of {divisor} {unit}, not {value}")
        if self.hidden_size % 4:
            raise ValueError(f"DiTConfig.hidden_size: must be a multiple of 4, not {self.hidden_size}")
        if self.out_channels not in (self.in_channels, 2 * self.in_channels):
            allowed = f"in_channels {self.in_channels} or twice that"
            raise ValueError(f"DiTConfig.out_channels: must be {allowed}, not {self.out_channels}")


def timestep_sinusoids(timesteps: Num[Tensor, " B"], frequency_shift: float) -> Float[Tensor, "B 256"]:
    """Return cosines, then sines, of each timestep at 128 frequencies from 1 towards 1/10000; fp32."""
    half = FREQUENCY_DIM // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    frequencies = torch.exp(-math.log(MAX_PERIOD) * steps / (half - frequency_shift))
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def position_table(grid_size: int, hidden_size: int) -> Float[Tensor, "1 N D"]:
    """Return the fixed table of a square token grid: sines and cosines of column, then row; fp32."""
    quarter = hidden_size // 4
    frequencies = MAX_PERIOD ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(grid_size, dtype=torch.float64)[:, None] * frequencies
    along = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = along[None, :, :].expand(grid_size, -1, -1)
    rows = along[:, None, :].expand(-1, grid_size, -1)
    return torch.cat([columns, rows], dim=-1).reshape(1, grid_size**2, hidden_size).float()


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive norm; shift and scale (B, 1, D) come from the conditioning."""
    return x * (1 + scale) + shift


def scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    """Multiply `x` by a DiffFit scale vector, keeping x's type; None leaves `x` as it is."""
    return x if scale is None else (x * scale).to(x.dtype)


class Linear(nn.Linear):
    """A linear layer whose bias may have a higher precision than its weight."""

    bias: nn.Parameter  # pyright: ignore[reportIncompatibleVariableOverride]: never None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (nn.Linear's name)
        return F.linear(input, self.weight, self.bias.to(self.weight.dtype))


class PatchEmbedder(nn.Module):
    """One token per patch: a strided convolution, computed as one matrix product."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.proj = nn.Conv2d(
            config.in_channels, config.hidden_size, config.patch_size, stride=config.patch_size
        )

    def forward(self, latents: Tensor) -> Tensor:
        weight, bias = self.proj.weight, self.proj.get_parameter("bias")  # (D, C, p, p), (D,)
        x = F.pixel_unshuffle(latents.to(weight.dtype), self.patch_size)  # (B, C p², H / p, W / p)
        return F.linear(x.flatten(2).transpose(1, 2), weight.flatten(1), bias.to(weight.dtype))  # (B, N, D)


class TimestepEmbedder(nn.Module):
    """An MLP on the sinusoids of the timestep."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.frequency_shift = config.frequency_shift
        width = config.hidden_size
        self.mlp = nn.Sequential(Linear(FREQUENCY_DIM, width), nn.SiLU(), Linear(width, width))

    def forward(self, timesteps: Tensor) -> Tensor:
        sinusoids = timestep_sinusoids(timesteps, self.frequency_shift)  # (B, 256), fp32
        return self.mlp(sinusoids.to(self.mlp.get_parameter("0.weight").dtype))  # (B, D)


class LabelEmbedder(nn.Module):
    """One row per class, and a last row for "no class"."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(config.num_classes + 1, config.hidden_size)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)


class Attention(nn.Module):
    """Multi-head self-attention. DiffFit scales the outputs by `qkv_scale` (3D,) and `proj_scale` (D,)."""

    qkv_scale: nn.Parameter | None
    proj_scale: nn.Parameter | None

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = Linear(config.hidden_size, config.hidden_size)
        self.register_parameter("qkv_scale", None)
        self.register_parameter("proj_scale", None)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        qkv = scaled(self.qkv(x), self.qkv_scale)  # (B, N, 3 D)
        q, k, v = qkv.reshape(b, n, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, D / heads)
        return scaled(self.proj(x.transpose(1, 2).reshape(b, n, d)), self.proj_scale)  # (B, N, D)


class Mlp(nn.Module):
    """Two layers with a GELU (tanh approximation) in between."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = int(config.hidden_size * config.mlp_ratio)
        self.fc1 = Linear(config.hidden_size, width)
        self.fc2 = Linear(width, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class DiTBlock(nn.Module):
    """Attention and MLP, each modulated and gated by the conditioning (adaLN-zero).

    DiffFit scales the branches before their gates by `attention_scale` and `mlp_scale` (D,).
    """

    attention_scale: nn.Parameter | None
    mlp_scale: nn.Parameter | None

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

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (
            self.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=-1)  # (B, 1, D) each
        )
        y = self.attn(modulate(self.norm1(x), shift_1, scale_1))  # (B, N, D)
        x = x + gate_1 * scaled(y, self.attention_scale)  # (B, N, D)
        y = self.mlp(modulate(self.norm2(x), shift_2, scale_2))  # (B, N, D)
        return x + gate_2 * scaled(y, self.mlp_scale)  # (B, N, D)


class FinalLayer(nn.Module):
    """Map tokens (B, N, D) to the values of their patches (B, N, p² C_out)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=NORM_EPS)
        self.linear = Linear(width, config.patch_size**2 * config.out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).unsqueeze(1).chunk(2, dim=-1)  # (B, 1, D) each
        return self.linear(modulate(self.norm_final(x), shift, scale))  # (B, N, p² C_out)


class DiT(nn.Module):
    """The whole model. Call `initialize` or load a checkpoint before use."""

    pos_embed: Tensor  # (1, N, D)

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = PatchEmbedder(config)
        self.t_embedder = TimestepEmbedder(config)
        self.y_embedder = LabelEmbedder(config)
        self.register_buffer("pos_embed", self.fixed_positions())
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)

    @property
    def null_label(self) -> int:
        """The label for "no class", one after the last class."""
        return self.config.num_classes

    def forward(
        self, latents: Float[Tensor, "B C H W"], timesteps: Num[Tensor, " B"], labels: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C_out H W"]:
        """Return the predicted noise, and variance values if the model has them, of scaled latents.

        Timesteps run from 0 (clean) to 999 and may be fractional; labels from 0 to `null_label`. The output
        has the type of the matrices. Raises ValueError for latents of another size.
        """
        config = self.config
        if latents.shape[1:] != config.latent_shape:
            shape = ", ".join(map(str, ("batch", *config.latent_shape)))
            raise ValueError(f"latents: must be ({shape}), not {tuple(latents.shape)}")
        c = self.t_embedder(timesteps)  # (B, D)
        c = c + self.y_embedder(labels).to(c.dtype)
        x = (self.x_embedder(latents) + self.pos_embed).to(c.dtype)  # (B, N, D), N = H W / p²
        for block in self.blocks:
            x = block(x, c)  # (B, N, D)
        x = self.final_layer(x, c)  # (B, N, p² C_out)
        return self.unpatchify(x)  # (B, C_out, H, W)

    def unpatchify(self, x: Float[Tensor, "B N P"]) -> Float[Tensor, "B C H W"]:
        """Arrange the tokens' values (patch row, patch column, channel) as images."""
        patch, channels, size = self.config.patch_size, self.config.out_channels, self.config.sample_size
        x = x.reshape(-1, size // patch, size // patch, patch, patch, channels)  # (B, rows, columns, p, p, C)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, size, size)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator, *, zero_outputs: bool = True) -> "DiT":
        """Draw all weights from `generator` (on the model's device) as in the paper; biases are zero.

        Xavier-uniform matrices, normal (0.02) class table and timestep MLP, zero modulation and outputs.
        `zero_outputs=False` draws the last group too, so that a random model's output is not zero.
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
                module.get_parameter("bias").zero_()
        self.pos_embed.copy_(self.fixed_positions())
        return self

    def fixed_positions(self) -> Float[Tensor, "1 N D"]:
        """Return the value of `pos_embed`."""
        return position_table(self.config.sample_size // self.config.patch_size, self.config.hidden_size)
