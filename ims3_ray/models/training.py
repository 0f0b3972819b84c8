"""The optimiser's steps of fine-tuning and pretraining: plain torch, any number of workers the same bits.

A global batch is cut into parts. Each worker computes the gradients of its parts, all parts' gradients are
gathered and summed in the order of the parts on every worker: any number of workers up to that of the parts
gives the same bits, and the number may change in mid-training, when a node is lost or joins. Steps, noise and
batches are keyed by (seed, step, position), so a resumed run needs no generator state.
"""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from ims3_ray.storage.artifacts import Directory

Metrics = dict[str, float]
Tensors = dict[str, Tensor]


@runtime_checkable
class Task(Protocol):
    """What is trained: its parameters, its loss terms, and how they are weighted."""

    parameters: dict[str, nn.Parameter]

    @property
    def weights(self) -> Mapping[str, float]:
        """Of every term in the sum."""
        ...

    @property
    def ratios(self) -> Mapping[str, float]:
        """Terms weighted so that their gradient has this share of the first term's norm."""
        ...

    @property
    def apart(self) -> Collection[str]:
        """Terms of small weight, whose gradient the rounding of a backward pass for all terms would drown:
        they get a pass of their own, summed with the others' in float32. Empty where all is float32.
        """
        ...

    def losses(self, step: int, part: int) -> Tensors:
        """Each term's share, by this part, of its mean over the global batch: unweighted scalars."""
        ...

    def after_step(self, step: int, gather: Callable[[Tensor], Tensor]) -> None:
        """Called when a step is done; `gather` joins the parts (first axis) of all workers in order."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold beside the parameters; tensors and plain data."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def save(self, values: Tensors, averages: Tensors, out: Directory, /) -> None:
        """Write the trained values and their moving averages."""

    def close(self) -> None:
        """Called at the end: give back what the task holds of its machine."""


@dataclass(frozen=True)
class TrainingConfig:
    """Numbers of a training: AdamW, learning rate constant or cosine to zero after a linear warm-up."""

    steps: int
    batch_size: int  # for images/s
    micro_batches: int
    lr: float
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay: Literal["constant", "cosine"] = "constant"
    ema_decay: float = 0.9999
    ema_warmup: bool = True
    log_every: int = 50
    checkpoint_every: int = 500

    def lr_at(self, step: int) -> float:
        lr = self.lr * min(1.0, (step + 1) / (self.warmup_steps + 1))
        if self.decay == "cosine":
            lr *= 0.5 * (
                1 + torch.cos(torch.tensor(torch.pi * step / self.steps, dtype=torch.float64)).item()
            )
        return lr

    def ema_decay_at(self, step: int) -> float:
        """min(decay, (1 + n) / (10 + n)): a young average soon forgets its start; or the decay alone."""
        return min(self.ema_decay, (1 + step) / (10 + step)) if self.ema_warmup else self.ema_decay


class State(TypedDict):
    """A checkpoint's content."""

    values: Tensors
    ema: Tensor
    optimizer: dict[str, Any]
    step: int
    history: list[Metrics]
    optimisation: dict[str, Any]
    task: dict[str, Any]


