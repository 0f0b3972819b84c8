"""The frozen extractor φ: images to L2-normalised features, for selection and coverage.

A timm model (`timm:resnet18`: pooled features, at its own size and normalisation), a classifier of this
project in a folder (`config.json`, `model.safetensors`) or in the package (`package://digits`), or a small
ConvNet with random weights (`untrained:convnet3`), which needs no training images.
"""

import json
import logging
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from ims3_ray.config.sections import UNTRAINED
from ims3_ray.errors import InputError
from ims3_ray.method.seeding import generator

from .classifiers import Classifier, NetworkName, build
from .device import DECODER_LOCK, run_padded_batches, to_images
from .files import check_shapes, read_json, read_tensors, resolve_model, shapes_of
from .timm_networks import TIMM_SCHEME, check_timm_name

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"
SUBFOLDER = "extractor"  # in a model folder with a generator
RGB = tuple[float, float, float]
UNTRAINED_SIZE, UNTRAINED_WIDTH = 32, 32  # pixels per side, channels
HALF = (0.5, 0.5, 0.5)


class ExtractorConfig(BaseModel):
    """Content of `config.json`: how to build the classifier and normalise its input."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["ims3_ray.classifier"] = "ims3_ray.classifier"
    format_version: Literal[1] = 1
    network: NetworkName
    width: Annotated[int, Field(ge=1)]
    num_classes: Annotated[int, Field(ge=2)]
    image_size: Annotated[int, Field(ge=8)]
    mean: RGB
    """Like `deviation`, of pixels in [0, 1]."""
    deviation: RGB

    @classmethod
    def read(cls, path: Path) -> "ExtractorConfig":
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(map(str, problem["loc"])) or "config"
            raise InputError(f"{path}: {field}: {problem['msg']}; write it with save_extractor") from None


class Extractor:
    """φ: images (B, 3, H, W) in [-1, 1] to features (B, dim), float32 of length 1. Frozen."""

    def __init__(
        self, body: nn.Module, dim: int, image_size: int, mean: RGB, deviation: RGB, device: torch.device
    ):
        self.dim, self.image_size = dim, image_size
        self._body = body.to(device).eval().requires_grad_(False)
        self._mean, self._deviation = (
            torch.tensor(v, device=device).view(3, 1, 1) for v in (mean, deviation)
        )

    @torch.inference_mode()
    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float32[Tensor, "b d"]:
        x = images.float()
        if x.shape[-2:] != (self.image_size, self.image_size):
            x = F.interpolate(x, size=(self.image_size,) * 2, mode="bicubic", antialias=True).clamp(-1, 1)
        x = ((x + 1) / 2 - self._mean) / self._deviation
        return F.normalize(self._body(x).flatten(1).float(), dim=1)


def load_extractor(spec: str, device: str | torch.device = "cpu") -> Extractor:
    """Load `timm:MODEL`, `timm:MODEL?pretrained=false`, a folder, a hub id, `package://NAME` or UNTRAINED.

    MODEL is a timm name, optionally with `@REVISION` (commit, tag or branch of the weights on the hub), or a
    folder as on the hub (timm's config.json and weights). Raises InputError for an unknown spec, missing
    weights and files that do not fit each other.
    """
    if spec == UNTRAINED:
        model = build("convnet3", 2, UNTRAINED_SIZE, generator("untrained-extractor"), width=UNTRAINED_WIDTH)
        return _classifier_extractor(model, UNTRAINED_SIZE, HALF, HALF, torch.device(device))
    load = _timm_extractor if spec.startswith(TIMM_SCHEME) else _saved_extractor
    return load(spec, torch.device(device))


def without_weights(spec: str) -> str:
    """Return the spec of the same network with random weights, for size and shape, without network access."""
    return f"{spec.partition('?')[0]}?pretrained=false" if spec.startswith(TIMM_SCHEME) else spec


def inspect_extractor(spec: str) -> Path | str:
    """Return the source of the features' bits: the extractor's folder, or the timm model and timm's version.

    Raises InputError as `load_extractor`, as far as possible without loading weights.
    """
    if spec == UNTRAINED:
        return UNTRAINED
    if spec.startswith(TIMM_SCHEME):
        if folder := _timm_folder(_timm_parts(spec)[0]):
            return folder
        import timm  # slow import

        return f"{spec} of timm {timm.__version__}"
    return _extractor_folder(spec)


def embed_pixels(
    extractor: Extractor, pixels: UInt8[np.ndarray, "n 3 h w"], batch_size: int, device: torch.device
) -> Float32[np.ndarray, "n d"]:
    """Return features of pixels 0 … 255 in batches of exactly `batch_size`; rows do not affect each other."""
    return run_padded_batches(
        lambda batch: [extractor(to_images(batch))], [pixels], batch_size, device, DECODER_LOCK
    )[0]


def save_extractor(model: Classifier, folder: str | Path, *, mean: RGB, deviation: RGB) -> None:
    """Write a trained classifier as a folder for `load_extractor`; weights in fp16.

    `mean` and `deviation` are those of pixels in [0, 1] in training.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = ExtractorConfig(**model.architecture, mean=mean, deviation=deviation)
    state = model.state_dict().items()
    weights = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in state}
    save_file(weights, folder / WEIGHTS_NAME)
    (folder / CONFIG_NAME).write_text(json.dumps(config.model_dump(), indent=2) + "\n", encoding="utf-8")


