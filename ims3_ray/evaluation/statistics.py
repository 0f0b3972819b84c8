"""What repeated measurements allow to say: means with intervals, and differences with their noise.

| here | meaning |
|---|---|
| generator seed | one whole run: fine-tuning, candidates, selection. The independent unit of every interval |
| classifier seed | one training on that run's set; averaged away first: repeats on one set are no new sets |
| n | generator seeds that a number rests on |

Intervals are half widths at 95 %, by Student's t over the generator seeds. Accuracies are fractions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

LEVEL = 0.05  # the chance that a table as a whole may have of one false finding or more
NO_SPREAD = 1e-12  # a deviation below this is rounding

Repeats = Sequence[Sequence[float | None] | None]
"""A list a generator seed of a value a classifier seed; None where one failed."""


@dataclass(frozen=True)
class Summary:
    """Of repeated measurements. `deviation` (of the sample) and `interval` are None for a single value."""

    mean: float
    deviation: float | None
    interval: float | None
    """Half the width of the 95 % interval of the mean, by Student's t: mean ± interval."""
    count: int


@dataclass(frozen=True)
class Difference:
    """Of two means. Without spread, or of single measurements, `interval` and `p` are None."""

    mean: float
    interval: float | None
    p: float | None
    """Two-sided."""
    count: int
    """Measurements: of paired differences, generator seeds that both sides have."""
    p_adjusted: float | None = None
    """By Holm, over every comparison of a table."""

    @property
    def larger_than_noise(self) -> bool:
        return self.p_adjusted is not None and self.p_adjusted < LEVEL


def summary(values: Sequence[float]) -> Summary:
    """Mean, sample deviation and 95 % interval of at least one value."""
    count = len(values)
    if count == 0:
        raise ValueError("values: a summary needs at least one value, not 0")
    if count == 1:
        return Summary(float(values[0]), None, None, 1)
    deviation = float(np.std(values, ddof=1))
    from scipy import stats  # a second to import

    interval = float(stats.t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)
    return Summary(float(np.mean(values)), deviation, interval, count)


def row_summary(repeats: Repeats) -> Summary | None:
    """Mean over classifier seeds, then `summary` over generator seeds; None where every one failed.

    The same set for every generator seed (real medoids, say) has been drawn once, not n times: no interval.
    """
    present = [[value for value in of_seed or () if value is not None] for of_seed in repeats]
    means = [float(np.mean(of_seed)) for of_seed in present if of_seed]
    if not means:
        return None
    of_row = summary(means)
    return replace(of_row, interval=None) if _without_spread(of_row) else of_row


def paired_difference(repeats: Repeats, baseline: Repeats) -> Difference | None:
    """Row minus baseline, paired by generator and classifier seed, with the paired t-test.

    None where no pair is complete or one side failed.
    """
    if not repeats or not baseline:
        return None
    means: list[float] = []
    for ours, theirs in zip(repeats, baseline, strict=True):
        pairs = zip(ours or (), theirs or (), strict=False)
        if differences := [a - b for a, b in pairs if a is not None and b is not None]:
            means.append(float(np.mean(differences)))
    if not means:
        return None
    total = summary(means)
    if _without_spread(total):  # a t-test has nothing to divide by
        return Difference(total.mean, None, None, total.count)
    from scipy import stats

    p: float = stats.ttest_1samp(means, 0)[1]  # pyright: ignore[reportAssignmentType] an unknown tuple
    return Difference(total.mean, total.interval, float(p), total.count)


def welch_difference(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Of independent measurements of unequal variances, by Welch's t-test, a comparison of its own."""
    mean, count = float(np.mean(values) - np.mean(baseline)), len(values)
    if min(count, len(baseline)) < 2 or not np.ptp(values) + np.ptp(baseline):
        return Difference(mean, None, None, count)
    from scipy import stats

    # squared standard errors, and Welch and Satterthwaite's degrees of freedom
    errors = [float(np.var(of_set, ddof=1)) / len(of_set) for of_set in (values, baseline)]
    sizes = count, len(baseline)
    freedom = sum(errors) ** 2 / sum(e**2 / (n - 1) for e, n in zip(errors, sizes, strict=True))
    error = math.sqrt(sum(errors))
    p = 2 * float(stats.t.sf(abs(mean) / error, freedom))
    return Difference(mean, float(stats.t.ppf(0.975, freedom)) * error, p, count, p_adjusted=p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values (Holm 1979): the k-th smallest of m times m − k + 1, made monotone, at most 1."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted.tolist()


def label_robust_score(full: float, random: float, synthetic: float) -> float:
    """How good a distilled set is, apart from the training recipe, from 0 to 1 (DD-Ranking, 2025).

    (e^a − e^−1) / (e − e^−1) with a = ½·IOR − ½·HLR, of accuracies as fractions by one recipe. HLR = full −
    synthetic, what the set loses of the full real set's accuracy. IOR = synthetic − random, what it gains on
    random real images of the same number.
    """
    return _from_nought_to_one(((synthetic - random) - (full - synthetic)) / 2)


def augmentation_robust_score(augmented: tuple[float, float], plain: tuple[float, float]) -> float:
    """How good a distilled set is, apart from the views of it, from 0 to 1 (DD-Ranking, 2025).

    Of (synthetic, random) accuracies as fractions, with the recipe's augmentation and without any: as
    `label_robust_score`, with a the mean of both gains on random real images of the same number.
    """
    return _from_nought_to_one(sum(ours - random for ours, random in (augmented, plain)) / 2)


def _from_nought_to_one(a: float) -> float:
    return (math.exp(a) - math.exp(-1)) / (math.e - math.exp(-1))


def pareto_front(figures: np.ndarray) -> list[int]:
    """Rows of `figures` (N, M), larger being better, that none dominates: as good in all, better in one.

    Sorted by the first figure, best first; ties by the others, then by row. Rows with a NaN are left out,
    equal rows stay.
    """
    figures = np.asarray(figures, dtype=np.float64)
    kept = np.flatnonzero(~np.isnan(figures).any(axis=1))
    order = kept[np.lexsort((kept, *(-figures[kept]).T[::-1]))]
    front: list[int] = []
    for row in order:  # none behind it in this order can dominate it
        ahead = figures[front]
        if not ((ahead >= figures[row]).all(axis=1) & (ahead > figures[row]).any(axis=1)).any():
            front.append(int(row))
    return front


def _without_spread(values: Summary) -> bool:
    """Whether several values are one and the same, or there is a single one."""
    return values.deviation is None or values.deviation < NO_SPREAD
