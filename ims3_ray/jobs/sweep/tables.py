"""A comparison as text tables of 80 columns, and as MLflow metrics."""

import re
import textwrap
from collections.abc import Iterable, Sequence

from ims3_ray.display import noun, one_line
from ims3_ray.report.formatting import signed
from ims3_ray.report.inputs import shortened

from .comparison import POOL, Comparison, RowsDocument, compare, further_networks, summarize
from .results import Document

PACKED = "packed: several images in the pixels of one"
COLUMNS, NAME = 80, 23  # characters of a line, and of a row's name in it
IPCS_PER_LINE = 3
POOL_HEADS = {"coverage": "coverage", "low_density_coverage": "low-density", "copy_rate": "copy rate"}


def comparison_lines(document: Document) -> list[str]:
    """A table of accuracies per network, a table of coverage and time, and what they mean."""
    rows = document["comparison"]
    assert rows, "a comparison without failed trials"
    lines = _accuracy_lines(document["protocol"], compare(rows))
    for label in further_networks(rows):
        lines += ["", *_accuracy_lines(label, compare(rows, label))]
    seeds, each = len(rows["generator_seeds"]), document["classifier_seeds"]
    meaning = (
        f"Accuracy in percent on the {document['split']} images: mean ± 95 % interval over {seeds} "
        f"{noun(seeds, 'generator seeds')} of {each} {noun(each, 'classifiers')} each. Below: points to "
        f"{shortened(one_line(rows['baseline']))}, paired by seed; * is larger than the noise "
        "(p < 0.05 after Holm's adjustment). Device: seconds times devices, per seed."
    )
    return [*lines, "", *_storage_lines(rows), *_cost_lines(rows), "", *textwrap.wrap(meaning, COLUMNS)]


def _accuracy_lines(label: str, comparison: Comparison) -> list[str]:
    """Two lines per row: its accuracies, and their differences to the baseline."""
    lines: list[str] = []
    for start in range(0, len(comparison.ipcs), IPCS_PER_LINE):
        ipcs = comparison.ipcs[start : start + IPCS_PER_LINE]
        lines.append(_line(label, [f"IPC {ipc}  " for ipc in ipcs]))
        is_packed = False
        for name in comparison.rows:
            if name in comparison.packed and not is_packed:
                lines, is_packed = [*lines, PACKED], True
            cells = [comparison.cells[name, ipc] for ipc in ipcs]
            accuracies = [(100 * cell.accuracy.mean, cell.accuracy.interval) for cell in cells]
            lines.append(_line(name, [f"{mean:.1f}{_interval(interval)}  " for mean, interval in accuracies]))
            differences = [(cell.difference, " *" if cell.is_clear else "  ") for cell in cells]
            texts = [f"{signed(d.mean)}{_interval(d.interval)}{mark}" for d, mark in differences if d]
            lines += [_line("", texts)] if texts else []
    return lines


def _cost_lines(rows: RowsDocument) -> list[str]:
    """Coverage of the pool and device time, means over the seeds."""
    pool, summaries = rows["pool_images"], summarize(rows)
    names = [row["name"] for row in rows["rows"]]
    metrics = [m for m in POOL_HEADS if any((name, pool, POOL + m) in summaries for name in names)]
    heads = [*(POOL_HEADS[metric] for metric in metrics), "device"]
    widths = [max(10, len(head) + 2) for head in heads]
    lines = [_line(f"of {pool} images per class" if metrics else "", heads, widths)]
    for name in names:
        coverage = [summaries.get((name, pool, POOL + metric)) for metric in metrics]
        cells = ["–" if one is None else f"{one.mean:.3f}" for one in coverage]
        seconds = summaries[name, None, "device_seconds"].mean
        lines.append(_line(name, [*cells, f"{seconds:,.0f} s"], widths))
    return lines


def _storage_lines(rows: RowsDocument) -> list[str]:
    """Pixels and bytes as PNG per class, if rows are packed; of the largest IPC and the first seed."""
    if all(row["packing"] == 1 for row in rows["rows"]):
        return []
    ipc = max(rows["ipcs"])
    sizes = [(row["name"], size) for row in rows["rows"] if (size := row["stored"][str(ipc)])]
    lines = [_line(name, [f"{size['pixels']:,}", f"{size['bytes']:,}"]) for name, size in sizes]
    return [_line(f"per class, IPC {ipc}", ["pixels", "bytes"]), *lines, ""]


def _line(name: str, cells: Sequence[str], widths: Sequence[int] = IPCS_PER_LINE * (18,)) -> str:
    padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False))
    return f"{shortened(one_line(name), NAME):<{NAME}}{''.join(padded)}".rstrip()


def _interval(interval: float | None) -> str:
    return "" if interval is None else f" ± {100 * interval:.1f}"


def metrics_for_mlflow(rows: RowsDocument) -> dict[str, float]:
    """`ablation/<row>/accuracy/ipc<n>` with interval, difference and p, under names that MLflow accepts."""
    comparison, metrics = compare(rows), {}
    names = _distinct_names(comparison.rows)
    for (row, ipc), cell in comparison.cells.items():
        key = f"ablation/{names[row]}/accuracy/ipc{ipc}"
        metrics |= {key: cell.accuracy.mean, f"{key}/interval": cell.accuracy.interval}
        if cell.difference:
            metrics[f"{key}/difference"] = cell.difference.mean
            metrics[f"{key}/p_adjusted"] = cell.difference.p_adjusted
    return {key: value for key, value in metrics.items() if value is not None}


def _distinct_names(names: Iterable[str]) -> dict[str, str]:
    """A name of letters, digits and underscores for each, no two alike."""
    plain: dict[str, str] = {}
    for name in names:
        candidate = re.sub(r"[^A-Za-z0-9]+", "_", name.replace("³", "3")).strip("_")[:60] or "row"
        while candidate in plain.values():
            candidate += "_"
        plain[name] = candidate
    return plain