def _extractor_folder(spec: str) -> Path:
    folder = resolve_model(spec)
    if (folder / SUBFOLDER).is_dir():
        folder = folder / SUBFOLDER
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise InputError(f"{spec}: {folder / name} is missing; an extractor folder needs it")
    return folder


def load_classifier(spec: str) -> tuple[Classifier, ExtractorConfig]:
    """Load the classifier of an extractor's folder, on the CPU, with its config.json."""
    folder = _extractor_folder(spec)
    config = ExtractorConfig.read(folder / CONFIG_NAME)
    model = build(config.network, config.num_classes, config.image_size, None, width=config.width)
    tensors = read_tensors([folder / WEIGHTS_NAME])
    what = f"the {config.network} of {CONFIG_NAME}"
    check_shapes(shapes_of(tensors), shapes_of(model.state_dict()), folder / WEIGHTS_NAME, what)
    model.load_state_dict(tensors)
    return model, config


def _saved_extractor(spec: str, device: torch.device) -> Extractor:
    model, config = load_classifier(spec)
    return _classifier_extractor(model, config.image_size, config.mean, config.deviation, device)


def _classifier_extractor(
    model: Classifier, image_size: int, mean: RGB, deviation: RGB, device: torch.device
) -> Extractor:
    dim = model.dim
    model.add_module("fc", nn.Identity())
    return Extractor(model, dim, image_size, mean, deviation, device)


def _timm_parts(spec: str) -> tuple[str, str, str]:
    """Split into name or folder, revision of the weights ("": main), and query after the question mark."""
    name, _, query = spec.removeprefix(TIMM_SCHEME).partition("?")
    if "/" in name:
        return name, "", query
    name, _, revision = name.partition("@")
    return name, revision, query


def _timm_folder(name: str) -> Path | None:
    """Return the folder of a timm spec, None for a timm name. Raises InputError for other folders."""
    if "/" not in name:
        return None
    config = Path(name) / CONFIG_NAME
    if not config.is_file():
        raise InputError(f"{TIMM_SCHEME}{name}: {config} is missing; a timm model's folder needs it")
    if "architecture" not in read_json(config):
        raise InputError(f"{config}: has no architecture; use timm's {CONFIG_NAME} from the hub")
    return Path(name)


def _timm_extractor(spec: str, device: torch.device) -> Extractor:
    model, size, mean, deviation = load_timm(spec, num_classes=0)
    with torch.inference_mode():
        dim = model.eval()(torch.zeros(1, 3, size, size)).shape[1]
    return Extractor(model, dim, size, mean, deviation, device)


def load_timm(spec: str, **arguments: Any) -> tuple[nn.Module, int, RGB, RGB]:
    """Return a timm model with weights, its input size in pixels, and the mean and deviation of its input."""
    import timm  # slow import
    import timm.data

    name, revision, query = _timm_parts(spec)
    if query not in ("", "pretrained=true", "pretrained=false"):
        raise InputError(f"{spec}: the query must be pretrained=true or pretrained=false, not {query!r}")
    if folder := _timm_folder(name):
        name = f"local-dir:{folder}"
    else:
        check_timm_name(name, spec)
    hub_log = logging.getLogger("huggingface_hub")
    level = hub_log.level
    with torch.random.fork_rng(devices=[]):  # timm draws from the global generator
        torch.manual_seed(0)  # the same untrained weights on every worker
        try:
            hub_log.setLevel(logging.ERROR)  # hide its log of retries
            hub_id = timm.get_pretrained_cfg_value(name, "hf_hub_id") if revision else None
            source = {"hf_hub_id": f"{hub_id}@{revision}"} if revision else None
            model = timm.create_model(
                name, pretrained=query != "pretrained=false", pretrained_cfg_overlay=source, **arguments
            )
        except (OSError, RuntimeError, ValueError) as error:  # of timm and the hub client
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"{spec}: pretrained weights are not available ({reason}); check the network, fill the "
                "Hugging Face cache first, or use a local copy: timm:FOLDER"
            ) from error
        finally:
            hub_log.setLevel(level)
    data = timm.data.resolve_model_data_config(model)
    mean, deviation = (cast(RGB, tuple(map(float, data[key]))) for key in ("mean", "std"))
    return model, data["input_size"][-1], mean, deviation
