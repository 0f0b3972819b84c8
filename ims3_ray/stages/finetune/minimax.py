"""Minimax Diffusion's memories (Gu et al. 2024), off by default: a row of its own in every ablation.

Per class the last images seen and the last predictions made; the criteria compare each prediction x̂0 with
them. Where the published code takes the extreme over a class's images in a batch, each image counts here, so
that cutting a batch into parts changes nothing.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ims3_ray.config.sections import Minimax
from ims3_ray.method.losses import diversity_loss, representativeness_loss


class MinimaxMemory:
    """The two memories of every class, the same on all workers."""

    def __init__(self, settings: Minimax):
        self._size = settings.memory
        self.weights = {"representativeness": settings.representativeness, "diversity": settings.diversity}
        self._real: dict[int, Tensor] = {}  # label → (M, C, H, W), oldest first
        self._predicted: dict[int, Tensor] = {}
        self._pending: dict[int, Tensor] = {}  # part → (B, 2, C, H, W), real and predicted

    def losses(
        self, part: int, clean: Tensor, z0: Tensor, labels: list[int], total: int
    ) -> dict[str, Tensor]:
        """Both criteria's shares by this part; 0 for images of a class that nothing is remembered of."""
        self._pending[part] = torch.stack([z0, clean.detach()], dim=1)
        terms = {name: clean.new_zeros(()) for name in self.weights}
        for row, label in enumerate(labels):
            if label in self._real:
                one = clean[row : row + 1]
                terms["representativeness"] = (
                    terms["representativeness"]
                    + representativeness_loss(one, self._real[label]).sum() / total
                )
                terms["diversity"] = (
                    terms["diversity"] + diversity_loss(one, self._predicted[label]).sum() / total
                )
        return terms

    def remember(self, gather: Callable[[Tensor], Tensor], labels: list[int]) -> None:
        """Add the step's images; `gather` joins the workers' parts in order, `labels` are the global batch's."""
        pairs = gather(torch.stack([self._pending[part] for part in sorted(self._pending)])).flatten(0, 1)
        self._pending = {}
        for (real, predicted), label in zip(pairs, labels, strict=True):
            for memory, value in ((self._real, real), (self._predicted, predicted)):
                older = memory.get(label, value.new_empty((0, *value.shape)))
                memory[label] = torch.cat([older, value[None]])[-self._size :]

    def state_dict(self) -> dict[str, Any]:
        return {"real": self._real, "predicted": self._predicted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._real, self._predicted = state["real"], state["predicted"]
