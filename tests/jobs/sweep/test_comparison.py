"""Page, tables and metrics of a comparison agree, claim what the numbers allow, and treat names as text."""

import re

import numpy as np
import pytest
from pages import FORMULA, HOSTILE, TEMPLATE, Page, assert_self_contained
from sweeps import document as search_document

from ims3_ray.jobs.sweep.comparison import compare, summarize
from ims3_ray.jobs.sweep.page import render_sweep, row_claim
from ims3_ray.jobs.sweep.tables import comparison_lines, metrics_for_mlflow

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
        "packing": 1,
        "stored": {str(ipc): {"pixels": 784 * ipc, "bytes": 500 * ipc} for ipc in IPCS},
        "note": f"note of {name}",
        "accuracy": {str(ipc): {"last": scores(), "best": scores()} for ipc in IPCS},
        "networks": {},
        "metrics": {str(ipc): metrics for ipc in IPCS},
        "pool": pool | {"deciles": deciles},
        "seconds": {"finetune": around(60), "sample": around(30)},
        "device_seconds": around(90),
    } | changes


def rows_document(*rows, **changes):
    standard = [row("DiT"), row("IM + S³", 0.03, seed=1), row("medoids", 0.05, seed=2, real=True)]
    return {
        "baseline": "DiT",
        "ipcs": list(IPCS),
        "generator_seeds": list(range(SEEDS)),
        "pool_images": 40,
        "rows": list(rows) or standard,
        "yardsticks": {
            name: {"coverage": x, "deciles": [x] * 10} for name, x in (("random", 0.6), ("ceiling", 0.9))
        },
    } | changes


def document(*rows, title="tiny images", device="a device", **changes):
    found = search_document(split="test", best={}, title=title, device=device)
    return found | {"comparison": rows_document(*rows, **changes)}


def claimed(*rows, **changes):
    return row_claim(compare(rows_document(*rows, **changes)))


def test_the_page_has_the_same_bytes_every_time_and_shows_names_and_notes_without_effect():
    names = (HOSTILE, TEMPLATE, FORMULA)
    rows = [row(name, 0.02, seed=i, note=name, overrides={name: name}) for i, name in enumerate(names)]
    found = document(row("DiT"), *rows, device=HOSTILE, title=HOSTILE)
    page = render_sweep(found)
    assert render_sweep(found) == page
    assert all(assert_self_contained(page).text.count(name) >= 4 for name in names)
    assert HOSTILE.encode() not in page


def test_the_printed_tables_fit_a_terminal_and_have_every_accuracy_and_clear_difference():
    ipcs = (1, 5, 10, 50)
    scores = row("")["accuracy"]["1"]
    rows = [row("DiT"), row("a name\x1b of 30 letters, or more", 0.03, seed=1), row("IM", 0.001, seed=2)]
    for one in rows:
        one["networks"] = {"quick-v2/resnet10_instance-w64": {str(ipc): scores for ipc in ipcs}}
        for values in (one["accuracy"], one["metrics"]):
            values |= {"5": values["1"], "50": values["10"]}
    found = document(*rows, ipcs=list(ipcs))
    lines = comparison_lines(found)
    assert max(map(len, lines)) <= 80
    cells, text = compare(found["comparison"]).cells, "\n".join(lines)
    assert "\x1b" not in text
    assert all(f"{100 * cell.accuracy.mean:.1f} ± " in text for cell in cells.values())
    assert text.count(" *\n") + text.count(" * ") == sum(cell.is_clear for cell in cells.values()) + 1


def test_packed_rows_come_last_with_a_heading_and_storage_is_a_table():
    rows = [row("DiT"), row("tiles", 0.03, seed=1, packing=2), row("medoids", seed=2, real=True)]
    found = document(*rows)
    lines = comparison_lines(found)
    names = ["DiT", "medoids", "packed: several images in the pixels of one", "tiles"]
    assert [line for name in names for line in lines[:9] if line.startswith(name)] == [
        line for line in lines[:9] if line.startswith(tuple(names))
    ]
    assert any(line.split() == ["tiles", "7,840", "5,000"] for line in lines)
    assert "pixels" not in "\n".join(comparison_lines(document()))
    page = render_sweep(found).decode()
    table = page[page.index("<tbody>") :]
    assert table.index("medoids") < table.index("Packed: several") < table.index("tiles")


