"""An object store on loopback that speaks S3, and answers nothing but 503 while it is told to be away."""

import contextlib
import threading

BUCKET = "bucket"
SECRET = "no-secret-at-all"


class Store:
    """The server, and the variables with which a process finds it."""

    def __init__(self):
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Silent(WSGIRequestHandler):
            def log(self, *_):
                pass

        self.is_away, self.refused = False, 0
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=Silent)
        self.variables = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.port}",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def _answer(self, environ, start):
        if self.is_away:
            self.refused += 1
            start("503 Service Unavailable", [("Content-Length", "0"), ("Connection", "close")])
            return [b""]
        return self._moto(environ, start)

    @contextlib.contextmanager
    def running(self):
        """Serves inside the block, with a bucket, and with the variables set in this process."""
        import pytest
        from moto.s3.models import s3_backends

        for account in s3_backends.values():  # which the process has once, whatever servers there are
            account.reset()
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            with pytest.MonkeyPatch.context() as patched:
                for name, value in self.variables.items():
                    patched.setenv(name, value)
                import boto3

                boto3.client("s3").create_bucket(Bucket=BUCKET)
                yield self
        finally:
            self._server.shutdown()


def upload(images):
    """Class folders of this machine, as `images` in the bucket; gives their URI."""
    from ims3_ray.storage.artifacts import open_directory

    place = open_directory(f"s3://{BUCKET}/images")
    for path in sorted(images.rglob("*.png")):
        place.write(str(path.relative_to(images)), path.read_bytes())
    return place.uri
