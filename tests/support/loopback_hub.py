"""A hub on loopback with what Hugging Face's client requests. A repository has commits; main is the last."""

import base64
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
    """Models and data sets by id; `push` makes a commit of one, and so does the client with TOKEN."""

    TOKEN = "hf_of-the-loopback-hub"

    def __init__(self):
        # "models/org/name" → commit → file → content
        self._commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private = set[str]()

    def push(self, hub_id: str, folder: Path, kind: str = "models") -> str:
        """Commit the content of `folder` to the repository's main. Returns the commit."""
        held = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        return self._commit(f"{kind}/{hub_id}", held)

    def holds(self, hub_id: str, kind: str = "datasets") -> dict[str, bytes]:
        """Files of the repository's main; raises KeyError if there is none."""
        return self._find(f"{kind}/{hub_id}", "main")[1]

    def _commit(self, repository: str, held: dict[str, bytes]) -> str:
        commit = hashlib.sha1(b"".join(f"{n}:".encode() + c for n, c in sorted(held.items()))).hexdigest()
        commits = self._commits.setdefault(repository, {})
        commits.pop(commit, None)  # the same content again is the last again
        commits[commit] = held
        return commit

    def _find(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]]:
        commits = self._commits[repository]
        commit = list(commits)[-1] if revision == "main" else revision
        return commit, commits[commit]

    def answer(self, path: str) -> tuple[dict[str, str], bytes]:
        """Returns headers and body; raises KeyError for an unknown path."""
        if asked := re.fullmatch(r"/api/(\w+)/(\w+/[\w.-]+)(?:/(revision|tree)/(\w+))?", path):
            commit, held = self._find(f"{asked[1]}/{asked[2]}", asked[4] or "main")
            files = [{"type": "file", "path": n, "size": len(c), "oid": _oid(c)} for n, c in held.items()]
            names = [{"rfilename": n} for n in held]
            said = files if asked[3] == "tree" else {"id": asked[2], "sha": commit, "siblings": names}
            return {"Content-Type": "application/json"}, json.dumps(said).encode()
        if asked := re.fullmatch(r"/(datasets/)?(\w+/[\w.-]+)/resolve/(\w+)/(.+)", path):
            commit, held = self._find(f"{'datasets' if asked[1] else 'models'}/{asked[2]}", asked[3])
            content = held[asked[4]]
            return {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": commit}, content
        raise KeyError(path)

    def take(self, path: str, body: bytes) -> dict[str, object]:
        """Returns the response to a write; raises KeyError for an unknown repository."""
        if path == "/api/validate-yaml":  # of a card
            return {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            repository = f"{asked['type']}s/{asked['organization']}/{asked['name']}"
            self._commits.get(repository) or self._commit(repository, {})
            if asked.get("private") or asked.get("visibility") == "private":
                self.private.add(repository)
            return {"url": f"https://huggingface.co/{repository}"}
        asked = re.fullmatch(r"/api/(\w+/\w+/[\w.-]+)/(preupload|commit)/main", path)
        if asked is None:
            raise KeyError(path)
        repository, what = asked.groups()
        held = dict(self._find(repository, "main")[1])
        if what == "preupload":
            named = [file["path"] for file in json.loads(body)["files"]]
            return {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in named]}
        for line in map(json.loads, body.splitlines()):
            place = line["value"].get("path")
            if line["key"] == "file":
                held[place] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del held[place]
        commit = self._commit(repository, held)
        return {"commitUrl": f"https://huggingface.co/{repository}/commit/{commit}", "commitOid": commit}

    @contextlib.contextmanager
    def known(self, monkeypatch, cache: Path) -> Iterator["Hub"]:
        """Serves as the hub of this process during the block, with `cache` as its cache."""
        with self._serving() as address:
            monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
            template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
            monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
            use_cache(monkeypatch, cache)
            yield self

    @contextlib.contextmanager
    def _serving(self) -> Iterator[str]:
        with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self})) as server:
            Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self):
        self._send(with_body=True)

    def do_HEAD(self):
        self._send(with_body=False)

    def _send(self, with_body):
        try:
            status, (headers, body) = 200, self.hub.answer(urlsplit(self.path).path)
        except KeyError:
            status, headers, body = 404, self._missing(), b""
        self._reply(status, headers, body if with_body else b"", len(body))

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {self.hub.TOKEN}":
            return self._reply(401, {}, b"")
        try:
            said = json.dumps(self.hub.take(urlsplit(self.path).path, body)).encode()
            self._reply(200, {"Content-Type": "application/json"}, said)
        except KeyError:
            self._reply(404, self._missing(), b"")

    def _missing(self):
        known = any(name.partition("/")[2] in self.path for name in self.hub._commits)
        what = ("Revision" if "/api/" in self.path else "Entry") if known else "Repo"
        return {"X-Error-Code": f"{what}NotFound"}

    def _reply(self, status, headers, body, length=None):
        self.send_response(status)
        size = str(len(body) if length is None else length)
        for name, value in (headers | {"Content-Length": size}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_): ...


def use_cache(monkeypatch, folder: Path) -> None:
    """Use another download cache, as on another node."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))


def _oid(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
