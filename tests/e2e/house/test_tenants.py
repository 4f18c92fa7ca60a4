"""Keys, tenants and their limits in front of the real engine, on two replicas; a batch of a tenant."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import anthropic
import httpx
import openai
import pytest

from tests.e2e.conftest import HTTP, ROOT, command
from tests.e2e.house.conftest import QWEN, House, until
from tests.e2e.pictures import ask, draw, encode

pytestmark = pytest.mark.e2e


def test_nobody_is_let_in_anywhere(house: House) -> None:
    paths = ("/v1/models", "/metrics", "/docs", "/openapi.json", "/v1/chat/completions", "/tokenize", "/version", "/x")
    for path in paths:
        for headers in ({}, {"authorization": "Bearer none"}, {"x-api-key": "fovea_aaaaaaaaaaaa_" + "a" * 43}):
            assert HTTP.get(house.qwen.base + path, headers=headers).status_code == 401, path
    assert HTTP.get(f"{house.qwen.base}/health").status_code == 200
    assert HTTP.get(f"{house.qwen.base}/ready").status_code == 200
    assert HTTP.get(f"{house.running.url}/models").status_code == 401  # nor by the front
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=house.qwen.url, api_key="none", max_retries=0).models.list()
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=house.qwen.base, api_key="none", max_retries=0).models.list()


def test_roles(house: House) -> None:
    def metrics(who: str) -> httpx.Response:
        return HTTP.get(f"{house.qwen.base}/metrics", headers={"authorization": f"Bearer {house.keys[who]}"})

    assert metrics("acme").status_code == 403
    assert metrics("operator").status_code == metrics("auditor").status_code == 200
    assert house.post("auditor").status_code == 403 and house.post("operator").status_code == 200
    assert not any(key[20:] in metrics("auditor").text for key in house.keys.values())


def test_requests_per_minute_hold_over_two_replicas(house: House) -> None:
    answers = [house.post("small") for _ in range(6)]
    assert sorted(answer.status_code for answer in answers) == [200] * 2 + [429] * 4
    last = answers[-1]
    assert last.json()["error"]["code"] == last.headers["x-fovea-limit"] == "requests_per_minute"
    assert int(last.headers["retry-after"]) >= 1 and last.headers["x-ratelimit-limit-requests"] == "2"
    with pytest.raises(openai.RateLimitError):
        house.client("small").chat.completions.create(model=QWEN, messages=ask("?"), max_tokens=1)
    assert house.post("acme").status_code == 200


def test_image_tokens_by_the_models_own_rule(house: House) -> None:
    first = house.post("pictures", messages=ask("?", encode(draw())))
    assert first.status_code == 200
    spent = 20 - int(first.headers["x-ratelimit-remaining-image-tokens"])
    assert spent == 16  # 64 x 64 pixels by patches of 8, merged 2 x 2
    last = house.post("pictures", messages=ask("?", encode(draw())))
    assert last.status_code == 429 and last.headers["x-fovea-limit"] == "image_tokens_per_minute"
    assert house.post("pictures").status_code == 200  # text alone still goes in


def test_a_budget_ends(house: House) -> None:
    statuses = [house.post("poor").status_code for _ in range(7)]
    assert statuses == [200] * 5 + [429] * 2
    assert house.post("poor").json()["error"]["code"] == "usd_per_month"


def test_a_revoked_key_ends_while_the_stack_runs(house: House) -> None:
    key = command("keys", "create", "--tenant", "acme", "--stack", str(house.file))
    house.keys["short"] = key["key"]
    assert house.post("short").status_code in (200, 401)  # 401 until the replica has looked again, a second at most
    until(lambda: house.post("short").status_code == 200)
    command("keys", "revoke", key["id"], "--stack", str(house.file))
    answers = []  # each of the replicas looks again by itself

    def refused() -> bool:
        answers.append(house.post("short"))
        return answers[-1].status_code == 401

    until(refused)
    assert answers[-1].json()["error"]["code"] == "key_revoked"


def test_a_batch_with_pictures_through_every_layer(house: House, tmp_path: Path) -> None:
    lines, expected = [], []
    for number in range(40):
        color = ("red", "blue", "green", "yellow")[number % 4]
        messages = ask("what color is the shape?", encode(draw("circle", color)))
        body = {"model": QWEN, "messages": messages, "max_tokens": 8, "temperature": 0}
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
        whole = [*command, *args, "--url", house.qwen.url]
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
        [*command, "watch", batch, "--url", house.qwen.url], capture_output=True, text=True, check=False,
        env={**os.environ, "FOVEA_API_KEY": house.keys["small"]},
    )  # fmt: skip
    assert refused.returncode == 2 and "404" in refused.stderr  # another tenant's


def test_no_key_is_in_any_log_or_title(house: House) -> None:
    secrets = [key.split("_", 2)[2].encode() for key in house.keys.values()]

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