class Trainer:
    """The state of a training on one worker; the same on all. P is the number of trained values."""

    def __init__(self, task: Task, optimisation: TrainingConfig, rank: int, world: int, device: torch.device):
        self.task, self.optimisation, self.rank, self.device = task, optimisation, rank, device
        shares = split_parts(optimisation.micro_batches, world)
        self.counts, self.parts = [len(share) for share in shares], shares[rank]
        self.names, self.parameters = list(task.parameters), list(task.parameters.values())
        self.ema = _flat(self.parameters).detach().clone()
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=optimisation.lr, weight_decay=optimisation.weight_decay
        )
        self.step, self._steps_since, self._since = 0, 0, time.perf_counter()
        self.history: list[Metrics] = []

    def advance(self) -> Metrics:
        """One optimiser step; gives metrics where this is a log step."""
        log = (self.step + 1) % self.optimisation.log_every == 0 or self.step + 1 == self.optimisation.steps
        separate = log or bool(self.task.ratios)
        gradients, terms = self._gradients(separate)
        norms = gradients.norm(dim=1)
        weights = self._weights(norms) if separate else torch.ones(len(gradients), device=self.device)
        gradient = (weights[:, None] * gradients).sum(0)  # (P,)
        for parameter, its in zip(self.parameters, _like(self.parameters, gradient), strict=True):
            parameter.grad = its
        for group in self.optimizer.param_groups:
            group["lr"] = self.optimisation.lr_at(self.step)
        self.optimizer.step()
        decay = self.optimisation.ema_decay_at(self.step)
        self.ema.lerp_(_flat(self.parameters).detach(), 1 - decay)
        self.task.after_step(self.step, lambda parts: gather(parts, self.counts))
        self.step += 1
        self._steps_since += 1
        return self._log(terms, norms, weights) if log else {}

    def _gradients(self, separate: bool) -> tuple[Float[Tensor, "rows P"], Float[Tensor, " terms"]]:
        """Gradients of the whole batch, parts summed in order: a row a term, or a weighted sum of terms."""
        rows: list[Tensor] = []
        values: list[Tensor] = []
        for part in self.parts:
            losses = self.task.losses(self.step, part)
            assert list(losses) == list(self.task.weights), f"{list(losses)}, not {list(self.task.weights)}"
            values.append(torch.stack([loss.detach() for loss in losses.values()]))
            targets = list(losses.values()) if separate else self._weighted(losses)
            *kept, last = targets  # the graph is, until the last is done
            gradients = [self._gradient(target, keep=True) for target in kept]
            rows.append(torch.stack([*gradients, self._gradient(last, keep=False)]))
        return sum_in_order(torch.stack(rows), self.counts), sum_in_order(torch.stack(values), self.counts)

    def _weighted(self, losses: Tensors) -> list[Tensor]:
        """The weighted sum of the terms, and another of those that stand apart, where there are any."""
        terms = {name: weight * losses[name] for name, weight in self.task.weights.items()}
        groups = ([t for n, t in terms.items() if (n in self.task.apart) == apart] for apart in (False, True))
        return [sum(others, start=first) for first, *others in filter(None, groups)]

    def _gradient(self, target: Tensor, keep: bool) -> Tensor:
        if not target.requires_grad:  # a term that no image of this part has
            return torch.zeros_like(self.ema)
        gradients = torch.autograd.grad(target, self.parameters, retain_graph=keep, allow_unused=True)
        pairs = zip(self.parameters, gradients, strict=True)
        return _flat([torch.zeros_like(p) if g is None else g for p, g in pairs])  # pyright: ignore[reportUnnecessaryComparison]: allow_unused

    def _weights(self, norms: Float[Tensor, " terms"]) -> Float[Tensor, " terms"]:
        weights: list[Tensor] = []
        for (name, weight), norm in zip(self.task.weights.items(), norms, strict=True):
            if name in self.task.ratios:
                ratio = self.task.ratios[name]
                weights.append(torch.where(norm > 0, ratio * norms[0] / norm.clamp_min(1e-30), 0 * norm))
            else:
                weights.append(torch.full_like(norm, weight))
        return torch.stack(weights)

    def _log(self, terms: Tensor, norms: Tensor, weights: Tensor) -> Metrics:
        seconds, self._since = time.perf_counter() - self._since, time.perf_counter()
        metrics: Metrics = dict(zip(self.task.weights, terms.tolist(), strict=True))
        (_, first, _), *others = zip(self.task.weights, norms.tolist(), weights.tolist(), strict=True)
        for name, norm, weight in others:
            metrics[f"grad_ratio/{name}"] = weight * norm / first if first else 0.0
            metrics[f"weight/{name}"] = weight
        metrics["images_per_s"] = self._steps_since * self.optimisation.batch_size / seconds
        self._steps_since = 0
        self.history.append({"step": self.step, **metrics})
        return metrics

    def is_finite(self, metrics: Metrics) -> bool:
        """Whether the training has not diverged: asked of the metrics, and of all values where it ends."""
        if self.step == self.optimisation.steps:
            values = torch.cat([_flat(self.parameters).detach(), self.ema])
            return bool(torch.isfinite(values).all())
        return all(map(math.isfinite, metrics.values()))

    def state_dict(self) -> State:
        return {
            "values": self.values(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "history": self.history,
            "optimisation": asdict(self.optimisation),
            "task": self.task.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        assert state["optimisation"] == asdict(self.optimisation), "a checkpoint of another configuration"
        with torch.no_grad():
            for name, parameter in zip(self.names, self.parameters, strict=True):
                parameter.copy_(state["values"][name])
        self.ema.copy_(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.history = state["step"], state["history"]
        self.task.load_state_dict(state["task"])

    def values(self) -> Tensors:
        return {name: p.detach().clone() for name, p in zip(self.names, self.parameters, strict=True)}

    def averages(self) -> Tensors:
        averages = zip(self.names, _like(self.parameters, self.ema), strict=True)
        return {name: average.clone() for name, average in averages}


def split_parts(micro_batches: int, world: int) -> list[range]:
    """Contiguous parts of every worker, as even as they can be; ValueError for more workers than parts."""
    if world > micro_batches:
        raise ValueError(f"{world} workers are more than the {micro_batches} parts of a batch")
    ends = [micro_batches * k // world for k in range(world + 1)]
    return [range(start, stop) for start, stop in pairwise(ends)]


def sum_in_order(local: Tensor, counts: list[int]) -> Tensor:
    """Sum over parts (first axis) of all workers, in the order of the parts."""
    first, *others = gather(local, counts)
    total = first.clone()
    for part in others:
        total += part
    return total


def gather(local: Tensor, counts: list[int]) -> Tensor:
    """The parts (first axis) of all workers in order, on every worker; `counts` says how many each has."""
    if len(counts) == 1:
        return local
    filled = torch.cat([local, local.new_zeros(max(counts) - len(local), *local.shape[1:])]).contiguous()
    gathered = [torch.empty_like(filled) for _ in counts]
    dist.all_gather(gathered, filled)
    return torch.cat([parts[:count] for parts, count in zip(gathered, counts, strict=True)])


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def _like(parameters: Sequence[nn.Parameter], flat: Tensor) -> list[Tensor]:
    """Views of `flat` with the parameters' shapes."""
    parts = flat.split([p.numel() for p in parameters])
    return [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]
