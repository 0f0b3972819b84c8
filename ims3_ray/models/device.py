"""Putting a process on its device so that the same work gives the same bits."""

import os

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # by the recipe's name of a precision


def prepare_device(kind: str) -> torch.device:
    """The device for `kind` ("cpu" or "cuda"), set for reproducible kernels.

    One thread on a CPU, since sums over threads depend on their number; on a GPU no kernel is chosen by timing, and
    algorithms are the deterministic ones.
    """
    if kind == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.set_float32_matmul_precision("high")
    else:
        torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    return torch.device(kind)
