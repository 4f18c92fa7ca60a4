"""A process that builds tiny checkpoints, starts vLLM on each and asks: `python -m models.proof.worker FOLDER NAME...`.

One JSON line per variant on stdout.  All engines run in this process, one after another: importing vLLM costs more than
starting a tiny engine does.  It is a process of its own because an engine that crashes takes its process along.
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from models.proof.tiny import RECIPES, Recipe

QUESTION = "What is the total?"
PICTURE_SIDE, SIDES = 224, ("width", "height")
ANSWER_TOKENS = 4  # one of the prompt, and three that need the cache
ENGINE: dict[str, Any] = {
    "enforce_eager": True,  # compiling would take most of the time and proves nothing about the architecture
    "max_model_len": 4096,
    "max_num_seqs": 2,
    "kv_cache_memory_bytes": 64 * 2**20,  # a gibibyte would be zeroed for each engine
    "seed": 0,
    "dtype": "bfloat16",
    "enable_prefix_caching": False,  # each answer is computed, none is remembered
    "disable_log_stats": True,
}


class ProofFailed(Exception):
    """The engine ran, and what it answered cannot be right."""


def pictures() -> list[Any]:
    """Return two different pictures: a red circle, and diagonal stripes."""
    import numpy as np
    from PIL import Image, ImageDraw

    circle = Image.new("RGB", (PICTURE_SIDE, PICTURE_SIDE), "white")
    ImageDraw.Draw(circle).ellipse((60, 60, 170, 170), fill="red")
    y, x = np.mgrid[:PICTURE_SIDE, :PICTURE_SIDE]
    stripes = np.where(((x + y) // 14 % 2)[..., None] == 1, (20, 40, 200), (250, 220, 0)).astype("uint8")
    return [circle, Image.fromarray(stripes)]


def prove(one: Recipe, folder: Path) -> dict[str, Any]:
    """Start vLLM on the checkpoint in `folder` and ask; return what was seen.

    Raises:
        ProofFailed: an answer that a working engine cannot give.
        Exception: whatever vLLM refuses the checkpoint with.
    """
    from vllm import LLM

    options: dict[str, Any] = ENGINE | dict(one.args)
    if one.asked != "speech":
        # vLLM warms its processor up with the largest picture and film that the model takes: ours are smaller
        options["limit_mm_per_prompt"] = {"image": {"count": 1, **dict.fromkeys(SIDES, PICTURE_SIDE)}, "video": 0}
    started = time.perf_counter()
    llm = LLM(model=str(folder), **options)
    try:
        ready = time.perf_counter()
        seen = ASK[one.asked](llm, one)
        seen |= {"start_s": round(ready - started, 1), "ask_s": round(time.perf_counter() - ready, 1)}
        return seen
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm


def _ask_image(llm: Any, one: Recipe) -> dict[str, Any]:
    """The picture must take its tokens and be seen: another one changes the probabilities; the answer must repeat."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=ANSWER_TOKENS, logprobs=5, ignore_eos=True)
    circle, stripes = pictures()

    def ask(picture: Any) -> Any:
        content: list[dict[str, Any]] = [{"type": "image_pil", "image_pil": picture}] if picture else []
        content.append({"type": "text", "text": QUESTION})
        return llm.chat([{"role": "user", "content": content}], sampling, use_tqdm=False)[0]

    first, again, other, text = ask(circle), ask(circle), ask(stripes), ask(None)
    tokens = list(first.outputs[0].token_ids)
    image_tokens = len(first.prompt_token_ids) - len(text.prompt_token_ids)
    if len(tokens) != ANSWER_TOKENS or not all(math.isfinite(p) for p in _logprobs(first).values()):
        raise ProofFailed(f"{len(tokens)} tokens with probabilities {_logprobs(first)}")
    if tokens != list(again.outputs[0].token_ids):
        raise ProofFailed("the same question about the same picture got two answers")
    if _logprobs(first) == _logprobs(other):
        raise ProofFailed("another picture changed no probability: the picture is not seen")
    if image_tokens <= 0 or one.image_tokens not in (None, *range(image_tokens - MARKS, image_tokens + 1)):
        raise ProofFailed(f"the picture took {image_tokens} tokens, the family's rule says {one.image_tokens}")
    return {"asked": "an image", "prompt_tokens": len(first.prompt_token_ids), "image_tokens": image_tokens}


def _text_alone(one: Recipe, folder: Path) -> bool:
    """Return whether the language model answers where pictures are refused; a smaller proof, and called so."""
    from vllm import LLM, SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=ANSWER_TOKENS, logprobs=5, ignore_eos=True)
    try:
        llm = LLM(model=str(folder), **ENGINE, limit_mm_per_prompt={"image": 0, "video": 0})
        try:
            message: Any = {"role": "user", "content": QUESTION}
            output = llm.chat([message], sampling, use_tqdm=False)[0]
            finite = all(math.isfinite(p) for p in _logprobs(output).values())
            return finite and len(output.outputs[0].token_ids) == ANSWER_TOKENS
        finally:
            llm.llm_engine.engine_core.shutdown()
            del llm
    except Exception as error:
        print(f"{one.variant}, text alone: {error}", file=sys.stderr)
        return False


