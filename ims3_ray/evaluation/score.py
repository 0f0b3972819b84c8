"""`ims3_ray.score`: the accuracy that images in memory give under a protocol, without Ray."""

import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ims3_ray.data.images import open_images
from ims3_ray.data.transforms import decode, resize_and_crop
from ims3_ray.errors import InputError
from ims3_ray.models.device import prepare_device
from ims3_ray.storage.artifacts import open_storage

from .protocols import get_protocol
from .statistics import summary
from .train import Labelled, final_score, train_with_evals

Array = Tensor | np.ndarray


@dataclass(frozen=True)
class ScoreResult:
    """Test accuracies as fractions, over the classifier seeds."""

    accuracies: tuple[float, ...]
    """One per seed, at the end of training."""
    mean: float
    std: float | None
    """Sample standard deviation; None for one seed."""
    interval: float | None
    """Half width of the mean's 95 % interval (Student's t); None for one seed."""
    protocol: str
    """Name, version and network, such as "quick-v2/convnet3-w32"; numerics in brackets if not plain fp32."""


def score(
    images: Array,
    labels: Array,
    *,
    test: tuple[Array, Array] | str,
    protocol: str = "quick",
    network: str | None = None,
    seeds: int | Sequence[int] = 3,
    device: str | None = None,
) -> ScoreResult:
    """Train a protocol's classifiers on images and score them on test images, as `ims3 evaluate` does.

    The same images give the same accuracies as `ims3 evaluate` if they come in its order: by class, then file
    name. Images are scaled by their shorter side to the protocol's size, then cropped to the centre. Give a
    packed set unpacked, as `load_distilled` returns it.

    Args:
        images: (N, 3, H, W) or grey (N, 1, H, W); float in 0 … 1 (rounded to 8 bits) or uint8.
        labels: (N,) integer classes from 0, or (N, classes) float probabilities as soft labels.
        test: (images, labels) in these formats with integer labels, or the place of class folders, which is
            read into memory; label k is then the k-th class in sorted order.
        protocol: a hard-label protocol, such as "quick", "minimax", "ims3" or "dsa-cifar10".
        network: a network of the project or "timm:NAME"; None is the protocol's own.
        seeds: number of classifiers (seeds 0, 1, …), or the seeds.
        device: "cpu" or "cuda"; None uses a GPU if there is one.

    Raises:
        InputError: naming the argument, if a shape, dtype, value or name is invalid, a test class has no
            training image, or the network is too deep for the protocol's image size.

    Example:
        >>> result = ims3_ray.score(images, labels, test=(test_images, test_labels), protocol="minimax")
    """
    chosen = get_protocol(protocol, network)
    if chosen.is_soft:
        raise InputError(
            f"protocol: {protocol} needs a teacher; choose one with hard labels, such as quick or minimax"
        )
    numbers, kind = _seeds(seeds), _device_kind(device)
    train = _pixels("images", images, chosen.image_size), _labels("labels", labels, len(images), soft=True)
    scored = _test_set(test, chosen.image_size)
    highest = max(int(y.max()) for y in (train[1], scored[1]) if y.dim() == 1)
    num_classes = train[1].shape[1] if train[1].dim() == 2 else highest + 1
    with _reproducible(kind) as on:
        evals = (train_with_evals(train, scored, chosen, num_classes, seed, on) for seed in numbers)
        scores = [final_score(stream) for stream in evals]
    of, numerics = summary(accuracies := tuple(each.last for each in scores)), scores[0].numerics.deviation
    label = f"{chosen.label} ({numerics})" if numerics else chosen.label
    return ScoreResult(accuracies, of.mean, of.deviation, of.interval, label)


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not numbers:
        raise InputError(f"seeds: {seeds!r} gives no classifier; give at least 1")
    return numbers


def _device_kind(device: str | None) -> str:
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind not in ("cpu", "cuda"):
        raise InputError(f"device: {kind!r} is unknown; choose cpu or cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError("device: there is no GPU; choose cpu")
    return kind


def _pixels(name: str, images: Array, size: int) -> Tensor:
    """(N, 3, size, size) uint8."""
    x = torch.as_tensor(images).detach().cpu()
    if x.dim() != 4 or x.shape[1] not in (1, 3) or 0 in x.shape:
        raise InputError(f"{name}: has shape {tuple(x.shape)}; give (N, 3, H, W) or (N, 1, H, W)")
    if x.is_floating_point():
        low, high = x.min().item(), x.max().item()
        if not (low >= 0 and high <= 1):
            raise InputError(f"{name}: has values from {low:g} to {high:g}; give 0 … 1, or uint8")
        x = (x * 255).round().to(torch.uint8)
    elif x.dtype != torch.uint8:
        raise InputError(f"{name}: has dtype {x.dtype}; give uint8, or floats in 0 … 1")
    x = x.expand(-1, 3, -1, -1)
    if x.shape[2:] == (size, size):
        return x.contiguous()
    rows = (Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in x)
    return torch.from_numpy(np.stack([resize_and_crop(image, size) for image in rows]))


def _labels(name: str, labels: Array, count: int, *, soft: bool = False) -> Tensor:
    y = torch.as_tensor(labels).detach().cpu()
    is_soft = soft and y.dim() == 2 and y.is_floating_point()
    is_hard = y.dim() == 1 and not y.is_floating_point() and y.dtype != torch.bool
    if not (is_soft or is_hard) or len(y) != count:
        formats = f"({count},) integers" + (f" or ({count}, classes) floats" if soft else "")
        raise InputError(f"{name}: has shape {tuple(y.shape)} and dtype {y.dtype}; give {formats}")
    if is_hard and int(y.min()) < 0:
        raise InputError(f"{name}: has the class {int(y.min())}; count classes from 0")
    if is_soft and not (bool((y >= 0).all()) and bool(((y.sum(dim=1) - 1).abs() < 1e-3).all())):
        raise InputError(f"{name}: soft labels are not probabilities; each row must be ≥ 0 and sum to 1")
    return y.float() if is_soft else y.long()


def _test_set(test: tuple[Array, Array] | str, size: int) -> Labelled:
    if not isinstance(test, str):
        images, labels = test
        return _pixels("test images", images, size), _labels("test labels", labels, len(images))
    with tempfile.TemporaryDirectory() as folder:
        found = open_images(test, open_storage(folder), name="test", seed=0, max_bad_fraction=0.0)
        pixels = [resize_and_crop(decode(found.directory.read(path)), size) for path in found.paths]
    return torch.from_numpy(np.stack(pixels)), torch.from_numpy(found.labels)


@contextmanager
def _reproducible(kind: str) -> Generator[torch.device]:
    """`prepare_device`; the caller's threads and determinism setting are restored afterwards."""
    threads, is_strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield prepare_device(kind)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(is_strict, warn_only=warns)
