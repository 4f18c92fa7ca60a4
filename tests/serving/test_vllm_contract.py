"""That the screener and vLLM mean the same, asked of the installed vLLM; its code is imported, no engine is started.

The import takes long on a busy machine, which is why this is not with the unit tests of the screener.
"""

from __future__ import annotations

import asyncio
import base64
import json
import types
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.chat import ChatEndpoint, _place_pictures, _replace_urls
from serving.errors import ApiError
from serving.exchange import Exchange
from serving.found import _NOT_SERVED, find_images
from serving.layers.screen import place_of
from serving.media import decode, open_header
from serving.stack import Media
from tests.serving.pictures import encode, scene

pytestmark = pytest.mark.e2e
PNG = encode(scene())
URI = "data:image/png;base64," + base64.b64encode(PNG).decode()
EVIL = "http://169.254.169.254/latest"
MEDIA_KINDS = {
    "input_image",
    "image_url",
    "image_embeds",
    "audio_embeds",
    "video_embeds",
    "prompt_embeds",
    "image_pil",
    "audio_url",
    "input_audio",
    "video_url",
}
TEXT_KINDS = {"text", "thinking", "input_text", "output_text", "refusal", "tool_reference"}


@pytest.fixture(scope="module")
def chat_utils() -> Any:
    import vllm.entrypoints.chat_utils as module

    return module


def test_every_part_type_of_vllm_is_known(chat_utils: Any) -> None:
    """A new version of vLLM with a new way to name media fails here, not in service."""
    assert set(chat_utils.MM_PARSER_MAP) == MEDIA_KINDS | TEXT_KINDS
    served = {"image_url", "input_image"}
    assert served | set(_NOT_SERVED) >= MEDIA_KINDS


def loads(chat_utils: Any, part: dict[str, Any]) -> list[str]:
    """Return what vLLM's parser would load for a content part, without loading it."""
    from vllm.exceptions import VLLMError

    named: list[str] = []

    class Parser:
        model_config = types.SimpleNamespace(enable_prompt_embeds=False)

        def __getattr__(self, name: str) -> Any:
            return lambda content, uuid=None: named.append(f"{name}:{content}")

    try:
        chat_utils._parse_chat_message_content_part(part, Parser(), wrap_dicts=True, interleave_strings=False)
    except (VLLMError, ValueError, TypeError, AttributeError):
        return []
    return named


def spellings() -> list[dict[str, Any]]:
    keys = [
        "image_url",
        "image_pil",
        "image_embeds",
        "audio_url",
        "input_audio",
        "video_url",
        "image",
        "source",
        "data",
    ]
    values: list[Any] = [EVIL, {"url": EVIL}, {"data": "x", "format": "wav"}, None]
    kinds = [*sorted(MEDIA_KINDS | TEXT_KINDS), "image", "unknown", None]
    parts = []
    for kind in [*kinds, "absent"]:
        for key in keys:
            for value in values:
                for uuid in ({}, {"uuid": "u"}):
                    start = {} if kind == "absent" else {"type": kind}
                    parts.append({**start, "text": "t", key: value, **uuid})
                    parts.append({**start, key: value, "detail": "auto", **uuid})
    return parts


def test_what_vllm_would_load_is_found_or_refused(chat_utils: Any) -> None:
    checked = 0
    for part in spellings():
        named = loads(chat_utils, dict(part))
        if not named:
            continue
        checked += 1
        try:
            found = find_images({"messages": [{"role": "user", "content": [part]}]})
        except ApiError:
            continue
        assert named == [f"parse_image:{item.url}" for item in found], part
    assert checked > 100


@pytest.mark.parametrize("role", ["user", "assistant", "system", "developer", "tool"])
@pytest.mark.parametrize(
    "image",
    [
        {"type": "image_url", "image_url": {"url": URI}},
        {"type": "image_url", "image_url": URI},
        {"type": "input_image", "image_url": URI},
        {"image_url": URI},
        {"image_url": {"url": URI}, "uuid": "theirs"},
    ],
)
def test_pictures_survive_vllms_own_validation(role: str, image: dict[str, Any]) -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    text = {"type": "text", "text": "?"}
    message = {"role": role, "content": [text, image, image], **({"tool_call_id": "1"} if role == "tool" else {})}
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}, message]}
    found = find_images(body)
    picture = decode(open_header(PNG, Media(), ""), len(PNG), "")
    exchange = Exchange("x", places=[place_of(item) for item in found], pictures=[picture] * len(found))
    _replace_urls(body, exchange)
    request: Any = ChatCompletionRequest.model_validate(body)
    _place_pictures(request.messages, exchange)
    content = request.messages[1]["content"]
    assert [part["type"] for part in content] == ["text", "image_pil", "image_pil"]
    assert content[1]["uuid"] == picture.digest


