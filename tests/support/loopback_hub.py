"""A model hub on loopback, as far as Hugging Face's client asks one: commits of a model, main is the last."""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit


class Hub:
    """Models by id; `push` makes a commit of one."""

    def __init__(self):
        self._commits: dict[str, dict[str, dict[str, bytes]]] = {}  # model → commit → file → content

    def push(self, hub_id: str, folder: Path) -> str:
        """Make what `folder` holds the model's main; gives the commit."""
        held = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        commit = hashlib.sha1(b"".join(f"{n}:".encode() + c for n, c in sorted(held.items()))).hexdigest()
        self._commits.setdefault(hub_id, {})[commit] = held
        return commit

    def _find(self, hub_id: str, revision: str) -> tuple[str, dict[str, bytes]]:
        commits = self._commits[hub_id]
        commit = list(commits)[-1] if revision == "main" else revision
        return commit, commits[commit]

    def answer(self, path: str) -> tuple[dict[str, str], bytes]:
        """Headers and body; KeyError for what is not here."""
        if asked := re.fullmatch(r"/api/models/(\w+/[\w.-]+)/(revision|tree)/(\w+)", path):
            commit, held = self._find(asked[1], asked[3])
            files = [{"type": "file", "path": n, "size": len(c), "oid": _oid(c)} for n, c in held.items()]
            said = {"id": asked[1], "sha": commit, "siblings": []} if asked[2] == "revision" else files
            return {"Content-Type": "application/json"}, json.dumps(said).encode()
        if asked := re.fullmatch(r"/(\w+/[\w.-]+)/resolve/(\w+)/(.+)", path):
            commit, held = self._find(asked[1], asked[2])
            content = held[asked[3]]
            return {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": commit}, content
        raise KeyError(path)

    @contextlib.contextmanager
    def known(self, monkeypatch, cache: Path) -> Iterator["Hub"]:
        """Serves inside the block, as the hub of this process, whose cache is `cache`."""
        with self._serving() as address:
            monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
            template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
            monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
            use_cache(monkeypatch, cache)
            yield self

    @contextlib.contextmanager
    def _serving(self) -> Iterator[str]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self._send(with_body=True)

            def do_HEAD(self):
                self._send(with_body=False)

            def _send(self, with_body):
                try:
                    status, (headers, body) = 200, hub.answer(urlsplit(self.path).path)
                except KeyError:
                    known = any(name in self.path for name in hub._commits)
                    what = ("Revision" if "/api/" in self.path else "Entry") if known else "Repo"
                    status, headers, body = 404, {"X-Error-Code": f"{what}NotFound"}, b""
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(body))}).items():
                    self.send_header(name, value)
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

            def log_message(self, *_): ...

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()


def use_cache(monkeypatch, folder: Path) -> None:
    """Keep downloads there from here on, as a node does that has its own disk."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))


def _oid(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
