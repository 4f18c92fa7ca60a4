"""Two families, one of them twice, behind the front."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import HTTP
from tests.e2e.house.conftest import ADAPTER, PALIGEMMA, QWEN, House
from tests.e2e.pictures import ask, draw, encode

pytestmark = pytest.mark.e2e


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [QWEN, PALIGEMMA])
def test_both_families_answer_by_name(house: House, name: str) -> None:
    stack = house.running
    for shape, color in (("circle", "red"), ("rectangle", "blue")):
        messages = ask("what color is the shape?", encode(draw(shape, color)))
        for base in (stack.url, f"{stack.base}/{name}/v1"):
            body = {"model": name, "messages": messages, "max_tokens": 8, "temperature": 0}
            answer = HTTP.post(f"{base}/chat/completions", json=body, headers=house.head(), timeout=60)
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["message"]["content"] == color


def test_the_front_streams_lists_and_refuses(house: House) -> None:
    stack, head = house.running, house.head()
    stream = stack.client.chat.completions.create(
        model=PALIGEMMA,
        messages=ask("caption en", encode(draw("triangle", "green"))),
        max_tokens=12,
        temperature=0,
        stream=True,
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == "a green triangle"
    assert {entry.id for entry in stack.client.models.list()} == {QWEN, ADAPTER, PALIGEMMA}
    unknown = HTTP.post(f"{stack.url}/chat/completions", json={"model": "other", "messages": []}, headers=head)
    assert unknown.status_code == 404 and PALIGEMMA in unknown.json()["error"]["message"]
    asked = {"model": QWEN, "messages": ask("?", b"no image")}
    bad = HTTP.post(f"{stack.url}/chat/completions", json=asked, headers=head)
    assert bad.status_code == 400 and bad.json()["error"]["param"].startswith("messages[0]")


def test_metrics_add_up_over_replicas(house: House) -> None:
    def answered() -> dict[str, float]:
        text = HTTP.get(f"{house.running.base}/metrics", headers=house.head("auditor")).text
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for s in family.samples:
                if s.name == "vllm:request_success_total" and s.labels["model_name"] == QWEN:
                    found[s.labels["replica"]] = found.get(s.labels["replica"], 0) + s.value
        return found

    before = answered()
    for number in range(12):
        message = [{"role": "user", "content": f"question {number}"}]
        assert house.post("acme", messages=message, max_tokens=1).status_code == 200
    after = answered()
    assert len(before) == len(after) == 2
    gained = [after[replica] - before[replica] for replica in after]
    assert sum(gained) >= 12 and min(gained) >= 1  # both replicas took part; canaries may add to it
