"""The pages of `ims3 view`, over HTTP."""

import re
import shutil
from pathlib import Path

import pytest
from pages import Page
from starlette.testclient import TestClient
from viewed import CHOSEN, CLASSES, PER_SUBGROUP, REPORT, make_storage, track

from ims3_ray.jobs.view.app import make_app
from ims3_ray.jobs.view.run_store import RunStore
from ims3_ray.runs import tags
from ims3_ray.storage.artifacts import complete, open_directory, open_storage

TOKEN = "secret-" * 4
HOST = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def viewed(tmp_path_factory):
    return make_storage(tmp_path_factory.mktemp("viewed"))


def browser(storage, token=TOKEN):
    """A client that opened the address with `token` and keeps the cookie."""
    client = TestClient(make_app(RunStore(storage), TOKEN), HOST)
    client.get("/view.js", params={"token": token} if token is not None else {})
    return client


@pytest.fixture
def copy(viewed, tmp_path):
    """A copy that a test may change."""
    shutil.copytree(viewed[0].path, tmp_path / "copy")
    return open_directory(str(tmp_path / "copy")), viewed[1]


@pytest.fixture(scope="module")
def ask(viewed):
    """Fetch and parse a page; {names} in the address become MLflow ids."""
    client = browser(viewed[0])

    def get(address, status=200):
        response = client.get(address.format(**viewed[1]))
        assert response.status_code == status, response.text
        return Page(response.content)

    return get


def files(storage):
    places = (path for path in Path(storage.path).rglob("*") if path.is_file())
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in places}


def rows(page):
    """Sort keys of each row by column, by MLflow id."""
    table, run = {}, ""
    for tag, attributes in page.elements:
        run = attributes.get("id", "") if tag == "tr" else run
        if run and "data-head" in attributes:
            table.setdefault(run, {})[attributes["data-head"]] = attributes["data-sort"]
    return table


def pictures(page, word=""):
    """Attributes of the images whose description has the word."""
    return [a for tag, a in page.elements if tag == "img" and word in (a.get("alt") or "")]


def test_the_list_shows_every_run_and_trials_have_their_own(ask, viewed):
    page, ids = ask("/"), viewed[1]
    table = rows(page)
    sweep, running, failed, whole = (table[ids[name]] for name in ("sweep", "running", "failed", "whole"))
    assert list(table.values()) == [sweep, running, failed, whole]
    assert (whole["Recipe"], whole["IPC"], whole["State"]) == ("digits", "2.0", "complete")
    assert [float(whole[name]) for name in ("Accuracy", "Random real", "Time")] == [0.91, 0.81, 65.0]
    assert "91.0\u202f% ± 1.0" in page.text
    assert running["State"].startswith("running: evaluate, 4 of 6")
    assert (failed["State"], sweep["Accuracy"]) == ("failed", "")
    assert list(rows(ask("/?sweep={sweep}"))) == [ids["trial"]]


def test_run_page_shows_stages_accuracy_and_images(ask, viewed):
    page = ask("/runs/{whole}")
    stages = [attributes["data-stage"] for _, attributes in page.elements if "data-stage" in attributes]
    assert stages == ["sample", "select", "refine", "export", "evaluate", "report"]
    images = [image["src"].partition(";")[0] for image in pictures(page)]
    assert images == ["data:image/png"] * 4
    assert "+10.0 points" in page.text
    assert "sample.subgroups" in page.text
    links = {f"/runs/{viewed[1]['whole']}/classes/{label}" for label in range(len(CLASSES))}
    assert links <= set(page.values("href"))


def test_class_page_shows_all_candidates_and_marks_the_selected_ones(ask):
    page = ask("/runs/{whole}/classes/1")
    candidates = pictures(page, "candidate")
    assert len(candidates) == 3 * PER_SUBGROUP
    chosen = [a["alt"].partition(",")[0] for a in candidates if a.get("class") == "chosen"]
    assert chosen == [f"subgroup {CHOSEN}"] * PER_SUBGROUP
    assert "0.1000 · nearest" in page.text  # subgroup 1, which is not the selected one


def test_class_page_shows_images_before_and_after_refinement_and_marks_unchanged_ones(ask):
    page = ask("/runs/{whole}/classes/0")
    pair = pictures(page, "refinement")
    assert [a["alt"].rpartition("image ")[2] for a in pair] == [
        f"{place} {when} refinement" for place in (1, 2) for when in ("before", "after")
    ]
    assert pair[0]["src"] != pair[1]["src"]
    assert sum("chosen" in (a.get("class") or "").split() for tag, a in page.elements if tag == "div") == 1


def test_comparison_shows_fields_metrics_and_images(ask):
    page = ask("/compare?one={whole}&other={failed}")
    assert re.search(r"seed\s*0\s*7", page.text)
    assert re.search(r"Accuracy, distilled\s*91\.0\u202f% ± 1\.0\s*20\.0\u202f%\s*−71\.0", page.text)
    assert len(pictures(page)) == 4


