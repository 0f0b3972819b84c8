"""The page, tables and figures of an ablation: they agree, claim what the numbers allow, and treat names as
text.
"""

import csv
import re
from io import BytesIO, StringIO

import numpy as np
import pytest
from pages import FORMULA, HOSTILE, TEMPLATE, Page
from PIL import Image

from ims3_ray.evaluation.statistics import compare, in_words
from ims3_ray.jobs.ablate.claim import ablation_claim, listed
from ims3_ray.jobs.ablate.numbers import measurements
from ims3_ray.jobs.ablate.page import render_ablation
from ims3_ray.jobs.ablate.tables import long_csv, markdown, metrics_for_mlflow

SEEDS, IPCS = 4, (1, 10)


def row(name, gain=0.0, *, real=False, seed=0, seeds=SEEDS, **changes):
    """A row whose accuracy lies `gain` above a base that all rows share, with a metric of each kind."""
    rng, base = np.random.default_rng(seed), np.random.default_rng(99).normal(0.9, 0.01, seeds)

    def around(mean, spread=0.01):
        return (mean + spread * rng.standard_normal(seeds)).tolist()

    def scores():
        return [(value + gain + 0.001 * rng.standard_normal(3)).tolist() for value in base]

    return {
        "name": name,
        "overrides": {"im.weight": 0.002},
        "is_real": real,
        "note": f"note of {name}",
        "accuracy": {str(ipc): {"last": scores(), "best": scores()} for ipc in IPCS},
        "metrics": {
            str(ipc): {"coverage": around(0.4), "copy_rate": around(0.1), "recall": [None] * seeds}
            for ipc in IPCS
        },
        "pool": {
            "coverage": around(0.5),
            "low_density_coverage": around(0.3),
            "copy_rate": around(0.1),
            "deciles": [np.linspace(0.6, 0.2, 10).tolist()] * seeds,
        },
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


def test_the_page_fetches_and_runs_nothing_and_is_the_same_every_time():
    page = render_ablation(document())
    found = Page(page)
    assert "script" not in {tag for tag, _ in found.elements}
    links = found.values("src", "href", "xlink:href")
    assert links
    assert all(link.startswith(("data:image/", "#")) for link in links)
    ids = found.values("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links} <= set(ids)
    assert render_ablation(document()) == page


def test_names_and_notes_are_shown_as_they_are_and_do_nothing():
    names = (HOSTILE, TEMPLATE, FORMULA)
    rows = [
        row("DiT"),
        *(row(name, 0.02, seed=i, note=name, overrides={name: name}) for i, name in enumerate(names)),
    ]
    shown = document(*rows, device=HOSTILE, recipe=HOSTILE)
    page = render_ablation(shown, {HOSTILE: [png()]})
    text = Page(page).text
    assert all(text.count(name) >= 4 for name in names)
    assert HOSTILE.encode() not in page
    table = markdown(shown)
    assert "<script" not in table


def png():
    buffer = BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_name_cannot_break_the_markdown_table():
    lines = markdown(document(row("DiT"), row("a | b\n| c [x](y)", seed=1))).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 4
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1


def test_the_row_that_wins_is_a_generated_one_and_real_images_stand_beside_it():
    found = claimed()
    assert found.headline == "IM + S³ beats DiT at 1 and 10 images a class"
    assert "the best real images (medoids) reach" in found.detail
    assert re.search(r"At 1: \+3\.\d ± 0\.\d points \(p ", found.detail)


def test_noise_wins_nothing():
    found = claimed(row("DiT"), row("IM", seed=3))
    assert found.headline == "No generated row beats DiT beyond the noise"
    assert "The highest of them at 10 images a class is IM" in found.detail


def test_a_win_says_where_it_loses():
    mixed = row("IM", 0.03, seed=1)
    mixed["accuracy"]["1"] = row("", -0.03, seed=2)["accuracy"]["1"]
    assert claimed(row("DiT"), mixed).headline == "IM beats DiT at 10 images a class, but is worse at 1"


def test_one_seed_claims_nothing():
    one = [row("DiT", seeds=1), row("IM", 0.2, seed=1, seeds=1)]
    assert "can be judged" in claimed(*one, generator_seeds=[0]).headline
    assert b"not testable" in render_ablation(document(*one, generator_seeds=[0]))


def test_what_failed_is_a_dash_in_every_table_and_is_counted():
    failed = row("gone", accuracy=None, metrics=None, pool=None, seconds=None, device_seconds=None)
    shown = document(row("DiT"), row("IM", 0.02, seed=1), failed, yardsticks=None)
    assert "2 of 6 results are missing" in ablation_claim(compare(shown)).detail
    plot = Page(render_ablation(shown)).text.partition("A classifier trained")[0]
    assert plot.count("no result") == len(IPCS)
    assert "| gone | – | – | – | – | – | – |" in markdown(shown)
    assert "gone" not in {line["row"] for line in csv.DictReader(StringIO(long_csv(shown)))}


def test_the_page_says_what_was_not_measured():
    bare = [row("DiT", pool=None, seconds=None, device_seconds=None, metrics=None)]
    text = Page(
        render_ablation(
            document(*bare, row("IM", 0.1, seed=1, pool=None, seconds=None, device_seconds=None, metrics={}))
        )
    )
    assert "No pool was measured" in text.text
    assert "No row was timed" in text.text


def test_csv_page_markdown_and_mlflow_show_the_same_numbers():
    shown = document()
    cell = compare(shown).cells["IM + S³", 10]
    lines = {
        (line["row"], line["ipc"], line["metric"]): line for line in csv.DictReader(StringIO(long_csv(shown)))
    }
    line = lines["IM + S³", "10", "accuracy"]
    assert float(line["mean"]) == cell.accuracy.mean
    assert float(line["difference_interval"]) == cell.difference.interval
    assert float(line["p_adjusted"]) == cell.difference.p_adjusted
    figures = metrics_for_mlflow(shown)
    assert figures["ablation/IM_S3/accuracy/ipc10"] == cell.accuracy.mean
    assert figures["ablation/IM_S3/accuracy/ipc10/difference"] == cell.difference.mean
    worded = f"{100 * cell.accuracy.mean:.1f} ± {100 * cell.accuracy.interval:.1f}"
    assert worded in markdown(shown)
    assert f"{100 * cell.accuracy.mean:.1f}" in Page(render_ablation(shown)).text


def test_other_metrics_are_paired_too_but_not_tested():
    found = {(m.row, m.ipc, m.metric): m for m in measurements(document(), compare(document()))}
    pool = found["IM + S³", 40, "pool/coverage"]
    assert pool.difference == pytest.approx(pool.mean - found["DiT", 40, "pool/coverage"].mean)
    assert pool.difference_interval is not None
    assert found["IM + S³", 10, "accuracy"].p_adjusted is not None
    assert found["IM + S³", 10, "coverage"].p_adjusted is None
    assert found["DiT", 40, "pool/decile_10"].mean == pytest.approx(0.2)
    assert ("DiT", 10, "recall") not in found


def test_mlflow_takes_every_name_and_no_two_rows_share_one():
    from mlflow.utils.validation import _validate_metric_name

    names = ["+IM", "|IM", "..", "/", "³"]
    figures = metrics_for_mlflow(
        document(row("DiT"), *(row(name, 0.01, seed=i) for i, name in enumerate(names)))
    )
    for name in figures:
        _validate_metric_name(name)
    rows = {name.split("/")[1] for name in figures}
    assert len(rows) == len(names) + 1


def test_every_sentence_is_on_the_page():
    shown = document()
    text = Page(render_ablation(shown)).text
    assert all(sentence in text for sentence in in_words(compare(shown)))


def test_images_of_a_row_are_shown_where_they_are_given():
    assert b'href="#images"' not in render_ablation(document())
    page = Page(render_ablation(document(), {"DiT": [png()] * 3}))
    assert len([link for link in page.values("src") if link.startswith("data:image/png")]) == 3


def test_numbers_are_listed_as_one_says_them():
    assert [listed([1]), listed([1, 5]), listed([1, 5, 10])] == ["1", "1 and 5", "1, 5 and 10"]
