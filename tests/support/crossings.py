"""What a computation asks of its device, counted without one: on `meta`, whose values nobody can read."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")


class Sent(TorchDispatchMode):
    """Counts the tensors that go from the host to another device; reading one back raises by itself."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.device == META:
            tensors = [x for x in args if isinstance(x, torch.Tensor)]
            self.count += any(x.device.type == "cpu" and x.dim() > 0 for x in tensors)
        return out
