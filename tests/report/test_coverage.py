"""Coverage on the report: the plot by density, and the uncovered real images."""

import numpy as np
import pytest
from pages import FORMULA, HOSTILE, TEMPLATE, Page, evaluation, png, report

from ims3_ray.report.feature_space import find_uncovered
from ims3_ray.report.inputs import Uncovered
from ims3_ray.report.page import render
from ims3_ray.report.plots import spread


def test_plot_by_density_has_only_sets_with_deciles():
    assert "Coverage by density" not in Page(render(report())).text
    results = evaluation()
    coverage = results["coverage"]
    coverage["distilled"]["deciles"] = [0.9 - 0.05 * i for i in range(10)]
    coverage["random"]["deciles"] = None
    coverage["ceiling"] = {"coverage": 0.9, "deciles": [0.95] * 10}
    text = Page(render(report(evaluation=results))).text
    plot = text.partition("Coverage by density")[2].partition("Each point")[0]
    assert [name in plot for name in ("Greedy cover", "Distilled", "Random")] == [True, True, False]
    assert "deciles" not in text, "ten values are no row of the table"


def test_uncovered_images_are_shown_worst_class_first():
    rng = np.random.default_rng(0)
    uncovered = {
        TEMPLATE: Uncovered([png(rng)] * 2, 5, 20),
        HOSTILE: Uncovered([png(rng)], 1, 2),
        FORMULA: Uncovered([], 0, 9),
    }
    _, _, text = Page(render(report(uncovered=uncovered))).text.partition("Uncovered real images")
    text = text.partition("Map of the feature space")[0]
    assert text.index("1 of 2 not covered") < text.index("5 of 20 not covered")
    assert FORMULA not in text
    assert "Uncovered" not in Page(render(report())).text


def test_uncovered_images_are_found_sparsest_first():
    real = np.array([[0.0], [0.1], [0.2], [0.3], [10.0], [11.0], [12.0], [20.0], [40.0]], np.float32)
    synthetic, labels = np.array([[0.15]], np.float32), np.zeros(1, int)
    uncovered = find_uncovered(real, np.zeros(9, int), synthetic, labels, labels=[0, 1], k=2)
    assert list(uncovered) == [0], "class 1 has no images"
    assert uncovered[0].rows.tolist() == [8, 7, 4]
    assert (uncovered[0].count, uncovered[0].total) == (5, 9)


def test_labels_move_only_if_they_would_overlap():
    assert spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.5, 0.1, 0.5], 0.1) == pytest.approx([0.45, 0.1, 0.55])
    heights = [0.9, 0.91, 0.2, 0.905]
    assert np.argsort(spread(heights, 0.1)).tolist() == np.argsort(heights).tolist()
