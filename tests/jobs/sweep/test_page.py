"""The page of a search: claims that the trials allow, every trial, and untrusted text without effect."""

import re

import pytest
from pages import FORMULA, HOSTILE, TEMPLATE, Page, assert_self_contained
from sweeps import SPAN, document, trial

from ims3_ray.jobs.sweep.page import best_columns, in_order, render_sweep, search_claim
from ims3_ray.jobs.sweep.plots import field_panels, pareto_panels
from ims3_ray.jobs.sweep.results import as_trials


def claim(found):
    return search_claim(found, as_trials(found))


def text_of(found):
    return Page(render_sweep(found)).text


def test_the_page_has_the_same_bytes_every_time_and_shows_untrusted_text_without_effect():
    names = (HOSTILE, TEMPLATE, FORMULA)
    space = {f"select.{name}": {"values": [*names]} for name in names}
    finished = [trial(i, 0.5 + i / 10, values=dict.fromkeys(space, name)) for i, name in enumerate(names)]
    failed = [trial(7 + i, values={}, state="failed", error=name) for i, name in enumerate(names)]
    texts = dict.fromkeys(("title", "recipe", "device", "protocol"), HOSTILE)
    found = document(*finished, *failed, space=space, **texts)
    found["pools"][0]["fingerprint"] = HOSTILE
    page = render_sweep(found)
    assert render_sweep(found) == page
    assert all(assert_self_contained(page).text.count(name) >= 6 for name in names)
    assert HOSTILE.encode() not in page


def test_the_claim_has_the_best_of_each_ipc_with_interval_and_setting():
    found = claim(document())
    assert "71.0\u202f% ± 2.0 at IPC 1 and 91.0\u202f% ± 2.0 at IPC 10" in found.headline
    assert "IPC 10: trial 2 (select.alpha=0.7, select.unit=image)" in found.detail


@pytest.mark.parametrize(("split", "words"), [("validation", "in part luck"), ("test", "no results")])
def test_the_claim_warns_of_the_choice(split, words):
    assert words in claim(document(split=split)).detail
    assert ("this is not the final number" in text_of(document(split=split))) == (split == "validation")


def test_a_sweep_without_a_finished_trial_has_errors_and_no_command():
    found = document(*(trial(i, state="failed", error=f"cause {i}") for i in range(3)))
    page = Page(render_sweep(found))
    assert all(f"cause {i}" in page.text for i in range(3))
    assert "ims3 distill" not in page.text
    assert "svg" not in {tag for tag, _ in page.elements}
    assert field_panels(found, as_trials(found)) is None
    assert "There was no trial" in text_of(document() | {"trials": [], "best": {}, "pools": []})


def test_each_ipcs_winner_has_its_command_and_its_rivals():
    assert all(f"--recipe /s/best-ipc{ipc}.yaml storage=/s" in text_of(document()) for ipc in (1, 10))
    finished = trial(0, 0.90), trial(1, 0.89), trial(2, 0.87), trial(3, 0.9, ipc=1), trial(5, 0.8, ipc=1)
    found = document(*finished, trial(4, 0.895, state="stopped"))
    rivals = {column["ipc"]: column["rivals"] for column in best_columns(found, as_trials(found))}
    assert rivals == {"1": 0, "10": 1}
    unknown = document(trial(0, interval=None))
    assert best_columns(unknown, as_trials(unknown))[0]["rivals"] is None


def test_the_table_has_every_trial_with_finished_and_high_ones_first():
    others = [trial(1, 0.95, state="stopped"), trial(2, state="failed")]
    found = document(trial(0, 0.5), *others, trial(3, 0.7), trial(4, 0.9))
    assert [one.number for one in in_order(found, as_trials(found))] == [4, 3, 0, 1, 2]
    assert "90.0\u202f% ± 2.0" in text_of(found)


def test_panels_show_the_fields_that_vary():
    spaces = {"a": {"values": [50, 5, 10]}, "b": SPAN | {"low": 0.01, "high": 1.0, "log": True}}
    found = document(trial(0, values={"a": 5, "b": 0.1}), trial(1, values={"a": 50, "b": 0.5}), space=spaces)
    labels = re.findall(r">\s*(\d+)\s*</text>", str(field_panels(found, as_trials(found))))
    assert labels[:3] == ["5", "10", "50"]
    assert pareto_panels(found, as_trials(found)) is None


def test_the_front_of_two_objectives_is_numbered():
    metrics = enumerate([(0.9, 0.1), (0.8, 0.3), (0.7, 0.2)])
    trials = [trial(i, metrics={"accuracy": a, "coverage": c}) for i, (a, c) in metrics]
    found = document(*trials, objective=["accuracy", "coverage"], pareto=[0, 1])
    labels = re.findall(r">\s*(\d)\s*</text>", str(pareto_panels(found, as_trials(found))))
    assert sorted(labels) == ["0", "1"]
    assert text_of(found).count("on the front") >= 3


def test_another_objective_than_accuracy_has_no_percentage_and_no_interval():
    found = document(objective=["coverage"])
    assert "coverage on validation images: 0.200 at IPC 1" in claim(found).headline
    assert best_columns(found, as_trials(found))[0]["rivals"] is None


def test_many_ipcs_are_all_in_the_table_and_the_claim_counts_the_rest():
    trials = [trial(i, 0.5, ipc=i + 1) for i in range(20)]
    found = document(*trials, space={"ipc": SPAN | {"low": 1, "high": 20, "integer": True}})
    assert claim(found).headline.endswith("at IPC 20")
    assert "17 more" in claim(found).detail
    assert len(best_columns(found, as_trials(found))) == 20
