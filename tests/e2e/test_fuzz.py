"""No input may produce a 5xx or kill the engine: hypothesis against the real stack."""

from __future__ import annotations

import base64
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.e2e.conftest import HTTP, Running
from tests.e2e.pictures import ask, data_uri, draw, encode

pytestmark = pytest.mark.e2e
RELAXED = settings(deadline=None, max_examples=120, suppress_health_check=list(HealthCheck))
FILES = [
    encode(draw(), "PNG"),
    encode(draw(), "JPEG"),
    encode(draw(), "WEBP"),
    encode(draw(), "GIF"),
    encode(draw(), "BMP"),
    encode(draw(), "TIFF"),
    encode(draw(), "AVIF"),
]
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    "messages",
    "model",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "n",
    "stop",
    "stream",
    "stream_options",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "response_format",
    "tools",
    "tool_choice",
    "user",
    "ignore_eos",
    "min_tokens",
    "stop_token_ids",
    "bad_words",
    "echo",
    "chat_template",
    "chat_template_kwargs",
    "mm_processor_kwargs",
    "structured_outputs",
    "priority",
    "prompt_logprobs",
    "truncate_prompt_tokens",
    "repetition_penalty",
    "length_penalty",
    "use_beam_search",
    "return_token_ids",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "reasoning_effort",
    "include_reasoning",
    "allowed_token_ids",
    "vllm_xargs",
    "kv_transfer_params",
    "cache_salt",
    "request_id",
    "parallel_tool_calls",
    "service_tier",
    "skip_special_tokens",
    "spaces_between_special_tokens",
)
NEAR: dict[str, list[Any]] = {
    "max_tokens": [0, -1, 1, 2**31, 2**63, 1.5, "4", None],
    "temperature": [-1, 0, 2, 1e300, -0.0, "hot"],
    "top_p": [-1, 0, 1, 2, 1e-300],
    "top_k": [-2, -1, 0, 1, 2**31],
    "n": [-1, 0, 1, 2, 9, 2**31],
    "top_logprobs": [-1, 0, 5, 20, 21, 2**31],
    "logprobs": [True, False, 1, "yes"],
    "logit_bias": [{"1": 100}, {"999999": 1}, {"-1": 1}, {"x": 1}, {"1": 1e300}, {"1": None}],
    "stop": ["", ["a"] * 50, [""], "\u0000", ["x" * 5000]],
    "seed": [-1, 0, 2**63, 2**64, -(2**63)],
    "stop_token_ids": [[-1], [10**9], [0]],
    "allowed_token_ids": [[], [-1], [10**9], [1]],
    "bad_words": [[""], ["a" * 100], ["\u0000"]],
    "min_tokens": [-1, 0, 5, 10**6],
    "truncate_prompt_tokens": [-1, 0, 1, 10**6],
    "prompt_logprobs": [-1, 0, 1, 100],
    "repetition_penalty": [-1, 0, 0.5, 1e300],
    "response_format": [
        {"type": "json_object"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#/a/b"}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string", "pattern": "(a+)+$("}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "minItems": 10**9}}},
    ],
    "structured_outputs": [
        {"regex": "("},
        {"choice": []},
        {"grammar": "root ::= "},
        {"json": "{"},
        {"regex": "a{100000}"},
    ],
    "tools": [[], [{"type": "function"}], [{"type": "function", "function": {"name": "f", "parameters": {"type": 7}}}]],
    "tool_choice": ["auto", "none", "required", "x", {"type": "function", "function": {"name": "missing"}}],
    "chat_template": ["{{ 1/0 }}", "{% for i in range(10**9) %}{% endfor %}", "{{ messages[99] }}", "{{"],
    "mm_processor_kwargs": [
        {"size": 1},
        {"min_pixels": -1},
        {"nonsense": True},
        {"size": {"shortest_edge": 0, "longest_edge": 0}},
    ],
    "stream_options": [{}, {"include_usage": True}, {"include_usage": "x"}],
}


def send(qwen: Running, body: Any) -> int:
    """Send a chat request and return its status; a stream is read to its end."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode("utf-8", "surrogatepass")
    answer = HTTP.post(
        f"{qwen.url}/chat/completions", content=content, headers={"content-type": "application/json"}, timeout=120
    )
    assert answer.status_code < 500, (answer.text[:500], content[:500])
    if answer.status_code >= 400:
        assert answer.json()["error"]["message"]
    return answer.status_code


@RELAXED
@given(st.sampled_from(FILES), st.data())
def test_damaged_files(qwen: Running, file: bytes, data: st.DataObject) -> None:
    damaged = bytearray(file)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    send(
        qwen,
        {
            "model": "fovea-qwen",
            "messages": ask("?", bytes(damaged[:cut] if cut % 3 == 0 else damaged)),
            "max_tokens": 1,
        },
    )


@RELAXED
@given(st.binary(max_size=300))
def test_bytes_that_are_no_image(qwen: Running, data: bytes) -> None:
    assert send(qwen, {"model": "fovea-qwen", "messages": ask("?", data), "max_tokens": 1}) in (400, 413)


@RELAXED
@given(st.sampled_from(FIELDS), anything)
def test_any_value_in_any_field(qwen: Running, field: str, value: Any) -> None:
    body = {"model": "fovea-qwen", "messages": ask("what?", FILES[0]), "max_tokens": 2, field: value}
    try:
        json.dumps(body)
    except (ValueError, UnicodeEncodeError):
        return
    send(qwen, body)


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in NEAR.items() for value in values])
def test_values_near_the_edge(qwen: Running, field: str, value: Any) -> None:
    send(qwen, {"model": "fovea-qwen", "messages": ask("what?", FILES[0]), "max_tokens": 2, field: value})


@RELAXED
@given(st.lists(anything, max_size=3), st.lists(anything, max_size=3))
def test_any_messages(qwen: Running, messages: list[Any], parts: list[Any]) -> None:
    send(qwen, {"model": "fovea-qwen", "messages": messages, "max_tokens": 1})
    send(qwen, {"model": "fovea-qwen", "messages": [{"role": "user", "content": parts}], "max_tokens": 1})


@RELAXED
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_body_on_any_route(qwen: Running, body: bytes) -> None:
    for path in ("chat/completions", "completions", "responses", "messages", "embeddings"):
        answer = HTTP.post(f"{qwen.url}/{path}", content=body, headers={"content-type": "application/json"}, timeout=60)
        assert answer.status_code < 500, (path, answer.text[:300])


ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hello", "max_tokens": 1},
    "/v1/responses": {"input": "hello", "max_output_tokens": 1},
    "/v1/messages": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/chat/completions/batch": {"messages": [[{"role": "user", "content": "hello"}]], "max_tokens": 1},
    "/tokenize": {"prompt": "hello"},
    "/detokenize": {"tokens": [1, 2]},
}
ODD: list[Any] = [
    None, "", [], {}, 0, -1, [None], [[]], [{}], "x", [1, 2], [-1], [2**40], 1e308, True, [{"role": "user"}],
    [{"role": "user", "content": None}], [{"role": "user", "content": [None]}], [{"role": "user", "content": [{}]}],
    [{"role": "user", "content": [{"type": "text"}]}], [{"role": "x", "content": "x"}], [{"type": "message"}],
    [{"role": "assistant", "content": [{"type": "tool_use", "id": 1}]}], [{"type": "function_call_output"}],
    [{"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": "x"}}]}],
    [{"role": "user", "content": [{"type": "input_image"}]}], [{"role": "user", "content": [{"type": "image_url"}]}],
]  # fmt: skip


@pytest.mark.parametrize("path", ROUTES)
def test_odd_shapes_on_the_other_routes(qwen: Running, path: str) -> None:
    """Each field of each route, and a few that the route may know, gets what a broken client might send."""

    def send_one(case: tuple[str, Any]) -> tuple[str, Any, int, str]:
        field, value = case
        body = {"model": "fovea-qwen", **ROUTES[path], field: value}
        answer = HTTP.post(f"{qwen.base}{path}", json=body, timeout=60)
        return field, value, answer.status_code, answer.text[:200]

    fields = {*ROUTES[path], "messages", "tools", "stop", "metadata", "system", "text", "model", "stream"}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(send_one, itertools.product(sorted(fields), ODD)))
    failed = [one for one in found if one[2] >= 500]
    assert len(found) >= 200 and not failed, failed[:5]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\u0000",
        "<|image_pad|>",
        "<|vision_start|><|image_pad|><|vision_end|>",
        "<|im_end|>" * 50,
        "x" * 20_000,
        "\ud83d\ude00" * 500,
        "{{ 7*7 }}",
    ],
)
def test_hostile_text(qwen: Running, text: str) -> None:
    send(qwen, {"model": "fovea-qwen", "messages": [{"role": "user", "content": text}], "max_tokens": 2})
    send(qwen, {"model": "fovea-qwen", "messages": ask(text, FILES[0]), "max_tokens": 2})


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (2, 2), (63, 65), (1999, 1999), (1, 100)])
def test_every_size_is_answered(qwen: Running, size: tuple[int, int]) -> None:
    picture = encode(draw(size=size)) if min(size) > 4 else encode(draw().resize(size))
    assert send(qwen, {"model": "fovea-qwen", "messages": ask("what?", picture), "max_tokens": 1}) == 200


def test_unscreened_ways_in_are_closed(qwen: Running) -> None:
    """Other spellings of the path, and other ways to name an image, must not get past the screening."""
    local = {"type": "image_url", "image_url": {"url": "file:///etc/hostname"}}
    for path in (
        "/v1/chat/completions/",
        "//v1/chat/completions",
        "/v1/Chat/Completions",
        "/tokenize",
        "/v1/chat/completions/batch",
    ):
        body = {"model": "fovea-qwen", "messages": [{"role": "user", "content": [local]}]}
        answer = HTTP.post(qwen.base + path, json=body, timeout=60)
        assert 300 <= answer.status_code < 500, (path, answer.text[:300])
    huge = data_uri(base64.b64decode(base64.b64encode(b"\x89PNG")))
    for part in ({"image_url": huge}, {"image_url": {"url": huge}}, {"type": "input_image", "image_url": huge}):
        assert send(qwen, {"model": "fovea-qwen", "messages": [{"role": "user", "content": [part]}]}) == 400


def test_the_engine_is_still_well(qwen: Running) -> None:
    """Last in this file."""
    answer = HTTP.post(
        f"{qwen.url}/chat/completions",
        json={
            "model": "fovea-qwen",
            "messages": ask("what color is the shape?", FILES[0]),
            "max_tokens": 8,
            "temperature": 0,
        },
        timeout=60,
    )
    assert answer.json()["choices"][0]["message"]["content"] == "red"
    assert HTTP.get(f"{qwen.base}/ready").status_code == 200
