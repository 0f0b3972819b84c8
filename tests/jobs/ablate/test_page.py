"""Page, tables and figures of an ablation agree, claim what the numbers allow, and treat names as text."""

import csv
import re
from io import StringIO

import numpy as np
import pytest
from pages import FORMULA, HOSTILE, TEMPLATE, Page, assert_self_contained

from ims3_ray.jobs.ablate.comparison import compare, measurements
from ims3_ray.jobs.ablate.page import render_ablation
from ims3_ray.jobs.ablate.screen import lines
from ims3_ray.jobs.ablate.tables import long_csv, markdown, metrics_for_mlflow
from ims3_ray.jobs.ablate.words import ablation_claim, in_words

SEEDS, IPCS = 4, (1, 10)


def row(name, gain=0.0, *, real=False, seed=0, seeds=SEEDS, wobble=0.001, **changes):
    """A row whose accuracy lies `gain` above a base that all rows share, with a metric of each kind."""
    rng, base = np.random.default_rng(seed), np.random.default_rng(99).normal(0.9, 0.01, seeds)

    def around(mean, spread=0.01):
        return (mean + spread * rng.standard_normal(seeds)).tolist()

    def scores():
        return [(value + gain + wobble * rng.standard_normal(3)).tolist() for value in base]

    metrics = {"coverage": around(0.4), "copy_rate": around(0.1), "recall": [None] * seeds}
    deciles = [np.linspace(0.6, 0.2, 10).tolist()] * seeds
    pool = {"coverage": around(0.5), "low_density_coverage": around(0.3), "copy_rate": around(0.1)}
    return {
        "name": name,
        "overrides": {"im.weight": 0.002},
        "is_real": real,
        "note": f"note of {name}",
        "accuracy": {str(ipc): {"last": scores(), "best": scores()} for ipc in IPCS},
        "networks": {},
        "metrics": {str(ipc): metrics for ipc in IPCS},
        "pool": pool | {"deciles": deciles},
        "seconds": {"finetune": around(60), "sample": around(30)},
        "device_seconds": around(90),
    } | changes


def document(*rows, **changes):
    return {
        "protocol": "quick-v1/convnet3-w32",
        "split": "test",
        "baseline": "DiT",
        "ipcs": list(IPCS),
        "generator_seeds": list(range(SEEDS)),
        "classifier_seeds": 3,
        "pool_images": 40,
        "device": "a device",
        "written": "2026-01-01T00:00:00Z",
        "title": "tiny images",
        "recipe": "tiny",
        "rows": list(rows)
        or [row("DiT"), row("IM + S³", 0.03, seed=1), row("medoids", 0.05, seed=2, real=True)],
        "yardsticks": {
            "random": {"coverage": 0.6, "deciles": [0.6] * 10},
            "ceiling": {"coverage": 0.9, "deciles": [0.9] * 10},
        },
    } | changes


def claimed(*rows, **changes):
    return ablation_claim(compare(document(*rows, **changes)))


def test_the_page_fetches_and_runs_nothing_says_every_sentence_and_is_the_same_every_time():
    page = render_ablation(document())
    shown = assert_self_contained(page)
    assert all(sentence in shown.text for sentence in in_words(compare(document())))
    assert render_ablation(document()) == page


def test_names_and_notes_are_shown_as_they_are_and_do_nothing():
    names = (HOSTILE, TEMPLATE, FORMULA)
    rows = [row(name, 0.02, seed=i, note=name, overrides={name: name}) for i, name in enumerate(names)]
    shown = document(row("DiT"), *rows, device=HOSTILE, title=HOSTILE)
    page = render_ablation(shown)
    text = Page(page).text
    assert all(text.count(name) >= 4 for name in names)
    assert HOSTILE.encode() not in page
    assert "<script" not in markdown(shown)


