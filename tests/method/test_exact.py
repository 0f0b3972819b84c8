"""Proven minima."""

import itertools

import numpy as np
import pytest

from ims3_ray.method.exact import exhaustive
from ims3_ray.method.selection import Objective, evaluate


def instance(sizes, seed=0, width=24):
    """Candidates without structure, a list of (G_i, D), and real centroids (C, D)."""
    rng = np.random.default_rng(seed)
    unit = [rng.random((g, width), dtype=np.float32) for g in (*sizes, len(sizes))]
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in unit]
    return unit[:-1], unit[-1]


@pytest.mark.parametrize("partners", ["selected", "pool"])
@pytest.mark.parametrize("normalization", ["per_class", "none"])
def test_exhaustive_search_finds_the_smallest_of_all(normalization, partners):
    sizes = [3, 1, 2, 4, 2]
    objective = Objective(0.4, 0.9, 0.01, normalization, partners)
    candidates, real = instance(sizes)
    everything = {c: evaluate(c, candidates, real, objective).total for c in itertools.product(*map(range, sizes))}
    choice, terms = exhaustive(candidates, real, objective)
    assert tuple(choice) == min(everything, key=everything.get)
    assert terms.total == min(everything.values())


def test_exhaustive_search_refuses_what_it_cannot_finish():
    candidates, real = instance([10] * 9)
    with pytest.raises(ValueError, match=r"exhaustive search allows 20000000 choices, not 1e\+09"):
        exhaustive(candidates, real, Objective(0.4, 0.9))


def test_all_choices_of_equal_worth_give_the_first():
    candidates, real = instance([2, 2, 2])
    doubled = [np.concatenate([c, c]) for c in candidates]
    paper = Objective(0.4, 0.9)
    assert np.array_equal(exhaustive(doubled, real, paper)[0], exhaustive(candidates, real, paper)[0])
