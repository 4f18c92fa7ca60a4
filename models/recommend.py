"""Which model and which architecture: the articles' five-step decision tree and architecture matrix, as code.

The two articles ("Multi-modal AI playbook", part 5; "Evaluating multimodal models for production", section 7) are the
source of every rule; `why` says which step decided.  Their vendors' models are named as the articles name them.
What would change the choice is found by asking again with one answer changed, not written down.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from models.support.errors import UsageError

Use = Literal["documents", "reasoning", "coding", "support", "cataloging", "manufacturing", "classification"]
OnPremises = Literal["no", "some", "yes"]
Latency = Literal["relaxed", "sub-second"]
Scope = Literal["broad", "mixed", "narrow"]
Kind = Literal["api", "self-hosted", "edge"]

BREAK_EVEN = 1_000_000  # queries a month above which the playbook's step 3 turns to self-hosting


@dataclass(frozen=True)
class Answers:
    """The answers to the questions.  `queries` a month; the defaults are the playbook's NO branches."""

    use: Use
    on_premises: OnPremises = "no"
    latency: Latency = "relaxed"
    offline: bool = False
    queries: int = 10_000
    enterprise_support: bool = False
    corpus: bool = False
    scope: Scope = "broad"
    high_stakes: bool = False

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UsageError(
                    "unknown answer", field=name, value=getattr(self, name), fix=f"one of {', '.join(allowed)}"
                )
        if isinstance(self.queries, bool) or not isinstance(self.queries, int) or not 0 < self.queries <= 10**12:
            raise UsageError("must be whole queries a month, above 0", field="queries", value=self.queries)


CHOICES: dict[str, tuple[str, ...]] = {
    "use": get_args(Use),
    "on_premises": get_args(OnPremises),
    "latency": get_args(Latency),
    "scope": get_args(Scope),
}
QUESTIONS: dict[str, str] = {
    "use": "what is it for",
    "on_premises": "must data stay on your premises (some: only a part of it)",
    "latency": "how soon must an answer come",
    "offline": "must it work without a network, at the device",
    "queries": "how many queries a month",
    "enterprise_support": "do you need a vendor's enterprise support and SLA",
    "corpus": "do answers come from a large corpus of documents that must be searched",
    "scope": "is the task broad (still evolving), mixed (easy and hard requests), or narrow (one fixed task)",
    "high_stakes": "is it high-risk or regulated, so that every step must be audited",
}


@dataclass(frozen=True)
class Option:
    """A model that can be recommended; `catalog` is its name in the catalog, None for a vendor's API."""

    name: str
    kind: Kind
    catalog: str | None = None


GPT_4O = Option("GPT-4o", "api")
GEMINI = Option("Gemini 3 Pro", "api")
CLAUDE = Option("Claude 4 Opus", "api")
QWEN_72B = Option("Qwen2.5-VL 72B", "self-hosted", "qwen2.5-vl-72b")
QWEN_7B = Option("Qwen2.5-VL 7B", "self-hosted", "qwen2.5-vl-7b")
MAVERICK = Option("LLaMA 4 Maverick", "self-hosted", "llama-4-maverick")
PALIGEMMA = Option("PaliGemma 2 3B", "self-hosted", "paligemma2-3b-448")
PHI_4 = Option("Phi-4 Multimodal", "edge", "phi-4-multimodal")
SMOLVLM = Option("SmolVLM-500M", "edge", "smolvlm-500m")
COLPALI = Option("ColPali", "self-hosted", "colpali-v1.3")
COLQWEN = Option("ColQwen2", "self-hosted", "colqwen2-v1.0")