MARKS = 4  # begin-of-image, end-of-image, line breaks that a chat form puts around the picture's own tokens


def _logprobs(output: Any) -> dict[int, float]:
    return {token: float(entry.logprob) for token, entry in output.outputs[0].logprobs[0].items()}


def _ask_speech(llm: Any, one: Recipe) -> dict[str, Any]:
    """Two seconds of a tone, then of another: the transcript's probabilities must differ."""
    import numpy as np
    from vllm import SamplingParams

    seconds = np.arange(2 * 16000) / 16000
    sampling = SamplingParams(temperature=0, max_tokens=ANSWER_TOKENS, logprobs=5, ignore_eos=True)

    def ask(hertz: float) -> Any:
        tone = (0.5 * np.sin(2 * np.pi * hertz * seconds)).astype("float32")
        text = "<|startoftranscript|><|en|><|transcribe|><|notimestamps|>"
        prompt = {"prompt": text, "multi_modal_data": {"audio": (tone, 16000)}}
        return llm.generate([prompt], sampling, use_tqdm=False)[0]

    first, again, other = ask(440.0), ask(440.0), ask(1760.0)
    if len(first.outputs[0].token_ids) != ANSWER_TOKENS or _logprobs(first) != _logprobs(again):
        raise ProofFailed("the transcript is cut short, or differs when asked again")
    if _logprobs(first) == _logprobs(other):
        raise ProofFailed("another sound changed no probability: it is not heard")
    return {"asked": "a transcription", "prompt_tokens": len(first.prompt_token_ids), "image_tokens": None}


def _ask_page(llm: Any, one: Recipe) -> dict[str, Any]:
    """One unit vector of 128 numbers per token of the page; another page has other vectors."""
    import torch

    def ask(picture: Any) -> Any:
        prompt = {"prompt": "<image>Describe the image.\n", "multi_modal_data": {"image": picture}}
        return llm.encode([prompt], pooling_task="token_embed", use_tqdm=False)[0]

    first, other = (ask(picture) for picture in pictures())
    vectors = first.outputs.data.float()
    norms = vectors.norm(dim=-1)
    if vectors.shape[-1] != 128 or float((norms - 1).abs().max()) > 0.02:
        raise ProofFailed(
            f"vectors of shape {tuple(vectors.shape)}, norms {float(norms.min())} to {float(norms.max())}"
        )
    if torch.equal(vectors, other.outputs.data.float()):
        raise ProofFailed("another page has the same vectors: the page is not seen")
    if one.image_tokens is not None and not one.image_tokens < len(vectors) < one.image_tokens + 64:
        raise ProofFailed(f"{len(vectors)} vectors, the family's rule says {one.image_tokens} for the page")
    return {"asked": "an embedding", "prompt_tokens": len(first.prompt_token_ids), "image_tokens": one.image_tokens}


ASK = {"image": _ask_image, "speech": _ask_speech, "page": _ask_page}


def reason(error: BaseException, folder: Path) -> str:
    """Return the engine's own words: the line that says why, without its list of everything known, nor our folder."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if "Value error" in line or "not supported" in line), lines[0] if lines else "")
    for noise in (" Supported architectures", " The available parameters", " (Could this error", "\nModel type should"):
        told = told.partition(noise)[0]
    told = told.removeprefix("Value error, ").replace(str(folder), "the checkpoint")
    return f"{type(error).__name__}: {told}"[:300].rstrip()


def main(folder: Path, names: list[str]) -> int:
    """Prove each of `names`; a row is `ran` with what was seen, or `refused` with the engine's reason."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr: stdout is for the rows
    os.environ.update(HF_HUB_OFFLINE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # as `enforce_eager`, for what vLLM compiles all the same
    os.environ["OMP_NUM_THREADS"] = "1"  # over matrices as small as these, threads wait for one another
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would replace the size that ENGINE says
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import vllm  # noqa: F401

    import models.proof.families  # noqa: F401  fills RECIPES

    for name in names:
        print(json.dumps({"begin": name}), file=out, flush=True)
        row: dict[str, Any] = {"variant": name}
        one = RECIPES[name]
        one.build(one, folder / name)
        # vLLM collects garbage six times per engine: it need not walk through everything that was imported so far
        gc.freeze()
        try:
            row |= {"result": "ran"} | prove(one, folder / name)
        except ProofFailed as error:
            row |= {"result": "failed", "reason": str(error)}
        except Exception as error:
            row |= {"result": "refused", "reason": reason(error, folder / name)}
            if one.asked == "image":
                row["text_alone"] = _text_alone(one, folder / name)
            if os.environ.get("FOVEA_PROOF_TRACEBACK"):
                import traceback

                traceback.print_exc()
        print(json.dumps(row), file=out, flush=True)
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()  # collects, too
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
