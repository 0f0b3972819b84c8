"""A run's generator: pretrained weights, own class rows, fine-tuned adapter, precision."""

from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from torch._dynamo import config as dynamo
from torch._functorch import config as functorch

from ims3_ray.errors import InputError
from ims3_ray.method import difffit
from ims3_ray.method.ddim import Predict
from ims3_ray.method.seeding import generator
from ims3_ray.storage.artifacts import (
    MANIFEST,
    DamagedError,
    Directory,
    open_directory,
    read_checked,
    read_manifest,
)

from .checkpoints import load_transformer
from .cuda_graphs import GraphedPredictor
from .device import Numerics
from .diffusers_layout import CLASS_TABLE
from .dit import DiT, DiTConfig
from .files import check_finite, check_shapes, safetensors_errors, shapes_of

ADAPTER = "adapter.safetensors"


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device; `predict(latents, timesteps, labels)` returns float32."""

    dit: DiT
    predict: Predict


@dataclass(frozen=True)
class TunedModel:
    """Plain data with which an actor loads the model."""

    path: str
    heads: int | None
    frequency_shift: float | None
    numerics: Numerics
    new_classes: int | None = None  # number of own classes, with a fresh class table
    seed: int = 0  # of that table
    adapter: Directory | None = None
    weights: str = "ema"  # or "last"

    def load(self, device: torch.device) -> LoadedModel:
        """Load for inference: adapter folded in, weights at the chosen precision."""
        dit = self.pretrained()
        if self.adapter:
            difffit.load_adapter(dit, read_adapter(self.adapter, self.weights))
            difffit.fold(dit)
        cast_frozen(dit.to(device).eval().requires_grad_(False), self.numerics.dtype)
        return self._loaded(dit)

    def trainable(self, device: torch.device) -> LoadedModel:
        """Load for fine-tuning: frozen matrices at the chosen precision, DiffFit's parameters in float32."""
        dit = self.pretrained().to(device).eval()
        difffit.prepare(dit)
        cast_frozen(dit, self.numerics.dtype)
        return self._loaded(dit)

    def _loaded(self, dit: DiT) -> LoadedModel:
        if self.numerics.compiled:
            compile_blocks(dit)
        if not self.numerics.graphs:
            return LoadedModel(dit, predictor(dit))
        return LoadedModel(
            dit, GraphedPredictor(predictor(dit), [p for p in dit.parameters() if p.requires_grad])
        )

    def pretrained(self) -> DiT:
        dit = load_transformer(self.path, heads=self.heads, frequency_shift=self.frequency_shift)
        if self.new_classes:
            dit = with_new_classes(dit, self.new_classes, generator("class-table", self.seed))
        return dit


def with_new_classes(dit: DiT, count: int, generator: torch.Generator) -> DiT:
    """Return `dit` with a fresh class table of `count` classes; the null row and all else are shared.

    A fresh row is the mean of the old rows plus normal noise of 0.02, DiT's initial spread, from `generator`
    (CPU).
    """
    state = dit.state_dict()
    table = state[CLASS_TABLE]
    noise = torch.randn(count, table.shape[1], generator=generator).to(table) * 0.02
    state[CLASS_TABLE] = torch.cat([table[:-1].mean(0) + noise, table[-1:]])
    with torch.device("meta"):
        extended = DiT(replace(dit.config, num_classes=count))
    extended.load_state_dict(state, assign=True)
    return extended.train(dit.training)


def cast_frozen(dit: DiT, dtype: torch.dtype) -> None:
    """Cast all frozen weights but the patch embedder to `dtype`, in place.

    Rounding the input to bf16 would add noise, and near t = 0 there is hardly any other noise to predict. On
    a GPU, the embedder rounds it to TF32, which is four times finer.
    """
    for part in (dit.t_embedder, dit.y_embedder, dit.blocks, dit.final_layer):
        for parameter in part.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)


def compile_blocks(dit: DiT) -> None:
    """Compile the blocks in place for one batch size; all blocks share one compilation."""
    functorch.donated_buffer = False  # logging steps run several backward passes through one graph
    dynamo.recompile_limit = 32  # of graphs by shape, dtype, gradient; one more fails
    for block in dit.blocks:
        block.compile(dynamic=False, fullgraph=True)


def predictor(dit: DiT) -> Predict:
    """Wrap the model for `method`: float32 in and out at any precision."""

    def predict(latents: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        return dit(latents, timesteps, labels).float()

    return predict


@dataclass(frozen=True)
class AdapterInfo:
    """A complete adapter, as described by its manifest."""

    folder: Directory
    own_classes: list[str] | None  # class names of a fresh class table; None: the pretrained model's classes
    frequency_shift: float | None  # used in fine-tuning; None: by the checkpoint's kind


def inspect_adapter(location: str) -> AdapterInfo:
    """Describe a run's `adapter/<fingerprint>` folder. Raises InputError unless it is complete."""
    folder = open_directory(location)
    try:
        manifest = read_manifest(folder)
    except DamagedError as error:
        raise InputError(
            f"{location}: incomplete adapter ({error.words}); give a run's adapter/<fingerprint>"
        ) from error
    if manifest is None:
        raise InputError(
            f"{location}: incomplete adapter (no {MANIFEST}); give adapter/<fingerprint> of a finished run"
        )
    if ADAPTER not in manifest["files"]:
        raise InputError(f"{location}: incomplete adapter (no {ADAPTER}); give a run's adapter/<fingerprint>")
    return AdapterInfo(folder, manifest.get("own_classes"), manifest.get("frequency_shift"))


def check_adapter(adapter: AdapterInfo, config: DiTConfig, weights: str) -> None:
    """Raise InputError unless the adapter's names and shapes fit a DiT of these sizes."""
    source = Path(adapter.folder.path, ADAPTER)
    tensors = read_adapter(adapter.folder, weights)
    if adapter.own_classes:
        config = replace(config, num_classes=len(adapter.own_classes))
    with torch.device("meta"):
        dit = DiT(config)
    difffit.add_scales(dit)
    found, expected = (
        shapes_of(dict(sorted(values.items()))) for values in (tensors, difffit.trainable(dit))
    )
    check_shapes(found, expected, source, "of this checkpoint; give the checkpoint that was fine-tuned")


def save_adapter(out: Directory, values: dict[str, Tensor], averages: dict[str, Tensor]) -> None:
    """Write trained values and their moving averages as one safetensors file."""
    tensors = {f"last.{n}": t for n, t in values.items()} | {f"ema.{n}": t for n, t in averages.items()}
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    out.write(ADAPTER, safetensors.torch.save(whole))


def read_adapter(adapter: Directory, weights: str) -> dict[str, Tensor]:
    """Return the adapter's "last" or "ema" values by parameter name.

    Raises InputError for a damaged file and for values that are not finite.
    """
    prefix, source = f"{weights}.", (adapter / ADAPTER).uri
    with safetensors_errors(source):
        tensors = safetensors.torch.load(read_checked(adapter, ADAPTER))
    values = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    check_finite(values, source)
    return values
