"""The Pareto front against its definition."""

import numpy as np
import pytest

from ims3_ray.evaluation.pareto import pareto_front


def test_the_front_holds_what_nothing_dominates_and_nothing_else():
    draws = np.random.default_rng(0)
    for columns in (1, 2, 3):
        figures = draws.integers(0, 6, (40, columns)).astype(float)
        front = pareto_front(figures)
        for row in range(len(figures)):
            beaten = any((other >= figures[row]).all() and (other > figures[row]).any() for other in figures)
            assert (row in front) != beaten
        firsts = [figures[row][0] for row in front]
        assert firsts == sorted(firsts, reverse=True)
        assert len(set(front)) == len(front)


def test_rows_without_a_figure_are_left_out_and_equal_rows_both_stay():
    assert pareto_front(np.array([[1, np.nan], [0.5, 1], [0.5, 1], [0.4, 0.9]])) == [1, 2]
    assert pareto_front(np.zeros((0, 2))) == []
    with pytest.raises(ValueError, match="rows of figures"):
        pareto_front(np.zeros(3))
