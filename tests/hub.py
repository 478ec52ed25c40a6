"""A double of the hub: what huggingface_hub asks of its HTTP API to make a repository, commit to it and download from it.

Safetensors go by git-LFS's basic transfer, other files inside the commit. Only TOKEN may write, or see a private repository.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_double"


@dataclass
class Repo:
    """Branches are lists of (commit, path -> content)."""

    private: bool
    branches: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        history = self.branches.setdefault(branch, [])
        listing = sorted((path, hashlib.sha1(content).hexdigest()) for path, content in files.items())
        oid = hashlib.sha1(json.dumps([branch, len(history), listing]).encode()).hexdigest()
        history.append((oid, files))
        return oid

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        return next((one for all_ in self.branches.values() for one in all_ if one[0] == revision), None)


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}  # of LFS
        self.messages: list[str] = []
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def put(self, repo_id: str, files: dict[str, bytes], private: bool = False) -> str:
        """A commit that somebody else made."""
        return self.repos.setdefault(repo_id, Repo(private)).commit("main", files)


@contextmanager
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._route("GET")

    def do_HEAD(self) -> None:
        self._route("HEAD")

    def do_POST(self) -> None:
        self._route("POST")

    def do_PUT(self) -> None:
        self._route("PUT")

    def _route(self, method: str) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{method} {path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        writes = method in ("POST", "PUT") and path != "/api/validate-yaml"
        if writes and not self._known() and not path.startswith("/lfs/"):
            return self._json(401, {"error": "Invalid credentials"})
        for pattern, verb, answer in _ROUTES:
            if verb == method and (match := re.fullmatch(pattern, path)):
                return answer(self, *match.groups())
        return self._json(404, {"error": f"the double does not know {method} {path}"})

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repo(self, repo_id: str) -> Repo | None:
        repo = self.server.repos.get(repo_id)
        if repo is None or (repo.private and not self._known()):
            self._json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        return repo

    def _files(self, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repo = self._repo(repo_id)
        found = repo.at(revision) if repo else None
        if repo and found is None:
            self._json(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        return found

    def _create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.server.repos:
            return self._json(
                409, {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}
            )
        self.server.repos[name] = Repo(asked.get("visibility") == "private" or bool(asked.get("private")))
        self.server.repos[name].commit("main", {".gitattributes": b""})
        return self._json(200, {"url": f"{self.server.url}/{name}", "name": name})

    def _branch(self, repo_id: str, branch: str) -> None:
        if repo := self._repo(repo_id):
            if branch in repo.branches:
                return self._json(409, {"error": "Reference already exists"})
            repo.branches[branch] = [repo.branches["main"][-1]]
            return self._json(200, {})
        return None

    def _info(self, repo_id: str, revision: str = "main") -> None:
        if found := self._files(repo_id, revision):
            siblings = [{"rfilename": path} for path in found[1]]
            self._json(
                200, {"id": repo_id, "modelId": repo_id, "sha": found[0], "siblings": siblings, "tags": []}
            )

    def _tree(self, repo_id: str, revision: str) -> None:
        if found := self._files(repo_id, revision):
            self._json(200, [_entry(path, content) for path, content in found[1].items()])

    def _preupload(self, repo_id: str, revision: str) -> None:
        if self._files(repo_id, revision):
            names = [file["path"] for file in json.loads(self.body)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
            self._json(
                200,
                {"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]},
            )

    def _lfs_batch(self, repo_id: str) -> None:
        objects = []
        for one in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.server.url}/lfs/{one['oid']}", "header": {}}
            objects.append({**one, "actions": {"upload": upload}})
        self._json(200, {"transfer": "basic", "objects": objects})

    def _lfs_put(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.stored[oid] = self.body
        self._json(200, {})

    def _commit(self, repo_id: str, revision: str) -> None:
        found = self._files(repo_id, revision)
        if found is None:
            return
        files = dict(found[1])
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                self.server.messages.append(value["summary"])
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
            else:
                assert item["key"] == "deletedFile"
                del files[value["path"]]
        oid = self.server.repos[repo_id].commit(revision, files)
        self._json(
            200, {"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{repo_id}/commit/{oid}"}
        )

    def _validate_yaml(self) -> None:
        """The hub refuses a card whose head is no YAML or whose license is no string."""
        head = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        try:
            data = yaml.safe_load(head[1]) if head else {}
            errors = (
                [] if isinstance(data.get("license", ""), str) else [{"message": "license must be a string"}]
            )
        except yaml.YAMLError as error:
            errors = [{"message": str(error)}]
        self._json(400 if errors else 200, {"errors": errors, "warnings": []})

    def _resolve(self, repo_id: str, revision: str, path: str) -> None:
        if found := self._files(repo_id, revision):
            content = found[1][path]
            headers = {"ETag": f'"{_entry(path, content)["oid"]}"', "X-Repo-Commit": found[0]}
            self._send(200, content, "application/octet-stream", headers)

    def _json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), "application/json", headers or {})

    def _send(self, status: int, content: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


_REPO = r"([\w.-]+/[\w.-]+)"
_ROUTES = (
    (r"/api/repos/create", "POST", _Handler._create),
    (rf"/api/models/{_REPO}/branch/(.+)", "POST", _Handler._branch),
    (rf"/api/models/{_REPO}", "GET", _Handler._info),
    (rf"/api/models/{_REPO}/revision/(.+)", "GET", _Handler._info),
    (rf"/api/models/{_REPO}/tree/([^/]+)", "GET", _Handler._tree),
    (rf"/api/models/{_REPO}/preupload/(.+)", "POST", _Handler._preupload),
    (rf"/{_REPO}\.git/info/lfs/objects/batch", "POST", _Handler._lfs_batch),
    (r"/lfs/(\w+)", "PUT", _Handler._lfs_put),
    (rf"/api/models/{_REPO}/commit/(.+)", "POST", _Handler._commit),
    (r"/api/validate-yaml", "POST", _Handler._validate_yaml),
    (rf"/{_REPO}/resolve/([^/]+)/(.+)", "HEAD", _Handler._resolve),
    (rf"/{_REPO}/resolve/([^/]+)/(.+)", "GET", _Handler._resolve),
)
