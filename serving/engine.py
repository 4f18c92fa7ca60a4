"""Start vLLM's engine in this process and build vLLM's own API app on it, without a server."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.support.errors import UsageError
from serving.adapters import engine_settings
from serving.templates import template_for

if TYPE_CHECKING:
    from serving.stack import Media, Model


@dataclass
class Engine:
    """A running engine.

    Attributes:
        client: vLLM's `AsyncLLM`.
        app: vLLM's FastAPI app, its state initialized.
        args: the arguments that vLLM's own command line would have had.
    """

    client: Any
    app: Any
    args: argparse.Namespace

    def shutdown(self) -> None:
        """Stop the engine's processes."""
        self.client.shutdown()


METHODS = {
    "w8a8": "compressed-tensors",
    "w4a16": "compressed-tensors",
    "nf4": "bitsandbytes",
    "bnb-int8": "bitsandbytes",
}
"""Schemes of `fovea quantize` -> vLLM's name for the format of their checkpoints."""
WEIGHTS = {"w8a8": {("int", 8)}, "w4a16": {("int", 4)}, "fp8": {("float", 8)}}
"""What the weights of a compressed-tensors checkpoint must be."""


def quantization_method(model: Model) -> str | None:
    """Return what vLLM calls the model's quantization.

    `fp8` is vLLM's own name too, for 16-bit weights that it rounds as it loads; a checkpoint of `fovea quantize` with
    that scheme is compressed-tensors.

    Raises:
        UsageError: the checkpoint is here, and its weights are other numbers than the scheme says.
    """
    scheme = model.quantization or ""
    method, path = METHODS.get(scheme, model.quantization), Path(model.path, "config.json")
    config = json.loads(path.read_bytes()).get("quantization_config", {}) if path.is_file() else {}
    if scheme == "fp8" and config.get("quant_method") == "compressed-tensors":
        method = "compressed-tensors"
    if method != "compressed-tensors" or not path.is_file():
        return method
    weights = [group["weights"] for group in config.get("config_groups", {}).values()]
    found = {(one.get("type", "int"), one["num_bits"]) for one in weights}
    if found != WEIGHTS.get(scheme, found):
        names = "/".join(f"{bits}-bit {kind}" for kind, bits in sorted(found))
        raise UsageError(
            f"the checkpoint's weights are {names or 'not quantized'}",
            field=f"models.{model.name}.quantization",
            value=model.quantization,
            fix="name the checkpoint that `fovea quantize run` made, or leave the line out",
        )
    return method


def engine_args(model: Model) -> argparse.Namespace:
    """Return vLLM's server arguments for a model of the stack.

    Raises:
        UsageError: `engine_args` has a name that vLLM does not know, or an adapter cannot be served.
    """
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    args = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    args.model = model.path
    args.served_model_name = [model.name]
    args.revision = model.revision
    args.dtype = model.dtype
    args.quantization = quantization_method(model)
    args.max_model_len = model.max_model_len
    args.limit_mm_per_prompt = {"image": model.images_per_prompt, "video": 0}
    # without blanks a small model cannot write them without end; vLLM allows that setting with a named backend only,
    # and xgrammar is the one that also does tool calls
    args.structured_outputs_config.backend = "xgrammar"
    args.structured_outputs_config.disable_any_whitespace = True
    args.disable_uvicorn_access_log = True
    if not model.gpus and not has_compiler():
        args.enforce_eager = True
    if not model.gpus and model.engine_args.get("tensor_parallel_size", 1) == 1:
        args.distributed_executor_backend = "serving.executor.InProcess"
    args.chat_template = template_for(model.path)
    engine_settings(args, model)
    for name, value in model.engine_args.items():
        if not hasattr(args, name):
            close = difflib.get_close_matches(name, vars(args), n=1)
            fix = f"did you mean {close[0]!r}?" if close else "see vLLM's engine arguments"
            raise UsageError(
                "vLLM has no such argument", field=f"models.{model.name}.engine_args.{name}", value=value, fix=fix
            )
        setattr(args, name, value)
    if args.tool_call_parser:
        args.enable_auto_tool_choice = True
    return args


def has_compiler() -> bool:
    """Return whether there is a C++ compiler: torch.compile needs one on a CPU, and without it nothing is compiled."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def engine_environment(model: Model) -> dict[str, str]:
    """Return the environment variables that the engine's processes need, for CPU or GPU."""
    common = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if not model.gpus:
        common["VLLM_CPU_KVCACHE_SPACE"] = str(model.cpu_kv_cache_gib)
        # vLLM 0.29 stores what it compiled for a CPU ahead of time, cannot load it again, and compiles at every start;
        # without that, inductor's own cache is used, which works (docs/benchmarks.md)
        common["VLLM_USE_AOT_COMPILE"] = "0"
        if not has_compiler():
            common["TORCHDYNAMO_DISABLE"] = "1"  # vLLM compiles more than the model: ranks of log probabilities, too
        cache = Path(os.environ.get("VLLM_CACHE_ROOT") or Path.home() / ".cache" / "vllm")
        common["TORCHINDUCTOR_CACHE_DIR"] = os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
    return common


async def start_engine(model: Model, media: Media | None = None) -> Engine:
    """Load the model and return when the engine can answer; vLLM loads media under `media`'s limits, if given."""
    os.environ.update(engine_environment(model))
    if media is not None:
        from serving.connector import install

        install(media)

    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.openai.api_server import build_app, init_app_state
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    args = engine_args(model)
    config = AsyncEngineArgs.from_cli_args(args).create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    client = AsyncLLM.from_vllm_config(config, usage_context=UsageContext.OPENAI_API_SERVER, disable_log_stats=False)
    try:
        await client.reset_mm_cache()
        tasks = await client.get_supported_tasks()
        app = build_app(args, tasks, client.model_config)
        await init_app_state(client, app.state, args, tasks)
        app.state.server = argparse.Namespace(
            should_exit=False
        )  # vLLM's error handler sets it; Serve restarts replicas
    except BaseException:
        client.shutdown()
        raise
    return Engine(client, app, args)


def image_token_counter(engine: Engine) -> Callable[[int, int], int]:
    """Return a function (width, height) -> prompt tokens of an image, by the checkpoint's own processor."""
    from vllm.transformers_utils.processor import cached_processor_from_config

    processor: Any = cached_processor_from_config(engine.client.model_config)

    @lru_cache(maxsize=4096)
    def count(width: int, height: int) -> int:
        found = processor._get_num_multimodal_tokens(image_sizes=[(height, width)])
        return int(found["num_image_tokens"][0])

    return count
