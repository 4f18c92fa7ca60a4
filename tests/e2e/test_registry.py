"""From checkpoint to live and back: registered, evaluated as served, compared, promoted, rolled back, served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import fovea
from tests.e2e.conftest import ROOT, served

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
MODEL = {"max_model_len": 2048, "engine_args": {"enforce_eager": True}}  # how fast it is, is not looked at here
GOLDEN = {
    "easy-vqa": ["--limit", "1000"],
    "receipts": ["--limit", "60", "--max-tokens", "32"],
    "modems": ["--limit", "120"],
}


def test_the_life_of_a_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOVEA_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def fovea_models(*words: object, code: int = 0) -> dict[str, Any]:
        assert fovea.main(["models", *map(str, words), "--json"]) == code, capsys.readouterr()
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    def registry(*words: object, code: int = 0) -> dict[str, Any]:
        return fovea_models("registry", *words, code=code)

    families = {"qwen2_5_vl": "qwen2.5-vl", "paligemma": "paligemma2"}
    for number, (folder, family) in enumerate(families.items(), 1):
        source = ROOT / "models" / "embedded" / folder
        more = ["--family", family, "--licence", "Apache-2.0", "--recipe", source / "manifest.json", "--by", "ada"]
        made = registry("register", source, "--name", "vqa", "--data", "easy-vqa-train=1.0", *more)
        assert made["version"] == f"vqa@{number}"
    policy = {"require": [{"golden": "easy-vqa", "min_accuracy": 0.95, "min_items": 1000, "max_drop": 0.02}]}
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(policy))
    registry("policy", "vqa", tmp_path / "policy.yaml")
    refused = fovea_models("promote", "vqa@1", "--to", "canary", code=1)
    assert "no report on easy-vqa" in refused["error"]["message"]

    paths = {n: registry("path", f"vqa@{n}")["path"] for n in (1, 2)}
    stack: dict[str, object] = {"models": [{"name": f"vqa-{n}", "source": path, **MODEL} for n, path in paths.items()]}
    (tmp_path / "stack").mkdir()
    with served(stack, tmp_path / "stack") as running:
        for n in paths:
            for golden, options in GOLDEN.items():
                out = tmp_path / f"{golden}-{n}"
                asked = ["--model", f"vqa-{n}", "--golden", golden, *options, "--out", out]
                report = fovea_models("evaluate", running.url, *asked)
                assert report["target"]["version"] == n and not report["errors"]
                assert {"token_f1", "anls", "wer", "cer"} == set(report["text"]) if golden == "easy-vqa" else True
                registry("attach", f"vqa@{n}", out, "--by", "ada")
    accuracy = {n: json.loads((tmp_path / f"easy-vqa-{n}/report.json").read_text())["accuracy"] for n in paths}
    assert all(a["value"] > 0.95 for a in accuracy.values())
    for golden, (_, limit, *_) in GOLDEN.items():
        gate = ["--max-drop", "0.02"] if golden == "easy-vqa" else []  # what both were taught
        compared = fovea_models("compare", tmp_path / f"{golden}-1", tmp_path / f"{golden}-2", *gate)
        assert compared["items"] == int(limit)
        if gate:
            assert compared["verdict"]["holds"]
            difference = accuracy[2]["value"] - accuracy[1]["value"]
            assert compared["difference"]["value"] == pytest.approx(difference)

    for n in (1, 2):
        fovea_models("promote", f"vqa@{n}", "--to", "canary", "--by", "ada")
        fovea_models("promote", f"vqa@{n}", "--to", "live", "--by", "ada")
        assert registry("path", "vqa@live")["path"] == paths[n]
    told = fovea_models("rollback", "vqa", "--by", "bob", "--note", "complaints")
    assert told["text"] == "version 1 is live again, instead of 2"
    stages = {row["version"]: row["stage"] for row in registry("list")["versions"]}
    assert stages == {"vqa@1": "live", "vqa@2": "retired"}
    # what is live now is served by its name, and says which version it is
    live = fovea_models("evaluate", "vqa@live", "--golden", "easy-vqa", "--limit", "100", "--out", tmp_path / "live")
    assert live["target"] == {"name": "vqa", "version": 1, "digest": registry("show", "vqa@1")["digest"]}
    assert live["accuracy"]["high"] >= accuracy[1]["value"] >= live["accuracy"]["low"]
    assert registry("verify") == {"problems": []}
    checklist = {row["item"]: row["holds"] for row in registry("governance", "vqa@1", code=1)["items"]}
    met = {"intact", "lineage", "licence", "card", "evaluated", "calibrated", "robust", "languages"}
    assert {item for item, holds in checklist.items() if holds} == met | {"latency", "rollback"}