def test_a_figure_that_some_rows_have_is_a_column_of_both_tables():
    plain = row("DiT")
    assert "Label agreement" not in markdown(document(plain)) + render_ablation(document(plain)).decode()
    judged = row("IM", pool=plain["pool"] | {"agreement": [0.985] * SEEDS})
    both = document(plain, judged)
    (of_plain, of_judged) = (line for line in markdown(both).splitlines() if re.match(r"\| (DiT|IM) ", line))
    assert "| 0.985" in of_judged
    assert "| – |" in of_plain
    assert "Label agreement" in render_ablation(both).decode()


def test_what_is_printed_fits_a_terminal_and_has_every_accuracy_and_clear_difference():
    ipcs = (1, 5, 10, 50)
    scores = row("")["accuracy"]["1"]
    rows = [row("DiT"), row("a name\x1b of 30 letters, or more", 0.03, seed=1), row("IM", 0.001, seed=2)]
    for of in rows:
        of["networks"] = {"quick-v2/resnet10_instance-w64": {str(ipc): scores for ipc in ipcs}}
        of["accuracy"] |= {"5": of["accuracy"]["1"], "50": of["accuracy"]["10"]}
        of["metrics"] |= {"5": of["metrics"]["1"], "50": of["metrics"]["10"]}
        of["pool"]["agreement"] = [0.985] * SEEDS
    shown = document(*rows, ipcs=list(ipcs))
    printed = lines(shown)
    assert max(map(len, printed)) <= 80
    assert "\x1b" not in "\n".join(printed)
    cells, text = compare(shown).cells, "\n".join(printed)
    assert all(f"{100 * cell.accuracy.mean:.1f} ± " in text for cell in cells.values())
    assert text.count(" *\n") + text.count(" * ") == sum(cell.is_clear for cell in cells.values()) + 1
    assert "coverage  low-density  copy rate  agreement " in text
    assert "0.985" in text


def test_a_name_cannot_break_the_markdown_table():
    text = markdown(document(row("DiT"), row("a | b\n| c [x](y)", seed=1)))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1


def test_the_row_that_wins_is_a_generated_one_and_real_images_stand_beside_it():
    claim = claimed()
    assert claim.headline == "IM + S³ beats DiT at 1 and 10 images a class"
    assert "the best real images (medoids) reach" in claim.detail
    assert re.search(r"At 1: \+3\.\d ± 0\.\d points \(p ", claim.detail)


def test_noise_wins_nothing_and_a_win_says_where_it_loses():
    claim = claimed(row("DiT"), row("IM", seed=3))
    assert claim.headline == "No generated row beats DiT beyond the noise"
    assert "The highest of them at 10 images a class is IM" in claim.detail
    mixed = row("IM", 0.03, seed=1)
    mixed["accuracy"]["1"] = row("", -0.03, seed=2)["accuracy"]["1"]
    assert claimed(row("DiT"), mixed).headline == "IM beats DiT at 10 images a class, but is worse at 1"


def test_words_tell_a_difference_from_noise():
    mixed = row("IM", 0.02, seed=1)
    mixed["accuracy"]["1"] = row("", seed=2)["accuracy"]["1"]
    below = row("low", -0.02, seed=3)
    above, under = in_words(compare(document(row("DiT"), mixed, below)))
    assert re.match(
        r"IM is [12]\.\d ± 0\.\d points above DiT at 10 images a class \(p .*; at 1: within", above
    )
    assert re.match(r"low is \d\.\d ± 0\.\d points below DiT at 1 image a class", under)


@pytest.mark.parametrize(
    ("seeds", "wobble", "words"),
    [(1, 0.001, "points of one generator seed, no interval"), (SEEDS, 0, "without spread")],
)
def test_what_can_not_be_tested_claims_nothing(seeds, wobble, words):
    rows = [row("DiT", seeds=seeds, wobble=wobble), row("IM", 0.25, seed=1, seeds=seeds, wobble=wobble)]
    shown = document(*rows, generator_seeds=list(range(seeds)))
    assert "can be judged" in ablation_claim(compare(shown)).headline
    assert compare(shown).num_tests == 0
    assert words in in_words(compare(shown))[0]
    assert b"not testable" in render_ablation(shown)


