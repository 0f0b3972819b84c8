"""The report is self-contained, deterministic, and claims only significant differences."""

import base64
import re
from io import BytesIO

import matplotlib
import numpy as np
import pytest
from flat import encoded
from pages import (
    FORMULA,
    HOSTILE,
    TEMPLATE,
    Page,
    assert_self_contained,
    evaluation,
    png,
    report,
    score,
    selection,
)
from PIL import Image

from ims3_ray.report import plots
from ims3_ray.report.feature_space import MAX_POINTS, feature_map
from ims3_ray.report.formatting import claim
from ims3_ray.report.images import contact_sheet, data_uri
from ims3_ray.report.inputs import shortened, shown_classes
from ims3_ray.report.page import render
from ims3_ray.report.plots import subgroup_rows


@pytest.fixture(scope="module")
def page() -> bytes:
    return render(report())


def test_page_fetches_and_runs_nothing_and_escapes_class_names(page):
    text = assert_self_contained(page).text
    for name in (HOSTILE, TEMPLATE, FORMULA):
        assert name in text
        assert text.count(shortened(name)) >= 2, "in the plots too"
    assert HOSTILE.encode() not in page
    assert b"<done>" not in page


def test_page_and_contact_sheet_are_deterministic(page):
    assert render(report()) == page
    assert contact_sheet(report()) == contact_sheet(report())


def test_plots_leave_matplotlibs_global_state_unchanged():
    before = dict(matplotlib.rcParams)
    plots.accuracy(evaluation()["sets"], {})
    assert dict(matplotlib.rcParams) == before


def test_plots_use_only_the_pages_colours(page):
    svg = page.decode().partition("</style>")[2]
    # a fixed colour is unreadable in light or dark mode
    assert not re.findall(r"(?:fill|stroke|color): ?(?:#|rgb)\S+", svg)


def test_page_names_missing_data():
    text = Page(render(report(evaluation=None, history=(), stages=(), commands={}))).text
    assert "not been evaluated" in text
    assert "Fine-tuning was off" in text
    assert "%" not in text.split("Images")[0]


def test_configuration_has_the_field_names_of_the_command_line(page):
    text = Page(page).text
    assert all(name in text for name in ("sample.subgroups", "sample.batch_size.cpu", "im.minimax"))


def test_coverage_table_has_the_random_reference_and_dashes_for_missing_values(page):
    rows = re.findall(r"<tr><th>([\w -]+)<small>.*?</th><td>(.*?)</td><td>(.*?)</td>", page.decode())
    table = {row[0]: row[1:] for row in rows}
    assert table["Coverage"] == ("0.250", "0.750")
    assert table["Recall"] == ("–", "–")
    assert table["KID"] == ("0.500", "–")


def test_optional_results_are_shown_only_if_present(page):
    text = Page(page).text
    assert not any(title in text for title in ("Other networks", "Label-robust score"))
    document = evaluation()
    document["sets"]["distilled"]["label_robust_score"] = 0.321
    second = {name: of_set | {"last": score(0.125, 0.125)} for name, of_set in document["sets"].items()}
    document["networks"] = {document["protocol"]: document["sets"], "quick-v1/resnet18": second}
    html = render(report(evaluation=document)).decode()
    shown = "<b>0.321</b>", "<th>quick-v1/resnet18</th><td>12.5 ±0.0</td>"
    assert all(part in html for part in shown)


@pytest.mark.parametrize(
    ("distilled", "random", "words"),
    [
        ((0.90, 0.91, 0.92), (0.80, 0.81, 0.82), "better than random"),
        ((0.70, 0.71, 0.72), (0.80, 0.81, 0.82), "worse than random"),
        ((0.80, 0.82, 0.84), (0.80, 0.81, 0.82), "No difference"),
        ((0.90,), (0.80,), "cannot be judged"),
        ((0.90, 0.90), (0.80, 0.80), "cannot be judged"),
    ],
)
def test_only_a_difference_larger_than_the_noise_is_claimed(distilled, random, words):
    assert words in claim(evaluation(distilled, random)).headline


def test_page_of_large_images_stays_below_three_megabytes():
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    large = encoded(Image.fromarray(noise).resize((256, 256), Image.Resampling.BICUBIC))
    assert 160 * len(data_uri(large)) < 2_200_000, "beside 0.6 MB of plots"


def test_small_images_keep_their_pixels():
    original = png(np.random.default_rng(1), size=32)
    embedded = base64.b64decode(data_uri(original).split(",")[1])
    assert Image.open(BytesIO(embedded)).tobytes() == Image.open(BytesIO(original)).tobytes()


def test_contact_sheet_has_one_row_per_class_and_one_column_per_image():
    colours = {"red": (255, 0, 0), "blue": (0, 0, 255)}
    solid = {
        name: {"distilled": [encoded(Image.new("RGB", (32, 32), colour))] * 3, "real": []}
        for name, colour in colours.items()
    }
    sheet = np.asarray(Image.open(BytesIO(contact_sheet(report(tuple(colours), contact=solid)))))
    for name, colour in colours.items():
        rows, columns = np.nonzero((sheet == colour).all(axis=2))
        assert len(rows) == 3 * 64 * 64, name
        assert np.ptp(rows) + 1 == 64
        assert len(np.unique(columns)) == 3 * 64


def test_page_shows_a_part_of_many_classes_and_says_so():
    names = tuple(f"n{i:03}" for i in range(50))
    text = Page(render(report(names, evaluation=None))).text
    assert all(words in text for words in ("24 of 50 classes", "12 of 50 classes", "the 40 classes"))
    assert subgroup_rows(selection(names), names) == list(names[:9:-1])
    assert shown_classes(names, 3) == [0, 24, 49]


def test_map_is_bounded_and_keeps_the_selected_images(monkeypatch):
    rng, n = np.random.default_rng(0), 4000
    many = {f"{kind}_features": rng.normal(size=(n, 2)) for kind in ("real", "candidate")}
    many |= dict.fromkeys(("real_labels", "candidate_labels"), np.zeros(n, int))
    many["candidate_selected"] = np.arange(n) < 50
    monkeypatch.setattr("ims3_ray.report.feature_space.tsne", lambda vectors: vectors[:, :2])
    points = feature_map(report(("a", "b"), **many), [0])
    assert sum(len(part) for part in points.points.values()) == MAX_POINTS
    assert np.array_equal(points.points["selected"], many["candidate_features"][:50].astype(np.float32))
    assert points.totals == {"selected": 50, "candidate": n - 50, "real": n}
