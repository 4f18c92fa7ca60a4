"""How many input tokens an image costs, by each vendor's documented rule.

>>> from models.image_tokens import image_tokens
>>> image_tokens("gpt-4o", 1024, 1024).tokens
765

A vendor's own reported `usage` always wins over these formulas: they are for planning, and for prices without a key.
"""

from models.image_tokens.catalog import ImageTokens, find_model, image_tokens, known_models
from models.image_tokens.rules import DETAILS

__all__ = ["DETAILS", "ImageTokens", "find_model", "image_tokens", "known_models"]