@pytest.mark.parametrize("content", [[{"type": "text", "text": 3}], [["x"]], [5], [{"type": "text"}], [None]])
def test_content_that_vllm_reads_otherwise_is_placed_or_refused(content: list[Any]) -> None:
    """vLLM keeps some contents as an iterator that is checked when it is read: no picture may get lost there."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    part = {"type": "image_url", "image_url": URI}
    body: dict[str, Any] = {"messages": [{"role": "user", "content": [part, *content]}]}
    picture = decode(open_header(PNG, Media(), ""), 1, "")
    exchange = Exchange("x", places=[(0, 0)], pictures=[picture])
    _replace_urls(body, exchange)
    try:
        request: Any = ChatCompletionRequest.model_validate(body)
        _place_pictures(request.messages, exchange)
    except (ApiError, ValueError) as error:
        assert "content" in str(error)
    else:
        assert request.messages[0]["content"][0]["image_pil"] is picture.image


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3) | st.just("9" * 400),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "name", "function", "json_schema", "x"]), inner)
    ),
    max_leaves=6,
)


def test_validation_gives_a_request_or_an_api_error() -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    endpoint = ChatEndpoint(None, lambda width, height: 0)
    fields = sorted(ChatCompletionRequest.model_fields)
    outcomes = set()

    @settings(max_examples=400, deadline=None)
    @given(st.dictionaries(st.sampled_from(fields), ODD, max_size=4), st.booleans())
    def run(body: dict[str, Any], usual: bool) -> None:
        if usual:
            body["messages"] = [{"role": "user", "content": "x"}]
        exchange = Exchange("x", body=json.dumps(body).encode())
        try:
            endpoint._validate(exchange)
            outcomes.add("request")
        except ApiError as error:
            assert error.status == 400 and error.body()
            outcomes.add("error")

    run()
    assert outcomes == {"request", "error"}
    exchange = Exchange("x", body=b'{"messages": [], "logprob_token_ids": [1]}')
    with pytest.raises(ApiError) as caught:  # an error of vLLM's own that is no ValueError
        endpoint._validate(exchange)
    assert caught.value.param == "logprob_token_ids"


def test_anthropic_sources_are_read_as_vllm_reads_them() -> None:
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages

    for source in (
        {"type": "url", "url": EVIL, "data": "AA"},
        {"type": "base64", "data": "AA", "url": EVIL},
        {"data": "AA", "url": EVIL},
    ):
        taken = AnthropicServingMessages._convert_image_source_to_url(dict(source))
        found = find_images({"messages": [{"role": "user", "content": [{"type": "image", "source": source}]}]})[0]
        assert found.url.partition(",")[2] == taken.partition(",")[2] and found.url.startswith(
            "data:"
        ) == taken.startswith("data:")
        body = {"messages": [{"role": "user", "content": [{"type": "image", "source": source}]}]}
        find_images(body)[0].put("data:image/png;base64,CLEAN")
        clean = body["messages"][0]["content"][0]["source"]  # type: ignore[index]
        assert AnthropicServingMessages._convert_image_source_to_url(clean) == "data:image/png;base64,CLEAN"


def test_vllms_own_loading_goes_through_the_screener(monkeypatch: pytest.MonkeyPatch, chat_utils: Any) -> None:
    from vllm import envs
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

    from serving.connector import install

    monkeypatch.setenv("VLLM_MEDIA_CONNECTOR", "http")  # so that it is restored
    install(Media(image_pixels=960))
    connector = MEDIA_CONNECTOR_REGISTRY.load(
        envs.VLLM_MEDIA_CONNECTOR, media_io_kwargs={"image": {"image_mode": None}}
    )
    assert asyncio.run(connector.fetch_image_async(URI)).size == (40, 24)
    large = "data:image/png;base64," + base64.b64encode(encode(scene((40, 25)))).decode()
    for url in (large, EVIL, "file:///etc/passwd"):
        with pytest.raises(ValueError):
            asyncio.run(connector.fetch_image_async(url))
    for load in (connector.fetch_video_async, connector.fetch_audio_async):
        with pytest.raises(ValueError, match="only images"):
            asyncio.run(load(EVIL))
    with pytest.raises(ValueError, match="only images"):
        connector.fetch_image(URI)


def test_every_served_route_of_vllm_is_meant_and_the_rest_is_not() -> None:
    """The routes of vLLM's app for a generating model: each is either served or for operators; a new one fails here."""
    from argparse import Namespace

    from fastapi import FastAPI
    from vllm.entrypoints.launchers.api_server.routers import register_api_routers

    from serving.replica import SERVED

    app = FastAPI()
    app.state.args = Namespace(tokens_only=False)
    register_api_routers(Namespace(), app, ("generate",), None)
    paths = {str(getattr(route, "path", "")) for route in app.routes}
    refused = {path for path in paths if not SERVED.fullmatch(path)}
    assert "/v1/chat/completions" in paths - refused
    assert refused <= {
        "/health",  # answered by the replica itself
        "/scale_elastic_ep", "/is_scaling_elastic_ep", "/inference/v1/generate", "/invocations", "/generative_scoring",
        "/v1/chat/completions/render", "/v1/completions/render", "/v1/messages/render", "/v1/chat/completions/derender",
        "/v1/completions/derender",
    }, refused  # fmt: skip