def test_the_winner_is_a_generated_row_beside_the_real_images():
    claim = claimed()
    assert claim.headline == "IM + S³ beats DiT at IPC 1 and 10"
    assert "highest real images: medoids" in claim.detail
    assert re.search(r"IPC 1: \+3\.\d ± 0\.\d points", claim.detail)


def test_noise_wins_nothing_and_a_win_names_its_losses():
    claim = claimed(row("DiT"), row("IM", seed=3))
    assert claim.headline == "No generated row beats DiT beyond the noise"
    mixed = row("IM", 0.03, seed=1)
    mixed["accuracy"]["1"] = row("", -0.03, seed=2)["accuracy"]["1"]
    assert claimed(row("DiT"), mixed).headline == "IM beats DiT at IPC 10, but is worse at IPC 1"


@pytest.mark.parametrize(("seeds", "wobble"), [(1, 0.001), (SEEDS, 0)])
def test_differences_without_spread_claim_nothing(seeds, wobble):
    rows = [row("DiT", seeds=seeds, wobble=wobble), row("IM", 0.25, seed=1, seeds=seeds, wobble=wobble)]
    found = document(*rows, generator_seeds=list(range(seeds)))
    comparison = compare(found["comparison"])
    assert comparison.num_tests == 0
    assert "can be judged" in row_claim(comparison).headline
    assert b"not testable" in render_sweep(found)


def test_holms_adjustment_counts_every_row_and_every_ipc():
    comparison = compare(rows_document(row("DiT"), *(row(f"row {i}", seed=i) for i in range(1, 4))))
    assert comparison.num_tests == 6
    differences = [cell.difference for cell in comparison.cells.values() if cell.difference]
    assert min(d.p_adjusted for d in differences) == pytest.approx(min(1, 6 * min(d.p for d in differences)))


def test_the_page_says_if_no_pool_was_measured():
    rows = [row("DiT", pool=None), row("IM", 0.1, seed=1, pool=None)]
    assert "No pool was measured" in Page(render_sweep(document(*rows, yardsticks=None))).text


def test_page_tables_and_mlflow_have_the_same_numbers():
    found = document()
    cell = compare(found["comparison"]).cells["IM + S³", 10]
    metrics = metrics_for_mlflow(found["comparison"])
    assert metrics["ablation/IM_S3/accuracy/ipc10"] == cell.accuracy.mean
    assert metrics["ablation/IM_S3/accuracy/ipc10/difference"] == cell.difference.mean
    accuracy = f"{100 * cell.accuracy.mean:.1f}"
    assert f"{accuracy} ± {100 * cell.accuracy.interval:.1f}" in "\n".join(comparison_lines(found))
    assert accuracy in Page(render_sweep(found)).text


def test_summaries_have_deciles_and_lack_undefined_metrics():
    summaries = summarize(rows_document())
    assert summaries["DiT", 40, "pool/decile_10"].mean == pytest.approx(0.2)
    assert ("DiT", 10, "recall") not in summaries


def test_every_network_has_a_table_and_an_adjustment_of_its_own():
    def scored(name, gain, seed):
        return row(name, seed=seed, networks={"quick-v2/mlp": row(name, gain, seed=seed)["accuracy"]})

    found = document(scored("DiT", 0, 1), scored("IM", 0.03, 2))
    by_mlp = compare(found["comparison"], "quick-v2/mlp")
    assert (by_mlp.num_tests, by_mlp.cells["IM", 10].is_clear) == (2, True)
    assert not compare(found["comparison"]).cells["IM", 10].is_clear
    gained = f"{100 * by_mlp.cells['IM', 10].accuracy.mean:.1f}"
    texts = "\n".join(comparison_lines(found)).split("mlp")[1], Page(render_sweep(found)).text
    assert all(gained in text for text in texts)


def test_mlflow_accepts_every_name_and_no_two_rows_share_one():
    from mlflow.utils.validation import _validate_metric_name

    names = ["+IM", "|IM", "..", "/", "³"]
    rows = [row(name, 0.01, seed=i) for i, name in enumerate(["DiT", *names])]
    metrics = metrics_for_mlflow(rows_document(*rows))
    for name in metrics:
        _validate_metric_name(name)
    assert len({name.split("/")[1] for name in metrics}) == len(names) + 1
