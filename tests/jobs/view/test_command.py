"""The command `ims3 view`, and its pages in a real browser."""

import re
import shutil
import signal
import subprocess
import threading
import urllib.request
from contextlib import contextmanager

import pytest
import uvicorn
from processes import job
from viewed import make_storage

from ims3_ray.jobs.view.app import make_app
from ims3_ray.jobs.view.command import find_storage, listen
from ims3_ray.jobs.view.run_store import RunStore
from ims3_ray.storage.artifacts import open_storage

TOKEN = "t" * 32
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def test_folder_without_runs_is_an_error(tmp_path, refused):
    assert "storage: " in refused("view", tmp_path, "--no-browser")
    assert not list(tmp_path.iterdir())


def test_the_server_listens_on_loopback_and_a_port_in_use_or_out_of_range_is_an_error(tmp_path, refused):
    words = "view", open_storage(str(tmp_path)).path, "--no-browser", "--port"
    with listen(0) as other:
        host, port = map(str, other.getsockname())
        assert host == "127.0.0.1"
        assert f"--port {port}" in refused(*words, port)
    assert "--port 70000" in refused(*words, "70000")


def test_storage_is_given_as_folder_or_field(tmp_path):
    storage = open_storage(str(tmp_path))
    assert find_storage(str(tmp_path)) == find_storage(f"storage={tmp_path}") == storage


@pytest.mark.slow
def test_printed_address_shows_the_runs_until_ctrl_c(tmp_path):
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
        server = uvicorn.Server(uvicorn.Config(make_app(RunStore(storage), TOKEN), log_level="error"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/?token={TOKEN}"
        finally:
            server.should_exit = True
            thread.join()


def rendered(address, profile, budget_ms):
    """The DOM of a page in Chromium after `budget_ms` of virtual time."""
    words = [BROWSER, *FLAGS, f"--user-data-dir={profile}", f"--virtual-time-budget={budget_ms}"]
    return subprocess.run(
        [*words, "--dump-dom", address], capture_output=True, text=True, timeout=300, check=True
    ).stdout


@pytest.mark.slow
@needs_browser
def test_browser_sorts_and_filters_the_list(tmp_path):
    storage, ids = make_storage(tmp_path / "runs")

    def visible_runs(address):
        page = rendered(address, tmp_path / "profile", 1000)
        assert TOKEN not in page
        rows = re.findall(r'<tr id="(\w+)"([^>]*)>', page)
        names = {run: name for name, run in ids.items()}
        return [names[run] for run, attributes in rows if "hidden" not in attributes]

    with served(storage) as address:
        assert visible_runs(address) == ["sweep", "running", "failed", "whole"]
        assert visible_runs(f"{address}#sort=6-")[:2] == ["whole", "failed"]  # accuracy, descending
        assert visible_runs(f"{address}#sort=6")[:2] == ["failed", "whole"]
        assert visible_runs(f"{address}#filter=digits+failed") == ["failed"]
