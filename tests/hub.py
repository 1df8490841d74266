"""A Hugging Face Hub on the loopback interface, and processes that know no other one.

The server speaks as much of the Hub's protocol as ``huggingface_hub`` uses to download a file and
to push a folder, so that tests run the real client against it and need no network.
"""

import base64
import hashlib
import json
import os
import re
import socket
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

import torch

from .fresh import fresh_context

Result = TypeVar("Result")

# As on the real Hub, files of these kinds lie in a store of their own, to which it redirects.
LARGE_FILES = (".safetensors", ".pt", ".pth", ".bin")


@dataclass
class Request:
    """What the server was asked, and what it answered."""

    method: str
    path: str
    range: str | None
    status: int = 0
    bytes_sent: int = 0


@dataclass
class Repository:
    """Commits by hash, and the branches and tags that point at them."""

    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)


@dataclass
class Cut:
    """Ends one transfer of a large file early: orderly, or as a line that breaks does."""

    after_bytes: int
    how: Literal["close", "reset"] = "close"


class Hub:
    """The server, to be used in a ``with`` statement.

    Attributes:
        url (str): what belongs into ``HF_ENDPOINT``.
        repositories (dict[str, Repository]): by ``"owner/name"``.
        requests (list[Request]): everything asked so far, oldest first.
        cuts (list[Cut]): transfers of large files still to be cut, in turn.
        outage (bool): answer every request with 503.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.store: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.cuts: list[Cut] = []
        self.outage = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {}))
        self._server.RequestHandlerClass.hub = self  # type: ignore[attr-defined]
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # The client tells the store from the Hub by its origin, as the real one is another host.
        self.store_url = f"http://localhost:{self._server.server_port}/store"

    def __enter__(self) -> "Hub":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuses all connections from now on."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def commit(
        self, repo_id: str, files: Mapping[str, bytes], revision: str = "main", gated: bool = False
    ) -> str:
        """Adds files on top of a branch, which it starts where there is none; returns the hash."""
        repository = self.repositories.setdefault(repo_id, Repository(gated))
        before = repository.commits.get(repository.references.get(revision, ""), {})
        number = f"{repo_id} {revision} {len(repository.commits)}"
        commit = hashlib.sha1(number.encode()).hexdigest()
        repository.commits[commit] = {**before, **files}
        repository.references[revision] = commit
        self.store.update({_sha256(content): content for content in files.values()})
        return commit

    def file_bodies(self) -> list[Request]:
        """The requests that a large file's bytes were sent for, in part or whole."""
        return [
            request
            for request in self.requests
            if request.method == "GET" and request.path.startswith("/store/")
        ]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    request_: Request
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionResetError, BrokenPipeError):
            self.close_connection = True  # a client that goes away is no trouble of the server

    def do_HEAD(self) -> None:
        self._dispatch(self._get)

    def do_GET(self) -> None:
        self._dispatch(self._get)

    def do_POST(self) -> None:
        self._dispatch(self._post)

    def do_PUT(self) -> None:
        self._dispatch(self._put)

    def _dispatch(self, answer: Callable[[str, bytes], None]) -> None:
        path = urlsplit(self.path).path
        self.request_ = Request(self.command, unquote(path), self.headers["Range"])
        self.hub.requests.append(self.request_)
        body = self._read_body()
        if self.hub.outage:
            self._send(503, b"down for maintenance")
        else:
            answer(path, body)

    # Reading

    def _get(self, path: str, body: bytes) -> None:
        if match := re.fullmatch(r"/store/(\w{64})", path):
            self._send_large_file(match[1])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], unquote(match[2]), unquote(match[3]))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/([^/]+))?", path):
            self._describe(match[1], unquote(match[3] or "main"))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self._list(match[1], unquote(match[2]))
        else:
            self._send(404, b"no such page")

    def _resolve(self, repo_id: str, revision: str, file: str) -> None:
        commit = self._commit_of(repo_id, revision)
        if commit is None:
            return
        content = self.hub.repositories[repo_id].commits[commit].get(file)
        headers = {"X-Repo-Commit": commit}
        if content is None:
            self._refuse(404, "EntryNotFound", "Entry not found", headers)
        elif file.endswith(LARGE_FILES):
            digest = _sha256(content)
            headers |= {
                "Location": f"{self.hub.store_url}/{digest}",
                "X-Linked-Size": str(len(content)),
                "X-Linked-Etag": f'"{digest}"',
            }
            self._send(302, headers=headers)
        else:
            self._send(200, content, headers | {"ETag": f'"{_git_hash(content)}"'})

    def _describe(self, repo_id: str, revision: str) -> None:
        commit = self._commit_of(repo_id, revision)
        if commit is not None:
            files = self.hub.repositories[repo_id].commits[commit]
            siblings = [{"rfilename": name} for name in files]
            self._send_json(
                {"id": repo_id, "modelId": repo_id, "sha": commit, "siblings": siblings}
            )

    def _list(self, repo_id: str, revision: str) -> None:
        commit = self._commit_of(repo_id, revision)
        if commit is not None:
            files = self.hub.repositories[repo_id].commits[commit]
            self._send_json([_tree_entry(name, content) for name, content in files.items()])

    def _commit_of(self, repo_id: str, revision: str) -> str | None:
        """The commit that a revision stands for, or None after the refusal was sent."""
        repository = self.hub.repositories.get(repo_id)
        logged_in = "Authorization" in self.headers
        if repository is None:
            # Whether a repository is absent or private is not for strangers to know.
            self._refuse(404 if logged_in else 401, "RepoNotFound", "Repository not found")
            return None
        if repository.gated:
            self._refuse(
                403 if logged_in else 401, "GatedRepo", "Access to this model is restricted"
            )
            return None
        commit = repository.references.get(revision, revision)
        if commit not in repository.commits:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return commit

    def _send_large_file(self, digest: str) -> None:
        content = self.hub.store[digest]
        headers = {"ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        status, start = 200, 0
        if self.headers["Range"] is not None:
            match = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])
            assert match is not None, f"unexpected range {self.headers['Range']!r}"
            status, start = 206, int(match[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(status, content[start:], headers)

    # Writing

    def _post(self, path: str, body: bytes) -> None:
        if not self.headers.get("Authorization", "").startswith("Bearer "):
            self._send(401, b"Invalid username or password.")
        elif path == "/api/validate-yaml":
            self._send_json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            repo_id = f"{asked['organization']}/{asked['name']}"
            known = repo_id in self.hub.repositories
            self.hub.repositories.setdefault(repo_id, Repository())
            self._send_json({"url": f"{self.hub.url}/{repo_id}"}, 409 if known else 200)
        elif re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/[^/]+", path):
            self._send_json({"files": [_upload_mode(file) for file in json.loads(body)["files"]]})
        elif re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            self._send_json(
                {"transfer": "basic", "objects": self._upload_actions(json.loads(body))}
            )
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            self._accept_commit(match[1], unquote(match[2]), body)
        else:
            self._send(404, b"no such endpoint")

    def _upload_actions(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        actions = []
        for wanted in batch["objects"]:
            if wanted["oid"] not in self.hub.store:
                href = f"{self.hub.store_url}/{wanted['oid']}"
                wanted = {**wanted, "actions": {"upload": {"href": href}}}
            actions.append(wanted)
        return actions

    def _put(self, path: str, body: bytes) -> None:
        if path == f"/store/{_sha256(body)}":
            self.hub.store[_sha256(body)] = body
            self._send(200)
        else:
            self._send(400, b"the bytes are not those of the hash")

    def _accept_commit(self, repo_id: str, revision: str, body: bytes) -> None:
        files: dict[str, bytes] = {}
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.store[value["oid"]]
            else:
                assert item["key"] == "header", f"unexpected operation {item['key']!r}"
        commit = self.hub.commit(repo_id, files, revision)
        url = f"{self.hub.url}/{repo_id}/commit/{commit}"
        self._send_json({"success": True, "commitOid": commit, "commitUrl": url})

    # The wire

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _refuse(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        errors = {"X-Error-Code": code, "X-Error-Message": message}
        self._send(status, message.encode(), {**(headers or {}), **errors})

    def _send_json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(
        self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.request_.status = status
        if self.command == "HEAD":
            return
        cut = None
        if self.command == "GET" and self.path.startswith("/store/") and self.hub.cuts:
            cut = self.hub.cuts.pop(0)
            body = body[: cut.after_bytes]
        self.request_.bytes_sent = len(body)
        self.wfile.write(body)
        if cut is not None:
            self.close_connection = True
        if cut is not None and cut.how == "reset":
            # Lingering for no time sends a reset instead of an orderly end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


@dataclass
class Client:
    """Runs functions as a user's program would, each call in a process of its own.

    huggingface_hub reads its settings once, on import, so that every setting takes a new process.
    """

    endpoint: str
    home: Path

    def __call__(
        self, function: Callable[..., Result], *arguments: Any, **variables: str
    ) -> Result:
        """Calls a function of a test module with more environment variables, here upper-case."""
        environment = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **variables,
        }
        with ProcessPoolExecutor(1, fresh_context(), _enter_process, (environment,)) as process:
            return process.submit(function, *arguments).result()


def _enter_process(environment: Mapping[str, str]) -> None:
    assert "huggingface_hub" not in sys.modules, "it has read the settings of another process"
    for name in list(os.environ):
        if name.upper().startswith(("HF_", "HUGGING", "MOBILE_SAM_")) or "PROXY" in name.upper():
            del os.environ[name]
    os.environ.update(environment)
    torch.set_num_threads(1)  # threads that wait for a busy core cost more than they bring
    sys.addaudithook(_stay_on_loopback)


def _stay_on_loopback(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        assert arguments[1][0] in ("127.0.0.1", "::1"), f"a test connects to {arguments[1]}"


def _upload_mode(file: dict[str, Any]) -> dict[str, Any]:
    mode = "lfs" if file["path"].endswith(LARGE_FILES) else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _tree_entry(name: str, content: bytes) -> dict[str, Any]:
    size = len(content)
    entry = {"type": "file", "path": name, "size": size, "oid": _git_hash(content)}
    if name.endswith(LARGE_FILES):
        entry["lfs"] = {"oid": _sha256(content), "size": size, "pointerSize": 134}
    return entry


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
