"""CUDA graphs: the kernels of a pass recorded once, then launched together.

A large transformer over a small batch is thousands of launches, for which a host may take longer than the GPU
for the work. A recording replays them on the same memory, so inputs are copied in and results out.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ims3_ray.method.ddim import Predict

WARM_UPS = 3  # passes before the recorded one, in which libraries allocate and compiled kernels are made
MODE = "thread_local"  # of a recording's errors: other threads, such as NCCL's watchdog, may ask the device


class GraphedPredictor:
    """`predict` by recordings: one for each shape of its inputs, with and without gradients.

    Gradients are those of `parameters`, whose values change in place alone, and may be taken more than once;
    but of a shape's last pass alone, for the next one overwrites what it kept.
    """

    def __init__(self, predict: Predict, parameters: Sequence[nn.Parameter] = ()):
        self._predict, self._parameters = predict, tuple(parameters)
        self._recordings: dict[tuple[object, ...], Recording] = {}

    def __call__(self, latents: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        inputs = latents, timesteps, labels
        parameters = self._parameters if torch.is_grad_enabled() else ()
        key = bool(parameters), *((x.shape, x.dtype) for x in inputs)
        if key not in self._recordings:
            self._recordings[key] = Recording(self._predict, inputs, parameters)
        if not parameters:
            return self._recordings[key].forward(inputs)
        assert not latents.requires_grad, "gradients are the parameters' alone"
        return _Replayed.apply(self._recordings[key], inputs, *parameters)  # pyright: ignore[reportReturnType]


class Recording:
    """A pass on memory of its own; with `parameters` its backward pass, too, given that of its output."""

    def __init__(self, predict: Predict, inputs: Sequence[Tensor], parameters: Sequence[nn.Parameter]):
        with torch.inference_mode(False):
            self._inputs = [torch.empty_like(x) for x in inputs]
        self._fill(inputs)
        self.passes = 0
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                output = predict(*self._inputs)
                if parameters:
                    torch.autograd.grad(output, parameters, torch.zeros_like(output), allow_unused=True)
        here.wait_stream(aside)
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._forward, capture_error_mode=MODE):
            self._output = predict(*self._inputs)
        if parameters:
            self._ahead, shared = torch.zeros_like(self._output), self._forward.pool()
            with torch.cuda.graph(self._backward, pool=shared, capture_error_mode=MODE):
                self._gradients: Sequence[Tensor | None] = torch.autograd.grad(
                    self._output,
                    parameters,
                    self._ahead,
                    retain_graph=True,  # else the second replay would read what the first has overwritten
                    allow_unused=True,
                )

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        self._fill(inputs)
        self._forward.replay()
        self.passes += 1
        return self._output.detach().clone()

    def backward(self, number: int, ahead: Tensor) -> list[Tensor | None]:
        """Gradients of pass `number`, given that of its output."""
        assert number == self.passes, "a later pass has overwritten what this one kept for its gradients"
        self._ahead.copy_(ahead)
        self._backward.replay()
        return [None if gradient is None else gradient.clone() for gradient in self._gradients]

    def _fill(self, inputs: Sequence[Tensor]) -> None:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)


class _Replayed(torch.autograd.Function):
    """A recording's two passes as one function of the parameters."""

    @staticmethod
    def forward(ctx: Any, recording: Recording, inputs: Sequence[Tensor], *_: nn.Parameter) -> Tensor:
        output = recording.forward(inputs)
        ctx.recording, ctx.number = recording, recording.passes
        return output

    @staticmethod
    def backward(ctx: Any, *ahead: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.recording.backward(ctx.number, *ahead)
