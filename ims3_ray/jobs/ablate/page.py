"""An ablation as one HTML page, for a person who decides which row to ship: nothing fetched, no script."""

from pathlib import Path

from ims3_ray.report.coverage_plots import Dot, Line, by_decile, copying
from ims3_ray.report.formatting import METRICS, environment
from ims3_ray.report.svg import CLASS_COLOURS, INK, RANDOM

from .comparison import (
    POOL,
    SECONDS,
    Ablation,
    Comparison,
    Measurements,
    compare,
    measurements,
    networks_beside,
)
from .plots import accuracy_panels
from .words import ablation_claim, in_words, p_in_words

YARDSTICK_TITLES = {"random": "Random real (yardstick)", "ceiling": "Ceiling"}


def render_ablation(document: Ablation) -> bytes:
    """The page, UTF-8; the same bytes for the same document. Row names are untrusted text."""
    comparison = compare(document)
    numbers = measurements(document, comparison)
    yardsticks = {YARDSTICK_TITLES[name]: values for name, values in (document["yardsticks"] or {}).items()}
    context = {
        "document": document,
        "comparison": comparison,
        "numbers": numbers,
        "claim": ablation_claim(comparison),
        "sentences": in_words(comparison),
        "accuracy": accuracy_panels(comparison),
        "networks": {label: compare(document, label) for label in networks_beside(document)},
        "p_in_words": p_in_words,
        "pool": POOL,
        "metrics": _titles(document, numbers),
        "deciles": by_decile(_decile_lines(document, numbers)),
        "copying": copying(_dots(document, comparison, numbers)),
        "costs": _costs(document, numbers),
        "stages": list(dict.fromkeys(stage for row in document["rows"] for stage in row["seconds"])),
        "yardsticks": yardsticks,
    }
    return environment(Path(__file__).parent).get_template("page.html").render(context).encode()


def _titles(document: Ablation, numbers: Measurements) -> dict[str, str]:
    """Title of every metric of the pools, in the order of a run's table."""
    names, size = [row["name"] for row in document["rows"]], document["pool_images"]
    measured = [key for key in METRICS if any((name, size, POOL + key) in numbers for name in names)]
    return {key: METRICS[key][0] for key in measured}


def _decile_lines(document: Ablation, numbers: Measurements) -> list[Line]:
    size, lines = document["pool_images"], []
    for place, row in enumerate(document["rows"]):
        if row["pool"]:
            keys = [(row["name"], size, f"{POOL}decile_{tenth}") for tenth in range(1, 11)]
            lines.append(Line(row["name"], [numbers[key].mean for key in keys], _colour(place)))
    for name, values in (document["yardsticks"] or {}).items():
        colour, deciles = RANDOM if name == "random" else INK, values["deciles"]
        assert isinstance(deciles, list)
        lines.append(Line(YARDSTICK_TITLES[name], deciles, colour, is_reference=True))
    return lines


def _dots(document: Ablation, comparison: Comparison, numbers: Measurements) -> list[Dot]:
    """Of the pools; of the selected sets at the largest IPC where no row has a pool."""
    has_pool = any(row["pool"] for row in document["rows"])
    ipc, prefix = (document["pool_images"], POOL) if has_pool else (comparison.ipcs[-1], "")
    dots: list[Dot] = []
    for place, name in enumerate(comparison.rows):
        copied = numbers.get((name, ipc, f"{prefix}copy_rate"))
        covered = numbers.get((name, ipc, f"{prefix}low_density_coverage"))
        if copied and covered:
            dots.append(Dot(name, copied.mean, covered.mean, _colour(place)))
    return dots


def _costs(document: Ablation, numbers: Measurements) -> list[dict[str, object]]:
    """What each row took: mean over its generator seeds by stage, and the device time."""
    costs = []
    for row in document["rows"]:
        seconds = {stage: numbers[row["name"], None, SECONDS + stage].mean for stage in row["seconds"]}
        costs.append({"name": row["name"], "seconds": seconds, "sum": sum(seconds.values())})
        costs[-1]["device"] = numbers[row["name"], None, "device_seconds"]
    return costs


def _colour(place: int) -> str:
    return CLASS_COLOURS[place % len(CLASS_COLOURS)]
