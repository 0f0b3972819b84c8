"""`ims3 view` as a person starts it, and its list in a real browser."""

import re
import shutil
import signal
import socket
import subprocess
import threading
import urllib.request
from contextlib import contextmanager

import pytest
import uvicorn
from pages import evaluation
from processes import job
from viewed import DETAILS, make_storage

from ims3_ray.cli import main
from ims3_ray.jobs.view import stages
from ims3_ray.jobs.view.app import make_app
from ims3_ray.jobs.view.command import find_storage, listen
from ims3_ray.jobs.view.run_store import Catalogue
from ims3_ray.storage.artifacts import complete, open_storage

TOKEN = "t" * 32
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def refused(words, capsys):
    """The one line of bad input."""
    assert main(["view", *words, "--no-browser"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_a_folder_without_runs_is_refused_in_one_line(tmp_path, capsys):
    assert "holds no runs" in refused([str(tmp_path)], capsys)
    assert not list(tmp_path.iterdir())


def test_a_port_that_is_taken_or_none_is_refused_in_one_line(tmp_path, capsys):
    storage = open_storage(str(tmp_path)).path
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"--port {port}" in refused([storage, "--port", port], capsys)
    assert "--port 70000" in refused([storage, "--port", "70000"], capsys)


def test_a_storage_is_named_as_elsewhere_too(tmp_path):
    storage = open_storage(str(tmp_path))
    assert find_storage(str(tmp_path)) == find_storage(f"storage={tmp_path}") == storage


def test_it_listens_on_this_machine_alone():
    with listen(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


@pytest.mark.slow
def test_it_prints_an_address_that_shows_the_runs_until_ctrl_c(tmp_path):
    storage, ids = make_storage(tmp_path)
    process = job("view", storage.path, "--no-browser")
    address = re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", process.stdout.readline())[0]
    with urllib.request.urlopen(address) as answer:
        assert ids["whole"] in answer.read().decode()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "Traceback" not in err


@contextmanager
def served(storage):
    with listen(0) as listener:
        server = uvicorn.Server(uvicorn.Config(make_app(Catalogue(storage), TOKEN), log_level="error"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/?token={TOKEN}"
        finally:
            server.should_exit = True
            thread.join()


def browsed(address, profile, budget_ms):
    """What a browser has made of the page after a while, as it counts time."""
    words = [BROWSER, *FLAGS, f"--user-data-dir={profile}", f"--virtual-time-budget={budget_ms}"]
    return subprocess.run(
        [*words, "--dump-dom", address], capture_output=True, text=True, timeout=300, check=True
    ).stdout


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_sorts_and_filters_the_list(tmp_path):
    storage, ids = make_storage(tmp_path / "runs")

    def shown(address):
        page = browsed(address, tmp_path / "profile", 1000)
        assert TOKEN not in page
        found = re.findall(r'<tr id="(\w+)"([^>]*)>', page)
        names = {run: name for name, run in ids.items()}
        return [names[run] for run, attributes in found if "hidden" not in attributes]

    with served(storage) as address:
        assert shown(address) == ["sweep", "running", "failed", "whole"]
        assert shown(f"{address}#sort=6-")[:2] == ["whole", "failed"]  # accuracy, the highest first
        assert shown(f"{address}#sort=6")[:2] == ["failed", "whole"]
        assert shown(f"{address}#filter=digits+failed") == ["failed"]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_runs_page_shows_by_itself_what_became_complete(tmp_path, monkeypatch):
    storage, ids = make_storage(tmp_path / "runs")
    asked, progress = [], stages.progress

    def goes_on(*of):
        """The stage ends after the page was made, before it asks for the first time."""
        asked.append(of)
        if len(asked) == 2:
            place = storage / "evaluation" / ("0" * 12)
            place.write_json("evaluation.json", evaluation())
            complete(place, DETAILS | {"rows": 17, "unit": "classifiers"})
        return progress(*of)

    monkeypatch.setattr(stages, "progress", goes_on)
    with served(storage) as address:
        page = browsed(address.replace("/?", f"/runs/{ids['running']}?"), tmp_path / "profile", 10_000)
    assert "17 classifiers" in page
    assert len(asked) > 2
