"""The first question to a new checkpoint: it must load in vLLM and answer about a picture before it gets its name."""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from models.golden import GoldenItem
from models.support.errors import CheckFailed
from quantize.engine import EngineSettings, Held


def drawn_picture() -> bytes:
    """Return a PNG of 64x64 pixels with a red square, for checkpoints that were made without calibration items."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).rectangle((16, 16, 48, 48), fill="red")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def accept(
    folder: Path, held: Held, item: GoldenItem | None, prompt_tokens: int | None, settings: EngineSettings
) -> dict[str, Any]:
    """Serve `folder`, ask one question about one picture, and return what came back.

    Args:
        held: takes the engine; it goes on running after the call, for the gate or until `held` is closed.
        item: a calibration item; without one, a drawn picture.
        prompt_tokens: tokens of that item's prompt as the calibration saw them.

    Raises:
        CheckFailed: it does not load, does not answer, or the engine makes another prompt of the item than the
            calibration did (another template or processor).
    """
    question = item.question if item is not None else "what color is the shape?"
    picture = item.image_bytes() if item is not None else drawn_picture()
    kind = item.media_type if item is not None else "image/png"
    engine = held.start(folder, "candidate", settings)
    reply = ask(engine.url, engine.name, question, picture, kind)
    memory = engine.memory_bytes()
    text = reply["choices"][0]["message"]["content"]
    used = (reply.get("usage") or {}).get("prompt_tokens")
    if not isinstance(text, str) or not text.strip():
        raise CheckFailed("the checkpoint loads but answers nothing", field="engine", value=text, fix=f"see {held.log}")
    if prompt_tokens is not None and used != prompt_tokens:
        message = f"calibration saw {prompt_tokens} prompt tokens where the engine has {used}"
        fix = "the checkpoint's template or processor is not the one that the engine uses"
        raise CheckFailed(message, field="calibration", value=item.id if item else None, fix=fix)
    return {
        "question": question,
        "answer": text,
        "prompt_tokens": used,
        "calibration_prompt_tokens": prompt_tokens,
        "kernels": engine.kernels,
        "start_s": round(engine.start_s, 1),
        "memory_bytes": memory,
    }


def ask(url: str, model: str, question: str, picture: bytes, kind: str, max_tokens: int = 16) -> dict[str, Any]:
    """Return the chat completion of one question about one picture.

    Raises:
        CheckFailed: another status than 200, or no completion.
    """
    source = f"data:{kind};base64,{base64.b64encode(picture).decode()}"
    content = [{"type": "image_url", "image_url": {"url": source}}, {"type": "text", "text": question}]
    body = {
        "model": model,
        "temperature": 0,
        "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": content}],
    }
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as reply:
            found = json.loads(reply.read())
        if not isinstance(found["choices"][0]["message"], dict):
            raise TypeError("no message")
        return dict(found)
    except (OSError, ValueError, KeyError, IndexError, TypeError, urllib.error.HTTPError) as error:
        raise CheckFailed(f"no answer: {error}", field="engine", value=url, fix="see vllm.log") from error
