"""What may be said about a set's accuracy: the difference to a baseline, its interval, and whether it is
noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from .wording import signed


@dataclass(frozen=True)
class Difference:
    """Mean of one set of measurements minus the mean of another, with the 95 % interval of Welch's t-test."""

    mean: float
    low: float
    high: float

    @property
    def larger_than_noise(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Claim:
    """What the report opens with: the finding, and the numbers that it rests on."""

    headline: str
    detail: str


def difference(values: Sequence[float], baseline: Sequence[float]) -> Difference | None:
    """Welch's interval, unequal variances. None where it is undefined: a single value, or no spread at all."""
    if min(len(values), len(baseline)) < 2:
        return None
    a, b = np.var(values, ddof=1) / len(values), np.var(baseline, ddof=1) / len(baseline)
    if a + b == 0:
        return None
    freedom = (a + b) ** 2 / (a**2 / (len(values) - 1) + b**2 / (len(baseline) - 1))
    mean = float(np.mean(values) - np.mean(baseline))
    half = float(stats.t.ppf(0.975, freedom) * np.sqrt(a + b))
    return Difference(mean, mean - half, mean + half)


def claim(evaluation: Mapping[str, Any] | None) -> Claim:
    """Distilled against random real images, on the accuracy after the last step."""
    if evaluation is None:
        return Claim("This set has not been evaluated", "No accuracy can be claimed for it.")
    sets = evaluation["sets"]
    if "distilled" not in sets or "random" not in sets:
        return Claim("No baseline to compare with", "The run has no random real images beside the set.")
    ours, random = sets["distilled"]["last"]["values"], sets["random"]["last"]["values"]
    same = sets["distilled"]["images"] == sets["random"]["images"]
    other = "random real images of the same number" if same else "random real images"
    found, seeds = difference(ours, random), f"{len(ours)} against {len(random)} seeds"
    means = f"{100 * np.mean(ours):.1f}\u202f% against {100 * np.mean(random):.1f}\u202f%"
    if found is None:
        gap = signed(float(np.mean(ours) - np.mean(random)))
        reason = f"{means}, {gap} points, {seeds}: without spread between seeds it can't be told from noise."
        return Claim(f"The difference to {other} can't be judged", reason)
    interval = f"95\u202f% interval {signed(found.low)} to {signed(found.high)}, Welch's t-test, {seeds}"
    numbers = f"{means}: {signed(found.mean)} points ({interval})."
    if not found.larger_than_noise:
        return Claim(
            f"No difference from {other} can be shown", f"{numbers} The difference is within the noise."
        )
    verdict = "better" if found.mean > 0 else "worse"
    return Claim(
        f"The distilled set is {verdict} than {other}",
        f"{numbers} The difference is larger than the noise between seeds.",
    )
