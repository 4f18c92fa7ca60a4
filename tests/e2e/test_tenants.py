"""Keys, tenants and their limits in front of the real engine: two replicas, unmodified vendor clients."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import psutil
import pytest
import yaml
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from tests.e2e.conftest import ROOT, Running, model, served
from tests.e2e.pictures import ask, draw, encode

pytestmark = pytest.mark.e2e
NAME = "fovea-qwen"
TENANTS: list[dict[str, Any]] = [
    {"name": "acme"},
    {"name": "small", "limits": {"requests_per_minute": 5}},
    {"name": "pictures", "limits": {"image_tokens_per_minute": 40}},
    {"name": "poor", "limits": {"usd_per_month": "0.005"}},
]


@dataclass
class House:
    """The served stack and a key of every kind."""

    running: Running
    keys: dict[str, str]

    def client(self, who: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.running.url, api_key=self.keys[who], max_retries=0, timeout=120)

    def post(self, who: str, path: str = "/chat/completions", **body: Any) -> httpx.Response:
        message = [{"role": "user", "content": "is there a circle?"}]
        whole = {"model": NAME, "messages": message, "max_tokens": 4, "temperature": 0, **body}
        # what is counted here must not be answered from memory
        headers = {"authorization": f"Bearer {self.keys[who]}", "cache-control": "no-store"}
        return httpx.post(self.running.url + path, json=whole, headers=headers, timeout=60)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("tenants")
    stack: dict[str, object] = {
        "models": [model("qwen2_5_vl", replicas=2, engine_args={"tool_call_parser": "hermes"})],
        "identify": {"keys": str(folder / "keys.db"), "tenants": TENANTS, "refresh_s": 0.2},
        "admit": {"store": str(folder / "limits.db"), "queue_s": 0},
        "recall": {"store": str(folder / "answers.db"), "semantic": {}},
        "lane": {"window": "on"},
        "batches": {"folder": str(folder / "batches")},
        "money": {"usd_per_hour": "3.6", "capacity_rps": "1"},
    }
    file = folder / "stack.yaml"
    file.write_text(yaml.safe_dump(stack))
    keys = {}
    for tenant, role in [(str(one["name"]), "caller") for one in TENANTS] + [("acme", "operator"), ("acme", "auditor")]:
        command = [sys.executable, str(ROOT / "fovea.py"), "keys", "create", "--stack", str(file), "--json"]
        done = subprocess.run([*command, "--tenant", tenant, "--role", role], capture_output=True, check=True)
        keys[tenant if role == "caller" else role] = json.loads(done.stdout)["key"]
    with served(stack, folder) as running:
        yield House(running, keys)


@pytest.mark.timeout(900)
def test_vendor_clients_work_with_their_own_ways_to_send_a_key(house: House) -> None:
    picture = encode(draw("circle", "red"))
    answer = house.client("acme").chat.completions.create(
        model=NAME, messages=ask("what color is the shape?", picture), max_tokens=8, temperature=0
    )
    assert answer.choices[0].message.content == "red"
    stream = house.client("acme").chat.completions.create(
        model=NAME, messages=ask("what color is the shape?", picture), max_tokens=8, temperature=0, stream=True
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "red"
    claude = anthropic.Anthropic(base_url=house.running.base, api_key=house.keys["acme"], max_retries=0)
    said = claude.messages.create(model=NAME, max_tokens=4, messages=[{"role": "user", "content": "is it red?"}])
    assert said.content and said.usage.output_tokens
    assert [entry.id for entry in house.client("acme").models.list()] == [NAME]


PAINT = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}},
    "required": ["color"],
    "additionalProperties": False,
}


def test_langchain_through_every_layer(house: House) -> None:
    """LangChain's OpenAI client as it comes: whole answers, streams, tool calls, structured output."""
    chat = ChatOpenAI(
        base_url=house.running.url, api_key=SecretStr(house.keys["acme"]), model=NAME, temperature=0, max_retries=0,
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
        ChatOpenAI(base_url=house.running.url, api_key=SecretStr("none"), model=NAME, max_retries=0).invoke("?")


def test_tools_by_the_other_clients(house: House) -> None:
    picture = encode(draw("circle", "blue"))
    claude = anthropic.Anthropic(base_url=house.running.base, api_key=house.keys["acme"], max_retries=0)
    source: Any = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(picture).decode()}
    content: Any = [{"type": "image", "source": source}, {"type": "text", "text": "what color is the shape?"}]
    tools: Any = [{"name": "paint", "description": "paint it", "input_schema": PAINT}]
    asked: Any = {
        "model": NAME, "max_tokens": 64, "messages": [{"role": "user", "content": content}], "tools": tools,
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
        model=NAME, messages=ask("what color is the shape?", picture), max_tokens=64, temperature=0, stream=True,
        tools=[function], tool_choice=choice,
    ):  # fmt: skip
        for delta in chunk.choices[0].delta.tool_calls or () if chunk.choices else ():
            arguments += (delta.function.arguments if delta.function else None) or ""
    assert json.loads(arguments)["color"] in ("red", "blue")


