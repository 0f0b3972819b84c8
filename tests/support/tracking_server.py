"""An MLflow server for tests."""

import os
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
from processes import environment
from raylets import free_port


class Server:
    """A tracking server on loopback that can be started again over the same database."""

    def __init__(self, folder):
        self._folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self):
        words = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        words += ["--backend-store-uri", f"sqlite:///{self._folder}/m.db"]
        words += ["--artifacts-destination", f"{self._folder}/artifacts"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *words],
            cwd=self._folder,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5)
                return
            except OSError:
                time.sleep(0.5)
        pytest.fail("the tracking server did not start")

    def stop(self):
        os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait(timeout=30)