def test_accuracies_of_different_protocols_are_not_compared(copy):
    storage, ids = copy
    other = track(storage, "zzzz", {"accuracy/distilled/last": 0.5}, own={tags.PROTOCOL: "dc-v1/n"})
    page = Page(browser(storage).get(f"/compare?one={ids['whole']}&other={other}").content)
    assert "cannot be compared" in page.text
    assert "−41.0" not in page.text


def test_class_names_are_escaped_on_every_page(ask):
    for address in ("/runs/{whole}", "/runs/{whole}/classes/0", "/compare?one={whole}&other={running}"):
        page = ask(address)
        assert [a.get("src") for tag, a in page.elements if tag == "script"] == ["/view.js"]
        assert CLASSES[0] in page.text


def test_report_is_served_unchanged_in_a_sandbox(viewed):
    response = browser(viewed[0]).get(f"/runs/{viewed[1]['whole']}/report")
    assert response.content == REPORT
    policy = response.headers["content-security-policy"]
    assert [word in policy for word in ("default-src 'none'", "sandbox", "script-src")] == [True, True, False]


def test_pages_reload_while_a_run_is_running(ask):
    reloads = {
        name: "data-running" in str(ask(f"/runs/{{{name}}}").elements) for name in ("running", "whole")
    }
    assert reloads == {"running": True, "whole": False}
    assert "data-running" in str(ask("/").elements)


def test_damaged_artefact_is_reported_and_the_rest_is_shown(copy):
    storage, ids = copy
    (storage / "distilled" / ("d" * 12) / "data/train-00000-of-00001.parquet").delete()
    page = Page(browser(storage).get(f"/runs/{ids['whole']}").content)
    assert "damaged: 1 file" in page.text
    assert "91.0" in page.text


MISSING = """/runs/0 /runs/00000000000000000000000000000000 /runs/{whole}/classes/2 /runs/{whole}/classes/x
/runs/{failed}/report /compare?one={whole} /?sweep=x /runs/..%2F..%2Fformat.json /..%2fformat.json
/%2e%2e/mlflow.db /runs/{whole}/report/../../../format.json /pages/view.css /view.js/../app.py"""


@pytest.mark.parametrize("address", MISSING.split())
def test_missing_address_is_a_404_page(ask, address):
    page = ask(address, status=404)
    assert "Not found" in page.text
    assert "format" not in page.text.replace("format.json", "")


def test_paths_out_of_the_storage_are_not_served(copy):
    storage, _ = copy
    (storage / "../x").write("index.html", b"outside")
    complete(storage / "../x", {})
    outside = track(storage, "zzzz", {}, own={"artifact.report": "../../x", "kind": "distillation"})
    sweep = track(storage, "../../x", {}, own={"kind": "sweep"})
    for run in (outside, sweep):
        assert browser(storage).get(f"/runs/{run}/report").status_code == 404


@pytest.mark.parametrize("token", [None, "", "x", TOKEN[:-1], TOKEN + "x", "é"])
def test_nothing_is_served_without_the_token(viewed, token):
    client = browser(viewed[0], token=token)
    for address in ("/", "/state", "/view.js", "/runs/0", f"/runs/{viewed[1]['whole']}/report"):
        response = client.get(address)
        assert response.status_code == 403
        assert "digits" not in response.text
        assert "set-cookie" not in response.headers


def test_cookie_replaces_the_token_and_is_httponly_and_samesite(viewed):
    client = browser(viewed[0], token=None)
    cookie = client.get("/", params={"token": TOKEN}).headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict"} <= set(cookie.split("; "))
    assert client.get("/").status_code == 200
    assert "set-cookie" not in client.get("/").headers


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""])
def test_foreign_host_header_is_refused(viewed, host):
    assert browser(viewed[0]).get("/", headers={"host": host}).status_code == 400


def test_view_writes_nothing(viewed):
    storage, ids = viewed
    before, client = files(storage), browser(storage)
    for run in ids.values():
        for page in ("", "/state", "/classes/0", "/report"):
            client.get(f"/runs/{run}{page}")
    client.get("/")
    assert files(storage) == before


def test_storage_without_runs_gets_no_database(tmp_path):
    storage = open_storage(str(tmp_path))
    page = Page(browser(storage).get("/").content)
    assert "There are no runs yet" in page.text
    storage.write("runs/digits-0/run.json", b"{}")
    assert "--rebuild-mlflow" in Page(browser(storage).get("/").content).text
    assert not storage.exists("mlflow.db")


def test_real_run_is_shown_with_its_images(finished_run):
    words, product = finished_run
    storage = next(word.partition("=")[2] for word in words if word.startswith("storage="))
    client, run = browser(open_directory(storage)), f"/runs/{product.mlflow_run_id}"
    assert len(pictures(Page(client.get(run).content))) == 3 * 6
    candidates = pictures(Page(client.get(f"{run}/classes/2").content), "candidate")
    assert (len(candidates), sum(a.get("class") == "chosen" for a in candidates)) == (18, 6)
