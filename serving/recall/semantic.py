"""The semantic part of `recall`: a question that was asked before in other words, about the same pixels.

Everything but the text of the last user message must be the same: tenant, model and version, endpoint, images, system
prompt, earlier turns, tools, sampling, `stream`.  Of that text, the words that count must be the same (`words.py`), and
the embeddings near (`embed.py`).  A kept answer is found by a second key over all of this but the wording; the entry
there says which answer it was, and in which words it was asked for.  So a miss costs no embedding, and nothing is
searched.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from serving.recall.key import CHAT, FORM, MESSAGES, WITHOUT_EFFECT
from serving.recall.words import meaning

if TYPE_CHECKING:
    from serving.exchange import Exchange
    from serving.recall.embed import Embedder
    from serving.recall.section import Semantic as Section
    from serving.recall.store import Answers, Entry

POINTER = b"semantic"
FEWEST = 2
"""Words that must count: of fewer there is nothing to compare."""


@dataclass(frozen=True, slots=True)
class Question:
    """One request's second key, and the words it was asked in."""

    key: bytes
    text: str

    def pointer(self, answer: bytes) -> bytes:
        """Return what is kept at `key`: where the answer is, and the words."""
        return orjson.dumps([answer.hex(), self.text])


class Semantic:
    """Finds the answer to a question in other words.

    Raises:
        UsageError: the embedding model cannot be loaded.
    """

    def __init__(self, section: Section):
        from serving.recall.embed import Embedder

        self.section = section
        self.embedder: Embedder = Embedder(section.model)

    def close(self) -> None:
        """Let the embedding model go."""
        self.embedder.close()

    def question(self, exchange: Exchange, path: str, model: str, version: str) -> Question | None:
        """Return the question of a request whose exact key was made, None when it is not one to compare."""
        body = exchange.json()
        found = _last_text(body) if path in (CHAT, MESSAGES) else None
        if found is None or len(found[1]) > self.section.characters:
            return None
        rest, text = found
        words = meaning(text, len(exchange.pictures))
        if len(words) < FEWEST:
            return None
        kept = {name: value for name, value in body.items() if name not in WITHOUT_EFFECT} | {"messages": rest}
        where = orjson.dumps(["semantic", exchange.tenant, model, version, path, words])
        digest = hashlib.blake2b(FORM + where, digest_size=32)
        digest.update(orjson.dumps(kept, option=orjson.OPT_SORT_KEYS))
        return Question(digest.digest(), text)

    async def find(self, question: Question, answers: Answers) -> tuple[Entry, float] | None:
        """Return a living answer to the same question in other words, and how near they are."""
        entry = await answers.get(question.key)
        if entry is None or entry.content_type != POINTER:
            return None
        key, text = orjson.loads(entry.body)
        answer = await answers.get(bytes.fromhex(key))
        if answer is None:
            return None
        near = await self.embedder.similarity(text, question.text)
        return (answer, near) if near >= self.section.threshold else None


def _last_text(body: dict[str, Any]) -> tuple[list[Any], str] | None:
    """Return the messages with a stand-in for the only text of the last one, which is the user's, and that text."""
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, dict) or last.get("role") != "user":
        return None
    content = last.get("content")
    if isinstance(content, str):
        return [*messages[:-1], {**last, "content": None}], content  # type: ignore[index]
    if not isinstance(content, list):
        return None
    texts = [place for place, part in enumerate(content) if isinstance(part, dict) and part.get("type") == "text"]
    if len(texts) != 1 or not isinstance(content[texts[0]].get("text"), str):
        return None
    place = texts[0]
    parts = [*content[:place], {**content[place], "text": None}, *content[place + 1 :]]
    return [*messages[:-1], {**last, "content": parts}], content[place]["text"]  # type: ignore[index]
