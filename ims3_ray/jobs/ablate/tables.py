"""An ablation outside of its page: a Markdown table for a README, a CSV, figures for MLflow."""

import csv
import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple, fields
from io import StringIO

from ims3_ray.report.formatting import signed

from .comparison import POOL, Ablation, Cell, Comparison, Measurement, compare, measurements, networks_beside

POOL_COLUMNS = {
    "coverage": "Coverage",
    "low_density_coverage": "Low-density coverage",
    "copy_rate": "Copy rate",
    "agreement": "Label agreement",
}


def markdown(document: Ablation) -> str:
    """A row a row: accuracy at each IPC with its interval and difference, coverage of the pool, device time.

    Differences in bold are larger than the noise after adjustment; every network has a table of accuracies of
    its own. Names are escaped: they can't break the table.
    """
    comparison, pool = compare(document), document["pool_images"]
    numbers, ipcs = measurements(document, comparison), comparison.ipcs
    metrics = [m for m in POOL_COLUMNS if any((name, pool, POOL + m) in numbers for name in comparison.rows)]
    heads = ["Row", *(f"IPC {ipc}" for ipc in ipcs), *(POOL_COLUMNS[m] for m in metrics), "Device time"]
    lines = [_line(heads), _line(["---"] + ["---:"] * (len(heads) - 1))]
    for name in comparison.rows:
        cells = [accuracy_in_words(comparison.cells[name, ipc]) for ipc in ipcs]
        covered = [_mean(numbers.get((name, pool, POOL + metric))) for metric in metrics]
        time = f"{numbers[name, None, 'device_seconds'].mean:,.0f} s"
        lines.append(_line([_escaped(name), *cells, *covered, time]))
    for label in networks_beside(document):
        lines += ["", *_by_network(label, compare(document, label))]
    return "\n".join([*lines, "", _legend(document, comparison)]) + "\n"


def _by_network(label: str, comparison: Comparison) -> list[str]:
    lines = [_line([_escaped(label), *(f"IPC {ipc}" for ipc in comparison.ipcs)])]
    lines.append(_line(["---"] + ["---:"] * len(comparison.ipcs)))
    for name in comparison.rows:
        cells = [accuracy_in_words(comparison.cells[name, ipc]) for ipc in comparison.ipcs]
        lines.append(_line([_escaped(name), *cells]))
    return lines


def accuracy_in_words(cell: Cell) -> str:
    """`96.5 ± 0.2 (**+0.7 ± 0.3**)`: percent and points."""
    text = f"{100 * cell.accuracy.mean:.1f}{_interval(cell.accuracy.interval)}"
    if cell.difference is None:
        return text
    versus = signed(cell.difference.mean) + _interval(cell.difference.interval)
    return f"{text} (**{versus}**)" if cell.is_clear else f"{text} ({versus})"


def long_csv(document: Ablation) -> str:
    """One line a measurement, with a header of its fields; accuracies are fractions, empty is undefined."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([field.name for field in fields(Measurement)])
    writer.writerows(astuple(one) for one in measurements(document, compare(document)).values())
    return out.getvalue()


def metrics_for_mlflow(document: Ablation) -> dict[str, float]:
    """`ablation/<row>/<metric>/ipc<n>` and its `…/difference`, under names that MLflow takes."""
    comparison = compare(document)
    names, figures = _plain_names(comparison.rows), {}
    for one in measurements(document, comparison).values():
        parts = ["ablation", names[one.row], *map(_plain, one.metric.split("/"))]
        key = "/".join(parts if one.ipc is None else [*parts, f"ipc{one.ipc}"])
        figures |= {key: one.mean, f"{key}/interval": one.interval, f"{key}/difference": one.difference}
        figures[f"{key}/p_adjusted"] = one.p_adjusted
    return {key: figure for key, figure in figures.items() if figure is not None}


def _plain_names(names: Iterable[str]) -> dict[str, str]:
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


def _legend(document: Ablation, comparison: Comparison) -> str:
    seeds, each = len(document["generator_seeds"]), document["classifier_seeds"]
    fields = ("protocol", "split", "baseline", "device", "written")
    protocol, split, baseline, device, written = (_escaped(document[key]) for key in fields)
    measured = document["pool_images"]
    pool = f"Coverage and copy rate: of {measured} images a class. " if measured else ""
    return (
        f"Accuracy in percent after the last step, protocol {protocol}, {split} split; mean ± 95 % interval "
        f"over {seeds} generator seed{'' if seeds == 1 else 's'} (of {each} classifiers each). In brackets: "
        f"points above or below {baseline}, paired by seed; **bold**: p < 0.05 after Holm's adjustment over "
        f"{comparison.num_tests} comparisons of a network. {pool}Device: {device}. Written {written}."
    )


def _mean(one: Measurement | None) -> str:
    if one is None:
        return "–"
    return f"{one.mean:.3f}" if one.interval is None else f"{one.mean:.3f} ± {one.interval:.3f}"


def _interval(interval: float | None) -> str:
    return "" if interval is None else f" ± {100 * interval:.1f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    plain = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#|~!])", r"\\\1", plain)
