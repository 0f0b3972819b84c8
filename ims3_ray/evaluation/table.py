"""An evaluation as a table: accuracies by set, beside what covers the real images."""

from .figures import NAMES, Accuracies, Evaluation


def evaluation_lines(document: Evaluation) -> list[str]:
    """A line a set, for the protocol's first network; a line a network for the others."""
    sets, coverage, order = document["sets"], document["coverage"], list(NAMES)
    names = list(dict.fromkeys([*sets, *coverage]))
    names.sort(key=lambda name: order.index(_kind(name)) if _kind(name) in order else -1)
    width = max(12, *(len(title(name)) + 1 for name in names))
    scored = f"{document['split']} images, {document['protocol']}"
    lines = [
        f"accuracy on the {scored}",
        f"  {'set':<{width}}{'images':>8}  {'last':>14}  {'best':>14}   coverage  low-density",
    ]
    for name in names:
        images, last, best, shares = "", "", "", ""
        if of_set := sets.get(name):
            images, last, best = of_set["images"], _accuracy(of_set["last"]), _accuracy(of_set["best"])
        if covered := coverage.get(name):
            shares = f"{covered['coverage']:11.3f}{covered['low_density_coverage']:13.3f}"
        lines.append(f"  {title(name):<{width}}{images:>8} {last:>15} {best:>15}{shares}")
    lines.append("  (mean ± 95 % interval over seeds; last is the figure, best looks at the scored")
    lines.append("  images and is a diagnostic)")
    for label, of_network in document.get("networks", {}).items():
        if label != document["protocol"]:
            accuracies = (f"{title(n)} {_accuracy(of_set['last'])}" for n, of_set in of_network.items())
            lines.append(f"  {label}: {', '.join(accuracies)}")
    return lines


def title(name: str) -> str:
    """A set's name in words; of a baseline for one of several sizes, "random 50", too."""
    kind, _, images = name.partition(" ")
    return f"{NAMES[kind][0]} {images}".rstrip() if kind in NAMES else name


def _kind(name: str) -> str:
    return name.partition(" ")[0]


def _accuracy(accuracies: Accuracies) -> str:
    return f"{100 * accuracies['mean']:6.2f} ± {100 * (accuracies['interval'] or 0):.2f}"
