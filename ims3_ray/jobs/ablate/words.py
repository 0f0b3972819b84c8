"""An ablation in words: what it opens with, and for each row whether it differs from the baseline."""

from collections.abc import Sequence

from ims3_ray.evaluation.statistics import Difference
from ims3_ray.report.formatting import Claim, listed

from .comparison import Comparison


def ablation_claim(comparison: Comparison) -> Claim:
    """The generated row that beats the baseline at the most IPCs, or that none does; real rows beside it."""
    winner, baseline = winning_row(comparison), comparison.baseline
    if comparison.num_tests == 0:
        needs = "Intervals need two generator seeds or more, with results that differ"
        headline = f"No row can be judged against {baseline}"
        return Claim(headline, f"{needs}: nothing here can be told from noise.")
    if winner is None:
        headline = f"No generated row beats {baseline} beyond the noise"
        return Claim(headline, f"{_nearest(comparison)} {_real_rows(comparison)}".strip())
    ahead, behind = _clear(comparison, winner), _clear(comparison, winner, side=-1)
    headline = f"{winner} beats {baseline} at {listed(ahead)} {_images(max(ahead))} a class"
    if behind:
        headline += f", but is worse at {listed(behind)}"
    sizes = "; ".join(f"at {ipc}: {_size(difference)}" for ipc, difference in ahead.items())
    detail = f"{sizes[0].upper()}{sizes[1:]}; adjusted over {comparison.num_tests} comparisons."
    rows = {name: _clear(comparison, name) for name in _generated(comparison) if name != winner}
    if others := ", ".join(f"{name} (at {listed(clear)})" for name, clear in rows.items() if clear):
        detail += f" Also above {baseline}: {others}; differences among these rows were not tested."
    return Claim(headline, f"{detail} {_real_rows(comparison)}".strip())


def winning_row(comparison: Comparison) -> str | None:
    """The generated row with the most clear gains, ties by their sum; None where no row has one."""

    def rank(name: str) -> tuple[int, float]:
        ahead = _clear(comparison, name)
        return len(ahead), sum(difference.mean for difference in ahead.values())

    best = max(_generated(comparison), key=rank, default=None)
    return best if best is not None and rank(best)[0] else None


def in_words(comparison: Comparison) -> list[str]:
    """A sentence a row: at which IPCs it differs from the baseline by more than the noise."""
    return [_sentence(comparison, name) for name in comparison.rows if name != comparison.baseline]


def p_in_words(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _sentence(comparison: Comparison, name: str) -> str:
    baseline, clear, rest = comparison.baseline, [], []
    for ipc in comparison.ipcs:
        cell = comparison.cells[name, ipc]
        difference = cell.difference
        assert difference is not None  # the baseline has no sentence
        size = f"{_points(difference.mean)} ± {_points(difference.interval or 0)}"
        sign = "−" if difference.mean < 0 else "+"
        if cell.is_clear:
            side, p = "above" if difference.mean > 0 else "below", p_in_words(difference.p_adjusted or 0)
            first = f"{size} points {side} {baseline} at {ipc} {_images(ipc)} a class ({p}, adjusted)"
            clear.append(f"{size} {side} at {ipc} ({p})" if clear else first)
        elif difference.count == 1:
            alone = f"{sign}{_points(difference.mean)} points of one generator seed, no interval"
            rest.append(f"at {ipc}: {alone}, so it can't be told from noise")
        elif difference.p is None:
            every = f"{sign}{_points(difference.mean)} points in every pair of seeds, without spread"
            rest.append(f"at {ipc}: {every}, so it can't be tested")
        else:
            rest.append(f"at {ipc}: within the noise ({sign}{size})")
    return f"{name} is {'; '.join([', '.join(clear) or f'not shown to differ from {baseline}', *rest])}."


def _generated(comparison: Comparison) -> list[str]:
    return [name for name in comparison.rows if name not in comparison.real and name != comparison.baseline]


def _clear(comparison: Comparison, name: str, side: int = 1) -> dict[int, Difference]:
    """By IPC: where the row lies above (below: -1) the baseline by more than the noise."""
    cells = {ipc: comparison.cells[name, ipc] for ipc in comparison.ipcs}
    return {
        i: c.difference
        for i, c in cells.items()
        if c.difference and c.is_clear and c.difference.mean * side > 0
    }


def _size(difference: Difference) -> str:
    sign = "+" if difference.mean > 0 else "−"
    size = f"{sign}{_points(difference.mean)} ± {_points(difference.interval or 0)} points"
    return f"{size} ({p_in_words(difference.p_adjusted or 0)})"


def _nearest(comparison: Comparison) -> str:
    """The best generated row at the largest IPC, whose lead is noise."""
    ipc = comparison.ipcs[-1]
    best = _best(comparison, _generated(comparison))
    if best is None:
        return ""
    difference = comparison.cells[best, ipc].difference
    lead = f": {_size(difference)}" if difference and difference.p_adjusted is not None else ""
    return f"The highest of them at {ipc} {_images(ipc)} a class is {best}{lead}."


def _real_rows(comparison: Comparison) -> str:
    """Whether as many real images do better than every generated row, at the largest IPC; means alone."""
    real = _best(comparison, [name for name in comparison.rows if name in comparison.real])
    generated = _best(comparison, [name for name in comparison.rows if name not in comparison.real])
    if real is None or generated is None:
        return ""
    ipc = comparison.ipcs[-1]
    ours, theirs = (100 * comparison.cells[name, ipc].accuracy.mean for name in (generated, real))
    return (
        f"At {ipc}, the best real images ({real}) reach {theirs:.1f}\u202f%, "
        f"the best generated row ({generated}) {ours:.1f}\u202f%."
    )


def _best(comparison: Comparison, names: Sequence[str]) -> str | None:
    """By accuracy at the largest IPC."""
    return max(
        names, key=lambda name: comparison.cells[name, comparison.ipcs[-1]].accuracy.mean, default=None
    )


def _points(fraction: float) -> str:
    """Percentage points without a sign: 0.0123 is 1.2; below 0.05 points, a digit more."""
    size = 100 * abs(fraction)
    return f"{size:.2f}" if 0.005 <= size < 0.05 else f"{size:.1f}"


def _images(ipc: int) -> str:
    return "image" if ipc == 1 else "images"