def test_nobody_is_let_in_anywhere(house: House) -> None:
    paths = ("/v1/models", "/metrics", "/docs", "/openapi.json", "/v1/chat/completions", "/tokenize", "/version", "/x")
    for path in paths:
        for headers in ({}, {"authorization": "Bearer none"}, {"x-api-key": "fovea_aaaaaaaaaaaa_" + "a" * 43}):
            assert httpx.get(house.running.base + path, headers=headers).status_code == 401, path
    assert httpx.get(f"{house.running.base}/health").status_code == 200
    assert httpx.get(f"{house.running.base}/ready").status_code == 200
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=house.running.url, api_key="none", max_retries=0).models.list()
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=house.running.base, api_key="none", max_retries=0).models.list()


def test_roles(house: House) -> None:
    def metrics(who: str) -> httpx.Response:
        return httpx.get(f"{house.running.base}/metrics", headers={"authorization": f"Bearer {house.keys[who]}"})

    assert metrics("acme").status_code == 403
    assert metrics("operator").status_code == metrics("auditor").status_code == 200
    assert house.post("auditor").status_code == 403 and house.post("operator").status_code == 200
    assert not any(key[20:] in metrics("auditor").text for key in house.keys.values())


def test_requests_per_minute_hold_over_two_replicas(house: House) -> None:
    answers = [house.post("small") for _ in range(9)]
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429] * 4
    last = answers[-1]
    assert last.json()["error"]["code"] == last.headers["x-fovea-limit"] == "requests_per_minute"
    assert int(last.headers["retry-after"]) >= 1 and last.headers["x-ratelimit-limit-requests"] == "5"
    with pytest.raises(openai.RateLimitError):
        house.client("small").chat.completions.create(model=NAME, messages=ask("?"), max_tokens=1)
    assert house.post("acme").status_code == 200


def test_image_tokens_by_the_models_own_rule(house: House) -> None:
    first = house.post("pictures", messages=ask("?", encode(draw())))
    assert first.status_code == 200
    spent = 40 - int(first.headers["x-ratelimit-remaining-image-tokens"])
    assert spent == 16  # 64 x 64 pixels by patches of 8, merged 2 x 2
    assert house.post("pictures", messages=ask("?", encode(draw()))).status_code == 200
    last = house.post("pictures", messages=ask("?", encode(draw())))
    assert last.status_code == 429 and last.headers["x-fovea-limit"] == "image_tokens_per_minute"
    assert house.post("pictures").status_code == 200  # text alone still goes in


def test_a_budget_ends(house: House) -> None:
    statuses = [house.post("poor").status_code for _ in range(7)]
    assert statuses == [200] * 5 + [429] * 2
    assert house.post("poor").json()["error"]["code"] == "usd_per_month"


def test_a_revoked_key_ends_while_the_stack_runs(house: House, tmp_path: Path) -> None:
    file = Path(house.running.process.args[3])  # type: ignore[index, arg-type]
    command = [sys.executable, str(ROOT / "fovea.py"), "keys"]
    made = subprocess.run(
        [*command, "create", "--tenant", "acme", "--stack", str(file), "--json"], capture_output=True, check=True
    )
    key = json.loads(made.stdout)
    house.keys["short"] = key["key"]
    assert house.post("short").status_code in (200, 401)  # 401 until the replica has looked again, a second at most
    until(lambda: house.post("short").status_code == 200)
    subprocess.run([*command, "revoke", key["id"], "--stack", str(file)], capture_output=True, check=True)
    until(lambda: house.post("short").status_code == 401)
    assert house.post("short").json()["error"]["code"] == "key_revoked"


