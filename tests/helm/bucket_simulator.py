"""A simulator of an S3 bucket and of a Google Cloud Storage bucket: lists and serves files, for pyarrow's clients."""

from __future__ import annotations

import base64
import json
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "weights"


class Buckets:
    """Files of one bucket, served under both protocols at `address`."""

    def __init__(self, files: dict[str, bytes]):
        self.files, self.read = files, list[str]()
        self.cut: set[str] = set()
        """Names whose content ends halfway."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                outer.answer(self)

            do_HEAD = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.address = f"127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        """End it."""
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request of either protocol."""
        url = urlsplit(request.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        path = unquote(url.path).strip("/")
        google = path.startswith(("storage/v1", "download/storage/v1")) or request.headers.get("x-goog-api-client")
        (self._google if google else self._amazon)(request, path, query)

    def _amazon(self, request: BaseHTTPRequestHandler, path: str, query: dict[str, str]) -> None:
        name = path.removeprefix(BUCKET).strip("/")
        if "list-type" in query:
            found = [one for one in sorted(self.files) if one.startswith(query.get("prefix", ""))]
            entries = "".join(
                f"<Contents><Key>{escape(one)}</Key><Size>{len(self.files[one])}</Size>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>x</ETag></Contents>"
                for one in found
            )
            body = (
                f'<?xml version="1.0"?><ListBucketResult><Name>{BUCKET}</Name><IsTruncated>false</IsTruncated>'
                f"<KeyCount>{len(found)}</KeyCount>{entries}</ListBucketResult>"
            )
            self._send(request, 200, body.encode(), "application/xml")
        elif name in self.files:
            self._file(request, name)
        else:
            self._send(request, 404, b"", "application/xml")

    def _google(self, request: BaseHTTPRequestHandler, path: str, query: dict[str, str]) -> None:
        if path.endswith(f"/b/{BUCKET}/o"):
            items = [self._object(name) for name in sorted(self.files) if name.startswith(query.get("prefix", ""))]
            self._send(request, 200, json.dumps({"kind": "storage#objects", "items": items}).encode())
            return
        name = path.partition(f"/b/{BUCKET}/o/")[2] or path.removeprefix(f"{BUCKET}/")
        if name not in self.files:
            self._send(request, 404, json.dumps({"error": {"code": 404, "message": "no such object"}}).encode())
        elif query.get("alt") == "media" or "/b/" not in path:
            self._file(request, name)
        else:
            self._send(request, 200, json.dumps(self._object(name)).encode())

    def _object(self, name: str) -> dict[str, Any]:
        data = self.files[name]
        return {
            "kind": "storage#object", "bucket": BUCKET, "name": name, "id": name, "size": str(len(data)),
            "generation": "1", "metageneration": "1", "updated": "2026-01-01T00:00:00Z",
            "timeCreated": "2026-01-01T00:00:00Z",
            "crc32c": base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode(),
        }  # fmt: skip

    def _file(self, request: BaseHTTPRequestHandler, name: str) -> None:
        data = self.files[name]
        whole = len(data)
        if request.command == "GET":
            self.read.append(name)
        begin, end = 0, whole - 1
        asked = request.headers.get("range", "").removeprefix("bytes=")
        if asked:
            first, _, last = asked.partition("-")
            begin, end = int(first), min(int(last), end) if last else end
        if asked and begin >= whole:
            self._send(request, 416, b"")
            return
        piece = data[begin : end + 1]
        if name in self.cut:
            request.close_connection = True
        self._send(request, 206 if asked else 200, piece, "application/octet-stream", {
            "content-range": f"bytes {begin}-{end}/{whole}", "last-modified": "Thu, 01 Jan 2026 00:00:00 GMT",
            "x-goog-generation": "1", "etag": "x",
        }, cut=name in self.cut)  # fmt: skip

    def _send(
        self, request: BaseHTTPRequestHandler, status: int, body: bytes, kind: str = "application/json",
        headers: dict[str, str] | None = None, cut: bool = False,
    ) -> None:  # fmt: skip
        request.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(body)), **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body[: len(body) // 2] if cut else body)
