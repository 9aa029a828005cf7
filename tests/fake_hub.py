"""A hub of one process, for tests: repositories, branches, commits, uploads by LFS, downloads. It asks for the token `hf_right`."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_right"


@dataclass
class Hub:
    """What was uploaded: {repository: {branch: {file: content}}}, and the requests in their order."""

    address: str = ""
    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    refuses: tuple[str, ...] = ()  # parts of paths that are answered with 403

    def commit(self, repository: str, branch: str) -> str:
        """A hash of the branch's files."""
        files = self.repositories[repository][branch]
        return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()

    def branch_of(self, repository: str, revision: str) -> str:
        """The branch of a name or of a commit."""
        branches = self.repositories[repository]
        return next((b for b in branches if revision in (b, self.commit(repository, b))), "")


@contextlib.contextmanager
def fake_hub() -> Iterator[Hub]:
    """A hub that listens on this machine."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve("GET")

    def do_HEAD(self) -> None:
        self._serve("HEAD")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def _serve(self, verb: str) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        self.hub.requests.append(f"{verb} {path}")
        if any(part in path for part in self.hub.refuses):
            return self._answer(403, {"error": "You do not have the rights"})
        if verb == "PUT" and path.startswith("/objects/"):
            self.hub.objects[path.rsplit("/", 1)[-1]] = body
            return self._answer(200, {})
        if path.startswith("/api/") and self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid credentials"})
        for pattern, serve in ROUTES.items():
            if found := re.fullmatch(pattern, f"{verb} {path}"):
                return serve(self, *found.groups(), body)
        return self._answer(404, {"error": f"no {path}"})

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _answer(self, code: int, content: object, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"content-length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def who(self, _: bytes) -> None:
        self._answer(200, {"name": "me", "type": "user", "auth": {"accessToken": {"role": "write"}}, "orgs": []})

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = "/".join(filter(None, (asked.get("organization") or "me", asked["name"])))
        known = name in self.hub.repositories
        self.hub.repositories.setdefault(name, {"main": {}})
        self._answer(409 if known else 200, {"url": f"{self.hub.address}/{name}", "name": name, "id": name})

    def branch(self, name: str, branch: str, _: bytes) -> None:
        branches = self.hub.repositories[name]
        known = branch in branches
        branches.setdefault(branch, dict(branches["main"]))
        self._answer(409 if known else 200, {})

    def validate(self, body: bytes) -> None:
        """A card's front matter is a mapping, and its licences and bases are words."""
        metadata = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
        words = [w for key in ("license", "base_model") for w in _listed(metadata.get(key, []))]
        errors = [{"message": f"{word!r} is no word"} for word in words if not re.fullmatch(r"[\w./-]+", str(word))]
        self._answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, name: str, _: str, body: bytes) -> None:
        files = json.loads(body)["files"]
        kinds = {True: "lfs", False: "regular"}
        self._answer(200, {"files": [
            {"path": f["path"], "uploadMode": kinds[f["path"].endswith(".safetensors")], "shouldIgnore": False} for f in files
        ]})  # fmt: skip

    def batch(self, name: str, body: bytes) -> None:
        objects = [
            {**o, "actions": {"upload": {"href": f"{self.hub.address}/objects/{o['oid']}", "header": {}}}}
            for o in json.loads(body)["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects}, {"content-type": "application/vnd.git-lfs+json"})

    def commit(self, name: str, branch: str, body: bytes) -> None:
        files = self.hub.repositories[name][branch]
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            if line["key"] == "lfsFile":
                files[line["value"]["path"]] = self.hub.objects[line["value"]["oid"]]
        commit = self.hub.commit(name, branch)
        self._answer(200, {"commitUrl": f"{self.hub.address}/{name}/commit/{commit}", "commitOid": commit})

    def described(self, name: str, revision: str, _: bytes) -> None:
        branch = self.hub.branch_of(name, revision) if name in self.hub.repositories else ""
        if not branch:
            return self._answer(404, {"error": "not found"}, {"x-error-code": "RevisionNotFound"})
        files = [{"rfilename": file} for file in self.hub.repositories[name][branch]]
        return self._answer(200, {"id": name, "sha": self.hub.commit(name, branch), "siblings": files})

    def tree(self, name: str, revision: str, _: bytes) -> None:
        files = self.hub.repositories[name][self.hub.branch_of(name, revision)]
        self._answer(
            200,
            [{"type": "file", "path": f, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for f, c in files.items()],
        )

    def file(self, name: str, revision: str, path: str, _: bytes) -> None:
        branch = self.hub.branch_of(name, revision) if name in self.hub.repositories else ""
        content = self.hub.repositories.get(name, {}).get(branch, {}).get(path)
        if content is None:
            return self._answer(404, {"error": "no such entry"}, {"x-error-code": "EntryNotFound"})
        told = {"etag": f'"{hashlib.sha1(content).hexdigest()}"', "x-repo-commit": self.hub.commit(name, branch)}
        return self._answer(200, content, told)


def _listed(value: object) -> list:
    return value if isinstance(value, list) else [value]


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = {
    "GET /api/whoami-v2": _Handler.who,
    "POST /api/repos/create": _Handler.create,
    "POST /api/validate-yaml": _Handler.validate,
    f"POST /api/models/{NAME}/branch/(.+)": _Handler.branch,
    f"POST /api/models/{NAME}/preupload/(.+)": _Handler.preupload,
    f"POST /{NAME}.git/info/lfs/objects/batch": _Handler.batch,
    f"POST /api/models/{NAME}/commit/(.+)": _Handler.commit,
    f"GET /api/models/{NAME}/revision/(.+)": _Handler.described,
    f"GET /api/models/{NAME}/tree/(.+)": _Handler.tree,
    rf"(?:GET|HEAD) /{NAME}/resolve/([^/]+)/(.+)": _Handler.file,
}
