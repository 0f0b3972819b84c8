"""What a set covers of the real images and what it misses: on the page only where it was measured."""

import numpy as np
import pytest
from pages import FORMULA, HOSTILE, TEMPLATE, Page, evaluation, png, report

from ims3_ray.report.coverage_gaps import missed
from ims3_ray.report.inputs import Uncovered
from ims3_ray.report.page import render
from ims3_ray.report.plots import spread


def test_coverage_by_density_is_drawn_only_where_it_was_measured():
    assert "Coverage by density" not in Page(render(report())).text
    measured = evaluation()
    measured["coverage"]["distilled"]["deciles"] = [0.9 - 0.05 * i for i in range(10)]
    measured["coverage"]["random"]["deciles"] = None
    measured["coverage"]["ceiling"] = {"coverage": 0.9, "deciles": [0.95] * 10}
    text = Page(render(report(evaluation=measured))).text
    plot = text.partition("Coverage by density")[2].partition("Each point")[0]
    assert "Greedy cover" in plot
    assert "Distilled" in plot
    assert "Random" not in plot
    assert "deciles" not in text, "ten values are no row of the table"


def test_what_the_set_misses_is_shown_worst_class_first():
    rng = np.random.default_rng(0)
    lost = {
        TEMPLATE: Uncovered([png(rng)] * 2, 5, 20),
        HOSTILE: Uncovered([png(rng)], 1, 2),
        FORMULA: Uncovered([], 0, 9),
    }
    _, _, text = Page(render(report(uncovered=lost))).text.partition("Real images that the set misses")
    text = text.partition("Where the set")[0]
    assert text.index("1 of 2 not covered") < text.index("5 of 20 not covered")
    assert FORMULA not in text
    assert "the set misses" not in Page(render(report())).text.partition("Where the set")[0]


def test_missed_images_are_those_that_nothing_covers_sparsest_first():
    real = np.array([[0.0], [0.1], [0.2], [0.3], [10.0], [11.0], [12.0], [20.0], [40.0]], np.float32)
    found = missed(
        real, np.zeros(9, int), np.array([[0.15]], np.float32), np.zeros(1, int), labels=[0, 1], k=2
    )
    assert list(found) == [0], "a class without images is left out"
    assert found[0].rows.tolist() == [8, 7, 4]
    assert (found[0].count, found[0].total) == (5, 9)


def test_names_beside_lines_move_only_where_they_would_touch():
    assert spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.5, 0.1, 0.5], 0.1) == pytest.approx([0.45, 0.1, 0.55])
    heights = [0.9, 0.91, 0.2, 0.905]
    assert np.argsort(spread(heights, 0.1)).tolist() == np.argsort(heights).tolist()
