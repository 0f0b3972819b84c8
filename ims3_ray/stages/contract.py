"""What a stage tells the pipeline, the fingerprints, the estimate and the run queries of itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .context import Context
from .costs import Cost, Forward


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A verb, and the noun of the artefact that it makes."""

    name: str
    noun: str
    version: int  # raised with every change of what is written; part of the fingerprint
    # context, directory of the artefact, by noun those of the artefacts read → details of the manifest
    run: Callable[..., dict[str, Any]]
    depends: Callable[[Context], object]  # plain data that the bits depend on, beside the artefacts read
    cost: Callable[[Context, Forward], Cost]
    reads: tuple[str, ...] = ()  # nouns
    unit: str = "images"  # of the rows
    # whether this run reads that noun, where a run makes it; and whether it has the stage at all
    is_read: Callable[[Context, str], bool] = lambda context, noun: True  # noqa: ARG005
    is_part: Callable[[Context], bool] = lambda context: True  # noqa: ARG005
