"""Unmodified clients through every layer: OpenAI's, Anthropic's, LangChain's; streams and tool calls."""

from __future__ import annotations

import base64
import json
from typing import Any

import anthropic
import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from tests.e2e.house.conftest import ADAPTER, QWEN, House
from tests.e2e.pictures import ask, draw, encode

pytestmark = pytest.mark.e2e


@pytest.mark.timeout(900)
def test_vendor_clients_work_with_their_own_ways_to_send_a_key(house: House) -> None:
    picture = encode(draw("circle", "red"))
    answer = house.client("acme").chat.completions.create(
        model=QWEN, messages=ask("what color is the shape?", picture), max_tokens=8, temperature=0
    )
    assert answer.choices[0].message.content == "red"
    stream = house.client("acme").chat.completions.create(
        model=QWEN, messages=ask("what color is the shape?", picture), max_tokens=8, temperature=0, stream=True
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "red"
    claude = anthropic.Anthropic(base_url=house.qwen.base, api_key=house.keys["acme"], max_retries=0)
    said = claude.messages.create(model=QWEN, max_tokens=4, messages=[{"role": "user", "content": "is it red?"}])
    assert said.content and said.usage.output_tokens
    assert [entry.id for entry in house.client("acme").models.list()] == [QWEN, ADAPTER]


PAINT = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}},
    "required": ["color"],
    "additionalProperties": False,
}


def test_langchain_through_every_layer(house: House) -> None:
    """LangChain's OpenAI client as it comes: whole answers, streams, tool calls, structured output."""
    chat = ChatOpenAI(
        base_url=house.qwen.url, api_key=SecretStr(house.keys["acme"]), model=QWEN, temperature=0, max_retries=0,
        timeout=120, max_completion_tokens=64,
    )  # fmt: skip
    messages = [HumanMessage(ask("what color is the shape?", encode(draw("circle", "blue")))[0]["content"])]
    first = chat.invoke(messages)
    assert first.content == "blue" and first.usage_metadata is not None and first.usage_metadata["output_tokens"]
    assert chat.invoke(messages).content == "blue"  # the same, from memory or not
    chunks = list(chat.stream(messages))
    assert "".join(str(chunk.content) for chunk in chunks) == "blue" and len(chunks) > 1
    tool = {"type": "function", "function": {"name": "paint", "description": "paint it", "parameters": PAINT}}
    painter = chat.bind_tools([tool], tool_choice="paint")
    called = painter.invoke(messages)
    assert isinstance(called, AIMessage)
    (call,) = called.tool_calls
    assert call["name"] == "paint" and call["args"]["color"] in ("red", "blue")
    whole: Any = None
    for chunk in painter.stream(messages):
        whole = chunk if whole is None else whole + chunk
    (streamed,) = whole.tool_calls
    assert streamed["name"] == "paint" and streamed["args"] == call["args"]
    answered = [*messages, called, ToolMessage("done", tool_call_id=str(call["id"]))]
    assert chat.bind_tools([tool]).invoke(answered).response_metadata["finish_reason"]
    schema = {"title": "Scene", "description": "a scene", **PAINT}
    found = chat.with_structured_output(schema, method="json_schema").invoke(messages)
    assert isinstance(found, dict) and found["color"] in ("red", "blue")
    with pytest.raises(openai.AuthenticationError):
        ChatOpenAI(base_url=house.qwen.url, api_key=SecretStr("none"), model=QWEN, max_retries=0).invoke("?")


def test_tools_by_the_other_clients(house: House) -> None:
    picture = encode(draw("circle", "blue"))
    claude = anthropic.Anthropic(base_url=house.qwen.base, api_key=house.keys["acme"], max_retries=0)
    source: Any = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(picture).decode()}
    content: Any = [{"type": "image", "source": source}, {"type": "text", "text": "what color is the shape?"}]
    tools: Any = [{"name": "paint", "description": "paint it", "input_schema": PAINT}]
    asked: Any = {
        "model": QWEN, "max_tokens": 64, "messages": [{"role": "user", "content": content}], "tools": tools,
        "tool_choice": {"type": "tool", "name": "paint"},
    }  # fmt: skip
    said = claude.messages.create(**asked)
    used = [block for block in said.content if block.type == "tool_use"]
    assert len(used) == 1 and used[0].name == "paint" and used[0].input["color"] in ("red", "blue")
    with claude.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    assert [block.name for block in final.content if block.type == "tool_use"] == ["paint"]
    function: Any = {"type": "function", "function": {"name": "paint", "parameters": PAINT}}
    choice: Any = {"type": "function", "function": {"name": "paint"}}
    arguments = ""
    for chunk in house.client("acme").chat.completions.create(
        model=QWEN, messages=ask("what color is the shape?", picture), max_tokens=64, temperature=0, stream=True,
        tools=[function], tool_choice=choice,
    ):  # fmt: skip
        for delta in chunk.choices[0].delta.tool_calls or () if chunk.choices else ():
            arguments += (delta.function.arguments if delta.function else None) or ""
    assert json.loads(arguments)["color"] in ("red", "blue")
