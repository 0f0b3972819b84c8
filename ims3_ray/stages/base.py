"""What a stage tells the pipeline, the fingerprints, the estimate and the run queries of itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ims3_ray.storage.artifacts import Directory
from ims3_ray.storage.disk_cache import REMEDY

from .context import Context
from .cost_model import Cost, Forward
from .gpu_usage import Use, no_gpu


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A verb, and the noun of the artefact that it makes."""

    name: str
    noun: str
    version: int  # raised with every change of what is written; part of the fingerprint
    # context, directory of the artefact, by noun those of the artefacts read → for the manifest, `rows`
    run: Callable[..., Mapping[str, object]]
    depends: Callable[[Context], object]  # plain data that the bits depend on, beside the artefacts read
    cost: Callable[[Context, Forward], Cost]
    use: Callable[[Context], Use] = no_gpu
    # bytes below TMPDIR of each node that works on it, and what a person can do where they do not fit
    node_disk: Callable[[Context], float] = lambda _: 0.0
    node_disk_remedy: str = REMEDY
    figures: Callable[[Directory], Mapping[str, float]] = lambda _: {}  # of its artefact, for MLflow
    reads: tuple[str, ...] = ()  # nouns
    unit: str = "images"  # of the rows
    # whether this run reads that noun, where a run makes it; and whether it has the stage at all
    is_read: Callable[[Context, str], bool] = lambda _context, _noun: True
    is_part: Callable[[Context], bool] = lambda _: True
