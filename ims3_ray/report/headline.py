"""What may be said of a set's accuracy: its difference from random real images, and whether it is noise."""

import numpy as np

from ims3_ray.evaluation.results import Evaluation
from ims3_ray.evaluation.statistics import welch_difference

from .formatting import Claim, signed


def claim(evaluation: Evaluation | None) -> Claim:
    """Distilled against random real images, on the accuracy after the last step."""
    if evaluation is None:
        return Claim("This set has not been evaluated", "No accuracy can be claimed for it.")
    sets = evaluation["sets"]
    if "distilled" not in sets or "random" not in sets:
        return Claim("No baseline to compare with", "The run has no random real images beside the set.")
    ours, random = sets["distilled"]["last"]["values"], sets["random"]["last"]["values"]
    same = sets["distilled"]["images"] == sets["random"]["images"]
    other = "random real images of the same number" if same else "random real images"
    gap, seeds = welch_difference(ours, random), f"{len(ours)} against {len(random)} seeds"
    means = f"{100 * np.mean(ours):.1f}\u202f% against {100 * np.mean(random):.1f}\u202f%"
    if gap.interval is None:
        reason = f"{means}, {signed(gap.mean)} points, {seeds}"
        return Claim(
            f"The difference to {other} can't be judged",
            f"{reason}: without spread between seeds it can't be told from noise.",
        )
    span = f"{signed(gap.mean - gap.interval)} to {signed(gap.mean + gap.interval)}"
    numbers = f"{means}: {signed(gap.mean)} points (95\u202f% interval {span}, Welch's t-test, {seeds})."
    if not gap.larger_than_noise:
        within = f"{numbers} The difference is within the noise."
        return Claim(f"No difference from {other} can be shown", within)
    verdict = "better" if gap.mean > 0 else "worse"
    beyond = f"{numbers} The difference is larger than the noise between seeds."
    return Claim(f"The distilled set is {verdict} than {other}", beyond)
