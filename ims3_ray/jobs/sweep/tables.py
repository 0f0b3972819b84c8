"""A comparison as tables: on a terminal of 80 columns, in Markdown, and as MLflow metrics."""

import html
import re
import textwrap
from collections.abc import Iterable, Sequence

from ims3_ray.display import noun, one_line
from ims3_ray.report.formatting import signed
from ims3_ray.report.inputs import shortened

from .comparison import POOL, Cell, Comparison, RowsDocument, compare, further_networks, measure
from .results import Document

COLUMNS, NAME = 80, 23  # characters of a line, and of a row's name in it
IPCS_PER_LINE = 3
POOL_HEADS = {
    "coverage": "coverage",
    "low_density_coverage": "low-density",
    "copy_rate": "copy rate",
    "agreement": "agreement",
}


def comparison_lines(document: Document) -> list[str]:
    """For a terminal: a table per network, a table of coverage and time, and what they mean."""
    rows = _rows_of(document)
    lines: list[str] = []
    for label, comparison in _by_network(document).items():
        for start in range(0, len(comparison.ipcs), IPCS_PER_LINE):
            ipcs = comparison.ipcs[start : start + IPCS_PER_LINE]
            lines.append(_line(label, [f"IPC {ipc}  " for ipc in ipcs]))
            for name in comparison.rows:
                cells = [_cell(comparison.cells[name, ipc]) for ipc in ipcs]
                lines.append(_line(name, [f"{accuracy}  " for accuracy, _, _ in cells]))
                if name != comparison.baseline:
                    lines.append(_line("", [f"{diff}{' *' if clear else '  '}" for _, diff, clear in cells]))
        lines.append("")
    heads, costs = _costs(rows)
    widths = [max(10, len(head) + 2) for head in heads]
    lines.append(_line(f"of {rows['pool_images']} per class" if len(heads) > 1 else "", heads, widths))
    lines += [_line(name, cells, widths) for name, cells in costs.items()]
    marks = "Below: points to the baseline, paired by seed; * is larger than the noise."
    return [*lines, "", *textwrap.wrap(one_line(f"{_meaning(document)} {marks}"), COLUMNS)]


def markdown(document: Document) -> str:
    """A line per row: accuracy and difference at each IPC, coverage of the pool, device time.

    Clear differences are bold. Further networks have a table each. Names are escaped.
    """
    heads, costs = _costs(_rows_of(document))
    lines: list[str] = []
    for label, comparison in _by_network(document).items():
        more = [] if lines else heads  # of the first network
        lines += [] if not lines else [""]
        lines.append(_markdown_line([_escaped(label), *(f"IPC {ipc}" for ipc in comparison.ipcs), *more]))
        lines.append(_markdown_line(["---"] + ["---:"] * (len(comparison.ipcs) + len(more))))
        for name in comparison.rows:
            cells = []
            for accuracy, difference, is_clear in (_cell(comparison.cells[name, i]) for i in comparison.ipcs):
                bold = f"**{difference}**" if is_clear else difference
                cells.append(f"{accuracy} ({bold})" if difference else accuracy)
            lines.append(_markdown_line([_escaped(name), *cells, *(costs[name] if more else [])]))
    marks = "In brackets: points to the baseline, paired by seed; **bold**: p < 0.05 after Holm's adjustment."
    device, written = _escaped(document["device"]), document["written"]
    text = f"{_escaped(_meaning(document))} {marks} Device: {device}. Written {written}."
    return "\n".join([*lines, "", text]) + "\n"


def metrics_for_mlflow(document: RowsDocument) -> dict[str, float]:
    """`ablation/<row>/<metric>/ipc<n>` and its `…/difference`, under names that MLflow accepts."""
    comparison = compare(document)
    names, metrics = _distinct_names(comparison.rows), {}
    for (row, ipc, metric), one in measure(document, comparison).items():
        parts = ["ablation", names[row], *map(_plain, metric.split("/"))]
        key = "/".join(parts if ipc is None else [*parts, f"ipc{ipc}"])
        metrics |= {key: one.mean, f"{key}/interval": one.interval, f"{key}/difference": one.difference}
        metrics[f"{key}/p_adjusted"] = one.p_adjusted
    return {key: value for key, value in metrics.items() if value is not None}


def _rows_of(document: Document) -> RowsDocument:
    assert document["comparison"], "a comparison without failed trials"
    return document["comparison"]


def _by_network(document: Document) -> dict[str, Comparison]:
    rows = _rows_of(document)
    further = {label: compare(rows, label) for label in further_networks(rows)}
    return {document["protocol"]: compare(rows), **further}


def _costs(document: RowsDocument) -> tuple[list[str], dict[str, list[str]]]:
    """Heads and each row's cells: coverage of the pool and device time, means over the seeds."""
    comparison, pool = compare(document), document["pool_images"]
    numbers = measure(document, comparison)
    metrics = [m for m in POOL_HEADS if any((name, pool, POOL + m) in numbers for name in comparison.rows)]
    rows = {}
    for name in comparison.rows:
        covered = [numbers.get((name, pool, POOL + metric)) for metric in metrics]
        cells = ["–" if one is None else f"{one.mean:.3f}" for one in covered]
        rows[name] = [*cells, f"{numbers[name, None, 'device_seconds'].mean:,.0f} s"]
    return [*(POOL_HEADS[metric] for metric in metrics), "time"], rows


def _cell(cell: Cell) -> tuple[str, str, bool]:
    """`96.5 ± 0.2`, `+0.7 ± 0.3` or nothing for the baseline, and whether the difference is clear."""
    difference, accuracy = (
        cell.difference,
        f"{100 * cell.accuracy.mean:.1f}{_interval(cell.accuracy.interval)}",
    )
    return (
        accuracy,
        signed(difference.mean) + _interval(difference.interval) if difference else "",
        cell.is_clear,
    )


def _meaning(document: Document) -> str:
    seeds, each = len(_rows_of(document)["generator_seeds"]), document["classifier_seeds"]
    return (
        f"Accuracy in percent on the {document['split']} images: mean ± 95 % interval over {seeds} "
        f"{noun(seeds, 'generator seeds')} of {each} {noun(each, 'classifiers')} each; "
        f"baseline: {shortened(_rows_of(document)['baseline'])}."
    )


def _interval(interval: float | None) -> str:
    return "" if interval is None else f" ± {100 * interval:.1f}"


def _line(name: str, cells: Sequence[str], widths: Sequence[int] = IPCS_PER_LINE * (18,)) -> str:
    padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False))
    return f"{shortened(one_line(name), NAME):<{NAME}}{''.join(padded)}".rstrip()


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """The text on one line, without effect in Markdown."""
    plain = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#|~!])", r"\\\1", plain)


def _distinct_names(names: Iterable[str]) -> dict[str, str]:
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
