"""The training loop of fine-tuning and pretraining in plain torch; same bits for any number of workers.

A global batch is split into micro-batches. Each worker computes the gradients of its micro-batches. The
gradients are summed in the order of the micro-batches, each worker summing a slice. So any number of workers,
up to the number of micro-batches, gives the same bits, and it may change during training when nodes fail or
join. Steps, noise and batches are keyed by (seed, step, position), so a resumed run needs no generator state.

With `eval_every`, the moving averages are scored on held-out rows. The best ones are the result, and training
stops after `patience` scores without a gain; both depend on the recorded scores only.
"""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, TypedDict, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import grad

from ims3_ray.storage.artifacts import Directory

from .device import gather, split_micro_batches, sum_in_order

ALIGNMENT = 16  # values, so 64 bytes: matrix products are slower on memory that is not aligned
HELD_OUT = "held_out/"  # prefix of the metrics of held-out rows
Metrics = dict[str, float]
Tensors = dict[str, Tensor]


@runtime_checkable
class Task(Protocol):
    """A model to train: its parameters, loss terms and their weights."""

    parameters: dict[str, nn.Parameter]

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """Weight of each loss term."""
        ...

    @property
    def gradient_ratios(self) -> Mapping[str, float]:
        """Terms weighted so that their gradient norm is this share of the first term's."""
        ...

    @property
    def separate_terms(self) -> Collection[str]:
        """Terms with a small weight, which bf16 rounding would lose in a joint backward pass.

        They get their own backward pass, added to the others' in float32. Empty if all is float32.
        """
        ...

    def losses(self, step: int, micro_batch: int, /) -> Tensors:
        """Return each term's share of its mean over the global batch: unweighted scalars by name."""
        ...

    def after_step(self, step: int, gather: Callable[[Tensor], Tensor]) -> None:
        """Called after each step; `gather` joins the micro-batches (first axis) of all workers in order."""

    def state_dict(self) -> dict[str, Any]:
        """Return a checkpoint's content besides the parameters: tensors and plain data."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def save(self, values: Tensors, averages: Tensors, out: Directory, /) -> None:
        """Write the trained values and their moving averages."""

    def close(self) -> None:
        """Called at the end: release the task's resources."""


class ScoredTask(Task, Protocol):
    def held_out_losses(self, part: int, /) -> Tensors:
        """Return this part's share of each mean over held-out rows; the first is the score, lower is better.

        Rows and noise are the same in every call. Parts are numbered as micro-batches.
        """
        ...


@dataclass(frozen=True)
class TrainingConfig:
    """Settings: AdamW; learning rate constant or cosine to zero, after a linear warm-up."""

    steps: int
    batch_size: int  # for images/s and errors
    micro_batches: int
    lr: float
    warmup_steps: int = 0
    decay: Literal["constant", "cosine"] = "constant"
    ema_decay: float = 0.9999
    ema_warmup: bool = True
    log_every: int = 50
    eval_every: int = 0  # steps between scores on held-out rows; 0: none
    patience: int = 0  # scores without a gain until training stops; 0: never
    checkpoint_every: int = 500

    def lr_at(self, step: int) -> float:
        lr = self.lr * min(1.0, (step + 1) / (self.warmup_steps + 1))
        if self.decay == "cosine":
            angle = torch.tensor(torch.pi * step / self.steps, dtype=torch.float64)
            lr *= 0.5 * (1 + torch.cos(angle).item())
        return lr

    def ema_decay_at(self, step: int) -> float:
        """Return min(decay, (1 + n) / (10 + n)), so a young average forgets its start; or the plain decay."""
        return min(self.ema_decay, (1 + step) / (10 + step)) if self.ema_warmup else self.ema_decay


class TrainerState(TypedDict):
    """Content of a checkpoint."""

    values: Tensors
    ema: Tensor
    best: Tensor
    optimizer: dict[str, Any]
    step: int
    history: list[Metrics]
    optimisation: dict[str, Any]
    task: dict[str, Any]


