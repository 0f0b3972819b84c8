"""Membership inference: can classifiers trained on a set tell its training images from unseen images?

A distilled set is shared in place of its training images. An attacker asks a classifier trained on the set
how confident it is in the true class of an image; a higher confidence suggests a training image. One
threshold serves all images, without shadow models (Yeom et al. 2018); the statistic is that of Carlini et
al. 2022, whose per-image attack is stronger.
"""

import math
from typing import TypedDict

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import rankdata
from torch import Tensor

FALSE_ALARMS = 0.01  # maximum share of unseen images taken for training images


class Membership(TypedDict):
    """Result of an attack; an `auc` of 0.5 is guessing."""

    auc: float
    interval: float
    """Half width of the 95 % interval of `auc`."""
    found: float
    """Share of the training images found at a false alarm rate of 1 %."""
    images: int
    """Number of training images."""
    unseen: int
    """Number of unseen images."""


def confidence(logits: Float[Tensor, "b classes"], labels: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """log p − log(1 − p) for the true class's probability p (Carlini et al. 2022, section IV.C)."""
    own = labels[:, None]
    others = logits.scatter(1, own, -torch.inf).logsumexp(dim=1)
    return logits.gather(1, own)[:, 0] - others


def attack(members: Float[np.ndarray, " n"], unseen: Float[np.ndarray, " m"]) -> Membership:
    """Separate n training images from m unseen ones by a threshold on their confidences.

    The area under the curve counts ties half; its interval is that of Hanley & McNeil 1982.
    """
    n, m = len(members), len(unseen)
    ranks = rankdata(np.concatenate([members, unseen]))
    auc = float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))
    threshold = np.sort(unseen)[m - 1 - math.floor(FALSE_ALARMS * m)]
    return Membership(
        auc=auc,
        interval=1.96 * _standard_error(auc, n, m),
        found=float((members > threshold).mean()),
        images=n,
        unseen=m,
    )


def describe_attack(result: Membership) -> str:
    """One sentence for reports and cards."""
    is_guess = result["auc"] - result["interval"] <= 0.5
    verdict = "no better than by guessing" if is_guess else "better than by guessing (0.5)"
    return (
        f"A membership attack by the set's classifiers tells {result['images']:,} training images from "
        f"{result['unseen']:,} unseen ones {verdict}: AUC {result['auc']:.3f} ± {result['interval']:.3f}; "
        f"with at most {100 * FALSE_ALARMS:.0f} % false alarms it finds "
        f"{100 * result['found']:.1f} % of them."
    )


def _standard_error(auc: float, n: int, m: int) -> float:
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (n - 1) * (q1 - auc**2) + (m - 1) * (q2 - auc**2)
    return math.sqrt(max(0.0, variance) / (n * m))
