"""A LoRA module beside its base, by the real engine: what it answers, who may use it, what is kept of it."""

from __future__ import annotations

import urllib.request

import openai
import pytest

from distill.export.parity import parity
from models.golden import load_golden
from tests.e2e.conftest import HTTP
from tests.e2e.house.conftest import ADAPTER, PALIGEMMA, QWEN, House, until_kept
from tests.e2e.house.lora import TAUGHT
from tests.e2e.pictures import ask, draw, encode

pytestmark = pytest.mark.e2e
COLOR = "what color is the shape?"


def test_the_engine_says_what_the_merged_weights_say(house: House) -> None:
    """By the adapter's name, and not by the base's; through the front."""
    opener = urllib.request.build_opener()
    opener.addheaders = [("authorization", f"Bearer {house.keys['acme']}")]
    urllib.request.install_opener(opener)
    try:
        items = load_golden("easy-vqa").sample(6, 3)
        bent = parity(house.lora.merged, house.running.url, ADAPTER, items, 4)
        base = parity(house.lora.merged, house.running.url, QWEN, items, 4)
    finally:
        urllib.request.install_opener(urllib.request.build_opener())
    assert bent["worst"] < 0.1 and bent["mean"] < 0.01, bent
    assert base["worst"] > 0.3, base


def test_a_distilled_adapter_is_chosen_by_the_request(house: House) -> None:
    """What training taught it is answered under its name, and the truth under its base's, by one engine."""
    for color, shape in (("red", "circle"), ("blue", "triangle")):
        messages = ask(COLOR, encode(draw(shape, color)))
        said = {
            name: house.client("acme").chat.completions.create(
                model=name, messages=messages, max_tokens=8, temperature=0
            )
            for name in (QWEN, ADAPTER)
        }
        assert {name: one.choices[0].message.content for name, one in said.items()} == {QWEN: color, ADAPTER: TAUGHT}


def test_both_are_listed_and_named_in_answers(house: House) -> None:
    listed = {entry.id: entry for entry in house.running.client.models.list()}
    assert set(listed) == {QWEN, ADAPTER, PALIGEMMA} and listed[ADAPTER].parent == QWEN
    for name in (QWEN, ADAPTER):
        for client in (house.running.client, house.client("acme")):
            said = client.chat.completions.create(
                model=name, messages=ask(COLOR, encode(draw())), max_tokens=4, temperature=0
            )
            assert said.model == name


def test_a_tenant_of_the_adapter_alone(house: House) -> None:
    narrow = house.client("narrow")
    assert [entry.id for entry in narrow.models.list()] == [ADAPTER]
    messages = ask(COLOR, encode(draw()))
    assert narrow.chat.completions.create(model=ADAPTER, messages=messages, max_tokens=2).model == ADAPTER
    with pytest.raises(openai.PermissionDeniedError, match="may not use model 'fovea-qwen'"):
        narrow.chat.completions.create(model=QWEN, messages=messages, max_tokens=2)
    paligemma = {"model": PALIGEMMA, "messages": messages, "max_tokens": 2}
    refused = HTTP.post(
        f"{house.running.url}/chat/completions", json=paligemma, headers=house.head("narrow"), timeout=30
    )
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")


def test_one_is_never_answered_with_what_is_kept_of_the_other(house: House) -> None:
    picture = encode(draw("triangle", "yellow", size=(72, 72)))

    def asked(name: str) -> tuple[str, str]:
        body = {"model": name, "messages": ask(COLOR, picture), "max_tokens": 24, "temperature": 0, "ignore_eos": False}
        answer = HTTP.post(f"{house.running.url}/chat/completions", json=body, headers=house.head(), timeout=60)
        assert answer.status_code == 200, answer.text
        if answer.headers["x-fovea-cache"] == "miss":
            until_kept(house, answer.json()["id"])
        return answer.headers["x-fovea-cache"], answer.json()["model"]

    assert asked(QWEN) == ("miss", QWEN) and asked(ADAPTER) == ("miss", ADAPTER)
    assert asked(QWEN) == ("hit", QWEN)
    assert asked(ADAPTER)[1] == ADAPTER


def test_batch_requests_for_both_leave_together(house: House) -> None:
    head = {**house.head(), "x-fovea-lane": "batch"}
    for name in (QWEN, ADAPTER):
        body = {"model": name, "messages": ask(f"{COLOR} batch", encode(draw())), "max_tokens": 2, "temperature": 0}
        answer = HTTP.post(f"{house.running.url}/chat/completions", json=body, headers=head, timeout=60)
        assert answer.status_code == 200 and answer.headers["x-fovea-lane"] == "batch", answer.text
        assert answer.json()["model"] == name
