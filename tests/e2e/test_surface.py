"""vLLM's OpenAI surface through the whole path, asked by the unmodified `openai` client."""

from __future__ import annotations

import json
import math

import openai
import pytest

from tests.e2e.conftest import HTTP, Running
from tests.e2e.pictures import ask, data_uri, draw, encode

pytestmark = pytest.mark.e2e
MODEL = "fovea-qwen"
COLOR = "what color is the shape?"


@pytest.mark.parametrize(("shape", "color"), [("circle", "red"), ("rectangle", "blue"), ("triangle", "green")])
def test_answers_about_an_image_are_true(qwen: Running, shape: str, color: str) -> None:
    picture = encode(draw(shape, color))
    for question, truth in ((COLOR, color), ("what shape is in the image?", shape), (f"is there a {shape}?", "yes")):
        answer = qwen.client.chat.completions.create(
            model=MODEL, messages=ask(question, picture), max_tokens=8, temperature=0
        )
        assert answer.choices[0].message.content == truth
        assert answer.choices[0].finish_reason == "stop"


def test_several_images_take_their_tokens(qwen: Running) -> None:
    picture = encode(draw())
    one, two = (
        qwen.client.chat.completions.create(model=MODEL, messages=ask(COLOR, *[picture] * n), max_tokens=1).usage
        for n in (1, 2)
    )
    assert one is not None and two is not None
    assert two.prompt_tokens - one.prompt_tokens == 16 + 2  # 4x4 picture tokens, and the two marks around them


def test_text_alone(qwen: Running) -> None:
    answer = qwen.client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "hello"}], max_tokens=4
    )
    assert answer.usage is not None and 1 <= answer.usage.completion_tokens <= 4


def test_stream_with_usage_says_the_same_as_the_whole_answer(qwen: Running) -> None:
    messages = ask("describe the image.", encode(draw("triangle", "yellow")))
    whole = qwen.client.chat.completions.create(model=MODEL, messages=messages, max_tokens=16, temperature=0)
    stream = qwen.client.chat.completions.create(
        model=MODEL,
        messages=messages,
        max_tokens=16,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content == "a yellow triangle"
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_logprobs_are_probabilities(qwen: Running) -> None:
    answer = qwen.client.chat.completions.create(
        model=MODEL, messages=ask(COLOR, encode(draw())), max_tokens=4, temperature=0, logprobs=True, top_logprobs=5
    )
    assert answer.choices[0].logprobs is not None and answer.choices[0].logprobs.content
    first = answer.choices[0].logprobs.content[0]
    assert first.token.strip() == "red" and math.exp(first.logprob) > 0.5
    assert len(first.top_logprobs) == 5 and sum(math.exp(t.logprob) for t in first.top_logprobs) <= 1.001


def test_json_schema(qwen: Running) -> None:
    schema = {
        "type": "object",
        "properties": {
            "shape": {"enum": ["circle", "rectangle", "triangle"]},
            "color": {"enum": ["red", "blue", "green"]},
        },
        "required": ["shape", "color"],
        "additionalProperties": False,
    }
    answer = qwen.client.chat.completions.create(
        model=MODEL,
        messages=ask("give the shape and the color as JSON.", encode(draw("rectangle", "blue"))),
        max_tokens=40,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "scene", "schema": schema}},
    )
    assert json.loads(answer.choices[0].message.content or "") == {"shape": "rectangle", "color": "blue"}


def test_tool_call(qwen: Running) -> None:
    parameters = {
        "type": "object",
        "properties": {"color": {"enum": ["red", "blue"]}},
        "required": ["color"],
        "additionalProperties": False,
    }
    answer = qwen.client.chat.completions.create(
        model=MODEL,
        messages=ask(COLOR, encode(draw())),
        max_tokens=64,
        temperature=0,
        tools=[{"type": "function", "function": {"name": "paint", "parameters": parameters}}],
        tool_choice={"type": "function", "function": {"name": "paint"}},
    )
    calls = answer.choices[0].message.tool_calls
    assert calls and calls[0].type == "function" and calls[0].function.name == "paint"
    assert json.loads(calls[0].function.arguments)["color"] in ("red", "blue")


def test_completions_models_tokenize(qwen: Running) -> None:
    assert qwen.client.completions.create(model=MODEL, prompt="is there", max_tokens=3).usage is not None
    assert [entry.id for entry in qwen.client.models.list()] == [MODEL]
    tokens = HTTP.post(f"{qwen.base}/tokenize", json={"model": MODEL, "prompt": "a red circle"}).json()["tokens"]
    text = HTTP.post(f"{qwen.base}/detokenize", json={"model": MODEL, "tokens": tokens}).json()["prompt"]
    assert text == "a red circle"


def test_responses_and_messages_apis_see_the_image(qwen: Running) -> None:
    picture = encode(draw("circle", "blue"))
    answer = qwen.client.responses.create(
        model=MODEL,
        input=[
            {
                "role": "user",
                "content": [
                    {"type": "input_image", "image_url": data_uri(picture), "detail": "auto"},
                    {"type": "input_text", "text": COLOR},
                ],
            }
        ],
        max_output_tokens=8,
        temperature=0,
    )
    assert answer.output_text == "blue"
    import base64

    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(picture).decode()}
    body = {
        "model": MODEL,
        "max_tokens": 8,
        "temperature": 0,
        "messages": [
            {"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": COLOR}]}
        ],
    }
    assert HTTP.post(f"{qwen.url}/messages", json=body, timeout=60).json()["content"][0]["text"] == "blue"


def test_unknown_model_is_404(qwen: Running) -> None:
    with pytest.raises(openai.NotFoundError):
        qwen.client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "hello"}])


def test_probes_and_metrics(qwen: Running) -> None:
    assert HTTP.get(f"{qwen.base}/health").json()["status"] == "ok"
    ready = HTTP.get(f"{qwen.base}/ready")
    assert ready.status_code == 200 and ready.json()["answered_s_ago"] < 30
    from prometheus_client.parser import text_string_to_metric_families

    def count() -> float:
        text = HTTP.get(f"{qwen.base}/metrics").text
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
        names = {sample.name for sample in samples}
        for needed in (
            "fovea_first_byte_seconds_count",
            "fovea_image_tokens_total",
            "vllm:num_requests_running",
            "vllm:generation_tokens_total",
            "vllm:time_to_first_token_seconds_count",
            "vllm:inter_token_latency_seconds_count",
            "vllm:request_queue_time_seconds_count",
            "vllm:e2e_request_latency_seconds_count",
            "vllm:iteration_tokens_total_count",
        ):
            assert needed in names, needed
        return sum(s.value for s in samples if s.name == "fovea_images_total")

    before = count()
    qwen.client.chat.completions.create(model=MODEL, messages=ask(COLOR, encode(draw()), encode(draw())), max_tokens=1)
    assert count() - before >= 2  # the canary may have asked as well


def test_request_id_comes_back(qwen: Running) -> None:
    answer = HTTP.get(f"{qwen.url}/models", headers={"x-request-id": "mine-1"})
    assert answer.headers.get_list("x-request-id") == ["mine-1"]
    assert len(HTTP.get(f"{qwen.url}/models").headers["x-request-id"]) >= 16
