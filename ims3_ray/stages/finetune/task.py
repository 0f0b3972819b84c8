"""Inversion matching (Eq. 4–7): the loss of a part of a batch, for the loop in cluster/trainer.py."""

from collections.abc import Callable

import torch
from torch import Tensor

from ims3_ray.config.sections import Finetune, InversionMatching
from ims3_ray.method.ddim import abar_at, add_noise, ddim_step, noise_of, predicted_clean
from ims3_ray.method.losses import (
    all_pairs_loss,
    diffusion_loss,
    masked_mean,
    matching_loss,
    one_step_pair,
    variational_loss,
)
from ims3_ray.method.schedule import alphas_bar
from ims3_ray.models.finetuned import TunedModel, save_adapter
from ims3_ray.storage.artifacts import Directory

from .batch import Draws, Images, Source
from .minimax import WEIGHTS as MINIMAX_WEIGHTS
from .minimax import Memories, MinimaxMemory

SMALL = 0.1  # weights below it: beside the diffusion loss their gradient is less than bf16's rounding


class InversionMatchingTask:
    """L = L_diff + λ_IM L_IM (Eq. 7) over DiffFit's parameters, with the terms that are asked for beside it.

    `weights` has the factor of every term, λ_IM that of "matching"; `ratios` may give λ_IM as the ratio of
    the two gradients' norms instead.
    """

    def __init__(
        self,
        device: torch.device,
        model: TunedModel,
        source: Source,
        finetune: Finetune,
        im: InversionMatching,
        seed: int,
    ):
        loaded = model.trainable(device)
        self._dit, self._predict, self._device = loaded.dit, loaded.predict, device
        self.parameters = {n: p for n, p in loaded.dit.named_parameters() if p.requires_grad}
        self.images, self._im, self._abar = Images(source, finetune, seed), im, alphas_bar().to(device)
        self._part_size = finetune.latents // finetune.micro_batches
        self._drawn: tuple[int, Draws] | None = None  # a step and its batch, which all of its parts share
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
            name for name, weight in self.loss_weights.items() if is_rounded and weight < SMALL
        }

    def losses(self, step: int, part: int) -> dict[str, Tensor]:
        """Terms of one part of B images, each divided by what its mean over the global batch divides by."""
        batch, rows = self._batch(step), slice(part * self._part_size, (part + 1) * self._part_size)
        total, num_matched = len(batch.t), int(batch.matched.sum())
        draws = batch.part(rows, self._device)
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
            terms["matching"] = masked_mean(distance, draws.matched, num_matched)
        if self._minimax:
            clean = predicted_clean(z_t, eps, abar=abar_t)  # (B, C, H, W)
            terms |= self._minimax.losses(part, clean, draws.z0, batch.label[rows].tolist(), total)
        return terms

    def _batch(self, step: int) -> Draws:
        if self._drawn is None or self._drawn[0] != step:
            self._drawn = step, self.images.draw(step)
        return self._drawn[1]

    def _matching(self, draws: Draws, z_t: Tensor, eps: Tensor) -> Tensor:
        """L_IM of every image (B,): z̃_s, stepped from `z_t` by the model being tuned (Eq. 4), and z_s^inv."""
        assert draws.inverted is not None, "trajectories are matched, and none was read"
        abar_t, abar_s = abar_at(self._abar, draws.t), abar_at(self._abar, draws.s)
        stepped = ddim_step(z_t, eps, abar_from=abar_t, abar_to=abar_s)
        return matching_loss(stepped, draws.inverted, self._im.metric)

    def _published_matching(self, draws: Draws, z_t: Tensor, eps: Tensor) -> Tensor:
        """The published code's matching (B,): of every image, dropped labels or not, with the whole batch."""
        labels = draws.label.masked_fill(draws.dropped_again, self._dit.null_label)
        pair = one_step_pair(self._predict, draws.z0, z_t, eps, draws.t, labels, self._abar)
        return all_pairs_loss(*pair)

    def after_step(self, step: int, gather: Callable[[Tensor], Tensor]) -> None:
        """Put the step's images and predictions of all parts into the Minimax memories."""
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