# Step 4 of the tree: the articles' models first and in their order, then those their vendor guide names for what the
# earlier steps leave (self-hosted: "Qwen, LLaMA"; edge: "Phi-4, SmolVLM").
BY_USE: dict[Use, tuple[Option, ...]] = {
    "documents": (GPT_4O, GEMINI, QWEN_72B, PALIGEMMA, PHI_4, SMOLVLM),
    "reasoning": (GEMINI, GPT_4O, QWEN_72B, MAVERICK, PHI_4),
    "coding": (CLAUDE, GEMINI, QWEN_72B, MAVERICK, PHI_4),
    "support": (GPT_4O, CLAUDE, QWEN_72B, MAVERICK, PHI_4, SMOLVLM),
    "cataloging": (GPT_4O, QWEN_7B, MAVERICK, PHI_4, SMOLVLM),
    "manufacturing": (PHI_4, SMOLVLM),
    "classification": (SMOLVLM, PALIGEMMA),
}
REASONS: dict[Use, str] = {
    "documents": "GPT-4o or Gemini have the best OCR",
    "reasoning": "Gemini has the highest reasoning scores",
    "coding": "Claude has the best coding benchmarks",
    "support": "GPT-4o or Claude converse best",
    "cataloging": "Qwen2.5-VL or GPT-4o extract attributes well",
    "manufacturing": "Phi-4: edge deployment, multimodal sensing",
    "classification": "SmolVLM or PaliGemma suffice for basic tasks",
}
# Newer than the articles and in the catalog: worth a run on the golden set beside the articles' answer.
SUCCESSORS = {"qwen2.5-vl-72b": "qwen3-vl-32b", "qwen2.5-vl-7b": "qwen3-vl-8b"}

PATTERNS = {
    "cloud-api": "application -> gateway -> vendor's API",
    "hybrid-edge-cloud": "small model at the device, hard cases to the cloud",
    "self-hosted": "load balancer -> vLLM -> open model",
    "multimodal-rag": "page embeddings -> vector index -> retrieved pages -> vision-language model",
    "hybrid-on-prem-cloud": "sensitive data to an own model, the rest to a vendor",
}
ARCHITECTURES = {
    "staged-pipeline": ("staged pipeline with verification", "explainable and auditable, at more latency"),
    "retrieval-augmented": ("retrieval-augmented multimodal stack", "grounded and traceable, as good as its retrieval"),
    "specialized": ("specialized single-modality model", "cheaper and easier to benchmark, less flexible"),
    "hybrid-routing": ("hybrid routing system", "balances cost, reliability and coverage, more orchestration"),
    "general-purpose": (
        "general-purpose multimodal model",
        "flexible and fast to prototype, costs more, harder to govern",
    ),
}


@dataclass(frozen=True)
class Recommendation:
    """The answer.  `companions`: further models by their role (retriever, sensitive data, hard cases)."""

    answers: Answers
    primary: Option
    runner_up: Option | None
    companions: dict[str, Option]
    pattern: str
    architecture: str
    why: list[str]
    notes: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def rank(a: Answers, *, hard: frozenset[Kind] | None = None) -> list[Option]:
    """Return the options of step 4 that the hard answers leave, best first.

    Steps 1 and 2 exclude (data, network, sub-second); steps 5 and 3 prefer, support before volume.  A preference that
    no option meets changes nothing: a factory's or a classifier's list has no vendor's API.
    """
    allowed = hard if hard is not None else allowed_kinds(a)
    options = [o for o in BY_USE[a.use] if o.kind in allowed]
    wanted_api = a.enterprise_support or a.queries <= BREAK_EVEN

    def key(item: tuple[int, Option]) -> tuple[bool, int]:
        index, option = item
        return (option.kind == "api") != wanted_api, index

    return [option for _, option in sorted(enumerate(options), key=key)]


def allowed_kinds(a: Answers) -> frozenset[Kind]:
    """Return the kinds that steps 1 and 2 leave."""
    if a.offline:
        return frozenset({"edge"})
    if a.on_premises == "yes" or a.latency == "sub-second":
        return frozenset({"self-hosted", "edge"})
    return frozenset({"api", "self-hosted", "edge"})


def pattern_of(a: Answers, primary: Option) -> str:
    """Return the playbook's deployment pattern (part 1, patterns 1-4; part 5, multi-vendor pattern 2)."""
    if a.corpus:
        return "multimodal-rag"
    if primary.kind == "edge" and a.on_premises != "yes":
        return "hybrid-edge-cloud"
    if a.on_premises == "some" and primary.kind == "api":
        return "hybrid-on-prem-cloud"
    return "cloud-api" if primary.kind == "api" else "self-hosted"


def architecture_of(a: Answers) -> str:
    """Return the row of the architecture matrix: risk first, then knowledge, then how broad the task is."""
    if a.high_stakes:
        return "staged-pipeline"
    if a.corpus:
        return "retrieval-augmented"
    return {"narrow": "specialized", "mixed": "hybrid-routing", "broad": "general-purpose"}[a.scope]


