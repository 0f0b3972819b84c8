"""Means with confidence intervals, and paired differences with their significance.

| here | meaning |
|---|---|
| generator seed | one whole run: fine-tuning, candidates, selection. The independent unit of every interval |
| classifier seed | one training on that run's set; averaged first, as it gives no new set |
| n | number of generator seeds |

Intervals are half widths at 95 %, by Student's t over the generator seeds. Accuracies are fractions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

LEVEL = 0.05  # family-wise error rate of a table
NO_SPREAD = 1e-12  # a deviation below this is rounding

Repeats = Sequence[Sequence[float | None] | None]
"""Per generator seed a list with a value per classifier seed; None if it failed."""


@dataclass(frozen=True)
class Summary:
    """Summary of repeated measurements. `deviation` and `interval` are None for a single value."""

    mean: float
    deviation: float | None
    """Sample standard deviation."""
    interval: float | None
    """Half the width of the 95 % interval of the mean, by Student's t: mean ± interval."""
    count: int


@dataclass(frozen=True)
class Difference:
    """Difference of two means. `interval` and `p` are None for single measurements or without spread."""

    mean: float
    interval: float | None
    p: float | None
    """Two-sided p value."""
    count: int
    """Number of measurements; for paired differences, of generator seeds that both sides have."""
    p_adjusted: float | None = None
    """Adjusted by Holm's method over all comparisons of a table."""

    @property
    def larger_than_noise(self) -> bool:
        return self.p_adjusted is not None and self.p_adjusted < LEVEL


def summary(values: Sequence[float]) -> Summary:
    """Returns mean, sample deviation and 95 % interval of at least one value."""
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
    """Average over classifier seeds, then summarise over generator seeds; None if all failed.

    A set that is the same for every generator seed, such as real medoids, is one draw: it has no interval.
    """
    present = [[value for value in of_seed or () if value is not None] for of_seed in repeats]
    means = [float(np.mean(of_seed)) for of_seed in present if of_seed]
    if not means:
        return None
    of_row = summary(means)
    return replace(of_row, interval=None) if _without_spread(of_row) else of_row


def paired_difference(repeats: Repeats, baseline: Repeats) -> Difference | None:
    """Returns row minus baseline, paired by generator and classifier seed, with a paired t-test.

    Returns None if no pair is complete or one side failed.
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
    """Difference of independent measurements with unequal variances, by Welch's t-test."""
    mean, count = float(np.mean(values) - np.mean(baseline)), len(values)
    if min(count, len(baseline)) < 2 or not np.ptp(values) + np.ptp(baseline):
        return Difference(mean, None, None, count)
    from scipy import stats

    # squared standard errors, and Welch–Satterthwaite degrees of freedom
    errors = [float(np.var(of_set, ddof=1)) / len(of_set) for of_set in (values, baseline)]
    sizes = count, len(baseline)
    freedom = sum(errors) ** 2 / sum(e**2 / (n - 1) for e, n in zip(errors, sizes, strict=True))
    error = math.sqrt(sum(errors))
    p = 2 * float(stats.t.sf(abs(mean) / error, freedom))
    return Difference(mean, float(stats.t.ppf(0.975, freedom)) * error, p, count, p_adjusted=p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values (Holm 1979): the k-th smallest of m times m − k + 1, made monotone, at most 1."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted.tolist()


def label_robust_score(full: float, random: float, synthetic: float) -> float:
    """Label-robust score of a distilled set, from 0 to 1 (DD-Ranking, 2025).

    (e^a − e^−1) / (e − e^−1) with a = ½·IOR − ½·HLR. HLR = full − synthetic: the loss against the full real
    set. IOR = synthetic − random: the gain over as many random real images. Accuracies are fractions, from
    one training recipe.
    """
    return _to_unit_interval(((synthetic - random) - (full - synthetic)) / 2)


def augmentation_robust_score(augmented: tuple[float, float], plain: tuple[float, float]) -> float:
    """Augmentation-robust score of a distilled set, from 0 to 1 (DD-Ranking, 2025).

    As `label_robust_score`, with a the mean of two gains over as many random real images: with the recipe's
    augmentation and without. Each argument is (synthetic, random), accuracies as fractions.
    """
    return _to_unit_interval(sum(ours - random for ours, random in (augmented, plain)) / 2)


def _to_unit_interval(a: float) -> float:
    return (math.exp(a) - math.exp(-1)) / (math.e - math.exp(-1))


def pareto_front(metrics: np.ndarray) -> list[int]:
    """Returns the rows of `metrics` (N, M), larger is better, that no row dominates.

    A row dominates another if it is at least equal in every metric and better in one. Rows with NaN are
    excluded; equal rows all stay. Sorted by the first metric, best first; ties by the others, then by row.
    """
    metrics = np.asarray(metrics, dtype=np.float64)
    valid = np.flatnonzero(~np.isnan(metrics).any(axis=1))
    order = valid[np.lexsort((valid, *(-metrics[valid]).T[::-1]))]
    front: list[int] = []
    for row in order:  # no later row in this order dominates it
        better = metrics[front]
        if not ((better >= metrics[row]).all(axis=1) & (better > metrics[row]).any(axis=1)).any():
            front.append(int(row))
    return front


def _without_spread(values: Summary) -> bool:
    """Whether all values are equal, or there is one value."""
    return values.deviation is None or values.deviation < NO_SPREAD
