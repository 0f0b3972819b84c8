"""Statistics of an ablation: the generator seed is the unit, pairs are paired, and only what is shown is
claimed.
"""

import numpy as np
import pytest
from scipy import stats

from ims3_ray.errors import InputError
from ims3_ray.evaluation.statistics import compare, holm, in_words, paired_difference, row_summary, summary

SEEDS = 5


def repeats(mean, spread=0.01, *, seed=0, seeds=SEEDS, classifiers=3):
    """Accuracies (seeds × classifiers) whose generator seeds lie around `mean`."""
    rng = np.random.default_rng(seed)
    of_seed = mean + spread * rng.standard_normal(seeds)
    return [[float(value + 0.002 * rng.standard_normal()) for _ in range(classifiers)] for value in of_seed]


def row(name, *, real=False, **accuracy):
    """A row of an ablation document; `ipc10=…` gives its accuracies at 10 images a class."""
    cells = {key.removeprefix("ipc"): {"last": values, "best": values} for key, values in accuracy.items()}
    return {"name": name, "is_real": real, "accuracy": cells}


def document(*rows, ipcs=(1, 10), seeds=SEEDS):
    return {"baseline": "DiT", "ipcs": list(ipcs), "generator_seeds": list(range(seeds)), "rows": list(rows)}


def shifted(values, by, wobble=0.001):
    """Every generator seed moved by `by`, give or take."""
    return [[value + by + wobble * (-1) ** i for value in of_seed] for i, of_seed in enumerate(values)]


def test_summary_is_students_interval():
    found = summary([1.0, 2.0, 3.0])
    assert (found.mean, found.deviation, found.count) == (2.0, 1.0, 3)
    assert found.interval == pytest.approx(4.302653 / 3**0.5, rel=1e-6)  # t of 2 degrees of freedom at 97.5 %
    alone = summary([0.5])
    assert (alone.mean, alone.deviation, alone.interval) == (0.5, None, None)


def test_more_classifiers_on_the_same_sets_narrow_no_interval():
    one = [[0.90], [0.92], [0.94]]
    many = [values * 20 for values in one]
    assert row_summary(many).interval == pytest.approx(row_summary(one).interval)
    assert row_summary(many).count == 3


def test_a_set_that_never_changes_has_no_interval_over_generator_seeds():
    assert row_summary([[0.90, 0.91]] * 3).interval is None
    assert row_summary([[0.90, 0.91], [0.90, 0.92], [0.90, 0.93]]).interval is not None


def test_the_difference_is_that_of_the_paired_t_test():
    ours, theirs = repeats(0.95, seed=1), repeats(0.94, seed=2)
    expected = stats.ttest_rel([np.mean(a) for a in ours], [np.mean(b) for b in theirs])
    low, high = expected.confidence_interval(0.95)
    found = paired_difference(ours, theirs)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.mean - found.interval, found.mean + found.interval) == pytest.approx((low, high))


def test_a_seed_that_failed_is_left_out_of_both_sides():
    ours, theirs = [[0.9, 0.8], None, [0.7, None]], [[0.8, 0.6], [0.1, 0.1], [0.6, 0.0]]
    found = paired_difference(ours, theirs)
    assert found.count == 2
    assert found.mean == pytest.approx((0.15 + 0.1) / 2)
    assert paired_difference([None, None], theirs[:2]) is None
    assert paired_difference([], theirs) is None


def test_holm_against_its_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == pytest.approx([1, 1])
    assert holm([]) == []


def test_holm_rarely_finds_something_in_noise():
    rng = np.random.default_rng(0)
    found = sum(min(holm(rng.uniform(size=20).tolist())) < 0.05 for _ in range(500))
    assert found / 500 < 0.09  # 0.05 promised; unadjusted it would be 0.64


def test_the_adjustment_counts_every_row_and_every_ipc():
    base = repeats(0.9)
    rows = [row("DiT", ipc1=base, ipc10=base)]
    rows += [row(f"row {i}", ipc1=repeats(0.9, seed=i), ipc10=repeats(0.9, seed=9 + i)) for i in range(1, 4)]
    found = compare(document(*rows))
    assert found.num_tests == 6
    differences = [cell.difference for cell in found.cells.values() if cell.difference]
    assert min(d.p_adjusted for d in differences) == pytest.approx(min(1, 6 * min(d.p for d in differences)))


def test_words_tell_a_difference_from_noise():
    base = repeats(0.9)
    tuned = row("IM", ipc1=repeats(0.9, seed=3), ipc10=shifted(base, 0.02))
    (sentence,) = in_words(compare(document(row("DiT", ipc1=base, ipc10=base), tuned)))
    assert sentence.startswith(
        "IM is 2.0 ± 0.1 points above DiT at 10 images a class (p < 0.001, adjusted); at 1: within"
    )
    below = compare(document(row("DiT", ipc1=base), row("IM", ipc1=shifted(base, -0.02)), ipcs=[1]))
    assert "points below DiT" in in_words(below)[0]
    assert "at 1 image a class" in in_words(below)[0]


def test_a_row_that_failed_is_said_to_have_failed():
    base = repeats(0.9)
    failed = row("gone")
    failed["accuracy"] = None
    found = compare(
        document(row("DiT", ipc1=base), row("half", ipc1=shifted(base, 0.02), ipc10=[None] * SEEDS), failed)
    )
    half, gone = in_words(found)
    assert "at 10: no result" in half
    assert gone == "gone gave no result."
    assert found.cells["half", 10].accuracy is None


def test_one_generator_seed_gives_no_interval_and_no_claim():
    found = compare(
        document(row("DiT", ipc10=[[0.9, 0.91]]), row("IM", ipc10=[[0.95, 0.96]]), ipcs=[10], seeds=1)
    )
    cell = found.cells["IM", 10]
    assert cell.accuracy.interval is cell.difference.interval is cell.difference.p_adjusted is None
    (sentence,) = in_words(found)
    assert "not shown to differ" in sentence
    assert "+5.0 points of one generator seed, no interval" in sentence


def test_equal_differences_everywhere_cannot_be_tested():
    base = repeats(0.5)
    found = compare(document(row("DiT", ipc1=base), row("IM", ipc1=shifted(base, 0.02, wobble=0)), ipcs=[1]))
    assert found.num_tests == 0
    assert "without spread" in in_words(found)[0]


def test_a_document_that_does_not_fit_is_refused_with_its_field():
    base = repeats(0.9)
    with pytest.raises(InputError, match="baseline: 'DiT' is no row; choose one of 'IM'"):
        compare(document(row("IM", ipc1=base)))
    with pytest.raises(InputError, match="rows: the name 'DiT' stands twice"):
        compare(document(row("DiT", ipc1=base), row("DiT", ipc1=base)))
    with pytest.raises(InputError, match="'IM' at 1 images a class has 2 generator seeds, the document 5"):
        compare(document(row("DiT", ipc1=base), row("IM", ipc1=base[:2])))
