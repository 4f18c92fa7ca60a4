"""Ten thousand pairs of requests that are easily taken for one another: no answer of one is ever given to the other.

They are asked with semantic recall on, by the real embedding model; a fifth of them once more without.

The engine of these tests answers with a digest of what it was really given (pixels, and everything else in the body);
the truth is computed here, by other means, from the request's own bytes.  So an answer that is not the truth is a wrong
hit.  All pairs share one cache: a request may also be taken for any of those before it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from serving.exchange import exchange_of
from serving.keys import make_key, open_keys
from serving.layers import build_layers, layers_of, start_layers, stop_layers
from serving.layers.recall import Recall
from serving.stack import Stack
from tests.serving.asgi import JSON, call, scope_of
from tests.serving.pairs import ONE, TWO, Body, in_other_words

CHAT = "/v1/chat/completions"
PAIRS = 10_000


def truth(tenant: str, body: Body) -> str:
    """What the engine has to answer, from the request as it was sent."""
    pixels = []
    plain = json.loads(json.dumps(body))
    plain.pop("user", None)
    for message in plain["messages"]:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] == "image_url":
                data = base64.b64decode(part["image_url"].pop("url").partition(",")[2])
                picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
                pixels.append(f"{picture.size}{hashlib.sha256(picture.tobytes()).hexdigest()}")
    return hashlib.sha256(json.dumps([tenant, plain, pixels], sort_keys=True).encode()).hexdigest()


async def engine(scope: Any, receive: Any, send: Any) -> None:
    """Answer with what came here."""
    exchange = exchange_of(scope)
    plain = json.loads(json.dumps(exchange.json()))
    plain.pop("user", None)
    for message, part in exchange.places:
        plain["messages"][message]["content"][part]["image_url"].pop("url")
    pixels = [f"{p.image.size}{hashlib.sha256(p.image.tobytes()).hexdigest()}" for p in exchange.pictures]
    text = hashlib.sha256(json.dumps([exchange.tenant, plain, pixels], sort_keys=True).encode()).hexdigest()
    answer = {"choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}]}
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


def same_words(a: Body, b: Body) -> bool:
    """Whether two requests of a pair differ in blanks or in the form of an accent alone."""

    def plain(body: Body) -> str:
        return "".join(unicodedata.normalize("NFC", json.dumps(body, ensure_ascii=False, sort_keys=True)).split())

    return plain(a) == plain(b)


@pytest.mark.timeout(280)
@pytest.mark.parametrize(("semantic", "pairs"), [(True, PAIRS), (False, PAIRS // 5)])
async def test_no_answer_is_given_to_another_question(
    semantic: bool, pairs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    keys = str(tmp_path / "keys.db")
    data: dict[str, Any] = {"models": [{"name": "adversary", "source": str(tmp_path)}], "metrics": False}
    data |= {"identify": {"keys": keys, "tenants": [{"name": "acme"}, {"name": "other"}]}}
    data |= {"recall": {"memory_bytes": 2**29, "semantic": {} if semantic else None}, "media": {"url_hosts": []}}
    stack = Stack.model_validate(data)
    holder, bearer = open_keys(keys), {}
    for tenant in ("acme", "other"):
        text, key = make_key(tenant)
        await holder.put(key)
        bearer[tenant] = (b"authorization", f"Bearer {text}".encode())
    app = build_layers(engine, stack, stack.models[0])
    layer = next(one for one in layers_of(app) if isinstance(one, Recall))
    await start_layers(app)
    rng = random.Random(20261121)
    seen: Counter[tuple[str, str]] = Counter()

    async def answer(tenant: str, body: Body) -> tuple[str, str]:
        got = await call(app, scope_of("POST", CHAT, JSON, bearer[tenant]), body)
        assert got.status == 200, got.body
        for write in list(layer.writes):
            await write
        state = (got.header(b"x-fovea-cache") or b"").decode()
        return state, json.loads(got.body)["choices"][0]["message"]["content"]

    one = [*ONE, in_other_words]
    for number in range(pairs):
        kinds = one if number % 5 == 0 else TWO
        make = kinds[number // 5 % len(kinds)] if kinds is one else kinds[number % len(kinds)]
        first, second = make(rng)
        tenants = ("acme", "other") if number % 50 == 1 else ("acme", "acme")
        before = truth(tenants[0], first)
        for tenant, body in zip(tenants, (first, second), strict=True):
            state, said = await answer(tenant, body)
            alike = tenants[0] == tenants[1] and (make is in_other_words or same_words(first, second))
            if state == "semantic":
                assert semantic and alike and said == before, f"wrong hit: {make.__name__}, pair {number}: {body}"
            else:
                assert said == truth(tenant, body), f"wrong hit: {make.__name__}, pair {number}"
        same = before == truth(tenants[1], second)
        assert same is (make in ONE), f"{make.__name__} does not make what it says"
        if same:
            assert state == "hit", f"{make.__name__}: the same request was asked of the engine again"
        seen[make.__name__, state] += 1
    await stop_layers(app)
    total = sum(seen.values())
    hits = sum(count for (_, state), count in seen.items() if state == "hit")
    words = sum(count for (name, _), count in seen.items() if name == "in_other_words")
    found = seen["in_other_words", "semantic"]
    with capsys.disabled():
        print(
            f"\n{total} pairs of {len(TWO) + len(one)} kinds, {hits} hits of one request, {found} of {words} in other "
            "words, 0 wrong hits"
        )
    assert total == pairs and hits >= pairs // 6 and len({name for name, _ in seen}) == len({*TWO, *one})
    assert found > 0.8 * words if semantic else found == 0
