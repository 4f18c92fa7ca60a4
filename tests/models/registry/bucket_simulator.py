"""A simulator of Google Cloud Storage's JSON API: one bucket, conditional writes, multipart and resumable uploads.

It speaks what `gcsfs` asks for, and does what the registry rests on: a write with `ifGenerationMatch=0` succeeds only
where no object is, whoever else writes at the same time.  A real bucket cannot be had in a test.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.models.registry.simulator import Handler, Simulator

LISTING = "storage#objects"
PAGE = 3
"""Names in one page of a listing; the real one has 1,000."""


@dataclass
class Upload:
    """A resumable upload that has begun."""

    name: str
    new: bool
    data: bytearray = field(default_factory=bytearray)


class BucketSimulator(Simulator):
    """Use as a context manager; `url` is what STORAGE_EMULATOR_HOST names."""

    def __init__(self, bucket: str = "versions-of-a-test"):
        super().__init__(_Handler)
        self.bucket = bucket
        self.objects: dict[str, tuple[int, bytes]] = {}
        self.uploads: dict[str, Upload] = {}
        self.lock = threading.Lock()
        self.generation = self.refused = 0

    def write(self, name: str, data: bytes, new: bool) -> tuple[int, dict[str, Any]]:
        """Write an object; with `new`, only where there is none."""
        with self.lock:
            if new and name in self.objects:
                self.refused += 1
                return 412, _error(412, "At least one of the pre-conditions you specified did not hold.")
            self.generation += 1
            self.objects[name] = (self.generation, data)
            return 200, self.describe(name)

    def describe(self, name: str) -> dict[str, Any]:
        generation, data = self.objects[name]
        return {
            "kind": "storage#object", "bucket": self.bucket, "name": name, "generation": str(generation),
            "metageneration": "1", "size": str(len(data)), "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z", "contentType": "application/octet-stream",
            "md5Hash": base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode(),
        }  # fmt: skip

    def list(self, prefix: str, delimiter: str, token: str) -> dict[str, Any]:
        """Return one page of objects, and of what stands for folders; the token is the last name of the page before."""
        with self.lock:
            names = sorted(name for name in self.objects if name.startswith(prefix) and name > token)
            items: list[dict[str, Any]] = []
            prefixes: list[str] = []
            last = token
            for name in names:
                head, found, _ = name.removeprefix(prefix).partition(delimiter or "\0")
                folder = prefix + head + delimiter
                if found and (folder in prefixes or token.startswith(folder)):
                    continue
                if len(items) + len(prefixes) == PAGE:
                    return {"kind": LISTING, "items": items, "prefixes": prefixes, "nextPageToken": last}
                last = name
                if found:
                    prefixes.append(folder)
                else:
                    items.append(self.describe(name))
            return {"kind": LISTING, "items": items, "prefixes": prefixes}


def _error(code: int, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


class _Handler(Handler):
    simulator: BucketSimulator

    def _answer(self, status: int, body: dict[str, Any] | bytes, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/octet-stream" if isinstance(body, bytes) else "application/json")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def do(self) -> None:
        """Find out what is asked for."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if match := re.fullmatch(r"/resumable/(\d+)", parts.path):
            return self._chunk(match[1], body)
        match = re.fullmatch(r"/(?:(upload|download)/)?storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?", parts.path)
        assert match, self.path
        kind, bucket, name = match[1], match[2], unquote(match[3] or "")
        if bucket != self.simulator.bucket:
            return self._answer(404, _error(404, "The specified bucket does not exist."))
        if kind == "upload":
            return self._upload(query, body)
        if not name:
            listed = self.simulator.list(
                query.get("prefix", ""), query.get("delimiter", ""), query.get("pageToken", "")
            )
            return self._answer(200, listed if "/o" in parts.path else {"kind": "storage#bucket", "name": bucket})
        found = self.simulator.objects.get(name)
        if found is None:
            return self._answer(404, _error(404, f"No such object: {bucket}/{name}"))
        if self.command == "DELETE":
            self.simulator.objects.pop(name)
            return self._answer(204, b"")
        if kind != "download":
            return self._answer(200, self.simulator.describe(name))
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), int(asked[2] or len(found[1]) - 1)
            return self._answer(206, found[1][first : last + 1])
        return self._answer(200, found[1])

    do_GET = do_POST = do_PUT = do_DELETE = do

    def _upload(self, query: dict[str, str], body: bytes) -> None:
        new = query.get("ifGenerationMatch") == "0"
        if query["uploadType"] == "resumable":
            number = str(len(self.simulator.uploads))
            self.simulator.uploads[number] = Upload(json.loads(body)["name"], new)
            return self._answer(
                200, {}, Location=f"{self.simulator.url}/resumable/{number}?name={quote(query['name'])}"
            )
        boundary = re.search(r'boundary="([^"]+)"', self.headers["Content-Type"])
        assert boundary
        mark = b"--" + boundary[1].encode()
        _, described, content = body.removesuffix(b"\n" + mark + b"--").split(mark + b"\n", 2)
        name = json.loads(described.partition(b"\n\n")[2])["name"]
        return self._answer(*self.simulator.write(name, content.partition(b"\n\n")[2], new))

    def _chunk(self, number: str, body: bytes) -> None:
        upload = self.simulator.uploads[number]
        upload.data += body
        asked = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", self.headers["Content-Range"])
        assert asked and int(asked[2]) == len(upload.data) - 1
        if len(upload.data) < int(asked[3]):
            return self._answer(308, b"", Range=f"bytes=0-{asked[2]}")
        return self._answer(*self.simulator.write(upload.name, bytes(upload.data), upload.new))