def test_the_adjustment_counts_every_row_and_every_ipc():
    comparison = compare(document(row("DiT"), *(row(f"row {i}", seed=i) for i in range(1, 4))))
    assert comparison.num_tests == 6
    differences = [cell.difference for cell in comparison.cells.values() if cell.difference]
    assert min(d.p_adjusted for d in differences) == pytest.approx(min(1, 6 * min(d.p for d in differences)))


def test_the_page_says_what_was_not_measured():
    rows = [row("DiT", pool=None), row("IM", 0.1, seed=1, pool=None)]
    assert "No pool was measured" in Page(render_ablation(document(*rows, yardsticks=None))).text


def test_csv_page_markdown_and_mlflow_show_the_same_numbers():
    shown = document()
    cell = compare(shown).cells["IM + S³", 10]
    lines = csv.DictReader(StringIO(long_csv(shown)))
    (line,) = (of for of in lines if (of["row"], of["ipc"], of["metric"]) == ("IM + S³", "10", "accuracy"))
    assert float(line["mean"]) == cell.accuracy.mean
    assert float(line["difference_interval"]) == cell.difference.interval
    assert float(line["p_adjusted"]) == cell.difference.p_adjusted
    figures = metrics_for_mlflow(shown)
    assert figures["ablation/IM_S3/accuracy/ipc10"] == cell.accuracy.mean
    assert figures["ablation/IM_S3/accuracy/ipc10/difference"] == cell.difference.mean
    assert f"{100 * cell.accuracy.mean:.1f} ± {100 * cell.accuracy.interval:.1f}" in markdown(shown)
    assert f"{100 * cell.accuracy.mean:.1f}" in Page(render_ablation(shown)).text


def test_other_metrics_are_paired_too_but_not_tested():
    numbers = measurements(document(), compare(document()))
    pool = numbers["IM + S³", 40, "pool/coverage"]
    assert pool.difference == pytest.approx(pool.mean - numbers["DiT", 40, "pool/coverage"].mean)
    assert pool.difference_interval is not None
    assert numbers["IM + S³", 10, "accuracy"].p_adjusted is not None
    assert numbers["IM + S³", 10, "coverage"].p_adjusted is None
    assert numbers["DiT", 40, "pool/decile_10"].mean == pytest.approx(0.2)
    assert ("DiT", 10, "recall") not in numbers


def test_every_network_has_a_table_of_its_own_with_its_own_adjustment():
    def scored(name, gain, seed):
        beside = {"quick-v2/mlp": row(name, gain, seed=seed)["accuracy"]}
        return row(name, seed=seed, networks=beside)

    shown = document(scored("DiT", 0, 1), scored("IM", 0.03, 2))
    by_mlp = compare(shown, "quick-v2/mlp")
    assert (by_mlp.num_tests, by_mlp.cells["IM", 10].is_clear) == (2, True)
    assert not compare(shown).cells["IM", 10].is_clear
    gained = f"{100 * by_mlp.cells['IM', 10].accuracy.mean:.1f}"
    assert all(
        gained in text for text in (markdown(shown).split("mlp")[1], Page(render_ablation(shown)).text)
    )
    one = measurements(shown, compare(shown))["IM", 10, "accuracy/quick-v2/mlp"]
    assert one.p_adjusted == by_mlp.cells["IM", 10].difference.p_adjusted


def test_mlflow_takes_every_name_and_no_two_rows_share_one():
    from mlflow.utils.validation import _validate_metric_name

    names = ["+IM", "|IM", "..", "/", "³"]
    rows = (row(name, 0.01, seed=i) for i, name in enumerate(names))
    figures = metrics_for_mlflow(document(row("DiT"), *rows))
    for name in figures:
        _validate_metric_name(name)
    assert len({name.split("/")[1] for name in figures}) == len(names) + 1
