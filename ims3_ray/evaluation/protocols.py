"""Named, versioned evaluation protocols.

Incompatible protocols share names such as "ImageWoof, IPC 10" in the literature, so a number is only worth
something together with its protocol's `label`. Any change of a value here raises the protocol's version.
Sources: Gu et al., CVPR 2024 (`minimax`), the published script of IMS3 (`ims3`), the published code of Zhao
et al. 2021 and Zhao & Bilen 2021 (`dc-…`, `dsa-…`) and of Sun et al., CVPR 2024 (RDED: `soft`); `quick` is
this project's own.
"""

from collections.abc import Sequence
from typing import Any, Literal

from ims3_ray.config.evaluation import NO_PROTOCOL as NO_PROTOCOL
from ims3_ray.config.evaluation import VALIDATION
from ims3_ray.errors import InputError
from ims3_ray.models.classifiers import NETWORKS
from ims3_ray.models.timm_networks import is_timm, stem_for

from .dsa import DiffKind
from .rules import Augmentations, Protocol

_MINIMAX = Protocol(
    name="minimax",
    version=2,
    split="test",
    network="resnetap10",
    image_size=224,
    augmentations=Augmentations(crop_scale=(0.5, 1.0), flip=0.5, jitter=0.4, lighting=0.1),
    cutmix=1.0,
    learning_rate=0.01,
)
_IMS3 = _MINIMAX.model_copy(
    update={
        "name": "ims3",
        "augmentations": _MINIMAX.augmentations.model_copy(
            update={"randaugment_ops": 1, "randaugment_magnitude": 6}
        ),
        "learning_rate": 0.1,
    }
)
_QUICK = Protocol(  # its values were chosen on the digits' validation images alone
    name="quick",
    version=2,
    split="test",
    network="convnet3",
    width=32,
    image_size=32,
    augmentations=Augmentations(crop_scale=(0.7, 1.0)),
    cutmix=0.0,
    steps=150,
    learning_rate=0.1,
    nesterov=True,
    schedule="cosine",
    warmup=0.1,
    evaluations=5,
)
_SMOKE = _QUICK.model_copy(  # shows that a pipeline runs, in seconds; its accuracies say nothing
    update={"name": "smoke", "width": 8, "image_size": 16, "steps": 6, "batch_size": 16, "evaluations": 2}
)
_GREY: dict[str, Any] = {"channels": 1, "padding": 3, "image_size": 28}
_SMALL: dict[str, dict[str, Any]] = {  # sets of small images, as Zhao et al. 2021 normalise them
    "mnist": {**_GREY, "mean": (0.1307,), "deviation": (0.3081,)},
    "fashion": {**_GREY, "mean": (0.2861,), "deviation": (0.3530,)},
    "cifar10": {"image_size": 32, "mean": (0.4914, 0.4822, 0.4465), "deviation": (0.2023, 0.1994, 0.2010)},
}
_SIAMESE: tuple[DiffKind, ...] = ("color", "crop", "cutout", "flip", "scale", "rotate")


def _zhao(method: Literal["dc", "dsa"], images: str) -> Protocol:
    """Their code's evaluation: 300 epochs, 1000 with augmentation, and one more."""
    views = Augmentations()
    if method == "dsa":
        views = Augmentations(siamese=tuple(kind for kind in _SIAMESE if (images, kind) != ("mnist", "flip")))
    elif images == "mnist":
        views = Augmentations(one_of=("crop", "scale", "rotate"))
    return Protocol(
        name=f"{method}-{images}",
        version=1,
        split="test",
        network="convnet3",
        **_SMALL[images],
        augmentations=views,
        cutmix=0.0,
        epochs=301 if views == Augmentations() else 1001,
        batch_size=256,
        learning_rate=0.01,
        schedule="restart",
        evaluations=1,
    )


_SOFT = Protocol(
    name="soft",
    version=1,
    split="test",
    network="timm:resnet18",
    image_size=224,
    augmentations=Augmentations(shuffle=2, crop_scale=(0.5, 1.0), flip=0.5),
    cutmix=1.0,
    temperature=20.0,
    epochs=300,
    batch_sizes=((1, 10), (10, 50)),
    batch_size=100,
    optimiser="adamw",
    learning_rate=1e-3,
    weight_decay=0.01,
    schedule="half_cosine",
    evaluations=10,
)
_SOFT_SMALL = _SOFT.model_copy(update={"name": "soft-32", "network": "convnet3", "image_size": 32})
# Learning rates for kinds of networks that need another than their protocol's own. Those of `quick` were
# chosen on the digits' validation images alone, those of `soft` are the published ones.
_SOFT_RATES = {
    "timm:vgg": 5e-4,
    "timm:efficientnet": 2e-3,
    "timm:mobilenetv2": 2.5e-3,
    "timm:vit": 1e-4,
    "timm:swin": 1e-4,
}
RATES = {
    "quick": {"resnet8": 0.3, "mlp": 0.03},
    "soft": _SOFT_RATES,
    "soft-32": _SOFT_RATES,
}

_ZHAO = [_zhao(method, images) for images in _SMALL for method in ("dc", "dsa")]
_TESTED = (_QUICK, _MINIMAX, _IMS3, *_ZHAO, _SOFT, _SOFT_SMALL, _SMOKE)
_VALIDATED = [p.model_copy(update={"name": p.name + VALIDATION, "split": "validation"}) for p in _TESTED]
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in (*_TESTED, *_VALIDATED)}


def protocol(name: str, network: str | None = None) -> Protocol:
    """The protocol of this name, with another network if one is named (at its default width).

    Raises InputError for an unknown protocol or network, with the choices.
    """
    if name not in PROTOCOLS:
        raise InputError(f"protocol: {name!r} is not known; choose one of {', '.join(PROTOCOLS)}")
    chosen = PROTOCOLS[name]
    if network is None or network == chosen.network:
        return chosen
    if network not in NETWORKS and not is_timm(network):
        known = f"{', '.join(NETWORKS)}, or timm:NAME"
        raise InputError(f"network: {network!r} is not known; choose one of {known}")
    rates = RATES.get(name.removesuffix(VALIDATION), {})
    rate = next((rate for kind, rate in rates.items() if network.startswith(kind)), chosen.learning_rate)
    stem = stem_for(network, chosen.image_size) if is_timm(network) else None
    update = {"network": network, "width": None, "stem": stem, "learning_rate": rate}
    return chosen.model_copy(update=update)


def on_validation(name: str) -> str:
    """The name of the protocol that scores on the validation images and is else this one."""
    return protocol(name).name.removesuffix(VALIDATION) + VALIDATION


def protocols(name: str, networks: Sequence[str] | None = None) -> list[Protocol]:
    """The protocol of this name with each of the networks, or with its own alone where None."""
    return [protocol(name, network) for network in networks or (None,)]
