"""Each API's bodies and replies; the byte scan of content events agrees with parsing them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.apis import APIS, Anthropic, Gemini, Message, OpenAI, Part, make_api
from models.support.errors import UsageError

PICTURE = Part("image", data=b"\x89PNG", media_type="image/png")
TALK = (Message("system", (Part("text", "be short"),)), Message("user", (PICTURE, Part("text", "what?"))))


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


@given(st.text(), st.booleans(), st.booleans())
def test_openai_scan_agrees_with_parsing(text: str, compact: bool, role: bool) -> None:
    delta = {"content": text} | ({"role": "assistant"} if role else {})
    separators = (",", ":") if compact else (", ", ": ")
    event = json.dumps(chunk(delta), separators=separators, ensure_ascii=compact).encode("utf-8", "surrogatepass")
    if "\\ud" not in event.decode("utf-8", "replace"):
        assert OpenAI().has_content(event) == bool(text)


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        ({"content": None}, False),
        ({}, False),
        ({"content": '"content":""'}, True),
        ({"content": None, "tool_calls": [{"index": 0}]}, True),
        ({"content": "", "reasoning_content": "hm"}, True),
        ({"reasoning": "hm"}, True),
    ],
)
def test_openai_events_with_and_without_content(delta: dict[str, Any], expected: bool) -> None:
    assert OpenAI().has_content(json.dumps(chunk(delta), separators=(",", ":")).encode()) is expected


def test_openai_stream_is_put_together() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 2}
    values = [
        chunk({"content": "tri"}),
        chunk({"content": "angle"}),
        chunk({}, "stop"),
        {"choices": [], "usage": usage},
    ]
    events = [json.dumps(v, separators=(",", ":")).encode() for v in values] + [b"[DONE]"]
    reply = OpenAI().read_stream(events, text=True)
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens) == ("triangle", 9, 2)
    assert OpenAI().read_stream(events, text=False).completion_tokens == 2
    assert OpenAI().finished(events) and OpenAI().finished(events[:-1]) and not OpenAI().finished(events[:2])


def test_openai_body_streams_with_usage() -> None:
    body = OpenAI().body("m", TALK, {"max_tokens": 3}, stream=True)
    assert body["stream_options"] == {"include_usage": True}
    assert body["messages"][0] == {"role": "system", "content": "be short"}
    assert body["messages"][1]["content"][0]["image_url"]["url"] == "data:image/png;base64,iVBORw=="


def test_anthropic_body_and_stream() -> None:
    body = Anthropic().body("m", TALK, {}, stream=True)
    assert body["system"] == "be short" and body["max_tokens"] == 256
    assert body["messages"][0]["content"][0]["source"]["media_type"] == "image/png"
    events = [
        b'{"type":"message_start","message":{"usage":{"input_tokens":11,"output_tokens":1}}}',
        b'{"type":"content_block_delta","delta":{"type":"text_delta","text":"yes"}}',
        b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":4}}',
        b'{"type":"message_stop"}',
    ]
    assert [Anthropic().has_content(e) for e in events] == [False, True, False, False]
    reply = Anthropic().read_stream(events, text=True)
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens) == ("yes", 11, 4)
    assert Anthropic().finished(events) and not Anthropic().finished(events[:2])


def test_gemini_body_and_stream() -> None:
    gemini = Gemini()
    assert gemini.path("/v1beta", "g", True) == "/v1beta/models/g:streamGenerateContent?alt=sse"
    body = gemini.body("g", TALK, {"max_tokens": 5, "temperature": 0}, stream=True)
    assert body["generationConfig"] == {"maxOutputTokens": 5, "temperature": 0}
    assert body["contents"][0]["parts"][0]["inlineData"]["mimeType"] == "image/png"
    event = b'{"candidates":[{"content":{"parts":[{"text":"ok"}]},"finishReason":"STOP"}],"usageMetadata":'
    event += b'{"promptTokenCount":8,"candidatesTokenCount":1}}'
    reply = gemini.read_stream([event], text=True)
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens) == ("ok", 8, 1)
    assert gemini.has_content(event) and gemini.finished([event])


@pytest.mark.parametrize("name", list(APIS))
@given(
    body=st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        [
                            "choices",
                            "message",
                            "content",
                            "usage",
                            "error",
                            "candidates",
                            "text",
                            "parts",
                            "prompt_tokens",
                            "usageMetadata",
                            "promptTokenCount",
                        ]
                    ),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=12,
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_any_body_is_read_or_refused(name: str, body: bytes) -> None:
    api = make_api(name)
    try:
        reply = api.read_body(body)
    except ValueError:
        return
    assert isinstance(reply.text, str) and -1 <= reply.completion_tokens < 2**31


def test_unknown_api() -> None:
    with pytest.raises(UsageError, match="openai, anthropic, gemini"):
        make_api("soap")
