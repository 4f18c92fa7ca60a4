"""Find a known model name in what people and vendors write: `openai/gpt-4o-2024-11-20` is `gpt-4o`."""

from __future__ import annotations

import re
from collections.abc import Collection

# What may follow a known name without making it another model: a snapshot date, a size, a channel
_SUFFIX = re.compile(
    r"(-(\d{4}-\d{2}-\d{2}|\d{8}|\d{2}-\d{2,4}|latest|preview|exp|instruct|thinking|chat|fp8|awq|int4|\d+(\.\d+)?b"
    r"|a\d+b|sonnet|opus|haiku|sol|terra|luna|v\d+|\d{3}))+"
)


def match_name(name: str, known: Collection[str]) -> str | None:
    """Return the longest of `known` that `name` is, give or take a vendor prefix and a snapshot suffix, or None."""
    plain = name.strip().casefold().rsplit("/", 1)[-1]
    # resellers write claude-sonnet-4.5 where Anthropic writes claude-sonnet-4-5
    candidates = {plain, re.sub(r"(?<=\d)\.(?=\d)", "-", plain)} if plain.startswith("claude") else {plain}
    matches = [k for k in known for c in candidates if c == k or (c.startswith(k) and _SUFFIX.fullmatch(c[len(k) :]))]
    return max(matches, key=len, default=None)
