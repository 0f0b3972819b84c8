"""An object store on loopback that speaks S3. It can refuse all or a random share of the requests with 503.

`/counted` returns the number of requests per kind.
"""

import contextlib
import json
import random
import threading
from collections import Counter

from raylets import free_port
from tiny import tiny_words

BUCKET = "bucket"
SECRET = "no-secret-at-all"


class Store:
    """A server, and the environment variables with which a process finds it.

    It refuses every request if `is_away` is set, otherwise the share `failing` of the requests.
    """

    def __init__(self, failing: float = 0.0, seed: int = 0):
        self.is_away, self.failing, self.refused, self._port = False, failing, 0, free_port()
        self._random = random.Random(seed)
        self.counted = Counter()
        self.variables = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def _answer(self, environ, start):
        if environ["PATH_INFO"] == "/counted":
            data = json.dumps(self.counted).encode()
            start("200 OK", [("Content-Length", str(len(data)))])
            return [data]
        is_list = environ["REQUEST_METHOD"] == "GET" and "list-type" in environ["QUERY_STRING"]
        self.counted["LIST" if is_list else environ["REQUEST_METHOD"]] += 1
        if self.is_away or self._random.random() < self.failing:
            self.refused += 1
            start("503 Service Unavailable", [("Content-Length", "0"), ("Connection", "close")])
            return [b""]
        return self._moto(environ, start)

    @contextlib.contextmanager
    def running(self):
        """Serves inside the block, with an empty bucket, and with the variables set in this process."""
        import boto3
        import pytest
        from moto.s3.models import s3_backends
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Silent(WSGIRequestHandler):
            def log(self, *_): ...

        for account in s3_backends.values():  # which the process has once, whatever servers there are
            account.reset()
        self._moto = DomainDispatcherApplication(create_backend_app)
        options = {"threaded": True, "request_handler": Silent}
        with (
            make_server("127.0.0.1", self._port, self._answer, **options) as server,
            pytest.MonkeyPatch.context() as patched,
        ):
            threading.Thread(target=server.serve_forever, daemon=True).start()
            for name, value in self.variables.items():
                patched.setenv(name, value)
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            try:
                yield self
            finally:
                server.shutdown()


def in_bucket(model, images):
    """Upload class folders. Returns the overrides of a tiny run with images and storage in the bucket."""
    from ims3_ray.storage.artifacts import open_directory

    place = open_directory(f"s3://{BUCKET}/images")
    for path in sorted(images.rglob("*.png")):
        place.write(str(path.relative_to(images)), path.read_bytes())
    return tiny_words(model, place.uri, f"s3://{BUCKET}/runs")
