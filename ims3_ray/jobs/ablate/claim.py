"""What an ablation opens with: which row won, in one sentence, and what that sentence rests on."""

from collections.abc import Sequence

from ims3_ray.jobs.ablate.comparison import Cell, Comparison, p_in_words, points
from ims3_ray.report.claim import Claim


def ablation_claim(comparison: Comparison) -> Claim:
    """The generated row that beats the baseline at the most IPCs, or that none does; real rows beside it."""
    winner, baseline = winning_row(comparison), comparison.baseline
    if comparison.num_tests == 0:
        reason = "Intervals need two generator seeds or more, with results that differ: nothing here can be told from noise."
        return Claim(f"No row can be judged against {baseline}", _and_missing(comparison, reason))
    if winner is None:
        detail = f"{_nearest(comparison)} {_real_rows(comparison)}"
        return Claim(f"No generated row beats {baseline} beyond the noise", _and_missing(comparison, detail))
    ahead, behind = _clear(comparison, winner, above=True), _clear(comparison, winner, above=False)
    headline = f"{winner} beats {baseline} at {listed(ahead)} {_images(ahead[-1])} a class"
    if behind:
        headline += f", but is worse at {listed(behind)}"
    others = [
        f"{name} (at {listed(clear)})"
        for name in _generated(comparison)
        if name != winner and (clear := _clear(comparison, name, above=True))
    ]
    detail = "; ".join(f"at {ipc}: {_size(comparison.cells[winner, ipc])}" for ipc in ahead)
    detail = f"{detail[0].upper()}{detail[1:]}; adjusted over {comparison.num_tests} comparisons."
    if others:
        detail += (
            f" Also above {baseline}: {', '.join(others)}; differences among these rows were not tested."
        )
    return Claim(headline, _and_missing(comparison, f"{detail} {_real_rows(comparison)}"))


def winning_row(comparison: Comparison) -> str | None:
    """The generated row with the most clear gains, ties by their sum; None where no row has one."""

    def rank(name: str) -> tuple[int, float]:
        ahead = _clear(comparison, name, above=True)
        return len(ahead), sum(comparison.cells[name, ipc].difference.mean for ipc in ahead)

    best = max(_generated(comparison), key=rank, default=None)
    return best if best is not None and rank(best)[0] else None


def listed(values: Sequence[object]) -> str:
    """`1, 5 and 10`."""
    *head, last = map(str, values)
    return f"{', '.join(head)} and {last}" if head else last


def _generated(comparison: Comparison) -> list[str]:
    return [name for name in comparison.rows if name not in comparison.real and name != comparison.baseline]


def _clear(comparison: Comparison, name: str, *, above: bool) -> list[int]:
    """IPCs at which the row lies on that side of the baseline by more than the noise."""
    found = {ipc: comparison.cells[name, ipc].difference for ipc in comparison.ipcs}
    return [ipc for ipc, d in found.items() if d and d.larger_than_noise and (d.mean > 0) == above]


def _size(cell: Cell) -> str:
    found = cell.difference
    sign = "+" if found.mean > 0 else "−"
    return f"{sign}{points(found.mean)} ± {points(found.interval)} points ({p_in_words(found.p_adjusted)})"


def _nearest(comparison: Comparison) -> str:
    """The best generated row at the largest IPC, whose lead is noise."""
    ipc = comparison.ipcs[-1]
    best = _best(comparison, _generated(comparison), ipc)
    if best is None:
        return f"No generated row has a result at {ipc} {_images(ipc)} a class."
    cell = comparison.cells[best, ipc]
    lead = f": {_size(cell)}" if cell.difference and cell.difference.p_adjusted is not None else ""
    return f"The highest of them at {ipc} {_images(ipc)} a class is {best}{lead}."


def _real_rows(comparison: Comparison) -> str:
    """Whether real images of the same number do better than every generated row, at the largest IPC; means
    alone.
    """
    ipc = comparison.ipcs[-1]
    real = _best(comparison, sorted(comparison.real, key=comparison.rows.index), ipc)
    made = _best(comparison, [name for name in comparison.rows if name not in comparison.real], ipc)
    if real is None or made is None:
        return ""
    accuracies = [100 * comparison.cells[name, ipc].accuracy.mean for name in (real, made)]
    return (
        f"At {ipc}, the best real images ({real}) reach {accuracies[0]:.1f}\u202f%, "
        f"the best generated row ({made}) {accuracies[1]:.1f}\u202f%."
    )


def _best(comparison: Comparison, names: Sequence[str], ipc: int) -> str | None:
    present = [name for name in names if comparison.cells[name, ipc].accuracy]
    return max(present, key=lambda name: comparison.cells[name, ipc].accuracy.mean, default=None)


def _and_missing(comparison: Comparison, detail: str) -> str:
    missing = sum(cell.accuracy is None for cell in comparison.cells.values())
    if not missing:
        return detail.strip()
    return f"{detail.strip()} {missing} of {len(comparison.cells)} results are missing: see the table."


def _images(ipc: int) -> str:
    return "image" if ipc == 1 else "images"
