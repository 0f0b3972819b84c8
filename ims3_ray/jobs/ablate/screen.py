"""An ablation on a terminal of 80 columns: accuracies and differences, what covers the real images, time."""

import textwrap
from collections.abc import Sequence

from ims3_ray.display import noun, one_line
from ims3_ray.report.formatting import signed
from ims3_ray.report.inputs import shortened

from .comparison import POOL, Ablation, Comparison, compare, measurements, networks_beside

COLUMNS = 80
NAME = 23  # characters of a row's name
ABREAST = 3  # IPCs beside each other
POOL_HEADS = {
    "coverage": "coverage",
    "low_density_coverage": "low-density",
    "copy_rate": "copy rate",
    "agreement": "agreement",
}


def lines(document: Ablation) -> list[str]:
    """A table a network, one of the pool's coverage and the time, and what they mean."""
    comparison = compare(document)
    shown = _accuracies(document["protocol"], comparison)
    for label in networks_beside(document):
        shown += ["", *_accuracies(label, compare(document, label))]
    shown += ["", *_costs(document, comparison), ""]
    seeds, each = len(document["generator_seeds"]), document["classifier_seeds"]
    meaning = (
        f"Accuracy in percent on the {document['split']} images: mean ± 95 % interval over {seeds} "
        f"{noun(seeds, 'generator seeds')} of {each} {noun(each, 'classifiers')} each. Below: points to "
        f"{shortened(one_line(comparison.baseline))}, paired by seed; * is larger than the noise."
    )
    return [*shown, *textwrap.wrap(meaning, COLUMNS)]


def _accuracies(label: str, comparison: Comparison) -> list[str]:
    """Two lines a row: its accuracies, and their differences to the baseline."""
    shown: list[str] = []
    for start in range(0, len(comparison.ipcs), ABREAST):
        ipcs = comparison.ipcs[start : start + ABREAST]
        shown.append(_line(label, [f"{ipc} a class  " for ipc in ipcs]))
        for name in comparison.rows:
            cells = [comparison.cells[name, ipc] for ipc in ipcs]
            accuracies = [f"{100 * c.accuracy.mean:.1f}{_interval(c.accuracy.interval)}  " for c in cells]
            shown.append(_line(name, accuracies))
            differences = [
                f"{signed(c.difference.mean)}{_interval(c.difference.interval)}{' *' if c.is_clear else '  '}"
                for c in cells
                if c.difference
            ]
            if differences:
                shown.append(_line("", differences))
    return shown


def _costs(document: Ablation, comparison: Comparison) -> list[str]:
    numbers, pool = measurements(document, comparison), document["pool_images"]
    known = [m for m in POOL_HEADS if any((name, pool, POOL + m) in numbers for name in comparison.rows)]
    heads = [*(POOL_HEADS[metric] for metric in known), "time"]
    widths = [max(10, len(head) + 2) for head in heads]
    shown = [_line(f"of {pool} images a class" if known else "", heads, widths)]
    for name in comparison.rows:
        of_pool = [numbers.get((name, pool, POOL + metric)) for metric in known]
        covered = ["–" if one is None else f"{one.mean:.3f}" for one in of_pool]
        time = f"{numbers[name, None, 'device_seconds'].mean:,.0f} s"
        shown.append(_line(name, [*covered, time], widths))
    return shown


def _line(name: str, cells: Sequence[str], widths: Sequence[int] = ABREAST * (18,)) -> str:
    padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False))
    return f"{shortened(one_line(name), NAME):<{NAME}}{''.join(padded)}".rstrip()


def _interval(interval: float | None) -> str:
    return "" if interval is None else f" ± {100 * interval:.1f}"