def test_a_batch_with_pictures_through_every_layer(house: House, tmp_path: Path) -> None:
    lines, expected = [], []
    for number in range(40):
        color = ("red", "blue", "green", "yellow")[number % 4]
        messages = ask("what color is the shape?", encode(draw("circle", color)))
        body = {"model": NAME, "messages": messages, "max_tokens": 8, "temperature": 0}
        lines.append(
            json.dumps({"custom_id": f"r-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body})
        )
        expected.append(color)
    lines[16] = lines[16][:-20]
    expected.pop(16)
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join(lines))
    environment = {**os.environ, "FOVEA_API_KEY": house.keys["acme"]}
    command = [sys.executable, str(ROOT / "fovea.py"), "batch"]

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        whole = [*command, *args, "--url", house.running.url]
        return subprocess.run(whole, capture_output=True, text=True, env=environment, check=False)

    batch = run("submit", str(file)).stdout.strip()
    assert batch.startswith("batch_")
    watched = run("watch", batch, "--every", "0.3")
    assert watched.returncode == 1 and "completed: 40/40 lines, 1 failed" in watched.stderr
    answers = [json.loads(line) for line in run("results", batch).stdout.splitlines()]
    texts = [one["response"]["body"]["choices"][0]["message"]["content"] for one in answers]
    assert texts == expected
    (error,) = [json.loads(line) for line in run("results", batch, "--errors").stdout.splitlines()]
    assert "Line 17" in error["error"]["message"]
    refused = subprocess.run(
        [*command, "watch", batch, "--url", house.running.url], capture_output=True, text=True, check=False,
        env={**os.environ, "FOVEA_API_KEY": house.keys["small"]},
    )  # fmt: skip
    assert refused.returncode == 2 and "404" in refused.stderr  # another tenant's


def until(condition: Any) -> None:
    """Wait for something to become true, at most 20 s."""
    for _ in range(100):
        if condition():
            return
        time.sleep(0.2)
    pytest.fail("it did not become true")


def test_no_key_is_in_any_log_or_title(house: House) -> None:
    secrets = [key.rsplit("_", 1)[1].encode() for key in house.keys.values()]

    def read(paths: Iterable[Path]) -> bytes:
        found = []
        for path in paths:
            with contextlib.suppress(OSError):  # it ended while we looked, or is a folder
                found.append(path.read_bytes())
        return b"".join(found)

    titles = read(Path("/proc").glob("[0-9]*/cmdline"))
    logs = read(Path("/tmp").glob("fovea-*/session_latest/logs/**/*"))
    assert logs and titles
    assert not any(secret in titles + logs for secret in secrets)


def test_an_engine_dies_and_only_what_was_in_it_fails(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    """Last in this file: kill -9 of one of two engines under a steady load; `make drill` does the rest."""
    engine = next(
        process
        for process in psutil.Process(house.running.process.pid).children(recursive=True)
        if "VLLM::EngineCore" in " ".join(process.cmdline())
    )
    replica = engine.parent()
    assert replica is not None and "ServeReplica" in " ".join(replica.cmdline())
    picture, stop = encode(draw("circle", "green")), threading.Event()
    failed, wrong, answered = list[str](), list[str](), list[float]()

    def ask_again_and_again() -> None:
        while not stop.is_set():
            for _ in range(100):  # a client's retries
                try:
                    answer = house.post("acme", messages=ask("what color is the shape?", picture), max_tokens=8)
                    if answer.status_code == 200:
                        break
                    failed.append(f"{answer.status_code} {answer.text[:100]}")
                except httpx.HTTPError as error:
                    failed.append(repr(error))
                time.sleep(0.2)
            else:
                wrong.append("no answer in 100 tries")
                return
            said = answer.json()["choices"][0]["message"]["content"]
            if said != "green":
                wrong.append(said)
            answered.append(time.monotonic())

    threads = [threading.Thread(target=ask_again_and_again) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: len(answered) > 20)
    engine.kill()
    killed = time.monotonic()
    until(lambda: not replica.is_running() or replica.status() == psutil.STATUS_ZOMBIE)  # it ends with its engine
    enough = len(answered) + 50
    until(lambda: len(answered) > enough)
    stop.set()
    for thread in threads:
        thread.join(60)
    gap = max(after - before for before, after in itertools.pairwise([killed, *(t for t in answered if t > killed)]))
    with capsys.disabled():
        print(
            f"\nengine killed: {len(failed)} requests failed, {len(answered)} answered, {gap:.2f} s without an answer"
        )
    assert wrong == [] and len(failed) < 20, (wrong, failed)
