"""Shared by all pages: number formats, names of metrics, the Jinja environment, and the accuracy headline."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ims3_ray.evaluation.results import Evaluation, protocol_title
from ims3_ray.evaluation.statistics import welch_difference

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Claim:
    """The headline of a page, and the numbers that support it."""

    headline: str
    detail: str


# title and meaning of each coverage metric, in the order of the table
METRICS = {
    "coverage": ("Coverage", "share of real images that have a synthetic one among their near neighbours"),
    "low_density_coverage": ("Low-density coverage", "the same for the sparsest fifth of the real images"),
    "density": (
        "Density",
        "real neighbourhoods around a synthetic image, in units of k: high in dense regions",
    ),
    "precision": ("Precision", "share of synthetic images inside some real neighbourhood"),
    "recall": ("Recall", "share of real images inside some synthetic neighbourhood"),
    "copy_rate": (
        "Copy rate",
        "share of synthetic images nearer to a real one than 99\u202f% of real images are to each other",
    ),
    "nearest": ("Nearest real image", "mean distance from a synthetic image to its nearest real one"),
    "least_nearest": ("Least distance to a real image", "smallest such distance in the set"),
    "vendi": ("Vendi score", "effective number of different images per class"),
    "kid": (
        "KID",
        "squared distance between the feature distributions: 0 means equal; negative values are noise",
    ),
}


def environment(folder: Path = HERE) -> Environment:
    """Jinja environment for templates in `folder` and this folder, with the functions below as filters."""
    pages = Environment(
        loader=FileSystemLoader([folder, HERE]),
        autoescape=True,  # names of folders and files are untrusted
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (percent, points, signed, number, duration, count, value, protocol_title):
        pages.filters[function.__name__] = function
    return pages


def value(of: object) -> str:
    """A value as YAML writes it."""
    return json.dumps(of) if of is None or isinstance(of, bool) else str(of)


def percent(fraction: float | None, digits: int = 1) -> str | Markup:
    """A percentage with a narrow no-break space; "–" for None."""
    return "–" if fraction is None else Markup("{:.{}f}&#8239;%").format(100 * fraction, digits)


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def points(fraction: float | None, sign: str = "") -> str:
    """Percentage points, without a unit."""
    return "–" if fraction is None else f"{sign}{100 * fraction:.1f}"


def signed(fraction: float | None) -> str:
    """Percentage points with their sign: 0.012 is +1.2."""
    if fraction is None:
        return "–"
    text = f"{100 * fraction:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def listed(values: Iterable[object]) -> str:
    """Joins values: `1, 5 and 10`."""
    *head, last = map(str, values)
    return f"{', '.join(head)} and {last}" if head else last


def count(number_of: float) -> str:
    return f"{number_of:,.0f}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def claim(evaluation: Evaluation | None) -> Claim:
    """The page's headline: distilled against random real images, by the accuracy after the last step.

    A difference is claimed only if Welch's t-test finds it larger than the noise between seeds.
    """
    if evaluation is None:
        return Claim("This set has not been evaluated", "Its accuracy is unknown.")
    sets = evaluation["sets"]
    if "distilled" not in sets or "random" not in sets:
        return Claim("No baseline to compare with", "The run has not evaluated random real images.")
    ours, random = sets["distilled"]["last"]["values"], sets["random"]["last"]["values"]
    same = sets["distilled"]["images"] == sets["random"]["images"]
    other = "random real images of the same number" if same else "random real images"
    gap, seeds = welch_difference(ours, random), f"{len(ours)} against {len(random)} seeds"
    means = f"{100 * np.mean(ours):.1f}\u202f% against {100 * np.mean(random):.1f}\u202f%"
    if gap.interval is None:
        reason = f"{means}, {signed(gap.mean)} points, {seeds}"
        return Claim(
            f"The difference to {other} cannot be judged",
            f"{reason}: without variation between seeds it cannot be told from noise.",
        )
    span = f"{signed(gap.mean - gap.interval)} to {signed(gap.mean + gap.interval)}"
    numbers = f"{means}: {signed(gap.mean)} points (95\u202f% interval {span}, Welch's t-test, {seeds})."
    if not gap.larger_than_noise:
        within = f"{numbers} The difference is within the noise."
        return Claim(f"No difference from {other} can be shown", within)
    verdict = "better" if gap.mean > 0 else "worse"
    beyond = f"{numbers} The difference is larger than the noise between seeds."
    return Claim(f"The distilled set is {verdict} than {other}", beyond)