class Trainer:
    """The training state of one worker, equal on all workers.

    The parameters become views of one vector of P values, so that an optimiser step is a few operations.
    """

    def __init__(self, task: Task, config: TrainingConfig, rank: int, world: int, device: torch.device):
        self.task, self.config, self.rank, self.device = task, config, rank, device
        shares = split_micro_batches(config.micro_batches, world)
        self.counts, self.micro_batches = [len(share) for share in shares], shares[rank]
        self.names, self.parameters = list(task.parameters), list(task.parameters.values())
        self.vector = nn.Parameter(_flatten(self.parameters).detach().clone())
        for parameter, view in zip(self.parameters, self._views(self.vector.detach()), strict=True):
            parameter.data = view
        self.ema = self.best = self.vector.detach().clone()
        self.optimizer = torch.optim.AdamW([self.vector], lr=config.lr, weight_decay=0)
        self.step, self._steps_since, self._since = 0, 0, time.perf_counter()
        self.history: list[Metrics] = []

    def train_step(self) -> Metrics:
        """Take one optimiser step; return metrics if this is a logging step, else nothing."""
        evaluates = bool(self.config.eval_every) and self._is_due(self.config.eval_every)
        log = evaluates or self._is_due(self.config.log_every)
        separate = log or bool(self.task.gradient_ratios)
        gradients, terms = self._gradients(separate)
        norms = gradients.norm(dim=1)
        weights = self._weights(norms) if separate else torch.ones(len(gradients), device=self.device)
        self.vector.grad = (weights[:, None] * gradients).sum(0)  # (P,)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(self.step)
        self.optimizer.step()
        decay = self.config.ema_decay_at(self.step)
        self.ema.lerp_(self.vector.detach(), 1 - decay)
        self.task.after_step(self.step, lambda parts: gather(parts, self.counts))
        self.step += 1
        self._steps_since += 1
        metrics = self._log(terms, norms, weights) if log else {}
        return metrics | self._evaluate() if evaluates else metrics

    def _is_due(self, every: int) -> bool:
        return (self.step + 1) % every == 0 or self.step + 1 == self.config.steps

    @property
    def is_done(self) -> bool:
        """Whether all steps are taken, or the scores say that no gain is left."""
        is_exhausted = self.config.patience and gainless(scores(self.history)) >= self.config.patience
        return bool(is_exhausted) or self.step >= self.config.steps

    def _evaluate(self) -> Metrics:
        """Score the moving averages on the held-out rows, and keep them if no earlier score is lower."""
        task, values = cast(ScoredTask, self.task), self.vector.detach().clone()
        with torch.no_grad():
            self.vector.copy_(self.ema)
            shares = [task.held_out_losses(part) for part in self.micro_batches]
            self.vector.copy_(values)
        rows = torch.stack([torch.stack(list(share.values())) for share in shares])
        means = sum_in_order(rows, self.counts).tolist()
        metrics = {f"{HELD_OUT}{name}": mean for name, mean in zip(shares[0], means, strict=True)}
        self.history[-1] |= metrics
        if means[0] <= min(scores(self.history)):
            self.best = self.ema.clone()
        self._since = time.perf_counter()
        return metrics

    def _gradients(self, separate: bool) -> tuple[Float[Tensor, "rows P"], Float[Tensor, " terms"]]:
        """Return the batch's gradients, summed in order: a row per term, or one for their weighted sum."""
        rows: list[Tensor] = []
        values: list[Tensor] = []
        for micro_batch in self.micro_batches:
            losses = self.task.losses(self.step, micro_batch)
            assert list(losses) == list(self.task.loss_weights), (list(losses), self.task.loss_weights)
            values.append(torch.stack([loss.detach() for loss in losses.values()]))
            targets = list(losses.values()) if separate else self._weighted(losses)
            *others, last = targets  # the graph is freed after the last
            gradients = [self._gradient(target, keep=True) for target in others]
            gradients.append(self._gradient(last, keep=False))
            rows.append(torch.stack(gradients if separate else [sum(gradients[1:], start=gradients[0])]))
        return sum_in_order(torch.stack(rows), self.counts), sum_in_order(torch.stack(values), self.counts)

    def _weighted(self, losses: Tensors) -> list[Tensor]:
        """Return the weighted sum of the terms, and that of the terms of small weight, if any."""
        terms = {name: weight * losses[name] for name, weight in self.task.loss_weights.items()}
        is_separate = self.task.separate_terms.__contains__
        groups = [[t for n, t in terms.items() if is_separate(n) == apart] for apart in (False, True)]
        return [sum(others, start=first) for first, *others in filter(None, groups)]

    def _gradient(self, target: Tensor, keep: bool) -> Tensor:
        if not target.requires_grad:  # no image of this micro-batch has the term
            return torch.zeros_like(self.ema)
        return _flatten(grad(target, self.parameters, retain_graph=keep, materialize_grads=True))

    def _weights(self, norms: Float[Tensor, " terms"]) -> Float[Tensor, " terms"]:
        weights: list[Tensor] = []
        for (name, weight), norm in zip(self.task.loss_weights.items(), norms, strict=True):
            if name in self.task.gradient_ratios:
                ratio = self.task.gradient_ratios[name]
                weights.append(torch.where(norm > 0, ratio * norms[0] / norm.clamp_min(1e-30), 0 * norm))
            else:
                weights.append(torch.full_like(norm, weight))
        return torch.stack(weights)

    def _log(self, terms: Tensor, norms: Tensor, weights: Tensor) -> Metrics:
        seconds, self._since = time.perf_counter() - self._since, time.perf_counter()
        metrics: Metrics = dict(zip(self.task.loss_weights, terms.tolist(), strict=True))
        (_, first, _), *others = zip(self.task.loss_weights, norms.tolist(), weights.tolist(), strict=True)
        for name, norm, weight in others:
            metrics[f"grad_ratio/{name}"] = weight * norm / first if first else 0.0
            metrics[f"weight/{name}"] = weight
        metrics["images_per_s"] = self._steps_since * self.config.batch_size / seconds
        self._steps_since = 0
        self.history.append({"step": self.step, **metrics})
        return metrics

    def is_finite(self, metrics: Metrics) -> bool:
        """Return whether training has not diverged: checks the metrics, and all values at the last step."""
        if self.is_done:
            return bool(torch.isfinite(torch.cat([self.vector.detach(), self.ema])).all())
        return all(map(math.isfinite, metrics.values()))

    def state_dict(self) -> TrainerState:
        return {
            "values": self.values(),
            "ema": self.ema,
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "history": self.history,
            "optimisation": asdict(self.config),
            "task": self.task.state_dict(),
        }

    def load_state_dict(self, state: TrainerState) -> None:
        changeable = {"checkpoint_every": state["optimisation"]["checkpoint_every"]}
        assert state["optimisation"] == asdict(self.config) | changeable, "another configuration's checkpoint"
        with torch.no_grad():
            self.vector.copy_(_flatten([state["values"][name] for name in self.names]))
        self.ema.copy_(state["ema"])
        self.best = state["best"].to(self.device) if self.config.eval_every else self.ema
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.history = state["step"], state["history"]
        self.task.load_state_dict(state["task"])

    def values(self) -> Tensors:
        return self._by_name(self.vector.detach())

    def averages(self) -> Tensors:
        """Return the moving averages: those of the best score, if there are scores."""
        return self._by_name(self.best if self.config.eval_every else self.ema)

    def _by_name(self, flat: Tensor) -> Tensors:
        return {name: view.clone() for name, view in zip(self.names, self._views(flat), strict=True)}

    def _views(self, flat: Tensor) -> list[Tensor]:
        """Return views of `flat` with the parameters' shapes."""
        parts = flat.split([p.numel() + -p.numel() % ALIGNMENT for p in self.parameters])
        return [part[: p.numel()].view_as(p) for part, p in zip(parts, self.parameters, strict=True)]


def scores(history: Sequence[Mapping[str, float]]) -> list[float]:
    """Return the scores in the order of training: the first held-out metric of each entry that has one."""
    held_out = [[entry[key] for key in entry if key.startswith(HELD_OUT)] for entry in history]
    return [values[0] for values in held_out if values]


def gainless(curve: Sequence[float]) -> int:
    """Return the number of scores after the first of the lowest ones."""
    return len(curve) - 1 - curve.index(min(curve)) if curve else 0


def _flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Return a vector of all values, each tensor's filled up with zeros to a multiple of `ALIGNMENT`."""
    filling = tensors[0].new_zeros(ALIGNMENT)
    return torch.cat([part for t in tensors for part in (t.reshape(-1), filling[: -t.numel() % ALIGNMENT])])
