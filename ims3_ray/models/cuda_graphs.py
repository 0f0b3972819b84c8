"""CUDA graphs: capture a pass's kernels once, then replay them together.

A large transformer on a small batch launches thousands of kernels, which can take the host longer than the
GPU needs to run them. A graph replays on fixed memory: inputs are copied in, results out.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ims3_ray.method.ddim import Predict

WARMUP_PASSES = 3  # passes before capture: libraries allocate, kernels compile
# other threads, such as NCCL's watchdog, may call the device during capture
CAPTURE_ERROR_MODE = "thread_local"


class GraphedPredictor:
    """`predict` as CUDA graphs: one per input shape, with and without gradients.

    Gradients are those of `parameters`, which must be updated in place. They may be taken repeatedly, but
    only of a shape's last pass: the next pass overwrites its activations.
    """

    def __init__(self, predict: Predict, parameters: Sequence[nn.Parameter] = ()):
        self._predict, self._parameters = predict, tuple(parameters)
        self._graphs: dict[tuple[object, ...], _CapturedGraph] = {}

    def __call__(self, latents: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        inputs = latents, timesteps, labels
        parameters = self._parameters if torch.is_grad_enabled() else ()
        key = bool(parameters), *((x.shape, x.dtype) for x in inputs)
        if key not in self._graphs:
            self._graphs[key] = _CapturedGraph(self._predict, inputs, parameters)
        if not parameters:
            return self._graphs[key].forward(inputs)
        assert not latents.requires_grad, "only parameters have gradients, not latents"
        return _GraphReplay.apply(self._graphs[key], inputs, *parameters)  # pyright: ignore[reportReturnType]


class _CapturedGraph:
    """A captured forward pass on its own memory, and its backward pass if there are `parameters`."""

    def __init__(self, predict: Predict, inputs: Sequence[Tensor], parameters: Sequence[nn.Parameter]):
        with torch.inference_mode(False):
            self._inputs = [torch.empty_like(x) for x in inputs]
        self._fill(inputs)
        self.passes = 0
        stream, warmup_stream = torch.cuda.current_stream(), torch.cuda.Stream()
        warmup_stream.wait_stream(stream)
        with torch.cuda.stream(warmup_stream):
            for _ in range(WARMUP_PASSES):
                output = predict(*self._inputs)
                if parameters:
                    torch.autograd.grad(output, parameters, torch.zeros_like(output), allow_unused=True)
        stream.wait_stream(warmup_stream)
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._forward, capture_error_mode=CAPTURE_ERROR_MODE):
            self._output = predict(*self._inputs)
        if parameters:
            self._output_gradient, shared = torch.zeros_like(self._output), self._forward.pool()
            with torch.cuda.graph(self._backward, pool=shared, capture_error_mode=CAPTURE_ERROR_MODE):
                gradients = torch.autograd.grad(
                    self._output,
                    parameters,
                    self._output_gradient,
                    retain_graph=True,  # else the second replay would read overwritten memory
                    materialize_grads=True,
                )
                # one vector, which one kernel copies out; DiT-XL/2 has 202 tuned tensors
                self._gradients = torch.cat([gradient.reshape(-1) for gradient in gradients])
                self._shapes = [gradient.shape for gradient in gradients]

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        self._fill(inputs)
        self._forward.replay()
        self.passes += 1
        return self._output.detach().clone()

    def backward(self, number: int, output_gradient: Tensor) -> list[Tensor]:
        """Return the gradients of pass `number`, given that of its output."""
        assert number == self.passes, "a later pass has overwritten this one's activations"
        self._output_gradient.copy_(output_gradient)
        self._backward.replay()
        parts = self._gradients.clone().split([shape.numel() for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def _fill(self, inputs: Sequence[Tensor]) -> None:
        for buffer, value in zip(self._inputs, inputs, strict=True):
            buffer.copy_(value)


class _GraphReplay(torch.autograd.Function):
    """A graph's two passes as one autograd function of the parameters."""

    @staticmethod
    def forward(ctx: Any, graph: _CapturedGraph, inputs: Sequence[Tensor], *_: nn.Parameter) -> Tensor:
        output = graph.forward(inputs)
        ctx.graph, ctx.number = graph, graph.passes
        return output

    @staticmethod
    def backward(ctx: Any, *output_gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.graph.backward(ctx.number, *output_gradient)
