"""The page of a sweep: it claims what the trials allow, hides none, and treats what they say as text."""

import re

import pytest
from pages import FORMULA, HOSTILE, TEMPLATE, Page, assert_self_contained

from ims3_ray.jobs.sweep.document import best_trials
from ims3_ray.jobs.sweep.headline import sweep_claim, sweep_work
from ims3_ray.jobs.sweep.heatmap import heat_maps, heat_pair
from ims3_ray.jobs.sweep.page import best_columns, failures, render_sweep, rows
from ims3_ray.jobs.sweep.plots import by_ipc, field_panels, pareto
from ims3_ray.jobs.sweep.results import Results
from ims3_ray.jobs.sweep.trial_state import Trial

SPAN = {"low": 0.1, "high": 0.9, "log": False, "integer": False}
SPACE = {
    "select.alpha": SPAN,
    "ipc": {"values": [1, 10]},
    "select.unit": {"values": ["subgroup", "image", None]},
}


def trial(number, accuracy=0.5, *, status="finished", ipc=10, alpha=0.3, **changes):
    """A trial; failed ones have no figure."""
    usual = {
        "values": {"select.alpha": alpha, "ipc": ipc, "select.unit": "image"},
        "metrics": {} if status == "failed" else {"accuracy": accuracy, "coverage": 0.2},
        "interval": 0.02 if status == "finished" else None,
        "error": "ValueError: it broke" if status == "failed" else None,
    }
    return Trial(number, state=status, seconds=12.3, pool="ab12cd34ef56", **usual | changes)


def document(*trials, **changes):
    usual = [trial(0, 0.71, ipc=1), trial(1, 0.85), trial(2, 0.91, alpha=0.7)]
    trials = list(trials) or [*usual, trial(3, 0.6, status="stopped"), trial(4, status="failed")]
    finished = [t for t in trials if t.state == "finished"]
    pool = {
        "fingerprint": "ab12cd34ef56",
        "seconds": 41.0,
        "trials": len(trials),
        "images": 2000,
        "made": True,
    }
    return {
        "title": "tiny images",
        "recipe": "tiny",
        "key": "1a2b3c4d5e6f",
        "protocol": "quick-val-v1/convnet3-w32",
        "split": "validation",
        "search": "random",
        "scheduler": "asha",
        "objective": ["accuracy"],
        "space": SPACE,
        "classifier_seeds": 3,
        "device": "cpu",
        "trials_at_once": 2,
        "seconds": 321.0,
        "written": "2026-01-01T00:00:00Z",
        "trials": trials,
        "pools": [pool],
        "saved_seconds": 900.0,
        "best": (best := best_trials(finished, "accuracy", 10)),
        "commands": {
            ipc: f"python jobs/distill.py --recipe /s/best-ipc{ipc}.yaml storage=/s" for ipc in best
        },
        "pareto": [],
    } | changes


def over(fields, *points, ipc=None):
    """A document that sweeps `fields`, a finished trial a point (its values, then its accuracy)."""
    trials = []
    for number, (*values, accuracy) in enumerate(points):
        swept = dict(zip(fields, values, strict=True)) | ({"ipc": ipc[number]} if ipc else {})
        trials.append(trial(number, accuracy, values=swept))
    return document(*trials, space=fields | ({"ipc": {"values": sorted(set(ipc))}} if ipc else {}))


def results_of(given):
    return Results(given, given["trials"])


def render(given):
    return render_sweep(given, given["trials"])


def text_of(plot):
    return Page(plot.encode()).text


def test_the_page_fetches_and_runs_nothing_and_is_the_same_every_time():
    page = render(document())
    assert_self_contained(page)
    assert render(document()) == page


def test_values_fields_and_errors_are_shown_as_they_are_and_do_nothing():
    names = (HOSTILE, TEMPLATE, FORMULA)
    space = {f"select.{name}": {"values": [*names]} for name in names}
    finished = [trial(i, 0.5 + i / 10, values=dict.fromkeys(space, name)) for i, name in enumerate(names)]
    failed = [trial(7 + i, values={}, status="failed", error=name) for i, name in enumerate(names)]
    given = document(
        *finished, *failed, space=space, title=HOSTILE, recipe=HOSTILE, device=HOSTILE, protocol=HOSTILE
    )
    page = render(given | {"pools": [given["pools"][0] | {"fingerprint": HOSTILE}]})
    text = Page(page).text
    assert all(text.count(name) >= 6 for name in names)
    assert HOSTILE.encode() not in page


