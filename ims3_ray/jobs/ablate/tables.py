"""An ablation outside of its page: a Markdown table for a README, a CSV for a notebook, figures for MLflow."""

import csv
import html
import re
from collections.abc import Mapping
from dataclasses import astuple, fields
from io import StringIO
from typing import Any

from ims3_ray.jobs.ablate.comparison import Cell, Comparison, compare
from ims3_ray.report.wording import signed

from .numbers import POOL, Measurement, by_row, measurements

POOL_COLUMNS = {
    "coverage": "Coverage",
    "low_density_coverage": "Low-density coverage",
    "copy_rate": "Copy rate",
}


def markdown(document: Mapping[str, Any]) -> str:
    """A row a row: accuracy at each IPC with its interval and difference, coverage of the pool, device time.

    Differences in bold are larger than the noise after adjustment. Names are escaped: they can't break the
    table.
    """
    comparison = compare(document)
    numbers = by_row(measurements(document, comparison))
    metrics = [
        metric
        for metric in POOL_COLUMNS
        if any((document["pool_images"], POOL + metric) in row for row in numbers.values())
    ]
    heads = [
        "Row",
        *(f"IPC {ipc}" for ipc in comparison.ipcs),
        *(POOL_COLUMNS[metric] for metric in metrics),
        "Device time",
    ]
    lines = [_line(heads), _line(["---"] + ["---:"] * (len(heads) - 1))]
    for name in comparison.rows:
        of_row = numbers.get(name, {})
        cells = [accuracy_in_words(comparison.cells[name, ipc]) for ipc in comparison.ipcs]
        pool = [_mean(of_row.get((document["pool_images"], POOL + metric))) for metric in metrics]
        time = of_row.get((None, "device_seconds"))
        lines.append(_line([_escaped(name), *cells, *pool, f"{time.mean:,.0f} s" if time else "–"]))
    return "\n".join([*lines, "", _legend(document, comparison)]) + "\n"


def accuracy_in_words(cell: Cell) -> str:
    """`96.5 ± 0.2 (**+0.7 ± 0.3**)`: percent and points; a dash where there is no result."""
    if cell.accuracy is None:
        return "–"
    text = f"{100 * cell.accuracy.mean:.1f}"
    if cell.accuracy.interval is not None:
        text += f" ± {100 * cell.accuracy.interval:.1f}"
    if (found := cell.difference) is None:
        return text
    versus = signed(found.mean)
    if found.interval is not None:
        versus += f" ± {100 * found.interval:.1f}"
    return f"{text} (**{versus}**)" if found.larger_than_noise else f"{text} ({versus})"


def long_csv(document: Mapping[str, Any]) -> str:
    """One line a measurement, with a header of its fields; accuracies are fractions, empty is undefined."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([field.name for field in fields(Measurement)])
    writer.writerows(astuple(one) for one in measurements(document, compare(document)))
    return out.getvalue()


def metrics_for_mlflow(document: Mapping[str, Any]) -> dict[str, float]:
    """`ablation/<row>/<metric>/ipc<n>` and its `…/difference`, under names that MLflow takes; undefined ones
    left out.
    """
    comparison = compare(document)
    names = _plain_names(comparison.rows)
    figures = {}
    for one in measurements(document, comparison):
        parts = ["ablation", names[one.row], *(_plain(part) for part in one.metric.split("/"))]
        key = "/".join(parts if one.ipc is None else [*parts, f"ipc{one.ipc}"])
        for suffix, value in (
            ("", one.mean), ("/interval", one.interval), ("/difference", one.difference), ("/p_adjusted", one.p_adjusted),
        ):  # fmt: skip
            if value is not None:
                figures[key + suffix] = value
    return figures


def _plain_names(names: tuple[str, ...]) -> dict[str, str]:
    """A plain name for each, no two alike."""
    plain: dict[str, str] = {}
    for name in names:
        short, count = _plain(name), 1
        while short in plain.values():
            count += 1
            short = f"{_plain(name)}_{count}"
        plain[name] = short
    return plain


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", text.replace("³", "3")).strip("_")[:60] or "row"


def _legend(document: Mapping[str, Any], comparison: Comparison) -> str:
    seeds, baseline = len(document["generator_seeds"]), _escaped(comparison.baseline)
    return (
        f"Accuracy in percent after the last step, protocol {_escaped(document['protocol'])}, {_escaped(document['split'])} "
        f"split; mean ± 95 % interval over {seeds} generator seed{'' if seeds == 1 else 's'} (of "
        f"{document['classifier_seeds']} classifiers each). In brackets: points above or below {baseline}, "
        f"paired by seed; **bold**: p < 0.05 after Holm's adjustment over {comparison.num_tests} comparisons. "
        f"Coverage and copy rate: of {document['pool_images']} images a class. "
        f"Device: {_escaped(document['device'])}. Written {_escaped(document['written'])}."
    )


def _mean(one: Measurement | None) -> str:
    if one is None:
        return "–"
    return f"{one.mean:.2f}" if one.interval is None else f"{one.mean:.2f} ± {one.interval:.2f}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: Any) -> str:
    """Text that Markdown shows as it is, on one line."""
    plain = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#|~!])", r"\\\1", plain)
