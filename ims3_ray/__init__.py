"""Dataset distillation with diffusion models on Ray: Inversion-Matching and Subgroup Sampling (IMS3)."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
    from .data.distilled import load_distilled
    from .evaluation.score import score
    from .jobs.distill.run import distill
    from .method.s3.selection import select
    from .models.checkpoints import load_transformer

__all__ = ["__version__", "distill", "load_distilled", "load_transformer", "score", "select"]

_HOMES = {
    "distill": ".jobs.distill.run",
    "load_distilled": ".data.distilled",
    "load_transformer": ".models.checkpoints",
    "score": ".evaluation.score",
    "select": ".method.s3.selection",
}


def __getattr__(name: str) -> object:
    """Load what is asked for when it is asked for: torch and Ray take seconds."""
    if name == "__version__":
        return version("ims3-ray")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return __all__
