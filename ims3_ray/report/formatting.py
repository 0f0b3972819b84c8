"""What pages have in common: how they word numbers, what they call metrics, how templates become pages."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Claim:
    """What a page opens with: the finding, and the numbers that it rests on."""

    headline: str
    detail: str


# what each metric of coverage says, in the order of the table
METRICS = {
    "coverage": ("Coverage", "share of real images that have a synthetic one among their near neighbours"),
    "low_density_coverage": ("Low-density coverage", "the same for the sparsest fifth of the real images"),
    "density": (
        "Density",
        "real neighbourhoods around a synthetic image, in units of k: more where real images crowd",
    ),
    "precision": ("Precision", "share of synthetic images inside some real neighbourhood"),
    "recall": ("Recall", "share of real images inside some synthetic neighbourhood"),
    "copy_rate": (
        "Copy rate",
        "share of synthetic images nearer to a real one than 99\u202f% of real images are to each other",
    ),
    "agreement": (
        "Label agreement",
        "share of synthetic images whose label a classifier of the real ones gives",
    ),
    "nearest": ("Nearest real image", "mean distance from a synthetic image to it"),
    "least_nearest": ("Least distance to a real image", "of the synthetic image that is nearest to one"),
    "vendi": ("Vendi score", "effective number of different images a class"),
    "kid": (
        "KID",
        "squared distance between the distributions of features: near 0 is alike, below 0 is chance",
    ),
}


def environment(folder: Path = HERE) -> Environment:
    """Of the templates in `folder` and beside this file, with the functions below as filters."""
    pages = Environment(
        loader=FileSystemLoader([folder, HERE]),
        autoescape=True,  # names come from folders and files: text, never markup
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for worded in (percent, points, signed, number, duration, count, value):
        pages.filters[worded.__name__] = worded
    return pages


def value(of: object) -> str:
    """As it is written in YAML."""
    return json.dumps(of) if of is None or isinstance(of, bool) else str(of)


def percent(fraction: float | None, digits: int = 1) -> str | Markup:
    """With a thin space that never breaks."""
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
    """`1, 5 and 10`."""
    *head, last = map(str, values)
    return f"{', '.join(head)} and {last}" if head else last


def count(number_of: float) -> str:
    return f"{number_of:,.0f}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
