"""The label-robust score: how good a distilled set is, apart from how good the training recipe is (DD-
Ranking, 2025).
"""

import math


def label_robust_score(full: float, random: float, synthetic: float) -> float:
    """(e^a − e^−1) / (e − e^−1) with a = ½·IOR − ½·HLR, from 0 to 1; accuracies are fractions, of one recipe.

    HLR = full − synthetic, what the set loses of the full real set's accuracy. IOR = synthetic − random, what
    it gains on random real images of the same number.
    """
    loss, gain = full - synthetic, synthetic - random
    a = (gain - loss) / 2
    return (math.exp(a) - math.exp(-1)) / (math.e - math.exp(-1))
