"""Fine-tune the generator by inversion matching (Eq. 4–7). Reads latents and inversions, makes an adapter."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ims3_ray.cluster.train import Training, train
from ims3_ray.cluster.trainer import Optimisation
from ims3_ray.config.sections import Finetune, InversionMatching
from ims3_ray.data.classes import NEW
from ims3_ray.method import losses
from ims3_ray.method.ddim import add_noise, ddim_step, level, noise_of, predicted_clean
from ims3_ray.method.keys import permutation
from ims3_ray.method.rng import generator
from ims3_ray.method.schedule import NUM_TRAIN_TIMESTEPS, alphas_bar, grid_index_below, inversion_grid
from ims3_ray.models.tuned import TunedModel, save_adapter
from ims3_ray.stages.context import Context
from ims3_ray.stages.contract import Stage
from ims3_ray.stages.costs import BACKWARD, Cost, Forward, generator_bytes
from ims3_ray.storage import tables
from ims3_ray.storage.artifacts import Directory, read_manifest, read_rows

from .minimax import MinimaxMemory


def run(context: Context, out: Directory, latents: Directory, inversions: Directory) -> dict[str, Any]:
    """Tune DiffFit's parameters over the latents; logs every loss term unweighted and the gradients' ratio."""
    config = context.config
    settings = config.finetune
    steps = settings.epochs * (read_manifest(latents)["rows"] // settings.batch_size)
    training = Training(
        name=f"finetune-{out.name}",
        build=InversionMatchingTask,
        arguments=task_arguments(context, latents, inversions),
        optimisation=optimisation(settings, steps),
        out=out,
        checkpoints=context.storage / "checkpoints",
        batch_field="finetune.batch_size",
    )
    history = train(training, context.machine, "finetune", partial(context.on_metrics, "finetune"))
    own_classes = list(context.classes) if config.data.class_map == NEW else None
    # what reading the adapter needs
    tuned = {"own_classes": own_classes, "frequency_shift": config.model.frequency_shift}
    return {"rows": steps * settings.batch_size, "history": history, **tuned}


def task_arguments(context: Context, latents: Directory, inversions: Directory) -> dict[str, Any]:
    """What an `InversionMatchingTask` is built with, beside its device."""
    config = context.config
    return {
        "model": context.tuned_model(),
        "latents": latents,
        "inversions": inversions,
        "mirror": config.data.mirror,
        "model_labels": context.model_labels,
        "finetune": config.finetune,
        "im": config.im,
        "points": config.invert.points,
        "seed": config.seed,
    }


def optimisation(settings: Finetune, steps: int) -> Optimisation:
    """`settings` as the training loop takes them."""
    return Optimisation(
        steps=steps,
        batch_size=settings.batch_size,
        micro_batches=settings.micro_batches,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        ema_decay=settings.ema_decay,
        log_every=settings.log_every,
        checkpoint_every=settings.checkpoint_every,
    )


class InversionMatchingTask:
    """The loss of a part of a batch: every draw is keyed by (seed, step, position in the global batch)."""

    def __init__(
        self,
        device: torch.device,
        model: TunedModel,
        latents: Directory,
        inversions: Directory,
        mirror: bool,
        model_labels: list[int],
        finetune: Finetune,
        im: InversionMatching,
        points: int,
        seed: int,
    ):
        loaded = model.trainable(device)
        self._dit, self._predict, self._device = loaded.dit, loaded.predict, device
        self.parameters = {n: p for n, p in loaded.dit.named_parameters() if p.requires_grad}
        self._finetune, self._im, self._seed = finetune, im, seed
        self._abar, self._grid = alphas_bar(), inversion_grid(points)
        self._views = _read_views(latents, inversions, mirror)
        self._labels = np.array(model_labels)[self._views[0]["label"]]
        self._learns_variance = loaded.dit.config.out_channels == 2 * loaded.dit.config.in_channels
        self._minimax = MinimaxMemory(im.minimax) if im.minimax else None
        self.weights = self._weigh()
        self.ratios = {} if im.grad_ratio is None else {"matching": im.grad_ratio}

    def _weigh(self) -> dict[str, float]:
        weights = {"diffusion": 1.0}
        if self._learns_variance:
            weights["variational"] = 1.0
        if self._im.weight or self._im.grad_ratio:
            weights["matching"] = self._im.weight
        return weights | (self._minimax.weights if self._minimax else {})

    def rows(self, step: int) -> np.ndarray:
        """Rows (batch_size,) of the global batch of `step`: epochs are permutations keyed by (seed, epoch)."""
        size = self._finetune.batch_size
        per_epoch = len(self._labels) // size
        epoch, batch = divmod(step, per_epoch)
        return permutation(len(self._labels), "epoch", self._seed, epoch)[batch * size : (batch + 1) * size]

    def losses(self, step: int, part: int) -> dict[str, Tensor]:
        """Terms of one part, each divided by what its mean over the global batch divides by."""
        draws = [self._draw(step, position, row) for position, row in enumerate(self.rows(step))]
        k_all = grid_index_below(torch.tensor([d["t"] for d in draws]), self._grid)
        matched_all = (k_all > 0) & ~torch.tensor([d["dropped"] for d in draws])
        total, matched_total = len(draws), int(matched_all.sum())
        size = total // self._finetune.micro_batches
        here = slice(part * size, (part + 1) * size)
        batch = self._batch(draws[here])
        matched, k = matched_all[here].to(self._device), k_all[here]

        z0, eps, t, labels = batch["z0"], batch["eps"], batch["t"], batch["labels"]
        abar_t = level(self._abar, t)
        z_t = add_noise(z0, eps, abar=abar_t)
        output = self._predict(z_t, t, labels)
        predicted = noise_of(output, z0.shape[1])
        terms = {"diffusion": losses.diffusion_loss(predicted, eps).sum() / total}
        if self._learns_variance:
            below = level(self._abar, t - 1)
            terms["variational"] = (
                losses.variational_loss(output, z_t, z0, abar_from=abar_t, abar_to=below).sum() / total
            )
        if "matching" in self.weights:
            if self._im.target == "trajectory":
                stepped = ddim_step(
                    z_t,
                    predicted,
                    abar_from=abar_t,
                    abar_to=level(self._abar, self._grid[k].to(self._device)),
                )
                inverted = torch.stack(
                    [d["inversion"][max(int(i) - 1, 0)] for d, i in zip(draws[here], k, strict=True)]
                )
                inverted = inverted.to(self._device).float()
            else:
                stepped, inverted = losses.one_step_pair(
                    self._predict, z0, z_t, predicted, t, labels, self._abar
                )
            distance = losses.matching_loss(stepped, inverted, self._im.metric)
            terms["matching"] = losses.masked_mean(distance, matched, matched_total)
        if self._minimax:
            clean = predicted_clean(z_t, predicted, abar=abar_t)
            terms |= self._minimax.losses(part, clean, z0, [d["label"] for d in draws[here]], total)
        return terms

    def after_step(self, step: int, gather: Callable[[Tensor], Tensor]) -> None:
        """Put the step's images and predictions of all parts into the Minimax memories."""
        if self._minimax:
            self._minimax.remember(gather, [int(self._labels[row]) for row in self.rows(step)])

    def state_dict(self) -> dict[str, Any]:
        return self._minimax.state_dict() if self._minimax else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._minimax:
            self._minimax.load_state_dict(state)

    def _draw(self, step: int, position: int, row: int) -> dict[str, Any]:
        """All that is random about one image of one step, and its inversion."""
        g = generator("finetune", self._seed, step, position)
        mirrored, dropped = torch.rand(2, generator=g).tolist()
        t = int(torch.randint(1, NUM_TRAIN_TIMESTEPS, (), generator=g))
        view = self._views[int(mirrored < 0.5) if len(self._views) > 1 else 0]
        return {
            "t": t,
            "dropped": dropped < self._finetune.label_dropout,
            "label": int(self._labels[row]),
            "mean": torch.from_numpy(view["mean"][row]),
            "logvar": torch.from_numpy(view["logvar"][row]),
            "inversion": torch.from_numpy(view["inversion"][row]),
            "generator": g,
        }

    def _batch(self, draws: list[dict[str, Any]]) -> dict[str, Tensor]:
        mean, logvar = (torch.stack([d[name] for d in draws]).float() for name in ("mean", "logvar"))
        noise = torch.stack([torch.randn((2, *mean.shape[1:]), generator=d["generator"]) for d in draws])
        null = self._dit.null_label
        batch = {
            "z0": mean + (0.5 * logvar).exp() * noise[:, 0],
            "eps": noise[:, 1],
            "t": torch.tensor([d["t"] for d in draws]),
            "labels": torch.tensor([null if d["dropped"] else d["label"] for d in draws]),
        }
        return {name: value.to(self._device) for name, value in batch.items()}

    def save(self, values: dict[str, Tensor], averages: dict[str, Tensor], out: Directory) -> None:
        save_adapter(out, values, averages)


