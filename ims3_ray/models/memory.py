"""A batch that does not fit the GPU's memory, told as what a person can change."""

import contextlib
import re
from collections.abc import Iterator

import torch

from ims3_ray.errors import InputError

_AMOUNT = r"([\d.]+ [KMGT]iB)"


@contextlib.contextmanager
def batch_must_fit(field: str, rows: int) -> Iterator[None]:
    """Turns torch.OutOfMemoryError inside the block into an InputError: `field` holds the size, `rows`, of
    the batch.

    The message says how much was held and asked for when memory ran out: the batch needs at least the sum.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{field}: a batch of {rows} does not fit the GPU's memory ({_needed(error)}); lower it"
        ) from error


def _needed(error: torch.OutOfMemoryError) -> str:
    """Memory in use and the allocation that failed, and the GPU's capacity, from the message where it tells
    them.
    """
    held = torch.cuda.memory_allocated() / 2**30  # the tensors of the failed call are still there
    asked = re.search(rf"[Tt]ried to allocate {_AMOUNT}", str(error))
    capacity = re.search(rf"total capacity of {_AMOUNT}", str(error))
    needed = f"needs at least {held:.2f} GiB" + (f" and {asked[1]} more" if asked else " and more")
    return needed + (f", it has {capacity[1]}" if capacity else "")
