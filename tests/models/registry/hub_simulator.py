"""A simulator of the Hugging Face hub's wire format: one repository with commits, regular and LFS files.

It speaks what `huggingface_hub` asks for: repository info, tree, preupload, the LFS batch, commits (NDJSON, with
`parentCommit`), and resolved files.  A repository of a real hub cannot be had in a test.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.models.registry.simulator import Handler, Simulator

LFS_FROM = 1024  # bytes; the hub's is 10 MB


class HubSimulator(Simulator):
    """Use as a context manager; `url` is what HF_ENDPOINT names.  `token` must come with every write."""

    def __init__(self, repo: str = "ada/registry", kind: str = "models", token: str = "hf_secret"):
        super().__init__(_Handler)
        self.repo, self.kind, self.token = repo, kind, token
        self.commits: list[tuple[str, dict[str, bytes]]] = [(_oid(b"first"), {".gitattributes": b""})]
        self.lfs: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self.refused = 0
        self.down = False

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the branch."""
        return self.commits[-1][1]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((c for c in self.commits if c[0] == revision), None)

    def commit(self, lines: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
        """Apply a commit; refuse it when the branch has moved on from its parent."""
        with self.lock:
            parent, files = self.commits[-1][0], dict(self.files)
            if lines[0]["value"].get("parentCommit", parent) != parent:
                self.refused += 1
                return 412, {"error": "A commit has happened since. Please refresh and try again."}
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.lfs[value["oid"]]
                elif line["key"] == "deletedFile":
                    files.pop(value["path"])
            oid = _oid(f"{parent}{len(self.commits)}".encode())
            self.commits.append((oid, files))
        return 200, {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{self.repo}/commit/{oid}"}


def _oid(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


class _Handler(Handler):
    simulator: HubSimulator
    wbufsize, disable_nagle_algorithm = -1, True  # a reply is one segment

    def handle_one_request(self) -> None:
        if self.simulator.down:
            self.close_connection = True
            return
        super().handle_one_request()

    def _reply(self, status: int, body: Any = b"", code: str = "", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _rest(self, prefix: str) -> list[str] | None:
        path = unquote(urlsplit(self.path).path)
        return path.removeprefix(prefix).strip("/").split("/") if path.startswith(prefix) else None

    @property
    def api(self) -> str:
        return f"/api/{self.simulator.kind}/{self.simulator.repo}/"

    def do_GET(self) -> None:
        hub = self.simulator
        files = "" if hub.kind == "models" else f"/{hub.kind}"
        if rest := self._rest(f"{files}/{hub.repo}/resolve/"):
            found = hub.at(rest[0])
            path = "/".join(rest[1:])
            if found is None or path not in found[1]:
                self._reply(404, {"error": "Entry not found"}, "EntryNotFound" if found else "RevisionNotFound")
                return
            etag = f'"{_oid(found[1][path])}"'
            self._reply(200, found[1][path], ETag=etag, X_Repo_Commit=found[0], Content_Type="application/octet-stream")
        elif (rest := self._rest(self.api + "revision/")) and (found := hub.at(rest[0])):
            self._reply(200, {"id": hub.repo, "sha": found[0], "siblings": [], "private": True, "tags": []})
        elif rest := self._rest(self.api + "tree/"):
            found = hub.at(rest[0])
            self._tree("/".join(rest[1:]), {} if found is None else found[1])
        else:
            self._reply(404, {"error": "Repository not found"}, "RepoNotFound")

    do_HEAD = do_GET

    def _tree(self, folder: str, files: dict[str, bytes]) -> None:
        start = f"{folder}/" if folder else ""
        rows: dict[str, dict[str, Any]] = {}
        for path, content in files.items():
            if path.startswith(start):
                name, slash, _ = path.removeprefix(start).partition("/")
                kind = "directory" if slash else "file"
                rows[name] = {"type": kind, "path": start + name, "oid": _oid(content), "size": len(content)}
        if rows:
            self._reply(200, list(rows.values()))
        else:
            self._reply(404, {"error": f"{folder} does not exist on main"}, "EntryNotFound")

    def do_POST(self) -> None:
        hub, body = self.simulator, self._body()
        if self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._reply(401, {"error": "Invalid username or password."})
        elif self._rest(self.api + "preupload/"):
            files = [
                {"path": f["path"], "uploadMode": "lfs" if f["size"] >= LFS_FROM else "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self._reply(200, {"files": files})
        elif self._rest(self.api + "commit/"):
            self._reply(*hub.commit([json.loads(line) for line in body.splitlines() if line]))
        elif urlsplit(self.path).path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{hub.url}/lfs/{one['oid']}", "header": {}}}}
                for one in json.loads(body)["objects"]
            ]
            reply = {"transfer": "basic", "objects": objects}
            self._reply(200, reply, Content_Type="application/vnd.git-lfs+json")
        else:
            self._reply(404, {"error": "Repository not found"}, "RepoNotFound")

    def do_PUT(self) -> None:
        content = self._body()
        oid = self.path.rpartition("/")[2]
        if hashlib.sha256(content).hexdigest() != oid:
            self._reply(400, {"error": "another content"})
            return
        self.simulator.lfs[oid] = content
        self._reply(200)
