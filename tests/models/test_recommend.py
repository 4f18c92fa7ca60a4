"""The recommendation: the articles' six cases, every step of the tree, the architecture matrix, and what changes it.

The six cases are the organisations that the playbook follows: apparel retailer, factory, hospital, financial services
(part 1, patterns 1 to 4), telecom provider and pharmaceutical company (part 2).
"""

from __future__ import annotations

import itertools
import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fovea
from models.catalog import load_catalog
from models.recommend import (
    BREAK_EVEN,
    BY_USE,
    CHOICES,
    QUESTIONS,
    SUCCESSORS,
    Answers,
    Use,
    architecture_of,
    recommend,
    what_changes,
)
from models.support.errors import UsageError

ANSWERS = st.builds(
    Answers,
    use=st.sampled_from(CHOICES["use"]),
    on_premises=st.sampled_from(CHOICES["on_premises"]),
    latency=st.sampled_from(CHOICES["latency"]),
    offline=st.booleans(),
    queries=st.integers(1, 10_000_000),
    enterprise_support=st.booleans(),
    corpus=st.booleans(),
    scope=st.sampled_from(CHOICES["scope"]),
    high_stakes=st.booleans(),
)


# ---- the articles' six cases


def test_apparel_retailer_takes_gpt_4o_with_an_open_model_as_fallback() -> None:
    """2,400 SKUs, attributes from pictures: GPT-4o by API, an open model for cost control."""
    r = recommend(Answers(use="cataloging", queries=2_400))
    assert (r.primary.name, r.pattern) == ("GPT-4o", "cloud-api")
    assert r.runner_up is not None and r.runner_up.name.startswith("Qwen2.5-VL")


def test_factory_takes_phi_4_at_the_edge() -> None:
    """Defects and machine sounds on the line, milliseconds, no internet: Phi-4 Multimodal."""
    r = recommend(Answers(use="manufacturing", latency="sub-second", offline=True))
    assert (r.primary.name, r.pattern) == ("Phi-4 Multimodal", "hybrid-edge-cloud")


def test_hospital_hosts_qwen_72b_itself() -> None:
    """X-ray pictures with notes under HIPAA: Qwen2.5-VL 72B, self-hosted."""
    r = recommend(Answers(use="reasoning", on_premises="yes", high_stakes=True))
    assert (r.primary.name, r.pattern) == ("Qwen2.5-VL 72B", "self-hosted")
    assert r.architecture == "staged-pipeline"


def test_financial_services_retrieve_pages_with_colpali() -> None:
    """Reports and filings as page pictures, no OCR: multimodal RAG on ColPali."""
    r = recommend(Answers(use="documents", corpus=True))
    assert (r.companions["retriever"].name, r.pattern) == ("ColPali", "multimodal-rag")
    assert r.architecture == "retrieval-augmented" and r.primary.name == "GPT-4o"


def test_telecom_provider_takes_a_vendor_for_support() -> None:
    """15,000 tickets a month with modem photographs: GPT-4V and Claude were the candidates."""
    r = recommend(Answers(use="support", queries=15_000))
    assert r.runner_up is not None
    assert (r.primary.name, r.runner_up.name, r.pattern) == ("GPT-4o", "Claude 4 Opus", "cloud-api")


def test_pharmaceutical_company_splits_by_sensitivity_behind_retrieval() -> None:
    """50,000 research documents: multimodal embeddings, sensitive data on premises, the rest in the cloud."""
    r = recommend(Answers(use="reasoning", on_premises="some", corpus=True, queries=50_000))
    assert r.pattern == "multimodal-rag" and r.companions["retriever"].name == "ColPali"
    assert r.primary.name == "Gemini 3 Pro" and r.companions["sensitive data"].name == "Qwen2.5-VL 72B"


# ---- the tree, step by step


@pytest.mark.parametrize(
    ("use", "first"),
    [
        ("documents", {"GPT-4o", "Gemini 3 Pro"}),
        ("reasoning", {"Gemini 3 Pro"}),
        ("coding", {"Claude 4 Opus"}),
        ("support", {"GPT-4o", "Claude 4 Opus"}),
        ("cataloging", {"Qwen2.5-VL 7B", "GPT-4o"}),
        ("manufacturing", {"Phi-4 Multimodal"}),
        ("classification", {"SmolVLM-500M", "PaliGemma 2 3B"}),
    ],
)
def test_step_4_names_the_articles_model(use: Use, first: set[str]) -> None:
    assert recommend(Answers(use=use)).primary.name in first


@given(ANSWERS)
@settings(max_examples=300, deadline=None)
def test_hard_answers_are_kept(a: Answers) -> None:
    r = recommend(a)
    if a.on_premises == "yes" or a.latency == "sub-second":
        assert r.primary.kind != "api" and (r.runner_up is None or r.runner_up.kind != "api")
    if a.on_premises == "yes":
        assert all(o.kind != "api" for o in r.companions.values())
    if a.offline:
        assert r.primary.kind == "edge"
    if a.on_premises == "some" and r.primary.kind == "api":
        assert r.companions["sensitive data"].kind != "api"
    assert r.runner_up != r.primary and len(r.why) == 5
    assert ("retriever" in r.companions) == a.corpus == (r.pattern == "multimodal-rag")


