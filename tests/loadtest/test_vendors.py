"""Whole runs over the wire formats of Anthropic and Gemini, against the project's simulator of the vendors.

The formats follow the vendors' references; the vendors themselves are not tried.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fovea import main
from loadtest.config import make_config
from loadtest.report import Report
from loadtest.run import run_load
from models.support.errors import UsageError
from tests.models.vendor_simulator import KEY, MODELS, Fault, Script, VendorSimulator

VENDORS = {"openai": "openai", "anthropic": "anthropic", "gemini": "google"}
BASE = {"openai": "", "anthropic": "/v1", "gemini": "/v1beta"}
KEYS = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY", "gemini": "GEMINI_API_KEY"}
every_api = pytest.mark.parametrize("api", list(VENDORS))


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS.values():
        monkeypatch.setenv(name, KEY)


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    """Six questions about pictures, whose right answer is what the simulator says by default."""
    path = tmp_path / "pictures.jsonl"
    for i in range(6):
        Image.new("RGB", (16, 16), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
    lines = [{"prompt": f"What is {i}?", "image": f"{i}.png", "expected": "a red circle"} for i in range(6)]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return str(path)


async def load(api: str, script: Script, pictures: str, **values: Any) -> Report:
    """Ask six questions about pictures of the simulator of that API's vendor."""
    traffic: dict[str, Any] = {"name": "main", "workload": pictures, "concurrency": 2}
    if api == "openai":
        traffic["extra"] = {"max_completion_tokens": 16}
    else:
        traffic["max_tokens"] = 16
    async with VendorSimulator(VENDORS[api], script) as vendor:
        base = {"url": vendor.base_url + BASE[api], "model": MODELS[VENDORS[api]], "api": api, "requests": 6}
        config = make_config(**{**base, "max_slip_ms": 5000, "timeout_s": 5, **values}, classes=[traffic])
        return await asyncio.to_thread(run_load, config, progress=False)


@every_api
@pytest.mark.parametrize("stream", [True, False])
async def test_answers_usage_and_times(api: str, stream: bool, pictures: str) -> None:
    script = Script(input_tokens=321, output_tokens=7)
    data = (await load(api, script, pictures, stream=stream)).data
    assert (data["requests"], data["errors"]) == (6, 0), data["errors_by_kind"]
    assert data["tokens"]["prompt_per_request"]["value"] == 321
    assert data["tokens"]["completion_per_request"]["value"] == 7  # Gemini counts two of them apart, as thoughts
    assert (data["accuracy"]["value"], data["accuracy"]["n"]) == (1.0, 6)  # no hidden thought is in Gemini's answer
    assert data["ttft_ms"]["p50"]["n"] == (6 if stream else 0)
    assert len(script.images) >= 6 and script.images[0].startswith(b"\x89PNG")


@every_api
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (429, "http_429"),
        (529, "http_529"),
        ("drop", "reset"),
        ("cut", "cut"),
        ("error_event", "stream"),
        ("end", "cut"),
    ],
)
async def test_errors_are_named(api: str, fault: Fault, kind: str, pictures: str) -> None:
    data = (await load(api, Script(fault=lambda number: fault), pictures, check_model=False)).data
    assert {row["kind"]: row["count"] for row in data["errors_by_kind"]} == {kind: 6}
    if kind == "stream":
        assert "overloaded" in data["errors_by_kind"][0]["examples"][0]


@every_api
async def test_retries(api: str, pictures: str) -> None:
    script = Script(fault=lambda number: 529 if number < 3 else None, retry_after="1")
    data = (await load(api, script, pictures, check_model=False, retries=3)).data
    assert data["errors"] == 0 and data["retries"]["tries"] == 3


@every_api
async def test_a_wrong_key_or_model_is_one_clear_error(
    api: str, pictures: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="404"):
        await load(api, Script(), pictures, model="no-such-model")
    monkeypatch.setenv(KEYS[api], "wrong")
    with pytest.raises(UsageError, match=KEYS[api]):
        await load(api, Script(), pictures)


async def test_geminis_answer_to_a_bad_key() -> None:
    """It is 400, not 401."""
    from loadtest.preflight import _refuse_key

    config = make_config(
        url="http://h/v1beta", model="m", api="gemini", requests=1, classes=[{"name": "m", "workload": "w", "rate": 1}]
    )
    body = {"error": {"code": 400, "message": "API key not valid.", "details": [{"reason": "API_KEY_INVALID"}]}}
    with pytest.raises(UsageError, match="GEMINI_API_KEY"):
        _refuse_key(config, 400, json.dumps(body).encode())


@pytest.mark.parametrize("api", ["anthropic", "gemini"])
async def test_command(api: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with VendorSimulator(VENDORS[api]) as vendor:
        words = ["--url", vendor.base_url + BASE[api], "--model", MODELS[VENDORS[api]], "--api", api]
        words += ["--workload", "easy-vqa", "--workload-option", "limit=5", "--max-tokens", "16", "--rate", "20"]
        words += ["--requests", "5", "--max-slip-ms", "5000", "--out", str(tmp_path)]
        assert await asyncio.to_thread(main, ["loadtest", "run", *words]) == 0
    assert "5 requests, 0 errors" in capsys.readouterr().out
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["target"]["api"] == api and KEY not in (tmp_path / "report.json").read_text()


CONVERSATION: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "anthropic": lambda body: [f"{m['role']}: {m['content'][0]['text']}" for m in body["messages"]],
    "gemini": lambda body: [f"{m['role']}: {m['parts'][0]['text']}" for m in body["contents"]],
}


@pytest.mark.parametrize(("api", "name"), [("anthropic", "assistant"), ("gemini", "model")])
async def test_conversations(api: str, name: str) -> None:
    """The simulator takes only first turns, and refuses the others: what it was sent is looked at."""
    script = Script(text="well said")
    traffic = {"name": "main", "workload": "chat", "concurrency": 1, "max_tokens": 16}
    traffic["workload_options"] = {"conversations": 1, "turns": 2, "words": 3}
    async with VendorSimulator(VENDORS[api], script) as vendor:
        values = {"url": vendor.base_url + BASE[api], "model": MODELS[VENDORS[api]], "api": api, "requests": 2}
        config = make_config(**values, max_slip_ms=5000, check_model=False, classes=[traffic])
        await asyncio.to_thread(run_load, config, progress=False)
    first, second = (CONVERSATION[api](body) for body in script.seen)
    assert second[0] == first[0] and second[1] == f"{name}: well said" and second[2].startswith("user: ")
