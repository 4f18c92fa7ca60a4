"""Answers in volume: Ray Data's LLM batch inference runs a teacher's checkpoint in as many replicas as are wanted.

Nothing is served: pictures are read, prompts made and answers generated in one streaming job, with vLLM inside.
Answers go into the journal as they come, so that an interrupted job buys nothing twice.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Generator, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.cluster import cluster
from distill.collect.spend import Purchase
from distill.recipe.ask import Teacher
from models.prices import Usage
from models.providers import Reply
from models.support.errors import CheckFailed

if TYPE_CHECKING:
    from distill.collect.buy import Buyer, Question
    from distill.collect.teacher import OpenTeacher

STAGES = 4 + 2
"""Stages of the job beside the engine: a process each for pictures, template, tokens and text, which stay, and a task
each before and after them, for which there has to be room too."""


async def buy_in_volume(buyer: Buyer, teacher: OpenTeacher, questions: Sequence[Question]) -> None:
    """Buy what the journal lacks and the dollars allow; set `buyer.stopped` when the dollars end it.

    Raises:
        CheckFailed: the job failed; what was answered is in the journal.
    """
    left: dict[str, Question] = {}
    for one in questions:
        at_most = teacher.provider.estimate(one.ask())
        if not buyer.spend.room_for(at_most):
            buyer.stopped = buyer.stopped or "budget"
            break
        buyer.journal.reserve(one.key, at_most)
        buyer.spend.reserved += at_most
        left[one.key] = one
    if not left:
        return
    stream = answers(teacher.settings, list(left.values()))
    try:
        while (found := await asyncio.to_thread(_next, stream)) is not None:
            _settle(buyer, teacher, left.pop(found["key"]), found)
            if buyer.error is not None or buyer.stopped == "interrupted":
                break
    finally:
        await asyncio.to_thread(stream.close)
        for one in left.values():
            buyer.spend.reserved -= buyer.journal.pending_of(one.key)
            buyer.journal.failed(one.key, Decimal(0), one.about() | {"error": {"message": "not answered"}})


def _next(stream: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
    return next(stream, None)


def _settle(buyer: Buyer, teacher: OpenTeacher, one: Question, found: dict[str, Any]) -> None:
    at_most = buyer.journal.pending_of(one.key)
    buyer.spend.reserved -= at_most
    if found["error"]:
        buyer.failed(one.about(), teacher, Purchase(one.key), str(found["error"])[:300])
        return
    usage = Usage(int(found["input_tokens"]), int(found["output_tokens"]))
    price = teacher.provider.price
    cost = None if price is None else price.cost(usage)
    usd = Decimal(0) if cost is None else cost.total
    buyer.spend.spent += usd
    ended = "length" if usage.output_tokens >= teacher.settings.max_tokens else "stop"
    reply = Reply(teacher.vendor, teacher.settings.model, found["text"], usage, cost, 0.0, ended)
    buyer.keep(one.about(), teacher, Purchase(one.key, usd, at_most), reply)


def answers(settings: Teacher, questions: Sequence[Question]) -> Generator[dict[str, Any], None, None]:
    """Yield `key`, `text`, `input_tokens`, `output_tokens` and `error` of every question, as they come.

    Raises:
        CheckFailed: the job failed.
    """
    import ray

    volume = settings.volume
    assert volume is not None and settings.checkpoint is not None
    with cluster(volume.replicas + STAGES) as gpus:
        from ray.data import DataContext
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        DataContext.get_current().enable_progress_bars = False
        engine: dict[str, Any] = {"limit_mm_per_prompt": {"image": 1}, "max_model_len": 2048}
        more: dict[str, Any] = {}
        if not gpus:  # on a CPU vLLM's worker is a process of its own, and no GPU is waited for
            engine |= {"distributed_executor_backend": "mp", "enforce_eager": True}
            more["placement_group_config"] = {"bundles": [{"CPU": 1}]}
            more["runtime_env"] = {"env_vars": {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}}
        config = vLLMEngineProcessorConfig(
            model_source=settings.checkpoint,
            engine_kwargs=engine | dict(volume.engine),
            concurrency=volume.replicas,
            batch_size=volume.batch,
            should_continue_on_error=True,
            log_engine_metrics=False,
            prepare_multimodal_stage={"enabled": True},
            **more,
        )
        rows = [_row(one) for one in questions]
        try:
            job = build_processor(config, preprocess=request, postprocess=result)
            yield from job(ray.data.from_items(rows)).iter_rows()
        except (ray.exceptions.RayError, RuntimeError, ValueError) as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise CheckFailed(
                f"the batch inference failed: {said[-1][:300]}", field=f"teacher {settings.name}: volume",
                fix="what was answered is kept; without volume it is served and asked",
            ) from error  # fmt: skip


def _row(one: Question) -> dict[str, Any]:
    settings = one.teacher.settings
    return {
        "key": one.key,
        "image": "" if one.image is None else str(one.image.path.resolve()),
        "media_type": "" if one.image is None else one.image.media_type,
        "system": one.words.system or "",
        "text": one.words.text,
        "max_tokens": settings.max_tokens,
        "temperature": float(settings.temperature or 0),
    }


def request(row: dict[str, Any]) -> dict[str, Any]:
    """Return what the job's stages take: messages in OpenAI's form and sampling parameters."""
    content: list[dict[str, Any]] = []
    if row["image"]:
        data = base64.b64encode(Path(row["image"]).read_bytes()).decode()
        content.append({"type": "image_url", "image_url": {"url": f"data:{row['media_type']};base64,{data}"}})
    content.append({"type": "text", "text": row["text"]})
    system = [{"role": "system", "content": row["system"]}] if row["system"] else []
    return {
        "key": row["key"],
        "messages": [*system, {"role": "user", "content": content}],
        "sampling_params": {"max_tokens": row["max_tokens"], "temperature": row["temperature"]},
    }


def result(row: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of an answer."""
    return {
        "key": row["key"],
        "text": row.get("generated_text") or "",
        "input_tokens": int(row.get("num_input_tokens") or 0),
        "output_tokens": int(row.get("num_generated_tokens") or 0),
        "error": row.get("__inference_error__") or "",
    }
