"""A simulator of the three vendors' batch APIs: files, batches, polls and results, in their wire formats."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from tests.distill.simulator import TeacherSimulator, words_of
from tests.models.vendor_simulator import MODELS


class BatchSimulator(TeacherSimulator):
    """As `TeacherSimulator`, through the batch API only.

    Args:
        polls: how often a batch is asked about before it has ended.
        skip: number of the request in its batch -> `expired` (never reached, not billed) or a status (errored).

    `batches` holds the requests of each batch that was taken; `trouble` statuses are given to polls first.
    """

    def __init__(self, *args: Any, polls: int = 2, skip: dict[int, Any] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.polls, self.skip = polls, skip or {}
        self.batches: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        self.asked_about: dict[str, int] = {}
        self.files: dict[str, str] = {}
        self.trouble: list[int] = []
        self.refuse: int | None = None

    async def __aenter__(self) -> BatchSimulator:
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._route)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def _route(self, request: web.Request) -> web.StreamResponse:
        if not self.wire.authorized(request):
            return self._error(401, "invalid x-api-key")
        path = request.path.removeprefix("/v1beta").removeprefix("/v1")
        if request.method == "GET" and "/content" not in path and self.trouble:
            return self._error(self.trouble.pop(0), "simulated")
        if request.method == "POST" and self.refuse is not None and path != "/files":
            return self._error(self.refuse, "simulated")
        return await getattr(self, f"_{self.vendor}")(request, path)

    def _take(self, requests: list[tuple[str, dict[str, Any]]]) -> str:
        name = f"batch_{len(self.batches)}"
        self.batches[name] = requests
        return name

    def _done(self, name: str) -> bool:
        self.asked_about[name] = self.asked_about.get(name, 0) + 1
        return self.asked_about[name] > self.polls

    def _answers(self, name: str) -> list[tuple[str, dict[str, Any] | int | None]]:
        """Return (custom id, reply, or status of an error, or None where it expired); bills what is answered."""
        found: list[tuple[str, dict[str, Any] | int | None]] = []
        for number, (custom_id, body) in enumerate(self.batches[name]):
            fault = self.skip.get(number)
            if fault is not None:
                found.append((custom_id, None if fault == "expired" else fault))
                continue
            images = self._images(body)
            self.script.text = self.answer(words_of(body), images[0] if images else None, number)
            found.append((custom_id, self.wire.reply(MODELS[self.vendor])))
        return found

    def _images(self, body: dict[str, Any]) -> list[bytes]:
        import base64

        parts = (body.get("messages") or body["contents"])[-1]
        found = []
        for part in parts.get("content") or parts.get("parts"):
            if "image_url" in part:
                found.append(base64.b64decode(part["image_url"]["url"].split(",", 1)[1]))
            elif "source" in part:
                found.append(base64.b64decode(part["source"]["data"]))
            elif "inlineData" in part:
                found.append(base64.urlsafe_b64decode(part["inlineData"]["data"]))
        return found

    async def _openai(self, request: web.Request, path: str) -> web.Response:
        if path == "/files":
            form = await request.post()
            file = form["file"]
            assert isinstance(file, web.FileField) and form["purpose"] == "batch"
            self.files["file_in"] = file.file.read().decode()
            about = {"object": "file", "bytes": 1, "created_at": 1, "filename": "batch.jsonl", "status": "processed"}
            return web.json_response({"id": "file_in", "purpose": "batch", **about})
        if path.startswith("/files/"):
            return web.Response(text=self.files[path.split("/")[2]])
        if request.method == "POST":
            body = await request.json()
            assert body["endpoint"] == "/v1/chat/completions" and body["completion_window"] == "24h"
            lines = [json.loads(line) for line in self.files[body["input_file_id"]].splitlines()]
            assert all(x["method"] == "POST" and x["url"] == "/v1/chat/completions" for x in lines)
            name, done = self._take([(line["custom_id"], line["body"]) for line in lines]), False
        else:
            name = path.split("/")[2]
            done = self._done(name)
        output: dict[str, Any] = {}
        if done:
            lines = []
            for custom_id, reply in self._answers(name):
                if reply is None:
                    continue
                status, content = (
                    (reply, self.wire.error(reply, "simulated")) if isinstance(reply, int) else (200, reply)
                )
                lines.append({"id": "b", "custom_id": custom_id, "error": None,
                              "response": {"status_code": status, "request_id": "r", "body": content}})  # fmt: skip
            for kind, good in (("output", True), ("error", False)):
                mine = [x for x in lines if (x["response"]["status_code"] == 200) is good]
                if mine:
                    self.files[f"{name}_{kind}"] = "".join(json.dumps(x) + "\n" for x in mine)
                    output[f"{kind}_file_id"] = f"{name}_{kind}"
        return web.json_response({"id": name, "object": "batch", "endpoint": "/v1/chat/completions", "created_at": 1,
                                  "completion_window": "24h", "input_file_id": "file_in",
                                  "status": "completed" if done else "in_progress", **output})  # fmt: skip

    async def _anthropic(self, request: web.Request, path: str) -> web.Response:
        if path.endswith("/results"):
            lines = []
            for custom_id, reply in self._answers(path.split("/")[3]):
                if reply is None:
                    result: dict[str, Any] = {"type": "expired"}
                elif isinstance(reply, int):
                    result = {"type": "errored", "error": self.wire.error(reply, "simulated")}
                else:
                    result = {"type": "succeeded", "message": reply}
                lines.append(json.dumps({"custom_id": custom_id, "result": result}))
            return web.Response(text="\n".join(lines) + "\n", content_type="application/x-jsonl")
        if request.method == "POST":
            requests = (await request.json())["requests"]
            assert all(len(r["custom_id"]) <= 64 and r["params"]["max_tokens"] for r in requests)
            name, done = self._take([(r["custom_id"], r["params"]) for r in requests]), False
        else:
            name = path.split("/")[3]
            done = self._done(name)
        url = f"{self.base_url}/v1/messages/batches/{name}/results" if done else None
        counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
        return web.json_response({"id": name, "type": "message_batch", "request_counts": counts, "results_url": url,
                                  "processing_status": "ended" if done else "in_progress", "archived_at": None,
                                  "cancel_initiated_at": None, "created_at": "2026-11-20T10:00:00Z", "ended_at": None,
                                  "expires_at": "2026-11-21T10:00:00Z"})  # fmt: skip

    async def _google(self, request: web.Request, path: str) -> web.Response:
        if request.method == "POST":
            assert path == f"/models/{MODELS['google']}:batchGenerateContent"
            inline = (await request.json())["batch"]["inputConfig"]["requests"]["requests"]
            name = self._take([(r["metadata"]["key"], r["request"]) for r in inline])
            return web.json_response({"name": f"batches/{name}", "metadata": {"state": "BATCH_STATE_PENDING"}})
        name = path.split("/")[2]
        metadata: dict[str, Any] = {"state": "BATCH_STATE_RUNNING"}
        if self._done(name):
            responses = []
            for custom_id, reply in self._answers(name):
                if isinstance(reply, int):
                    responses.append({"metadata": {"key": custom_id}, "error": {"code": 3, "message": "simulated"}})
                elif reply is not None:
                    responses.append({"metadata": {"key": custom_id}, "response": reply})
            metadata = {
                "state": "BATCH_STATE_SUCCEEDED",
                "output": {"inlinedResponses": {"inlinedResponses": responses}},
            }
        return web.json_response({"name": f"batches/{name}", "metadata": metadata})