def test_step_3_turns_at_a_million_queries() -> None:
    below = Answers(use="support", queries=BREAK_EVEN)
    assert recommend(below).primary.kind == "api"
    above = recommend(replace(below, queries=BREAK_EVEN + 1))
    assert above.primary.name == "Qwen2.5-VL 72B" and above.pattern == "self-hosted"
    # step 5 comes after step 3: who needs an SLA stays with a vendor
    assert recommend(replace(below, queries=BREAK_EVEN + 1, enterprise_support=True)).primary.kind == "api"


def test_support_cannot_overrule_compliance() -> None:
    r = recommend(Answers(use="support", on_premises="yes", enterprise_support=True))
    assert r.primary.kind == "self-hosted" and "third party" in r.why[4]


@pytest.mark.parametrize(
    ("answers", "architecture"),
    [
        (Answers(use="support", scope="broad"), "general-purpose"),
        (Answers(use="documents", scope="narrow"), "specialized"),
        (Answers(use="support", scope="mixed"), "hybrid-routing"),
        (Answers(use="reasoning", high_stakes=True, corpus=True), "staged-pipeline"),
        (Answers(use="support", corpus=True), "retrieval-augmented"),
    ],
)
def test_architecture_matrix(answers: Answers, architecture: str) -> None:
    assert architecture_of(answers) == architecture


# ---- what would change the choice


@given(ANSWERS)
@settings(max_examples=60, deadline=None)
def test_every_change_named_is_one(a: Answers) -> None:
    now = recommend(a)
    for change in what_changes(a):
        head, _, effect = change.partition(": ")
        name, _, value = head.partition(" ")
        name = name.replace("-", "_")
        other: Any = {"yes": True, "no": False}[value] if isinstance(getattr(a, name), bool) else value
        if name == "queries":
            other = int(value.replace(",", ""))
        then = recommend(replace(a, **{name: other}))
        assert (then.primary, then.pattern, then.architecture) != (now.primary, now.pattern, now.architecture)
        assert then.primary == now.primary or then.primary.name in effect


def test_answers_that_change_nothing_are_left_out() -> None:
    a = Answers(use="support")
    named = {c.split(" ")[0] for c in what_changes(a)}
    assert "enterprise-support" not in named and {"use", "on-premises", "queries", "latency", "offline"} <= named


# ---- the tables


def test_every_open_model_is_in_the_catalog() -> None:
    catalog = load_catalog()
    for option in set(itertools.chain.from_iterable(BY_USE.values())):
        if option.kind == "api":
            assert option.catalog is None
        else:
            assert option.catalog is not None and catalog.variant(option.catalog).name == option.catalog
    for old, new in SUCCESSORS.items():
        assert catalog.variant(old).name == old and catalog.variant(new).name == new


def test_every_use_has_an_edge_model_and_every_answer_a_question() -> None:
    assert all(any(o.kind == "edge" for o in options) for options in BY_USE.values())
    assert set(BY_USE) == set(CHOICES["use"])
    assert set(QUESTIONS) == {f.name for f in fields(Answers)}


@pytest.mark.parametrize(
    ("change", "field"),
    [({"use": "poetry"}, "use"), ({"on_premises": "maybe"}, "on_premises"), ({"queries": 0}, "queries")],
)
def test_wrong_answers_name_the_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(UsageError) as error:
        Answers(**{"use": "support", **change})
    assert error.value.field == field


# ---- the command


def test_command_by_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert fovea.main(["models", "recommend", "--use", "cataloging", "--queries", "2400"]) == 0
    out = capsys.readouterr().out
    for word in ("GPT-4o", "runner-up", "Qwen2.5-VL 7B", "what would change it", "queries 1,000,001: Qwen2.5-VL 7B"):
        assert word in out
    assert fovea.main(["models", "recommend", "--use", "documents", "--corpus", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["companions"]["retriever"]["catalog"] == "colpali-v1.3" and len(shown["why"]) == 5


def test_command_by_questions(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    replies = iter(["poetry", "Reasoning", "yes", "", "maybe", "n", "-3", "50,000", "", "", "", "y"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(replies))
    assert fovea.main(["models", "recommend", "--ask"]) == 0
    out = capsys.readouterr().out
    assert "Qwen2.5-VL 72B" in out and "staged pipeline" in out and "one of documents" in out
    assert next(replies, None) is None


def test_command_refuses(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert fovea.main(["models", "recommend", "--corpus"]) == 2
    assert "use: is required" in capsys.readouterr().err
    assert fovea.main(["models", "recommend", "--use", "poetry"]) == 2
    assert "documents" in capsys.readouterr().err

    def ended(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", ended)
    assert fovea.main(["models", "recommend", "--ask"]) == 2
    assert "ended early" in capsys.readouterr().err
