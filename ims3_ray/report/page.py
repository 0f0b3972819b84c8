"""The report on a run as one HTML page: images, plots and style inside, nothing fetched, no script."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from . import plots
from .claim import claim
from .images import contact_sheet, is_small, strips
from .inputs import ReportData, shown_classes
from .projection import feature_map
from .svg import CLASS_COLOURS

__all__ = ["ReportData", "contact_sheet", "render"]

# What each metric of coverage says, in the order of the table. Others are listed after these, by name alone.
METRICS = {
    "coverage": ("Coverage", "share of real images that have a synthetic one among their near neighbours"),
    "low_density_coverage": ("Low-density coverage", "the same for the sparsest fifth of the real images"),
    "density": ("Density", "real neighbourhoods around a synthetic image, in units of k: more where real images crowd"),
    "precision": ("Precision", "share of synthetic images inside some real neighbourhood"),
    "recall": ("Recall", "share of real images inside some synthetic neighbourhood"),
    "copy_rate": (
        "Copy rate",
        "share of synthetic images nearer to a real one than 99\u202f% of real images are to each other",
    ),
    "vendi": ("Vendi score", "effective number of different images a class"),
    "kid": ("KID", "squared distance of the distributions of features, unbiased: 0 where they are one"),
}


def render(data: ReportData) -> bytes:
    """The page, UTF-8; the same bytes for the same data. Raises OSError for bytes that are no image."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # class names come from folders: text, never markup
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, points=_points, number=_number, duration=_duration, count=_count, value=_value)
    counts = [len(data.contact[name]["distilled"]) for name in data.classes]
    context = {
        "data": data,
        "images": sum(counts),
        "per_class": f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)}–{max(counts)}",
        "claim": claim(data.evaluation),
        "set_name": plots.set_name,
        "strips": strips(data),
        "small": is_small(data),
        **_evaluation(data.evaluation),
        **_map(data),
        "finetuning": plots.finetuning(data.history),
        "history": _last_metrics(data),
        **_selection(data),
        "seconds": sum(stage["seconds"] for stage in data.stages),
        "slowest": max((stage["seconds"] for stage in data.stages), default=0),
        "config": _sections(data.config),
    }
    return environment.get_template("page.html").render(context).encode()


def _evaluation(evaluation: Mapping[str, Any] | None) -> dict[str, Any]:
    if evaluation is None:
        return {"accuracy": None, "curves": None, "metrics": [], "deciles": {}, "share": None}
    sets, coverage = evaluation["sets"], evaluation.get("coverage") or {}
    names = dict.fromkeys(name for values in coverage.values() for name in values if name != "deciles")
    rows = [
        (*METRICS.get(name, (name, "")), [coverage[of].get(name) for of in coverage])
        for name in [*(name for name in METRICS if name in names), *(name for name in names if name not in METRICS)]
    ]
    both = "full" in sets and "distilled" in sets
    share = sets["distilled"]["last"]["mean"] / sets["full"]["last"]["mean"] if both else None
    return {
        "accuracy": plots.accuracy(sets),
        "curves": plots.learning_curves(sets),
        "metrics": rows,
        "deciles": {of: values["deciles"] for of, values in coverage.items() if values.get("deciles")},
        "share": share,
    }


def _map(data: ReportData) -> dict[str, Any]:
    shown = shown_classes(data.classes, len(CLASS_COLOURS))
    found = feature_map(data, shown)
    names = {i: data.classes[i] for i in shown}
    return {"map": found, "map_classes": len(shown), "map_plot": plots.feature_map(found, names) if found else None}


def _selection(data: ReportData) -> dict[str, Any]:
    """The plot, and how many classes took another subgroup than the one closest to their real images."""
    rows = plots.subgroup_rows(data.selection, data.classes)
    moved = sum(
        plots.chosen_distance(data.selection, name) > min(data.selection["per_class"][name]["distances_to_real"])
        for name in data.classes
    )
    return {"subgroups": plots.subgroups(data.selection, rows), "subgroup_rows": len(rows), "moved": moved}


def _last_metrics(data: ReportData) -> dict[str, float]:
    """The end of fine-tuning: mean of the last tenth of the log steps, by metric."""
    tail = data.history[-max(1, len(data.history) // 10) :]
    keys = dict.fromkeys(key for entry in tail for key in entry)
    values = {key: [entry[key] for entry in tail if key in entry] for key in keys}
    return {key: sum(found) / len(found) for key, found in values.items()}


def _sections(config: Mapping[str, Any]) -> dict[str, list[tuple[str, Any]]]:
    """The configuration by section, with the dotted names that the command line takes; bare values first."""
    bare = {"run": _flat({key: value for key, value in config.items() if not isinstance(value, Mapping)}, "")}
    return bare | {key: _flat(value, f"{key}.") for key, value in config.items() if isinstance(value, Mapping)}


def _flat(values: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    rows = []
    for key, value in values.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return rows


def _value(value: Any) -> str:
    """As it is written in YAML."""
    named = {None: "null", True: "true", False: "false"}
    return named[value] if value is None or isinstance(value, bool) else str(value)


def _percent(fraction: float | None, digits: int = 1) -> str | Markup:
    """With a thin space that never breaks."""
    return "–" if fraction is None else Markup("{:.{}f}&#8239;%").format(100 * fraction, digits)


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _points(fraction: float | None, sign: str = "") -> str:
    """Percentage points, without a unit."""
    return "–" if fraction is None else f"{sign}{100 * fraction:.1f}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
