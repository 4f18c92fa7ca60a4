"""The registry: which version exists, what it was made from, how it was judged, and which one may serve.

>>> from models.registry import open_registry
>>> registry = open_registry("runs/registry")  # a folder, or s3://bucket/path, gs://...
>>> registry.resolve("fovea-qwen@live").folder  # doctest: +SKIP
"""

from models.registry.files import read_mark
from models.registry.registry import Registry, Resolved, open_registry
from models.registry.schema import Event, Policy, Stage, Version

__all__ = ["Event", "Policy", "Registry", "Resolved", "Stage", "Version", "open_registry", "read_mark"]
