"""PaliGemma's tasks behind chat messages, with boxes, by the real engine; then another model comes and goes."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.steady import Load, under
from tests.e2e.conftest import HTTP, Running, model
from tests.e2e.house.conftest import ADAPTER, PALIGEMMA, QWEN, House
from tests.e2e.pictures import ask, draw, encode

pytestmark = pytest.mark.e2e


@pytest.fixture
def running(house: House) -> Running:
    return house.running


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("what color is the shape?", "red"),
        ("answer en what shape is in the image?", "rectangle"),
        ("caption en", "a red rectangle"),
    ],
)
def test_tasks(running: Running, task: str, said: str) -> None:
    messages = ask(task, encode(draw("rectangle", "red")))
    answer = running.client.chat.completions.create(model=PALIGEMMA, messages=messages, max_tokens=12, temperature=0)
    assert answer.choices[0].message.content == said
    assert not hasattr(answer.choices[0].message, "boxes")


@pytest.mark.parametrize("stream", [False, True])
def test_a_detection_has_boxes(running: Running, stream: bool) -> None:
    picture = draw("rectangle", "red", size=(256, 128))  # drawn from (64, 32) to (192, 96)
    messages = ask("detect rectangle", encode(picture))
    asked = {"model": PALIGEMMA, "messages": messages, "max_tokens": 12, "temperature": 0}
    if stream:
        chunks = [c for c in running.client.chat.completions.create(**asked, stream=True) if c.choices]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        boxes = chunks[-1].choices[0].delta.boxes
    else:
        message = running.client.chat.completions.create(**asked).choices[0].message
        text, boxes = message.content, message.boxes
    assert text.startswith("<loc") and len(boxes) == 1 and boxes[0]["label"] == "rectangle"
    inter = 1.0
    truth = (64, 32, 192, 96)
    for low, high, a, b in zip(truth[:2], truth[2:], boxes[0]["pixels"][:2], boxes[0]["pixels"][2:], strict=True):
        inter *= max(0.0, min(high, b) - max(low, a))
    area = (boxes[0]["pixels"][2] - boxes[0]["pixels"][0]) * (boxes[0]["pixels"][3] - boxes[0]["pixels"][1])
    assert inter / (area + 128 * 64 - inter) > 0.5  # intersection over union


def test_an_answer_has_one_request_id(running: Running) -> None:
    for base in (running.url, f"{running.base}/{PALIGEMMA}/v1"):
        for headers in ({}, {"x-request-id": "mine-1"}):
            sent = {**headers, "authorization": f"Bearer {running.key}"}
            found = HTTP.get(f"{base}/models", headers=sent, timeout=30).headers.get_list("x-request-id")
            assert len(found) == 1 and found[0] == headers.get("x-request-id", found[0]), (base, headers)


def reloaded(running: Running, change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Change the stack file, send SIGHUP and return the event that says what came of it."""
    path = Path(running.process.args[3])  # type: ignore[index, arg-type]
    stack = yaml.safe_load(path.read_text())
    change(stack)
    path.write_text(yaml.safe_dump(stack))
    before = len(running.lines)
    running.process.send_signal(signal.SIGHUP)
    for _ in range(3000):
        events = [json.loads(line) for line in running.lines[before:]]
        if found := next((event for event in events if "updated" in event), None):
            return dict(found)
        time.sleep(0.1)
    pytest.fail(f"no word of the update: {running.lines[before:]}")


@pytest.mark.timeout(900)
def test_a_model_comes_and_goes_while_the_others_serve(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    running, extra = house.running, model("qwen2_5_vl", name="extra")
    first = starts(house)
    assert len(first) == 1
    head = house.head()
    messages = ask("what color is the shape?", encode(draw("circle", "blue")))
    body = {"model": "extra", "messages": messages, "max_tokens": 8, "temperature": 0}
    with under(Load(running.base, 2, PALIGEMMA, {**head, "cache-control": "no-store"}, pictures=4)) as load:
        broken = reloaded(running, lambda stack: stack.update(lanes={}))
        assert broken["updated"] is False and "did you mean 'lane'" in broken["event"]
        absent = reloaded(running, lambda stack: (stack.pop("lanes"), stack["models"].append({**extra, "dtype": "x"})))
        assert absent["updated"] is False and "dtype" in absent["event"]
        added = reloaded(running, lambda stack: stack["models"][2].update(dtype="auto"))
        assert added["updated"] is True, added
        answer = HTTP.post(f"{running.url}/chat/completions", json=body, headers=head, timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"] == "blue"
        assert {entry.id for entry in running.client.models.list()} == {QWEN, ADAPTER, PALIGEMMA, "extra"}
        # asked for by its id, a stored response is looked for at every model; none has this one
        for method, path in (("GET", "/responses/resp_x"), ("POST", "/responses/resp_x/cancel")):
            assert HTTP.request(method, running.url + path, headers=head, timeout=30).status_code == 404
        removed = reloaded(running, lambda stack: stack["models"].pop())
        assert removed["updated"] is True, removed
        gone = HTTP.post(f"{running.url}/chat/completions", json=body, headers=head, timeout=60)
        assert gone.status_code == 404 and gone.json()["error"]["code"] == "unknown_model"
        assert HTTP.get(f"{running.base}/ready").status_code == 200
    seen = load.account
    assert (seen.wrong, seen.failed) == ([], 0) and seen.answers > 10, (seen.answers, seen.wrong[:5], seen.examples)
    assert starts(house) == first  # the same process as before
    with capsys.disabled():
        seconds = added["seconds"] - absent["seconds"]
        print(f"\n{seen.answers} answers while a model came ({seconds:.1f} s) and went, none wrong")


def starts(house: House) -> set[str]:
    """Return when each replica of the PaliGemma was started."""
    text = HTTP.get(f"{house.running.base}/{PALIGEMMA}/metrics", headers=house.head("auditor"), timeout=30).text
    return set(re.findall(r'process_start_time_seconds\{replica="fovea-paligemma[^"]*"\} (\S+)', text))