def _read_views(latents: Directory, inversions: Directory, mirror: bool) -> list[dict[str, np.ndarray]]:
    """The images' latents and inversions, and those of their mirror images where there are any."""
    z = read_rows(latents, tables.MIRRORED_LATENTS if mirror else tables.LATENTS)
    inv = read_rows(inversions, tables.MIRRORED_INVERSIONS if mirror else tables.INVERSIONS)
    assert (z["image_id"] == inv["image_id"]).all(), "latents and inversions are of different images"
    views = [{name: z[name] for name in ("label", "mean", "logvar")} | {"inversion": inv["inversion"]}]
    if mirror:
        views.append(
            {
                "label": z["label"],
                "mean": z["mirror_mean"],
                "logvar": z["mirror_logvar"],
                "inversion": inv["mirror_inversion"],
            }
        )
    return views


def _depends(context: Context) -> object:
    config = context.config
    settings = config.finetune.model_dump(mode="json", exclude={"checkpoint_every"})
    return [settings, config.im.model_dump(mode="json"), config.seed, context.generator_values()]


def _cost(context: Context, forward: Forward) -> Cost:
    settings = context.config.finetune
    return Cost(
        rows=context.num_tuned // settings.batch_size * settings.batch_size * settings.epochs,
        operations=BACKWARD * forward.dit,
        disk=1e6,
        memory=2 * generator_bytes(context),
        start_s=15.0,  # of Ray Train's workers
        workers=context.machine.train_workers(settings.micro_batches),
    )


STAGE = Stage(
    name="finetune",
    noun="adapter",
    version=1,
    reads=("latents", "inversions"),
    run=run,
    depends=_depends,
    cost=_cost,
)
