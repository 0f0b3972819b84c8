"""Evaluations as tables."""

from ims3_ray.evaluation.results import sort_sets


def test_own_sets_come_first_and_baselines_in_their_order():
    sets = dict.fromkeys(["full", "random 50", "unrefined", "k_medoids", "mine", "distilled"], 0)
    assert list(sort_sets(sets)) == ["mine", "distilled", "unrefined", "random 50", "k_medoids", "full"]
