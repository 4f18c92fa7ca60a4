"""Before a run: is the server there, does it take the key, does it have the model, does it answer one request?"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from typing import Any

from loadtest.apis import Api, error_text
from loadtest.client import Target
from loadtest.config import RunConfig
from loadtest.plan import key_name
from models.support.errors import UsageError


def _call(
    target: Target, config: RunConfig, method: str, path: str, headers: dict[str, str], body: bytes | None
) -> tuple[int, bytes]:
    tls = target.ssl_context(config.verify_tls)
    connection: http.client.HTTPConnection
    if tls is not None:
        connection = http.client.HTTPSConnection(target.host, target.port, timeout=config.timeout_s, context=tls)
    else:
        connection = http.client.HTTPConnection(target.host, target.port, timeout=config.timeout_s)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    except ssl.SSLError as error:
        raise UsageError(
            f"TLS failed: {error}", field="--url", value=config.url, fix="check the certificate, or --insecure"
        ) from error
    except socket.gaierror as error:
        raise UsageError(
            f"unknown host: {error}", field="--url", value=config.url, fix="check the host name"
        ) from error
    except TimeoutError as error:
        message = f"no reply within {config.timeout_s:g} s"
        raise UsageError(
            message, field="--url", value=config.url, fix="is the server ready? raise --timeout"
        ) from error
    except OSError as error:
        message = f"cannot connect: {error.strerror or error}"
        raise UsageError(
            message, field="--url", value=config.url, fix="is the server up, and is the port right?"
        ) from error
    except http.client.HTTPException as error:
        message = f"what answers there does not speak HTTP: {error or type(error).__name__}"
        raise UsageError(message, field="--url", value=config.url, fix="check the port") from error
    finally:
        connection.close()


def _message(body: bytes) -> str:
    try:
        text = error_text(json.loads(body))
    except ValueError:
        text = ""
    return text or body[:200].decode("utf-8", "replace").strip() or "no text"


def _refuse_key(config: RunConfig, status: int, body: bytes) -> None:
    # Gemini answers a bad key with 400, and says which of its errors it is.
    if status in (401, 403) or (status == 400 and b"API_KEY_INVALID" in body):
        raise UsageError(
            f"the server refuses the key ({status}: {_message(body)})",
            field="--api-key-env",
            value=key_name(config),
            fix=f"put a valid key into the environment variable {key_name(config)}",
        )


def check_server(config: RunConfig, target: Target, api: Api, key: str, payload: bytes) -> dict[str, Any]:
    """Ask for the models and send `payload` (a whole prepared HTTP request) once; return what the server says of
    itself.

    Raises:
        UsageError: unreachable, wrong key, unknown model, or the first request is refused.
    """
    about: dict[str, Any] = {}
    if config.api == "openai":
        headers = {"Host": target.authority, **api.headers(key)}
        status, body = _call(target, config, "GET", target.base + "/models", headers, None)
        _refuse_key(config, status, body)
        if status == 200:
            about = _models(config, body)
    head, _, body = payload.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    status, reply = _call(target, config, "POST", first.split(" ")[1], headers, body)
    _refuse_key(config, status, reply)
    if status == 404:
        message = f"the server does not know this path or model (404: {_message(reply)})"
        raise UsageError(message, field="--url", value=config.url, fix="end the URL with /v1 and check --model")
    if status >= 400 and status not in (429, 503):
        message = f"the first request of the workload is refused ({status}: {_message(reply)})"
        raise UsageError(
            message, field="--workload", value=config.classes[0].workload, fix="send what this server takes"
        )
    return about


def _models(config: RunConfig, body: bytes) -> dict[str, Any]:
    try:
        rows = json.loads(body)["data"]
        names = [str(row["id"]) for row in rows]
    except (ValueError, KeyError, TypeError):
        return {}  # some servers answer this path in another form: the probe below decides
    if names and config.model not in names:
        raise UsageError(
            "the server does not have this model",
            field="--model",
            value=config.model,
            fix=f"it has {', '.join(names[:8])}",
        )
    served: dict[str, Any] = next((row for row in rows if str(row["id"]) == config.model), {})
    # vLLM says which checkpoint stands behind the name; its image-token rule may be known by that alone
    root = {"root": str(served["root"])} if served.get("root") else {}
    return {"models": names[:8], "owned_by": str(rows[0].get("owned_by", "")) if names else "", **root}
