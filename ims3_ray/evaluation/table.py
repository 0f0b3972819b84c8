"""An evaluation as a table: accuracies by set, beside what covers the real images."""

from collections.abc import Mapping

from .results import NAMES, Accuracies, Evaluation, ordered


def evaluation_lines(document: Evaluation) -> list[str]:
    """A line a set, for the protocol's first network; a line a network for the others."""
    sets, coverage = document["sets"], document["coverage"]
    names = list(ordered({**sets, **coverage}))
    titles = {name: document.get("names", {}).get(name) or title(name) for name in names}
    width = max(12, *(len(words) + 1 for words in titles.values()))
    scored = f"{document['split']} images, {document['protocol']}"
    lines = [
        f"accuracy on the {scored}",
        f"  {'set':<{width}}{'images':>8}  {'last':>14}  {'best':>14}   coverage  low-density",
    ]
    for name in names:
        images, last, best, shares = "", "", "", ""
        if of_set := sets.get(name):
            images, last, best = of_set["images"], in_words(of_set["last"]), in_words(of_set["best"])
        if covered := coverage.get(name):
            shares = f"{covered['coverage']:11.3f}{covered['low_density_coverage']:13.3f}"
        lines.append(f"  {titles[name]:<{width}}{images:>8} {last:>15} {best:>15}{shares}")
    lines.append("  (mean ± 95 % interval over seeds; last is the figure, best looks at the scored")
    lines.append("  images and is a diagnostic)")
    if teacher := document.get("teacher"):
        right = f"{100 * teacher['accuracy']:.1f} % of the training images right"
        lines.append(f"  soft labels of {teacher['network']}, which has {right}")
    for label, of_network in document.get("networks", {}).items():
        if label != document["protocol"]:
            accuracies = (f"{titles[n]} {in_words(of_set['last'])}" for n, of_set in of_network.items())
            lines.append(f"  {label}: {', '.join(accuracies)}")
    return lines


def score_lines(document: Evaluation) -> list[str]:
    """DD-Ranking's scores of every set that has any."""
    lines = []
    for name, figures in document["sets"].items():
        label, views = figures.get("label_robust_score"), figures.get("augmentation_robust_score")
        shown = {"label-robust": label, "augmentation-robust": views}
        if scores := [f"{kind} {score:.3f}" for kind, score in shown.items() if score is not None]:
            lines.append(f"  {name}: {', '.join(scores)} (DD-Ranking)")
    return lines


def expected_lines(document: Evaluation, expected: Mapping[str, tuple[float, float]]) -> list[str]:
    """Of every set of which something was expected: the range, and whether the interval measured meets it."""
    lines = []
    for name, (low, high) in expected.items():
        measured = document["sets"][name]["last"]
        spread = measured["interval"] or 0
        is_below, is_above = measured["mean"] + spread < low, measured["mean"] - spread > high
        verdict = "below" if is_below else "above" if is_above else "as expected"
        stated = f"{100 * low:.2f} to {100 * high:.2f}"
        lines.append(f"  {name}: measured {in_words(measured)}, expected {stated}: {verdict}")
    return lines


def title(name: str) -> str:
    """A set's name in words; of a baseline for one of several sizes, "random 50", too."""
    kind, _, images = name.partition(" ")
    return f"{NAMES[kind][0]} {images}".rstrip() if kind in NAMES else name


def in_words(accuracies: Accuracies) -> str:
    """In percent with its 95 % interval: "94.50 ± 0.25"."""
    return f"{100 * accuracies['mean']:.2f} ± {100 * (accuracies['interval'] or 0):.2f}"