def test_the_claim_gives_the_best_of_each_ipc_with_its_interval_and_setting():
    found = sweep_claim(results_of(document()))
    scores = "71.0 ± 2.0\u202f% at 1 and 91.0 ± 2.0\u202f% at 10 images a class"
    assert found.headline == f"Best accuracy on validation images: {scores}"
    where = "At 1: trial 0 (select.alpha=0.3, select.unit=image); at 10: trial 2 (select.alpha=0.7,"
    assert found.detail.startswith(where)


def test_the_claim_says_which_images_were_scored_and_that_the_highest_of_many_is_luck_in_part():
    detail = sweep_claim(results_of(document())).detail
    assert "never on test images; the highest of 3 is in part luck" in detail
    assert "luck" not in sweep_claim(results_of(document(trial(0)))).detail
    of_test = sweep_claim(results_of(document(split="test"))).detail
    assert "never" not in of_test
    assert "none of them is a result" in of_test
    assert "this is not the final number" in Page(render(document())).text


def test_all_trials_are_counted_and_what_they_shared_is_said():
    found = sweep_work(results_of(document(trial(0), trial(1, status="stopped"), trial(2, status="failed"))))
    assert "Of 3 trials 1 finished, 1 was stopped early by asha and 1 failed." in found
    assert "1 pool of candidates served 3 trials, which saved 15 min 00 s." in found
    alone = sweep_work(results_of(document(trial(0), scheduler=None, pools=[], saved_seconds=0.0)))
    assert alone == "Of 1 trial 1 finished and 0 failed."


def test_failed_trials_are_shown_by_their_cause_and_have_no_figure():
    given = [trial(i, status="failed", alpha=0.777, error="b" if i == 2 else "a") for i in range(4)]
    results = results_of(document(*given, trial(4, 0.8)))
    causes = {error: [number for number, _ in trials] for error, trials in failures(results).items()}
    assert causes == {"a": [0, 1, 3], "b": [2]}
    last = rows(results)[-1]
    assert (last.trial.number, last.metrics) == (3, ["–", "–"])
    assert "select.alpha=0.777" in Page(render(results.document)).text.partition("Failed trials")[2]


def test_a_sweep_in_which_all_failed_says_so_and_offers_nothing_to_run():
    page = Page(render(document(*(trial(i, status="failed") for i in range(3)))))
    assert "No trial finished" in page.text
    assert "there is nothing to choose" in page.text
    assert "jobs/distill.py" not in page.text
    assert "svg" not in {tag for tag, _ in page.elements}


def test_a_sweep_of_one_trial_and_one_without_any_have_a_page():
    assert "Trial 0 (select.alpha=0.3" in Page(render(document(trial(0)))).text
    none = document() | {"trials": [], "best": {}, "pools": []}
    assert "There was no trial" in Page(render(none)).text


def test_the_winner_of_each_ipc_can_be_run_and_an_ipc_without_one_is_named():
    text = Page(render(document())).text
    assert "--recipe /s/best-ipc1.yaml storage=/s" in text
    assert "--recipe /s/best-ipc10.yaml storage=/s" in text
    given = document(trial(0, 0.8), trial(1, status="failed", ipc=1))
    assert "No trial finished with a figure at 1." in Page(render(given)).text


def test_an_interval_ends_where_accuracies_do():
    wide = [trial(0, 0.5, ipc=1, interval=1.5), trial(1, 0.9, interval=1.5)]
    ticks = re.findall(r">\s*(-?\d+) %\s*</text>", str(by_ipc(results_of(document(*wide)))))
    assert (min(map(int, ticks)), max(map(int, ticks))) == (0, 100)


def test_rivals_are_finished_trials_of_the_same_ipc_within_the_interval():
    finished = trial(0, 0.90), trial(1, 0.89), trial(2, 0.87), trial(3, 0.9, ipc=1), trial(5, 0.8, ipc=1)
    given = document(*finished, trial(4, 0.895, status="stopped"))
    assert {row["ipc"]: row["rivals"] for row in best_columns(results_of(given))} == {"1": 0, "10": 1}
    unknown = best_columns(results_of(document(trial(0, interval=None))))
    assert unknown[0]["rivals"] is None


def test_the_table_has_every_trial_finished_ones_first_and_the_highest_on_top():
    others = [trial(1, 0.95, status="stopped"), trial(2, status="failed")]
    given = document(trial(0, 0.5), *others, trial(3, 0.7), trial(4, 0.9))
    assert [row.trial.number for row in rows(results_of(given))] == [4, 3, 0, 1, 2]
    text = Page(render(given)).text
    assert "90.0\u202f% ± 2.0" in text
    assert "12.3 s" in text


