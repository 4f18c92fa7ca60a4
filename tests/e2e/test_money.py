"""Dollars on the real engine: every API form is counted, and load test, metrics and bill agree to the cent."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from models.cost.journal import Line, Reader
from models.cost.ledger import CENT, usd_per_request
from models.image_tokens import image_tokens
from tests.e2e.conftest import HTTP, Running, command, model, served
from tests.e2e.pictures import data_uri, draw, encode
from tests.e2e.test_lifecycle import LONG, TOKENS, vllm_says, wait_for_tokens

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]
NAME = "fovea-qwen"
AGAINST = ("gpt-4o", "gpt-4o-mini", "gemini-2.5-flash", "claude-sonnet-4-5")
PRICE = {"usd_per_hour": "700", "capacity_rps": 3, "utilization": "0.4"}  # so dear that a few requests make cents
EACH = usd_per_request(Decimal(700), Decimal(3), Decimal("0.4"))
PICTURE = encode(draw("circle", "red"))
QUESTION = "what shape is in the image?"


@dataclass
class Shop:
    """A running stack that sells, with a key per tenant."""

    running: Running
    folder: Path
    keys: dict[str, str]

    def metrics(self, tenant: str) -> dict[str, Decimal]:
        """Return the money series of one tenant, by name or vendor model, and `requests` of all."""
        head = {"authorization": f"Bearer {self.keys['watch']}"}
        text = HTTP.get(f"{self.running.base}/metrics", headers=head, timeout=60).text
        found: dict[str, Decimal] = {"requests": Decimal(0), "unpriced": Decimal(0)}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                value = Decimal(repr(sample.value))
                if sample.name == "fovea_requests_total":
                    found["requests"] += value
                elif sample.name == "fovea_unpriced_answers_total":
                    found["unpriced"] += value
                elif sample.labels.get("tenant") == tenant and sample.name.startswith("fovea_"):
                    key = sample.labels.get("vendor_model") or sample.labels.get("kind") or sample.name
                    found[key] = found.get(key, Decimal(0)) + value
        return found

    def bill(self, tenant: str) -> dict[str, Any]:
        """Return `fovea bill` of one tenant."""
        against = [word for vendor in AGAINST for word in ("--against", vendor)]
        return command("bill", str(self.folder / "journal"), "--tenant", tenant, *against)

    def journal(self, tenant: str) -> list[Line]:
        """Return what the journal has of one tenant."""
        return [line for line in Reader([self.folder / "journal"]).lines() if line.tenant == tenant]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    stack: dict[str, object] = {
        "models": [model("qwen2_5_vl")],
        "recall": {},
        "money": {**PRICE, "against": list(AGAINST), "journal": str(folder / "journal")},
        "identify": {"keys": str(folder / "keys.db"), "tenants": [{"name": n} for n in ("red", "load", "watch")]},
        "ready": {"within_s": 6.0},
    }
    (folder / "keys.yaml").write_text(yaml.safe_dump(stack))
    roles = {"red": "caller", "load": "caller", "watch": "auditor"}
    keys = {}
    for tenant, role in roles.items():
        words = ("keys", "create", "--tenant", tenant, "--role", role, "--stack", str(folder / "keys.yaml"))
        keys[tenant] = str(command(*words)["key"])
    with served(stack, folder) as running:
        yield Shop(running, folder, keys)


def test_every_form_of_request_is_counted(shop: Shop) -> None:
    url, key = shop.running.url, shop.keys["red"]
    made: dict[str, Any] = {"max_retries": 0, "timeout": 120, "default_headers": {"cache-control": "no-cache"}}
    client = openai.OpenAI(base_url=url, api_key=key, **made)
    content: Any = [{"type": "image_url", "image_url": {"url": data_uri(PICTURE)}}, {"type": "text", "text": QUESTION}]
    chat: dict[str, Any] = {
        "model": NAME, "messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0,
    }  # fmt: skip

    whole = client.chat.completions.create(**chat)
    unasked = list(client.chat.completions.create(**chat, stream=True))
    asked = list(client.chat.completions.create(**chat, stream=True, stream_options={"include_usage": True}))
    assert whole.usage is not None and asked[-1].usage is not None
    # the client of a stream sees usage only if it asked
    assert not any(chunk.usage for chunk in unasked) and all(chunk.choices for chunk in unasked)
    assert asked[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    text = "".join(chunk.choices[0].delta.content or "" for chunk in unasked)
    assert text == whole.choices[0].message.content

    list(client.completions.create(model=NAME, prompt="what shape", max_tokens=3, stream=True))
    part: Any = {"type": "input_image", "image_url": data_uri(PICTURE), "detail": "auto"}
    asks: Any = [{"role": "user", "content": [part, {"type": "input_text", "text": QUESTION}]}]
    client.responses.create(model=NAME, input=asks, max_output_tokens=8)

    claude = anthropic.Anthropic(base_url=shop.running.base, api_key=key, **made)
    source: Any = {"type": "base64", "media_type": "image/png", "data": data_uri(PICTURE).split(",")[1]}
    blocks: Any = [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]
    message: Any = {"model": NAME, "max_tokens": 8, "messages": [{"role": "user", "content": blocks}]}
    claude.messages.create(**message)
    with claude.messages.stream(**message) as stream:
        stream.until_done()

    for wrong in ({**chat, "model": "nobody"}, {**chat, "max_tokens": -1}):  # what fails costs nothing
        with pytest.raises(openai.APIStatusError):
            client.chat.completions.create(**wrong)

    lines = shop.journal("red")
    assert len(lines) == 7, lines
    assert all(line.prompt_tokens and line.completion_tokens for line in lines)
    assert [line.prompt_tokens for line in lines[:3]] == [whole.usage.prompt_tokens] * 3
    assert [line.completion_tokens for line in lines[:3]] == [whole.usage.completion_tokens] * 3
    rule = image_tokens(NAME, 64, 64).tokens
    assert [line.image_tokens for line in lines] == [rule, rule, rule, 0, rule, rule, rule]
    assert [line.images for line in lines] == [((64, 64),)] * 3 + [()] + [((64, 64),)] * 3

    seen, bill = shop.metrics("red"), shop.bill("red")
    assert seen["unpriced"] == bill["unpriced"] == bill["images_unknown"] == 0
    assert Decimal(bill["total"]["exact"]["own_usd"]) == 7 * EACH and bill["total"]["requests"] == 7
    assert seen["prompt"] == bill["total"]["prompt_tokens"] == sum(line.prompt_tokens or 0 for line in lines)
    agree(seen, bill["total"]["own_usd"], bill["total"]["avoided_usd"])


def agree(seen: dict[str, Decimal], own: str, avoided: dict[str, str]) -> None:
    """The dashboard's figures are the bill's."""
    assert f"{seen['fovea_usd_total'].quantize(CENT)}" == own and Decimal(own) > 0
    assert set(avoided) >= set(AGAINST)
    for vendor in AGAINST:
        assert f"{seen[vendor].quantize(CENT)}" == avoided[vendor], vendor


def test_the_readiness_probe_costs_nothing(shop: Shop) -> None:
    before = shop.metrics("default")
    for looks in range(1, 60):  # nobody asks, so that the probe does; each look at the metrics is a request too
        time.sleep(1)
        after = shop.metrics("default")
        if after["requests"] - before["requests"] > looks:
            break
    else:
        pytest.fail("no request but those of this test was counted")
    assert "fovea_usd_total" not in after and shop.journal("default") == []


def test_load_test_metrics_and_bill_agree_to_the_cent(shop: Shop, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["--url", shop.running.url, "--model", NAME, "--workload", "easy-vqa", "--concurrency", "4"]
    words += ["--requests", "300", "--no-check", "--warmup", "0", "--no-cache-bust", "--max-tokens", "8"]
    words += ["--workload-option", "limit=200"]  # every second item is asked again: the cache answers
    words += ["--max-slip-ms", "5000", "--api-key-env", "SHOP_KEY", "--quiet", "--out", str(out)]
    report = command("loadtest", "run", *words, SHOP_KEY=shop.keys["load"])
    assert report["errors"] == 0 and report["usage"]["requests"] >= 300
    forecast = {"queries_per_month": 1_000_000, "serving": PRICE}
    (tmp_path / "forecast.yaml").write_text(yaml.safe_dump(forecast))
    cost = command("loadtest", "cost", str(out), "--forecast", str(tmp_path / "forecast.yaml"))

    seen, bill = shop.metrics("load"), shop.bill("load")
    assert report["usage"]["requests"] == bill["total"]["requests"] == cost["run"]["answered"]
    assert report["usage"]["prompt_tokens"] == bill["total"]["prompt_tokens"]
    assert report["usage"]["completion_tokens"] == bill["total"]["completion_tokens"]
    assert cost["run"]["own_usd"] == bill["total"]["own_usd"]
    recalled = sum(line.recalled for line in shop.journal("load"))
    assert report["usage"]["recalled"] == cost["run"]["recalled"] == recalled >= 100
    assert cost["run"]["cache_saved_usd"] == bill["total"]["cache_saved_usd"]
    assert Decimal(bill["total"]["exact"]["cache_saved_usd"]) == recalled * EACH
    for vendor in AGAINST:
        assert cost["run"]["vendor_usd"][vendor] == bill["total"]["avoided_usd"][vendor], vendor
    agree(seen, bill["total"]["own_usd"], bill["total"]["avoided_usd"])

    # the same run beside the vendors: image tokens by each one's rule, source and day of each price
    priced = [row for row in cost["baselines"] if row["label"] == "priced, not measured"]
    assert len(priced) >= 12 and all(row["source"] and row["read"] and row["image_rule"] for row in priced)
    assert next(row for row in priced if row["model"] == "gpt-4o")["image_tokens"] == "255"
    assert "right answer" in cost["sentence"] and Decimal(cost["usd_per_right_answer"]["value"]) > 0


def test_roi_from_the_running_server(shop: Shop, tmp_path: Path) -> None:
    head = {"authorization": f"Bearer {shop.keys['watch']}"}
    saved = tmp_path / "metrics.txt"
    saved.write_text(HTTP.get(f"{shop.running.base}/metrics", headers=head, timeout=60).text)
    config = {
        "title": "From a server",
        "data": {"metrics": str(saved)},
        "volume": {"from": "metrics.queries_per_month"},
        "benefits": [{"name": "vendor", "kind": "amount", "from": "metrics.avoided_usd_per_month.gpt-4o"}],
        "costs": [
            {"name": "serving", "kind": "per_item", "from": "metrics.usd_per_query"},
            {"name": "development", "kind": "once", "usd": "1000", "source": "this test"},
        ],
    }
    (tmp_path / "roi.yaml").write_text(yaml.safe_dump(config))
    found = command("loadtest", "roi", "--config", str(tmp_path / "roi.yaml"), "--out", str(tmp_path / "roi"))
    kpis = {kpi["name"]: kpi for kpi in found["kpis"]}
    assert kpis["error_rate"]["kept"] is True and "server metrics" in kpis["latency_p95"]["source"]
    volume = Decimal(found["volume"]["per_month"])
    lines = [line for tenant in shop.keys for line in shop.journal(tenant)]
    made = Decimal(sum(not line.recalled for line in lines)) / len(lines)  # what a cache answers costs nothing
    assert made < 1 and abs(Decimal(found["costs"][0]["usd"]) / (volume * 12) - EACH * made) < Decimal("1e-9")
    assert (tmp_path / "roi" / "roi.html").stat().st_size > 5000


def test_sigterm_lets_running_requests_finish_and_refuses_new_ones(shop: Shop) -> None:
    """Last in this file: it stops the stack."""
    base, watch = shop.running.base, {"authorization": f"Bearer {shop.keys['watch']}"}
    head = {"authorization": f"Bearer {shop.keys['red']}"}

    before = vllm_says(base, TOKENS, watch)
    family = psutil.Process(shop.running.process.pid).children(recursive=True)
    (engine,) = (one for one in family if "VLLM::EngineCore" in " ".join(one.cmdline()))

    async def refusal(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> tuple[int, str | None]:
        deadline = time.monotonic() + 60
        while True:  # until the drain has reached the replica
            try:
                async with session.post(url, json=body, timeout=aiohttp.ClientTimeout(total=1)) as refused:
                    found = refused.status, refused.headers.get("retry-after")
            except TimeoutError:
                found = 200, None  # let in: it waits for the engine that stands still
            if found[0] == 503 or time.monotonic() > deadline:
                return found

    async def scenario() -> tuple[int, int, str | None, int]:
        async with aiohttp.ClientSession(headers=head) as session:
            url, body = f"{base}/v1/chat/completions", {**LONG, "model": NAME}
            asked = asyncio.create_task(session.post(url, json=body))
            await asyncio.to_thread(wait_for_tokens, base, before + 20, watch)
            engine.suspend()  # the answer is not done before the drain is seen, however fast the machine is
            try:
                shop.running.process.send_signal(signal.SIGTERM)
                status, retry = await refusal(session, url, {**body, "max_tokens": 1})
            finally:
                engine.resume()
            answer = await asked
            tokens = (await answer.json())["usage"]["completion_tokens"]
            return answer.status, status, retry, tokens

    finished, refused, retry, tokens = asyncio.run(scenario())
    assert (finished, tokens) == (200, LONG["max_tokens"])
    assert refused == 503 and retry is not None
    assert shop.running.process.wait(90) == 0
