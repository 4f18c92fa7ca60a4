"""PaliGemma's tasks behind chat messages, with boxes, by the real engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Running, model, served
from tests.e2e.pictures import ask, draw, encode

pytestmark = pytest.mark.e2e
NAME = "fovea-paligemma"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    stack: dict[str, object] = {"models": [model("paligemma", images_per_prompt=1, boxes=True)]}
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
