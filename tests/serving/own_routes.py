"""OpenAPI of the routes that are the layers' own, for schemathesis."""

from __future__ import annotations

from typing import Any

TEXT: dict[str, Any] = {"type": "string"}
NUMBER: dict[str, Any] = {"type": "integer"}


def operation(*parameters: dict[str, Any], body: dict[str, Any] | None = None, kind: str = "application/json") -> Any:
    found: dict[str, Any] = {"responses": {"default": {"description": "any"}}, "parameters": list(parameters)}
    if body is not None:
        found["requestBody"] = {"required": True, "content": {kind: {"schema": body}}}
    return found


def header(name: str, *values: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "schema": {**TEXT, "enum": list(values)} if values else TEXT}


def query(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema}


def thing(**fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "additionalProperties": True}


PAGE = (query("after", TEXT), query("limit", NUMBER))
ID = {"name": "id", "in": "path", "required": True, "schema": TEXT}
LIFE = thing(anchor={"enum": ["created_at"]}, seconds={"type": "integer", "minimum": 3600, "maximum": 2_592_000})
PART = {
    "oneOf": [
        thing(type={"enum": ["text"]}, text=TEXT),
        thing(
            type={"enum": ["image_url"]}, image_url=thing(url={"type": "string", "pattern": "^data:image/png;base64,"})
        ),
    ]
}
MESSAGE = thing(role={"enum": ["user", "system"]}, content={"oneOf": [TEXT, {"type": "array", "items": PART}]})
ASK = thing(
    model={"enum": ["fuzz-test"]}, messages={"type": "array", "items": MESSAGE}, temperature={"type": "number"},
    max_tokens=NUMBER, n=NUMBER, stream={"type": "boolean"}, service_tier={"enum": ["flex", "auto"]},
)  # fmt: skip
STEER = (
    header("cache-control", "no-store", "no-cache", "max-age=0", "max-age=9"),
    header("x-fovea-cache", "sampled", "exact", "sampled, exact"), header("x-fovea-cache-tags"),
    header("x-fovea-lane", "batch", "interactive"), header("idempotency-key"), header("x-fovea-deadline-ms"),
    header("authorization"), header("x-request-id"),
)  # fmt: skip
FORM = {**thing(purpose={"enum": ["batch", "x"]}, file={**TEXT, "format": "binary"}), "required": ["file"]}
BATCH = thing(
    input_file_id={"enum": ["file-x", "KNOWN"]}, endpoint={"enum": ["/v1/chat/completions", "/v1/x"]},
    completion_window={"enum": ["24h", "1h"]}, metadata={"type": "object"}, output_expires_after=LIFE,
)  # fmt: skip
PURGE = thing(all={"type": "boolean"}, tenant=TEXT, model=TEXT, version=TEXT, tag=TEXT)
SCHEMA: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "Fovea's own routes", "version": "1"},
    "paths": {
        "/v1/files": {
            "get": operation(*PAGE, query("purpose", TEXT)),
            "post": operation(body=FORM, kind="multipart/form-data"),
        },
        "/v1/files/{id}": {"get": operation(ID), "delete": operation(ID)},
        "/v1/files/{id}/content": {"get": operation(ID)},
        "/v1/batches": {"get": operation(*PAGE), "post": operation(body=BATCH)},
        "/v1/batches/{id}": {"get": operation(ID)},
        "/v1/batches/{id}/cancel": {"post": operation(ID)},
        "/fovea/cache/purge": {"post": operation(body=PURGE)},
        "/v1/chat/completions": {"post": operation(*STEER, body=ASK)},
        "/v1/messages": {"post": operation(*STEER, body=ASK)},
    },
}
