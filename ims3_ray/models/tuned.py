"""The generator as a run uses it: pretrained weights, own class rows, a tuned adapter, at the recipe's precision."""

from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor

from ..artifacts import Directory
from ..method import difffit
from ..method.ddim import Predict
from ..method.rng import generator
from .device import Numerics
from .dit import DiT
from .generator import load_transformer, with_new_classes

ADAPTER = "adapter.safetensors"


@dataclass(frozen=True)
class Loaded:
    """A model on its device: `predict(latents, timesteps, labels)` gives float32 outputs."""

    dit: DiT
    predict: Predict


@dataclass(frozen=True)
class TunedModel:
    """What an actor needs to load the model, as plain data."""

    path: str
    heads: int | None
    frequency_shift: int | None
    numerics: Numerics
    new_classes: int | None = None  # own classes in a fresh class table
    seed: int = 0  # of that table
    adapter: Directory | None = None
    weights: str = "ema"  # or "last"

    def load(self, device: torch.device) -> Loaded:
        """Load for inference: the adapter folded in, all values at the precision."""
        dit = self.pretrained()
        if self.adapter:
            difffit.load_adapter(dit, read_adapter(self.adapter, self.weights))
            difffit.fold(dit)
        dit = dit.to(device, self.numerics.dtype).eval().requires_grad_(False)
        return self._loaded(dit)

    def trainable(self, device: torch.device) -> Loaded:
        """Load for fine-tuning: frozen matrices at the precision, DiffFit's parameters in float32."""
        dit = self.pretrained().to(device, self.numerics.dtype).eval()
        difffit.prepare(dit)
        return self._loaded(dit)

    def _loaded(self, dit: DiT) -> Loaded:
        if self.numerics.compiled:
            compile_blocks(dit)
        return Loaded(dit, predictor(dit))

    def pretrained(self) -> DiT:
        dit = load_transformer(self.path, heads=self.heads, frequency_shift=self.frequency_shift)
        if self.new_classes:
            dit = with_new_classes(dit, self.new_classes, generator("class-table", self.seed))
        return dit


def compile_blocks(dit: DiT) -> None:
    """Compile the blocks in place, for one batch size: all of a kind share one compilation, so the first pass is short."""
    torch._functorch.config.donated_buffer = False  # logging steps go backward through one graph more than once
    for block in dit.blocks:
        block.compile(dynamic=False, fullgraph=True)


def predictor(dit: DiT) -> Predict:
    """The model as the method calls it, whatever its precision: float32 in, float32 out."""

    def predict(latents: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        return dit(latents, timesteps, labels).float()

    return predict


def save_adapter(out: Directory, values: dict[str, Tensor], averages: dict[str, Tensor]) -> None:
    """Write trained values and their averages as one safetensors file."""
    tensors = {f"last.{name}": value for name, value in values.items()} | {
        f"ema.{name}": value for name, value in averages.items()
    }
    out.write(ADAPTER, safetensors.torch.save({n: t.detach().cpu().contiguous() for n, t in sorted(tensors.items())}))


def read_adapter(adapter: Directory, weights: str) -> dict[str, Tensor]:
    """The adapter's "last" or "ema" values by the model's parameter names."""
    tensors = safetensors.torch.load(adapter.read(ADAPTER))
    return {name.removeprefix(f"{weights}."): t for name, t in tensors.items() if name.startswith(f"{weights}.")}