def test_equal_numbers_are_one_value_in_order_and_true_is_none_of_them():
    axis = results_of(over({"a": {"values": [1, True, "1"]}}, (1.0, 0.5), (True, 0.6))).axes["a"]
    assert [axis.place(1.0), axis.place(True), axis.place("1")] == [0, 1, 2]
    axis = results_of(over({"a": {"values": [50, 5, 10]}}, (5, 0.5))).axes["a"]
    assert list(axis.labels.values()) == ["5", "10", "50"]


def test_a_log_range_puts_its_geometric_mean_in_the_middle():
    axis = results_of(over({"a": SPAN | {"low": 0.01, "high": 1.0, "log": True}}, (0.1, 0.5))).axes["a"]
    assert axis.share(0.1) == pytest.approx(0.5)
    assert axis.place(0.0) is None
    assert axis.place("x") is None


def test_alpha_and_beta_make_the_heat_map_and_else_the_first_two_numbers():
    unit = {"select.unit": {"values": ["a", "b"]}}
    fields = {"im.weight": SPAN, "select.beta": SPAN, **unit, "select.alpha": SPAN}
    assert heat_pair(results_of(document(trial(0), space=fields))) == ("select.alpha", "select.beta")
    fewer = {"ipc": {"values": [1, 10]}, "im.weight": SPAN, **unit, "select.beta": SPAN}
    assert heat_pair(results_of(document(trial(0), space=fewer))) == ("im.weight", "select.beta")
    assert heat_pair(results_of(document())) is None


def test_a_cell_of_the_heat_map_has_the_best_the_mean_and_the_number_of_finished_trials():
    given = over(
        {"select.alpha": {"values": [0.2, 0.8]}, "select.beta": SPAN},
        (0.2, 0.1, 0.61),
        (0.2, 0.12, 0.83),
        (0.8, 0.9, 0.95),
    )
    given["trials"].append(trial(3, 0.99, status="stopped", values={"select.alpha": 0.2, "select.beta": 0.1}))
    text = text_of(heat_maps(results_of(given)))
    assert all(figure in text for figure in ("83.0", "72.0 · 2", "95.0"))
    assert "99.0" not in text


def test_ipcs_are_not_mixed_in_a_heat_map():
    fields = {"a": {"values": [1, 2]}, "b": {"values": [1, 2]}}
    text = text_of(heat_maps(results_of(over(fields, (1, 1, 0.4), (1, 1, 0.8), ipc=[1, 10]))))
    assert "1 image a class" in text
    assert "10 images a class" in text
    assert "·" not in text


def test_plots_are_there_for_what_was_swept_alone():
    alone = results_of(over({"select.unit": {"values": ["a", "b"]}}, ("a", 0.5), ("b", 0.6)))
    assert (by_ipc(alone), heat_maps(alone), pareto(alone)) == (None, None, None)
    assert "select.unit" in text_of(field_panels(alone))
    only_ipc = results_of(document(space={"ipc": {"values": [1, 10]}}))
    assert field_panels(only_ipc) is None
    assert "91.0 % · trial 2" in text_of(by_ipc(only_ipc))
    assert "G" in text_of(field_panels(results_of(over({"sample.subgroups": {"values": [2, 5]}}, (2, 0.5)))))


def test_two_objectives_have_a_front_with_the_trials_that_the_document_names():
    figures = enumerate([(0.9, 0.1), (0.8, 0.3), (0.7, 0.2)])
    trials = [trial(i, metrics={"accuracy": a, "coverage": c}) for i, (a, c) in figures]
    given = document(*trials, objective=["accuracy", "coverage"], pareto=[0, 1])
    labels = re.findall(r">\s*(\d)\s*</text>", str(pareto(results_of(given))))
    assert sorted(labels) == ["0", "1"]
    assert [row.on_front for row in rows(results_of(given))] == [True, True, False]
    assert "2 lie on the Pareto front" in Page(render(given)).text


def test_another_objective_than_accuracy_is_no_percentage_and_has_no_interval():
    given = document(objective=["coverage"])
    assert sweep_claim(results_of(given)).headline.startswith(
        "Best coverage on validation images: 0.200 at 1"
    )
    assert best_columns(results_of(given))[0]["rivals"] is None
    assert "within its interval" not in Page(render(given)).text


def test_many_ipcs_are_all_in_the_table_and_the_claim_says_that_it_left_some_out():
    trials = [trial(i, 0.5, ipc=i + 1) for i in range(20)]
    given = document(*trials, space={"ipc": SPAN | {"low": 1, "high": 20, "integer": True}})
    found = sweep_claim(results_of(given))
    named = "at 18, 50.0 ± 2.0\u202f% at 19 and 50.0 ± 2.0\u202f% at 20 images a class"
    assert found.headline.endswith(named)
    assert "The table has 17 more." in found.detail
    assert len(best_columns(results_of(given))) == 20
    assert "best-ipc1.yaml" in Page(render(given)).text
