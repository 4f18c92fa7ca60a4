"""The builders: one per architecture of the catalog, in a module per kind; importing this package fills `RECIPES`.

What a family's hub files hold and the catalog does not (special tokens, the processor's sizes, the chat form) is here.
"""

from models.proof.families import gemma, llama, llava, qwen, sound

__all__ = ["gemma", "llama", "llava", "qwen", "sound"]
