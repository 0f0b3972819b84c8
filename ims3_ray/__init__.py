"""Dataset distillation with diffusion models on Ray: Inversion-Matching and Selective Subgroup Sampling
(IMS3).
"""

from importlib import import_module
from typing import Any

__all__ = ["distill", "load_distilled", "load_transformer"]

_HOMES = {
    "distill": ".jobs.distill.run",
    "load_distilled": ".data.distilled",
    "load_transformer": ".models.generator",
}


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for: torch and Ray take seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
