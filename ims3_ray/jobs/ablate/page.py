"""The report on an ablation as one HTML page, for a person who decides which row to ship: nothing fetched, no
script.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ims3_ray.jobs.ablate.comparison import Comparison, compare, in_words, p_in_words
from ims3_ray.report import coverage_plots
from ims3_ray.report.images import data_uri
from ims3_ray.report.svg import CLASS_COLOURS, INK, RANDOM
from ims3_ray.report.wording import METRICS, environment

from .claim import ablation_claim
from .numbers import POOL, SECONDS, Measurement, by_row, measurements
from .plots import accuracy_panels

IMAGES_SHOWN = 30  # of a row, so that twelve rows stay below 3 MB
YARDSTICKS = {"random": "Random real (yardstick)", "ceiling": "Ceiling"}

Numbers = Mapping[str, Mapping[tuple[int | None, str], Measurement]]


@dataclass(frozen=True)
class Cost:
    """What a row took, mean over its generator seeds, and the device time of all seeds together."""

    name: str
    seconds: dict[str, float]
    device_seconds: float | None
    device_hours: float | None
    bar: float
    """Its share of the dearest row's time, in percent."""


def render_ablation(
    document: Mapping[str, Any], images: Mapping[str, Sequence[bytes]] | None = None
) -> bytes:
    """The page, UTF-8; the same bytes for the same document.

    `images`: encoded images by row name, in order. Row names are untrusted text. Raises InputError for a
    document that does not fit (see `compare`), OSError for bytes that are no image.
    """
    comparison = compare(document)
    numbers = by_row(measurements(document, comparison))
    yardsticks = document.get("yardsticks") or {}
    context = {
        "document": document,
        "comparison": comparison,
        "claim": ablation_claim(comparison),
        "sentences": in_words(comparison),
        "rows": {row["name"]: row for row in document["rows"]},
        "accuracy": accuracy_panels(comparison),
        "p_in_words": p_in_words,
        "pool_metrics": _pool_metrics(document, numbers, yardsticks),
        "deciles": coverage_plots.by_decile(_decile_lines(document, numbers, yardsticks)),
        "copying": coverage_plots.copying(_dots(document, numbers, comparison)),
        "stages": _stages(numbers),
        "costs": costs(numbers, comparison),
        "strips": {
            name: [data_uri(image) for image in shown[:IMAGES_SHOWN]]
            for name, shown in (images or {}).items()
        },
        "yardsticks": {YARDSTICKS.get(name, name): values for name, values in yardsticks.items() if values},
    }
    return environment(Path(__file__).parent).get_template("page.html").render(context).encode()


def _pool_metrics(
    document: Mapping[str, Any], numbers: Numbers, yardsticks: Mapping[str, Any]
) -> dict[str, Any]:
    """Names of the pool's metrics in the order of the run report's table, deciles left out; each row's
    values.
    """
    keys = dict.fromkeys(
        metric.removeprefix(POOL)
        for of_row in numbers.values()
        for _, metric in of_row
        if metric.startswith(POOL)
    )
    plain = [key for key in keys if not key.startswith("decile_")]
    order = [key for key in METRICS if key in plain] + [key for key in plain if key not in METRICS]
    rows = {
        name: [of_row.get((document["pool_images"], POOL + key)) for key in order]
        for name, of_row in numbers.items()
        if any(metric.startswith(POOL) for _, metric in of_row)
    }
    of_yardsticks = {
        YARDSTICKS.get(name, name): [values.get(key) for key in order]
        for name, values in yardsticks.items()
        if values
    }
    titles = [METRICS.get(key, (key, ""))[0] for key in order]
    return {"titles": titles, "rows": rows, "yardsticks": of_yardsticks}


def _decile_lines(
    document: Mapping[str, Any], numbers: Numbers, yardsticks: Mapping[str, Any]
) -> list[coverage_plots.Line]:
    lines = []
    for name, of_row in numbers.items():
        keys = [(document["pool_images"], f"{POOL}decile_{place}") for place in range(1, 11)]
        if all(key in of_row for key in keys):
            lines.append(
                coverage_plots.Line(name, [of_row[key].mean for key in keys], _colour(numbers, name))
            )
    for name, values in yardsticks.items():
        if values and values.get("deciles"):
            colour = RANDOM if name == "random" else INK
            lines.append(
                coverage_plots.Line(YARDSTICKS.get(name, name), values["deciles"], colour, yardstick=True)
            )
    return lines


def _dots(document: Mapping[str, Any], numbers: Numbers, comparison: Comparison) -> list[coverage_plots.Dot]:
    """Of the pools; of the selected sets at the largest IPC where no row has a pool."""
    of_pool = [(document["pool_images"], POOL + key) for key in ("copy_rate", "low_density_coverage")]
    of_sets = [(comparison.ipcs[-1], key) for key in ("copy_rate", "low_density_coverage")]
    has_pool = any(of_pool[0] in of_row for of_row in numbers.values())
    keys = of_pool if has_pool else of_sets
    return [
        coverage_plots.Dot(name, *(of_row[key].mean for key in keys), _colour(numbers, name))
        for name, of_row in numbers.items()
        if all(key in of_row for key in keys)
    ]


def _colour(numbers: Numbers, name: str) -> str:
    return CLASS_COLOURS[list(numbers).index(name) % len(CLASS_COLOURS)]


def _stages(numbers: Numbers) -> list[str]:
    keys = [metric for of_row in numbers.values() for _, metric in of_row if metric.startswith(SECONDS)]
    return list(dict.fromkeys(key.removeprefix(SECONDS) for key in keys))


def costs(numbers: Numbers, comparison: Comparison) -> list[Cost]:
    """A cost a row, in the table's order; rows that were not timed are left out."""
    found = []
    for name in comparison.rows:
        of_row = numbers.get(name, {})
        seconds = {
            stage: of_row[None, SECONDS + stage].mean
            for stage in _stages(numbers)
            if (None, SECONDS + stage) in of_row
        }
        device = of_row.get((None, "device_seconds"))
        if seconds or device:
            hours = device and device.mean * device.n / 3600
            found.append(Cost(name, seconds, device and device.mean, hours, sum(seconds.values())))
    longest = max((cost.bar for cost in found), default=0)
    return [
        Cost(c.name, c.seconds, c.device_seconds, c.device_hours, 100 * c.bar / longest if longest else 0)
        for c in found
    ]
