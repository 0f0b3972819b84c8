"""Minimax Diffusion's memories (Gu et al. 2024), off by default: a row of its own in every ablation.

Per class the last images seen and the last predictions made; the criteria compare each prediction x̂0 with
them. Each image counts, so that cutting a batch into parts changes nothing; with `im.minimax=class` it is, as
in the published code, the image of a class in the batch that is farthest from its criterion, for every class.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ims3_ray.method.losses import diversity_loss, representativeness_loss
from ims3_ray.models.device import to_device

WEIGHTS = {"representativeness": 0.002, "diversity": 0.008}  # as published, and so is the size
SIZE = 64  # latents that each memory holds
Memories = dict[str, dict[int, Tensor]]  # kind → label → (M, C, H, W), oldest first


class MinimaxMemory:
    """The two memories of every class, the same on all workers."""

    def __init__(self, unit: Literal["image", "class"], size: int = SIZE):
        self._size, self._of_class = size, unit == "class"
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
        """Both criteria's shares by this part; 0 for images of a class that nothing is remembered of.

        With `im.minimax=class` the part is the whole batch.
        """
        self._pending[part] = torch.stack([z0, clean.detach()], dim=1)
        real, predicted = self._memories["real"], self._memories["predicted"]
        groups = [[row] for row in range(len(labels))]
        if self._of_class:
            groups = [
                [row for row, own in enumerate(labels) if own == label] for label in sorted(set(labels))
            ]
            total = len(groups)
        alike = diverse = clean.new_zeros(())
        for rows in groups:
            label = labels[rows[0]]
            if label in real:
                own = clean[to_device(torch.tensor(rows), clean.device)]
                alike = alike + representativeness_loss(own, real[label]).amax() / total
                diverse = diverse + diversity_loss(own, predicted[label]).amax() / total
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

    def load_state_dict(self, state: Memories, device: torch.device) -> None:
        self._memories = {
            kind: {label: latents.to(device) for label, latents in of_kind.items()}
            for kind, of_kind in state.items()
        }
