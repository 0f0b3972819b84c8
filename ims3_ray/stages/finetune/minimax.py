"""Minimax Diffusion's memories (Gu et al. 2024), off by default: a row of its own in every ablation.

Per class the last images seen and the last predictions made; the criteria compare each prediction x̂0 with
them. Where the published code takes the extreme over a class's images in a batch, each image counts here, so
that cutting a batch into parts changes nothing.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ims3_ray.config.sections import Minimax
from ims3_ray.method.losses import diversity_loss, representativeness_loss

Memories = dict[str, dict[int, Tensor]]  # kind → label → (M, C, H, W), oldest first


class MinimaxMemory:
    """The two memories of every class, the same on all workers."""

    def __init__(self, settings: Minimax):
        self._size = settings.memory
        self.weights = {"representativeness": settings.representativeness, "diversity": settings.diversity}
        self._memories: Memories = {"real": {}, "predicted": {}}
        self._pending: dict[int, Tensor] = {}  # part → (B, 2, C, H, W), real and predicted

    def losses(
        self,
        part: int,
        clean: Float[Tensor, "B C H W"],
        z0: Float[Tensor, "B C H W"],
        labels: Sequence[int],
        total: int,
    ) -> dict[str, Tensor]:
        """Both criteria's shares by this part; 0 for images of a class that nothing is remembered of."""
        self._pending[part] = torch.stack([z0, clean.detach()], dim=1)
        real, predicted = self._memories["real"], self._memories["predicted"]
        alike = diverse = clean.new_zeros(())
        for one, label in zip(clean.split(1), labels, strict=True):  # (1, C, H, W)
            if label in real:
                alike = alike + representativeness_loss(one, real[label]).sum() / total
                diverse = diverse + diversity_loss(one, predicted[label]).sum() / total
        return {"representativeness": alike, "diversity": diverse}

    def remember(self, gather: Callable[[Tensor], Tensor], labels: Sequence[int]) -> None:
        """Add the step's images; `gather` joins all workers' parts, `labels` are the global batch's."""
        pairs = gather(torch.stack([self._pending[part] for part in sorted(self._pending)])).flatten(0, 1)
        self._pending = {}
        for pair, label in zip(pairs, labels, strict=True):
            for memory, value in zip(self._memories.values(), pair, strict=True):
                older = memory.get(label, value.new_empty((0, *value.shape)))
                memory[label] = torch.cat([older, value[None]])[-self._size :]

    def state_dict(self) -> Memories:
        return self._memories

    def load_state_dict(self, state: Memories) -> None:
        self._memories = state
