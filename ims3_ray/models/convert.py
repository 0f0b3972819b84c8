"""Save a generator as a folder for diffusers' DiTPipeline, and compare the outputs."""

import contextlib
import copy
import json
import os
import tempfile
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from ims3_ray.errors import InputError
from ims3_ray.method.seeding import generator, normal

from .device import DTYPES
from .diffusers_layout import DIFFUSERS_SHIFT, export_transformer
from .dit import DiT
from .files import read_json
from .generator import SCHEDULE

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

Model = TypeVar("Model", bound=nn.Module)
STORED_DTYPES = {**DTYPES, "fp16": torch.float16}  # stored types of the weights, by name
PIPELINE_NULL_LABEL = 1000  # DiTPipeline guides with it, whatever the number of classes
# largest relative difference that rounding explains
MAX_ROUND_OFF = {"fp32": 1e-3, "bf16": 0.2, "fp16": 0.02}
TIMESTEPS = (0, 250, 750, 999)  # of the comparison


@dataclass(frozen=True)
class Difference:
    """RMS of (diffusers' outputs − ours) / RMS of ours, over a seeded batch and all channels."""

    as_it_is: float
    same_frequencies: float  # ours at diffusers' timestep frequencies: only rounding remains
    shifted: bool  # our timestep frequencies are not diffusers'


def convert(
    dit: DiT, vae: "AutoencoderKL", out: Path, *, id2label: list[str] | None, dtype: str
) -> Difference:
    """Write the pipeline to the new or empty folder `out` and compare what diffusers loads with `dit`.

    `dit` is on the CPU in fp32, scales folded in. Below 1000 classes the class table is padded up to the
    label that diffusers' pipeline guides with. `dtype` is the stored type of the weights. Raises InputError
    if `dtype` cannot hold the weights. Leaves nothing in `out` if the outputs differ by more than frequencies
    and rounding explain.
    """
    with _complete_or_absent(out) as folder:
        stored = STORED_DTYPES[dtype]
        save_pipeline(dit, vae, folder, id2label=id2label, dtype=stored, null_label=PIPELINE_NULL_LABEL)
        result = difference(dit, folder)
        off = result.same_frequencies
        if not off <= MAX_ROUND_OFF[dtype]:  # also if it is NaN
            problem = f"the saved model's outputs differ by {off:.2g}, more than {dtype} rounding"
            if dtype != "fp32":
                raise InputError(f"dtype: {problem}; use fp32 for these weights")
            raise RuntimeError(problem)
    return result


def save_pipeline(
    dit: DiT,
    vae: "AutoencoderKL",
    out: str | Path,
    *,
    id2label: list[str] | None = None,
    dtype: torch.dtype = torch.float32,
    null_label: int | None = None,
) -> None:
    """Write a folder that `DiTPipeline.from_pretrained` loads, DiffFit scales folded in.

    `dtype` is the stored type of the weights. `null_label` is that of `export_transformer`: 1000 lets
    diffusers' pipeline guide models of fewer classes. Raises InputError if `out` is not empty.
    """
    out = new_folder(out)
    if id2label is not None and len(id2label) != dit.config.num_classes:
        raise InputError(
            f"id2label: has {len(id2label)} names for {dit.config.num_classes} classes; give one per class"
        )
    from diffusers import DDIMScheduler, DiTPipeline

    scheduler: Any = DDIMScheduler(**SCHEDULE, clip_sample=False)  # annotated as an enum in diffusers
    pipeline = DiTPipeline(
        transformer=_cast(export_transformer(dit, null_label), dtype),
        vae=_cast(copy.deepcopy(vae), dtype),
        scheduler=scheduler,
    )
    with _complete_or_absent(out) as folder:
        pipeline.save_pretrained(folder)
        if id2label is not None:  # DiTPipeline reads it here but does not write it
            index = read_json(folder / "model_index.json") | {"id2label": dict(enumerate(id2label))}
            (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _complete_or_absent(out: Path) -> Generator[Path]:
    """A folder beside the new or empty folder `out`, which it becomes if the block succeeds."""
    out = new_folder(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        yield Path(temporary) / out.name
        (Path(temporary) / out.name).replace(out)


def new_folder(out: str | Path) -> Path:
    """Return `out` as an absolute path. Raises InputError if it is not empty or cannot be created."""
    out = Path(out).expanduser().absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: must be a new or empty folder; choose another or clear it")
    above = next(folder for folder in (out, *out.parents) if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{out}: cannot be created, {above} is not a writable folder; choose another")
    return out


@torch.no_grad()
def difference(dit: DiT, folder: Path) -> Difference:
    """Compare the outputs of diffusers' model in a pipeline folder, in fp32, with those of `dit`."""
    from diffusers import DiTTransformer2DModel  # seconds to import

    model = DiTTransformer2DModel.from_pretrained(
        folder / "transformer", torch_dtype=torch.float32, local_files_only=True, low_cpu_mem_usage=False
    )
    latents, timesteps, labels = _inputs(dit)
    padded = torch.where(labels == dit.null_label, model.config["num_embeds_ada_norm"], labels)
    theirs = model.eval()(latents, timestep=timesteps, class_labels=padded)[0]
    ours = dit(latents, timesteps, labels)
    shifted = dit.config.frequency_shift != DIFFUSERS_SHIFT
    at_theirs = _with_shift(dit, DIFFUSERS_SHIFT)(latents, timesteps, labels) if shifted else ours
    return Difference(_relative(theirs, ours), _relative(theirs, at_theirs), shifted)


def _inputs(dit: DiT) -> tuple[Tensor, Tensor, Tensor]:
    """Noise latents (B, C, H, W), timesteps and labels (B,): first and last class, twice the null label."""
    generators = [generator("conversion", index) for index in range(len(TIMESTEPS))]
    latents = normal(generators, dit.config.latent_shape)
    labels = torch.tensor([0, dit.null_label, dit.config.num_classes - 1, dit.null_label])
    return latents, torch.tensor(TIMESTEPS), labels


def _with_shift(dit: DiT, shift: float) -> DiT:
    """Share the weights with a model of other timestep frequencies."""
    with torch.device("meta"):
        other = DiT(replace(dit.config, frequency_shift=shift))
    other.load_state_dict(dit.state_dict(), assign=True)
    return other.eval()


def _relative(theirs: Tensor, ours: Tensor) -> float:
    off, size = ((x.double().square().mean().sqrt()) for x in (theirs - ours, ours))
    return float(off / size.clamp_min(1e-12))


def _cast(model: Model, dtype: torch.dtype) -> Model:
    nn.Module.to(model, device="cpu", dtype=dtype)  # in place, without a warning of diffusers' own `to`
    return model
