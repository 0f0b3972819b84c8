"""Lower bounds of the selection objective."""

import numpy as np
import pytest

from ims3_ray.method import certificate
from ims3_ray.method.certificate import certify, make_groups
from ims3_ray.method.exact import exhaustive
from ims3_ray.method.selection import Objective
from ims3_ray.method.selection_rounds import select
from ims3_ray.method.selection_shard import Shard


def instance(sizes, seed=0, width=24):
    """Candidates without structure, a list of (G_i, D), and real centroids (C, D)."""
    rng = np.random.default_rng(seed)
    unit = [rng.random((g, width), dtype=np.float32) for g in (*sizes, len(sizes))]
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in unit]
    return unit[:-1], unit[-1]


def certified(candidates, real, objective):
    groups = make_groups(candidates, Shard(0, candidates, real, objective, len(candidates)).attractions())
    return certify(select(candidates, real, objective), groups, objective)


@pytest.mark.parametrize("normalization", ["per_class", "none"])
@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_no_choice_is_below_the_bound(normalization, epsilon, monkeypatch):
    monkeypatch.setattr(certificate, "GROUP", 3)
    objective = Objective(0.4, 0.9, epsilon, normalization)
    for seed in range(5):
        candidates, real = instance([3, 1, 4, 2, 4, 3, 3], seed)
        _, best = exhaustive(candidates, real, objective)
        assert certified(candidates, real, objective).lower_bound <= best.total + 1e-9


def test_one_candidate_a_class_leaves_no_gap():
    result = certified(*instance([1] * 9), Objective(0.4, 0.9))
    assert result.gap == pytest.approx(0, abs=1e-6)


def test_the_bound_does_not_depend_on_the_size_of_a_group(monkeypatch):
    candidates, real = instance([3] * 20)
    whole = certified(candidates, real, Objective(0.4, 0.9)).lower_bound
    monkeypatch.setattr(certificate, "GROUP", 6)
    assert certified(candidates, real, Objective(0.4, 0.9)).lower_bound == pytest.approx(whole, rel=1e-6)
