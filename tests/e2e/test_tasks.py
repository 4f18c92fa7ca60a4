"""PaliGemma's tasks behind chat messages, with boxes, by the real engine; then another model comes and goes."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.e2e.conftest import Running, model, served
from tests.e2e.pictures import ask, draw, encode

pytestmark = pytest.mark.e2e
NAME = "fovea-paligemma"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    # with a front, so that another model can be added
    stack: dict[str, object] = {"models": [model("paligemma", images_per_prompt=1, boxes=True)], "front": "always"}
    with served(stack, tmp_path_factory.mktemp("tasks")) as one:
        yield one


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
    answer = running.client.chat.completions.create(model=NAME, messages=messages, max_tokens=12, temperature=0)
    assert answer.choices[0].message.content == said
    assert not hasattr(answer.choices[0].message, "boxes")


@pytest.mark.parametrize("stream", [False, True])
def test_a_detection_has_boxes(running: Running, stream: bool) -> None:
    picture = draw("rectangle", "red", size=(256, 128))  # drawn from (64, 32) to (192, 96)
    messages = ask("detect rectangle", encode(picture))
    asked = {"model": NAME, "messages": messages, "max_tokens": 12, "temperature": 0}
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
    for base in (running.url, f"{running.base}/{NAME}/v1"):
        for headers in ({}, {"x-request-id": "mine-1"}):
            found = httpx.get(f"{base}/models", headers=headers, timeout=30).headers.get_list("x-request-id")
            assert len(found) == 1 and found[0] == headers.get("x-request-id", found[0]), (base, headers)


class Steady:
    """Asks the same question from two threads, over connections that are kept, and keeps what is not the answer."""

    def __init__(self, running: Running):
        self.running, self.answered, self.wrong = running, 0, list[str]()
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self.ask) for _ in range(2)]

    def ask(self) -> None:
        messages = ask("what color is the shape?", encode(draw("circle", "green")))
        body = {"model": NAME, "messages": messages, "max_tokens": 8, "temperature": 0}
        with httpx.Client(timeout=120) as client:
            while not self.stop.is_set():
                try:
                    answer = client.post(f"{self.running.url}/chat/completions", json=body)
                    said = answer.json()["choices"][0]["message"]["content"] if answer.status_code == 200 else ""
                    if said != "green":
                        self.wrong.append(f"{answer.status_code} {answer.text[:300]}")
                    self.answered += 1
                except httpx.HTTPError as error:
                    self.wrong.append(repr(error))
                time.sleep(0.02)

    def __enter__(self) -> Steady:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(130)


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
def test_a_model_comes_and_goes_while_the_other_serves(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """Last in this file: it changes the stack."""
    first = starts(running)
    assert len(first) == 1
    qwen = model("qwen2_5_vl")
    messages = ask("what color is the shape?", encode(draw("circle", "blue")))
    body = {"model": "fovea-qwen", "messages": messages, "max_tokens": 8, "temperature": 0}
    with Steady(running) as load:
        broken = reloaded(running, lambda stack: stack.update(lanes={}))
        assert broken["updated"] is False and "did you mean 'lane'" in broken["event"]
        absent = reloaded(running, lambda stack: (stack.pop("lanes"), stack["models"].append({**qwen, "dtype": "x"})))
        assert absent["updated"] is False and "dtype" in absent["event"]
        added = reloaded(running, lambda stack: stack["models"][1].update(dtype="auto"))
        assert added["updated"] is True, added
        answer = httpx.post(f"{running.url}/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"] == "blue"
        assert {entry.id for entry in running.client.models.list()} == {NAME, "fovea-qwen"}
        # asked for by its id, a stored response is looked for at every model; neither has this one
        for method, path in (("GET", "/responses/resp_x"), ("POST", "/responses/resp_x/cancel")):
            assert httpx.request(method, running.url + path, timeout=30).status_code == 404
        removed = reloaded(running, lambda stack: stack["models"].pop())
        assert removed["updated"] is True, removed
        gone = httpx.post(f"{running.url}/chat/completions", json=body, timeout=60)
        assert gone.status_code == 404 and gone.json()["error"]["code"] == "unknown_model"
        assert httpx.get(f"{running.base}/ready").status_code == 200
    assert load.wrong == [] and load.answered > 10, (load.answered, len(load.wrong), load.wrong[:5])
    assert starts(running) == first  # the same process as before
    with capsys.disabled():
        seconds = added["seconds"] - absent["seconds"]
        print(f"\n{load.answered} answers while a model came ({seconds:.1f} s) and went, none wrong")


def starts(running: Running) -> set[str]:
    """Return when each replica of the first model was started."""
    text = httpx.get(f"{running.base}/{NAME}/metrics", timeout=30).text
    return set(re.findall(r'process_start_time_seconds\{replica="fovea-paligemma[^"]*"\} (\S+)', text))
