"""Statistics: the generator seed is the unit, pairs are paired, and only what is shown is claimed."""

import numpy as np
import pytest
from scipy import stats

from ims3_ray.evaluation.results import sort_sets
from ims3_ray.evaluation.statistics import (
    augmentation_robust_score,
    holm,
    label_robust_score,
    paired_difference,
    pareto_front,
    row_summary,
    summary,
    welch_difference,
)


def test_summary_is_students_interval():
    three, alone = summary([1.0, 2.0, 3.0]), summary([0.5])
    assert (three.mean, three.deviation, three.count) == (2.0, 1.0, 3)
    assert three.interval == pytest.approx(4.302653 / 3**0.5, rel=1e-6)  # t of 2 degrees of freedom at 97.5 %
    assert (alone.mean, alone.deviation, alone.interval) == (0.5, None, None)


def test_an_interval_comes_from_generator_seeds_and_not_from_classifiers():
    one = [[0.90], [0.92], [0.94]]
    many = row_summary([values * 20 for values in one])
    assert (many.interval, many.count) == (pytest.approx(row_summary(one).interval), 3)
    assert row_summary([[0.90, 0.91]] * 3).interval is None


def test_the_paired_difference_is_that_of_the_paired_t_test():
    ours, theirs = np.random.default_rng(0).normal(0.9, 0.01, (2, 5, 3))
    expected = stats.ttest_rel(ours.mean(axis=1), theirs.mean(axis=1))
    low, high = expected.confidence_interval(0.95)
    difference = paired_difference(ours.tolist(), theirs.tolist())
    assert difference.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert difference.mean - difference.interval == pytest.approx(low)
    assert difference.mean + difference.interval == pytest.approx(high)


def test_unmeasured_values_are_left_out_of_both_sides():
    ours, theirs = [[0.9, 0.8], None, [0.7, None]], [[0.8, 0.6], [0.1, 0.1], [0.6, 0.0]]
    difference = paired_difference(ours, theirs)
    assert difference.count == 2
    assert difference.mean == pytest.approx((0.15 + 0.1) / 2)
    assert paired_difference([None, None], theirs[:2]) is None
    assert paired_difference([], theirs) is None


def test_welchs_difference_is_scipys_and_needs_spread():
    a, b = [0.90, 0.93, 0.91, 0.95], [0.85, 0.86, 0.91]
    ours, theirs = welch_difference(a, b), stats.ttest_ind(a, b, equal_var=False)
    low, high = theirs.confidence_interval(0.95)
    assert (ours.p, ours.interval) == (pytest.approx(theirs.pvalue), pytest.approx((high - low) / 2))
    assert welch_difference(a, [0.9, 0.9]).p == pytest.approx(stats.ttest_1samp(a, 0.9).pvalue)
    for none in (welch_difference([0.9], [0.8]), welch_difference([0.9, 0.9], [0.8, 0.8])):
        assert (none.mean, none.interval) == (pytest.approx(0.1), None)
        assert not none.larger_than_noise


def test_holm_against_its_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == pytest.approx([1, 1])
    assert holm([]) == []


def test_the_augmentation_robust_score_rises_with_the_gain_on_random_images_in_either_recipe():
    assert augmentation_robust_score((1, 0), (1, 0)) == pytest.approx(1)
    assert augmentation_robust_score((0, 1), (0, 1)) == pytest.approx(0)
    level = augmentation_robust_score((0.8, 0.7), (0.6, 0.6))
    assert augmentation_robust_score((0.6, 0.6), (0.8, 0.7)) == pytest.approx(level)
    assert augmentation_robust_score((0.8, 0.7), (0.65, 0.6)) > level


def test_the_label_robust_score_runs_from_nought_to_one_and_rises_with_the_set():
    assert label_robust_score(full=1, random=1, synthetic=0) == pytest.approx(0)
    assert label_robust_score(full=0, random=0, synthetic=1) == pytest.approx(1)
    assert label_robust_score(0.9, 0.6, 0.8) > label_robust_score(0.9, 0.6, 0.7)


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_the_front_has_each_row_that_no_other_dominates(columns):
    figures = np.random.default_rng(0).integers(0, 6, (40, columns)).astype(float)
    front = pareto_front(figures)
    free = [not any((x >= own).all() and (x > own).any() for x in figures) for own in figures]
    assert sorted(front) == np.flatnonzero(free).tolist()
    assert (np.diff(figures[front][:, 0]) <= 0).all()


def test_rows_without_a_figure_are_left_out_of_the_front_and_equal_rows_both_stay():
    assert pareto_front(np.array([[1, np.nan], [0.5, 1], [0.5, 1], [0.4, 0.9]])) == [1, 2]


def test_own_sets_come_first_and_baselines_in_their_order():
    sets = dict.fromkeys(["full", "random 50", "unrefined", "k_medoids", "mine", "distilled"], 0)
    assert list(sort_sets(sets)) == ["mine", "distilled", "unrefined", "random 50", "k_medoids", "full"]