def _decide(a: Answers) -> tuple[Option, Option | None, dict[str, Option]]:
    """Return primary, runner-up and companions."""
    ranked = rank(a)  # never empty: every use lists an edge model, which no answer excludes
    primary = ranked[0]
    companions: dict[str, Option] = {}
    if a.corpus:
        companions["retriever"] = COLPALI
        companions["retriever, runner-up"] = COLQWEN
    if a.on_premises == "some" and not a.offline:
        own = rank(a, hard=frozenset({"self-hosted", "edge"}))[0]
        if primary.kind == "api":
            companions["sensitive data"] = own
    if primary.kind == "edge" and a.on_premises == "no" and not a.offline:
        companions["hard cases"] = GEMINI
    return primary, ranked[1] if len(ranked) > 1 else None, companions


def _reasons(a: Answers, primary: Option) -> list[str]:
    step_1 = {
        "yes": "data must stay on premises: self-hosted only",
        "some": "a part of the data must stay: that part goes to an own model",
        "no": "data may leave: every option stays open",
    }[a.on_premises]
    if a.offline:
        step_2 = "it must work without a network: edge models only"
    elif a.latency == "sub-second":
        step_2 = "sub-second answers: edge models, or self-hosted with a GPU"
    else:
        step_2 = "no sub-second need: every option stays open"
    high = a.queries > BREAK_EVEN
    step_3 = f"{a.queries:,} queries a month, {'above' if high else 'not above'} {BREAK_EVEN:,}: " + (
        "self-hosting pays after 6-12 months" if high else "an API is more cost-effective"
    )
    if a.enterprise_support:
        step_5 = "enterprise support wanted: vendors have it"
        if primary.kind != "api":
            step_5 += f", but what comes before leaves {primary.name}; buy support from a third party"
    else:
        step_5 = "no enterprise support needed: open models are viable"
    return [
        f"step 1, deployment: {step_1}",
        f"step 2, latency: {step_2}",
        f"step 3, volume: {step_3}",
        f"step 4, use case: {REASONS[a.use]}",
        f"step 5, support: {step_5}",
    ]


def _summary(a: Answers) -> tuple[str, str, str]:
    primary = _decide(a)[0]
    return primary.name, pattern_of(a, primary), architecture_of(a)


def what_changes(a: Answers) -> list[str]:
    """Return, for every other answer to every question, what it would change (nothing: left out)."""
    now = _summary(a)
    found = []
    for item in fields(Answers):
        current = getattr(a, item.name)
        if item.name == "queries":
            others: list[Any] = [BREAK_EVEN + 1 if current <= BREAK_EVEN else BREAK_EVEN]
        elif isinstance(current, bool):
            others = [not current]
        else:
            others = [value for value in CHOICES[item.name] if value != current]
        for other in others:
            then = _summary(replace(a, **{item.name: other}))
            parts = [
                f"{what} {new}"
                for what, old, new in zip(("", "pattern", "architecture"), now, then, strict=True)
                if old != new
            ]
            if parts:
                shown = {True: "yes", False: "no"}.get(other, other) if isinstance(other, bool) else other
                shown = f"{other:,}" if item.name == "queries" else shown
                found.append(f"{item.name.replace('_', '-')} {shown}: {', '.join(p.strip() for p in parts)}")
    return found


def recommend(a: Answers) -> Recommendation:
    """Return the articles' answer to `a`, the runner-up, and what would change it."""
    primary, runner_up, companions = _decide(a)
    notes = []
    for option in (primary, *companions.values()):
        newer = SUCCESSORS.get(option.catalog or "")
        if newer:
            notes.append(f"{newer} is newer than the articles: evaluate it beside {option.name} on your golden set")
    if primary.kind == "api":
        notes.append("vendors rename models often: `fovea models prices` lists what is sold today")
    return Recommendation(
        answers=a,
        primary=primary,
        runner_up=runner_up,
        companions=companions,
        pattern=pattern_of(a, primary),
        architecture=architecture_of(a),
        why=_reasons(a, primary),
        notes=list(dict.fromkeys(notes)),
        changes=what_changes(a),
    )
