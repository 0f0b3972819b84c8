"""An evaluation as lines: what was measured against what was said of it."""

import pytest

from ims3_ray.evaluation.results import Accuracies, Evaluation, SetFigures, ordered
from ims3_ray.evaluation.table import expected_lines


def document(mean: float, interval: float | None) -> Evaluation:
    last = Accuracies(mean=mean, deviation=None, interval=interval, count=2, values=[])
    of_set = SetFigures(images=1, seeds=[], curves=[], last=last, best=last)
    return Evaluation(protocol="quick", split="test", sets={"theirs": of_set}, coverage={})


@pytest.mark.parametrize(
    ("mean", "interval", "verdict"),
    [(0.82, 0.01, "as expected"), (0.80, 0.02, "as expected"), (0.79, 0.005, "below"), (0.86, None, "above")],
)
def test_a_range_is_met_where_the_interval_of_what_is_measured_reaches_it(mean, interval, verdict):
    (line,) = expected_lines(document(mean, interval), {"theirs": (0.81, 0.83)})
    assert line.endswith(f"expected 81.00 to 83.00: {verdict}")


def test_a_runs_own_sets_stand_first_and_baselines_in_their_order():
    sets = dict.fromkeys(["full", "random 50", "unrefined", "k_medoids", "mine", "distilled"], 0)
    assert list(ordered(sets)) == ["mine", "distilled", "unrefined", "random 50", "k_medoids", "full"]
