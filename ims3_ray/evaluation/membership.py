"""What a set gives away about the images behind it: a membership attack, by the classifiers at hand.

A distilled set is shared in place of its training images. A classifier that learnt from the set is asked how
sure it is of the true class of a training image, and of an image that neither set nor generator has seen:
who finds it surer of the first tells them apart. One threshold for all images, as Yeom et al. 2018, without
shadow models; the statistic is that of Carlini et al. 2022, whose attack on one image is stronger.
"""

import math
from typing import TypedDict

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import rankdata
from torch import Tensor

FALSE_ALARMS = 0.01  # share of unseen images that an attacker may take for training images


class Membership(TypedDict):
    """How well training images are told from unseen ones: 0.5 of `auc` is guessing."""

    auc: float
    interval: float
    """95 % of it."""
    found: float
    """Share of the training images that are found where at most 1 % of the unseen ones are taken for such."""
    images: int
    """Training images that were tried."""
    unseen: int


def confidence(logits: Float[Tensor, "b classes"], labels: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """log p − log(1 − p) of the true class's probability p (Carlini et al. 2022, section IV.C)."""
    own = labels[:, None]
    others = logits.scatter(1, own, -torch.inf).logsumexp(dim=1)
    return logits.gather(1, own)[:, 0] - others


def attack(members: Float[np.ndarray, " n"], unseen: Float[np.ndarray, " m"]) -> Membership:
    """How well a threshold on the confidences tells n training images from m unseen ones.

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


def in_words(of: Membership) -> str:
    """What an attack came to, a sentence."""
    told = f"{of['images']:,} training images from {of['unseen']:,} unseen ones"
    is_guess = of["auc"] - of["interval"] <= 0.5
    verdict = "no better than by guessing" if is_guess else "better than by guessing (0.5)"
    area = f"AUC {of['auc']:.3f} ± {of['interval']:.3f}"
    found = f"with at most {100 * FALSE_ALARMS:.0f} % false alarms it finds {100 * of['found']:.1f} % of them"
    return f"A membership attack by the set's classifiers tells {told} {verdict}: {area}; {found}."


def _standard_error(auc: float, n: int, m: int) -> float:
    of_one, of_other = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc) + (n - 1) * (of_one - auc**2) + (m - 1) * (of_other - auc**2)
    return math.sqrt(max(0.0, spread) / (n * m))
