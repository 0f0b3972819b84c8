"""An evaluation as a table: accuracies by set, beside what covers the real images."""

from collections.abc import Mapping
from typing import Any

BASELINES = {  # in the order of the table, after the sets that are scored
    "random": "random real",
    "herding": "herding",
    "k_center": "k-centre",
    "medoids": "k-means medoids",
    "k_medoids": "k-medoids",
    "full": "full real",
    "pool": "pool",
    "ceiling": "greedy cover",
}


def evaluation_lines(document: Mapping[str, Any]) -> list[str]:
    """A line a set, for the protocol's first network; a line a network for the others."""
    sets, coverage = document["sets"], document["coverage"]
    names = list(dict.fromkeys([*sets, *coverage]))
    order = list(BASELINES)
    names.sort(key=lambda name: order.index(_kind(name)) if _kind(name) in order else -1)
    width = max(12, *(len(title(name)) + 1 for name in names))
    lines = [
        f"accuracy on the {document['split']} images, {document['protocol']}, mean ± 95 % interval over seeds",
        f"  {'set':<{width}}{'images':>8}  {'last':>14}  {'best':>14}   coverage  low-density",
    ]
    for name in names:
        of_set, covered = sets.get(name), coverage.get(name)
        images = of_set["images"] if of_set else ""
        cells = [_accuracy(of_set[which]) for which in ("last", "best")] if of_set else ("", "")
        shown = f"{covered['coverage']:11.3f}{covered['low_density_coverage']:13.3f}" if covered else ""
        lines.append(f"  {title(name):<{width}}{images:>8}  {cells[0]:>14}  {cells[1]:>14}{shown}")
    lines.append("  (last is the figure; best looks at the scored images and is a diagnostic)")
    for label, of_network in document.get("networks", {}).items():
        if label != document["protocol"]:
            lines.append(
                f"  {label}: "
                + ", ".join(f"{title(n)} {_accuracy(of_network[n]['last'])}" for n in of_network)
            )
    return lines


def title(name: str) -> str:
    """A set's name in words; of a baseline for one of several sizes, "random 50", too."""
    kind, _, images = name.partition(" ")
    return f"{BASELINES[kind]} {images}".rstrip() if kind in BASELINES else name


def _kind(name: str) -> str:
    return name.partition(" ")[0]


def _accuracy(found: Mapping[str, Any]) -> str:
    return f"{100 * found['mean']:6.2f} ± {100 * found['interval']:.2f}"
