"""Does the engine say what the trained weights say?  transformers and vLLM on the same items, token by token.

vLLM answers greedily through the served endpoint and says the likeliest tokens of every step; transformers is then
given the same prompt, picture and tokens.  Compared are probabilities, not logits: they are what an answer and its
confidence are made of, and unlike logits they do not depend on a constant.
"""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.train.model import load_processor
from distill.train.rows import texts
from models.golden import GoldenItem
from models.support.errors import CheckFailed

TOP = 5
TIMEOUT_S = 300.0


def parity(folder: Path, url: str, name: str, items: Sequence[GoldenItem], max_tokens: int) -> dict[str, Any]:
    """Return the differences between both over `items`.

    Returns:
        `worst` and `mean` absolute difference of a probability over the engine's `TOP` likeliest tokens of every step,
        `steps` compared, `greedy` share of steps with one and the same likeliest token, `items`, and `by_item`.

    Raises:
        CheckFailed: the endpoint does not answer as it should.
    """
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText

    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16).eval()
    processor = load_processor(folder)
    rows: list[dict[str, Any]] = []
    for item in items:
        tokens, steps = _engine(url, name, item, max_tokens)
        with Image.open(io.BytesIO(item.image_bytes())) as image:
            prompt, _ = texts(processor, item.question, "")
            made = processor(text=[prompt], images=[image.convert("RGB")], return_tensors="pt")
        made.pop("labels", None)
        length = made["input_ids"].shape[1]
        given = torch.tensor([tokens])
        for key in [k for k, v in made.items() if v.shape == (1, length)]:
            more = given if key == "input_ids" else torch.full_like(given, int(key == "attention_mask"))
            made[key] = torch.cat([made[key], more], dim=1)
        with torch.no_grad():
            found = model(**made, use_cache=False).logits[0, length - 1 : -1].float().softmax(-1)
        gaps = [abs(float(found[i, t]) - p) for i, step in enumerate(steps) for t, p in step.items()]
        same = [int(found[i].argmax()) == max(step, key=lambda t: step[t]) for i, step in enumerate(steps)]
        rows.append({"id": item.id, "worst": max(gaps), "mean": sum(gaps) / len(gaps), "steps": len(steps),
                     "greedy": sum(same)})  # fmt: skip
    steps_all = sum(row["steps"] for row in rows)
    return {
        "items": len(rows),
        "steps": steps_all,
        "worst": max(row["worst"] for row in rows),
        "mean": sum(row["mean"] * row["steps"] for row in rows) / steps_all,
        "greedy": sum(row["greedy"] for row in rows) / steps_all,
        "dtype": "bfloat16",
        "by_item": rows,
    }


def _engine(url: str, name: str, item: GoldenItem, max_tokens: int) -> tuple[list[int], list[dict[int, float]]]:
    """Return the engine's greedy answer as token ids, and per step token id -> probability of the likeliest."""
    import math

    data = base64.b64encode(item.image_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:{item.media_type};base64,{data}"}},
        {"type": "text", "text": item.question},
    ]
    body = {
        "model": name,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": max_tokens,
        "logprobs": True,
        "top_logprobs": TOP,
        "return_tokens_as_token_ids": True,
    }
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
            steps = json.load(reply)["choices"][0]["logprobs"]["content"]
        tokens = [_id(step["token"]) for step in steps]
        return tokens, [{_id(t["token"]): math.exp(t["logprob"]) for t in step["top_logprobs"]} for step in steps]
    except (urllib.error.URLError, ValueError, KeyError, TypeError, IndexError) as error:
        raise CheckFailed(
            f"no token probabilities came: {error}", field="export.parity_items", value=item.id
        ) from error


def _id(token: str) -> int:
    return int(token.removeprefix("token_id:"))
