"""Inversion matching (Eq. 4–7): the loss of a part of a batch, for the loop in `models/training`."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ims3_ray.config.sections import Finetune, InversionMatching
from ims3_ray.method.ddim import abar_at, add_noise, ddim_step, noise_of, predicted_clean
from ims3_ray.method.losses import (
    all_pairs_loss,
    at_level_of,
    diffusion_loss,
    diversity_loss,
    masked_mean,
    matching_loss,
    one_step_pair,
    representativeness_loss,
    variational_loss,
)
from ims3_ray.method.schedule import alphas_bar
from ims3_ray.models.device import to_device
from ims3_ray.models.finetuned import TunedModel, save_adapter
from ims3_ray.storage.artifacts import Directory

from .batch import LatentDataset, LatentSource, TrainingBatch

SMALL_WEIGHT = 0.1  # below it, bf16 rounds the gradient away beside that of the diffusion loss
MINIMAX_WEIGHTS = {"representativeness": 0.002, "diversity": 0.008}  # as published
MEMORY_SIZE = 64  # latents per memory, as published
Memories = dict[str, dict[int, Tensor]]  # real or predicted → label → (M, C, H, W), oldest first


class MinimaxMemory:
    """Minimax Diffusion's memories (Gu et al. 2024), off by default; the same on all workers.

    Per class they hold the last images and the last predictions; the criteria compare each prediction x̂0 with
    them. Each image counts, so cutting a batch into parts changes nothing. With `im.minimax=class`, as in the
    published code, only the image per class that is farthest from its criterion counts.
    """

    def __init__(self, unit: Literal["image", "class"], size: int = MEMORY_SIZE):
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
        """Return this part's share of both criteria; 0 for images of a class without memory.

        With `im.minimax=class` the part must be the whole batch.
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
        """Add the step's images. `gather` joins the parts of all workers; `labels` are the global batch's."""
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


class InversionMatchingTask:
    """L = L_diff + λ_IM L_IM (Eq. 4–7) over DiffFit's parameters, plus the variational and Minimax terms.

    `loss_weights` has the factor of each term; λ_IM is that of "matching". `gradient_ratios` may
    set λ_IM by the ratio of the gradients' norms. Terms in `separate_terms` need their own backward pass.
    """

    def __init__(
        self,
        device: torch.device,
        model: TunedModel,
        source: LatentSource,
        finetune: Finetune,
        im: InversionMatching,
        seed: int,
    ):
        loaded = model.trainable(device)
        self._dit, self._predict, self._device = loaded.dit, loaded.predict, device
        self.parameters = {n: p for n, p in loaded.dit.named_parameters() if p.requires_grad}
        self.images, self._im, self._abar = LatentDataset(source, finetune, seed), im, alphas_bar().to(device)
        self._batch_size, self._part_size = finetune.latents, finetune.latents // finetune.micro_batches
        self._minimax = MinimaxMemory(im.minimax) if im.minimax else None
        self.loss_weights = {"diffusion": 1.0}
        if loaded.dit.config.out_channels == 2 * loaded.dit.config.in_channels:
            self.loss_weights["variational"] = 1.0
        if im.weight or im.grad_ratio:
            self.loss_weights["matching"] = im.weight
        self.loss_weights |= MINIMAX_WEIGHTS if self._minimax else {}
        self.gradient_ratios = {} if im.grad_ratio is None else {"matching": im.grad_ratio}
        is_rounded = model.numerics.precision != "fp32"
        self.separate_terms = {
            name for name, weight in self.loss_weights.items() if is_rounded and weight < SMALL_WEIGHT
        }

    def losses(self, step: int, part: int) -> dict[str, Tensor]:
        """Return the terms of one part of B images, each divided by its count in the global batch."""
        positions = range(part * self._part_size, (part + 1) * self._part_size)
        batch, total = self.images.draw(step, positions), self._batch_size
        draws = batch.to(self._device)
        labels = draws.label.masked_fill(draws.dropped, self._dit.null_label)  # (B,)

        abar_t = abar_at(self._abar, draws.t)  # (B, 1, 1, 1)
        z_t = add_noise(draws.z0, draws.eps, abar=abar_t)  # (B, C, H, W)
        output = self._predict(z_t, draws.t, labels)  # (B, C or 2 C, H, W)
        eps = noise_of(output, z_t.shape[1])  # (B, C, H, W)

        terms = {"diffusion": diffusion_loss(eps, draws.eps).sum() / total}
        if "variational" in self.loss_weights:
            kl = variational_loss(output, z_t, draws.z0, draws.t, self._abar)  # (B,)
            terms["variational"] = kl.sum() / total
        if "matching" in self.loss_weights and self._im.target == "one_step":
            terms["matching"] = self._published_matching(draws, z_t, eps).sum() / total
        elif "matching" in self.loss_weights:
            distance = self._matching(draws, z_t, eps)  # (B,)
            terms["matching"] = masked_mean(distance, draws.matched, self.images.num_matched(step))
        if self._minimax:
            clean = predicted_clean(z_t, eps, abar=abar_t)  # (B, C, H, W)
            terms |= self._minimax.losses(part, clean, draws.z0, batch.label.tolist(), total)
        return terms

    def _matching(self, draws: TrainingBatch, z_t: Tensor, eps: Tensor) -> Tensor:
        """Return L_IM (B,) between z_s^inv and z̃_s, which the tuned model steps to from `z_t` (Eq. 4–7).

        With `im.target=same_level`, z̃_s has, in place of the predicted noise, that of z_s^inv relative to
        z_0, the posterior's sample to which x̂_0 is trained.
        """
        assert draws.inverted is not None, "matching trajectories needs inversions"
        abar_t, abar_s = abar_at(self._abar, draws.t), abar_at(self._abar, draws.s)
        if self._im.target == "same_level":
            clean = predicted_clean(z_t, eps, abar=abar_t)
            stepped = at_level_of(draws.inverted, clean, draws.z0, abar=abar_s)
        else:
            stepped = ddim_step(z_t, eps, abar_from=abar_t, abar_to=abar_s)
        return matching_loss(stepped, draws.inverted)

    def _published_matching(self, draws: TrainingBatch, z_t: Tensor, eps: Tensor) -> Tensor:
        """Return the published loss (B,): each image, label dropped or not, against the whole batch."""
        labels = draws.label.masked_fill(draws.dropped_again, self._dit.null_label)
        pair = one_step_pair(self._predict, draws.z0, z_t, eps, draws.t, labels, self._abar)
        return all_pairs_loss(*pair)

    def after_step(self, step: int, gather: Callable[[Tensor], Tensor]) -> None:
        """Add the step's images and predictions of all parts to the Minimax memories."""
        if self._minimax:
            self._minimax.remember(gather, self.images.labels(self.images.rows(step)).tolist())

    def state_dict(self) -> Memories:
        return self._minimax.state_dict() if self._minimax else {}

    def load_state_dict(self, state: Memories) -> None:
        if self._minimax:
            self._minimax.load_state_dict(state, self._device)

    def close(self) -> None:
        self.images.close()

    def save(self, values: dict[str, Tensor], averages: dict[str, Tensor], out: Directory) -> None:
        save_adapter(out, values, averages)
