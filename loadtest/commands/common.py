"""Options that several sub-commands share, and how they become a config."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from models.support.errors import UsageError


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add what says where the load goes."""
    group = parser.add_argument_group("target")
    group.add_argument("--url", required=True, help="base URL, up to and including /v1")
    group.add_argument("--model", required=True, help="model name, as the server knows it")
    add_api(group)


def add_api(group: argparse._ArgumentGroup) -> None:
    """Add what says how to speak to the server."""
    group.add_argument("--api", default="openai", choices=("openai", "anthropic", "gemini"), help="which API it speaks")
    group.add_argument("--no-stream", action="store_true", help="ask for whole replies (no time to first token then)")
    group.add_argument(
        "--api-key-env", metavar="NAME", help="variable that holds the API key (default: OPENAI_API_KEY and the like)"
    )
    group.add_argument("--insecure", action="store_true", help="do not check the server's certificate")
    group.add_argument("--no-check", action="store_true", help="do not ask for the model and send one request first")


def add_traffic(parser: argparse.ArgumentParser) -> None:
    """Add what says which prompts are sent and when."""
    group = parser.add_argument_group("traffic")
    group.add_argument("--workload", default="easy-vqa", help="workload name or .jsonl file (default: easy-vqa)")
    group.add_argument("--workload-option", action="append", default=[], metavar="KEY=VALUE", help="repeatable")
    group.add_argument("--max-tokens", type=int, help="output tokens at most")
    group.add_argument("--temperature", type=float, default=0.0, help="sampling temperature (default: 0)")
    group.add_argument("--body", action="append", default=[], metavar="KEY=JSON", help="further field of the body")
    group.add_argument("--seed", type=int, default=0, help="seed of everything random (default: 0)")
    group.add_argument("--arrival", default="poisson", help="arrival process of an open loop (default: poisson)")
    group.add_argument("--arrival-option", action="append", default=[], metavar="KEY=NUMBER", help="repeatable")
    group.add_argument("--warmup", type=float, default=0.0, metavar="S", help="seconds of load left out at the start")
    group.add_argument("--cooldown", type=float, default=0.0, metavar="S", help="seconds of load left out at the end")
    group.add_argument("--no-cache-bust", action="store_true", help="let prompts repeat unchanged")


def add_generator(parser: argparse.ArgumentParser) -> None:
    """Add what concerns the generator itself."""
    group = parser.add_argument_group("generator")
    group.add_argument("--processes", type=int, default=1, metavar="N", help="load processes (default: 1)")
    group.add_argument("--ray-address", metavar="ADDRESS", help="spread the processes over this Ray cluster")
    group.add_argument("--max-connections", type=int, default=1024, metavar="N", help="default: 1024")
    group.add_argument("--timeout", type=float, default=120.0, metavar="S", help="per request (default: 120)")
    group.add_argument("--retries", type=int, default=0, metavar="N", help="send a failed request again (default: 0)")
    group.add_argument("--max-slip-ms", type=float, metavar="MS", help="p99 lateness that makes a run invalid")
    group.add_argument("--metrics-url", action="append", default=[], metavar="URL", help="Prometheus endpoint to watch")


def add_hardware(parser: argparse.ArgumentParser) -> None:
    """Add what the server costs."""
    group = parser.add_argument_group("cost")
    group.add_argument("--hardware", metavar="FILE", help="YAML with usd_per_hour, utilization, name, source")
    group.add_argument("--usd-per-hour", metavar="USD", help="price of the serving hardware per hour")
    group.add_argument("--utilization", metavar="SHARE", help="share of paid hours with such load (default: 1)")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add where results go."""
    parser.add_argument("--out", metavar="DIR", help="folder for report.json, report.html and the rest")
    parser.add_argument("--json", action="store_true", help="print report.json instead of tables")
    parser.add_argument("--quiet", action="store_true", help="no progress line")


def pairs(given: list[str], option: str, *, numbers: bool = False) -> dict[str, Any]:
    """Return `KEY=VALUE` options as a dict; values are read as JSON where they are JSON, else as text.

    Raises:
        UsageError: no `=`, or not a number where one is needed.
    """
    out: dict[str, Any] = {}
    for text in given:
        key, sign, raw = text.partition("=")
        if not sign or not key:
            raise UsageError(
                "must have the form KEY=VALUE", field=option, value=text, fix="write KEY=VALUE, for example cv=3"
            )
        try:
            value = json.loads(raw)
        except ValueError:
            value = raw
        if numbers and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UsageError("must be a number", field=option, value=text, fix="write KEY=NUMBER")
        out[key.replace("-", "_") if not numbers else key] = value
    return out


def hardware_of(args: argparse.Namespace) -> dict[str, Any] | None:
    """Return the hardware section from a file or from options, None when neither is given.

    Raises:
        UsageError: the file or a number is wrong.
    """
    section: dict[str, Any] = {}
    if args.hardware:
        import yaml

        try:
            loaded = yaml.safe_load(Path(args.hardware).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(
                f"cannot read: {error.strerror}", field="--hardware", value=args.hardware, fix="name an existing file"
            ) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            text = " ".join(str(error).split())
            raise UsageError(
                f"not YAML: {text}", field="--hardware", value=args.hardware, fix="mend the file there"
            ) from error
        if not isinstance(loaded, dict):
            raise UsageError(
                "must hold usd_per_hour and the like",
                field="--hardware",
                value=args.hardware,
                fix="write lines like `usd_per_hour: 0.5`",
            )
        section = loaded.get("hardware", loaded)
        section = {k: str(v) for k, v in section.items()} if isinstance(section, dict) else {}
    for option, key in (("usd_per_hour", "usd_per_hour"), ("utilization", "utilization")):
        given = getattr(args, option)
        if given is not None:
            try:
                Decimal(given)
            except InvalidOperation as error:
                name = "--" + option.replace("_", "-")
                raise UsageError("must be a number", field=name, value=given, fix="for instance 0.80") from error
            section[key] = given
    if section and "usd_per_hour" not in section:
        raise UsageError("the hardware has no price", field="--usd-per-hour", fix="give dollars per hour")
    return section or None


def base_config(args: argparse.Namespace) -> dict[str, Any]:
    """Return the part of a config that does not depend on the kind of load."""
    return {
        "url": args.url,
        "model": args.model,
        "api": args.api,
        "stream": not args.no_stream,
        "api_key_env": args.api_key_env,
        "verify_tls": not args.insecure,
        "check_model": not args.no_check,
        "seed": args.seed,
        "warmup_s": args.warmup,
        "cooldown_s": args.cooldown,
        "temperature": args.temperature,
        "cache_bust": not args.no_cache_bust,
        "processes": args.processes,
        "ray_address": args.ray_address,
        "max_connections": args.max_connections,
        "timeout_s": args.timeout,
        "retries": args.retries,
        "max_slip_ms": args.max_slip_ms,
        "metrics_urls": tuple(args.metrics_url),
        "hardware": hardware_of(args),
        "command": command_line(),
    }


def class_values(args: argparse.Namespace) -> dict[str, Any]:
    """Return the traffic options as fields of a traffic class."""
    return {
        "name": "main",
        "workload": args.workload,
        "workload_options": pairs(args.workload_option, "--workload-option"),
        "max_tokens": args.max_tokens,
        "extra": pairs(args.body, "--body"),
        "arrival": args.arrival,
        "arrival_options": pairs(args.arrival_option, "--arrival-option", numbers=True),
    }


def command_line() -> str:
    """Return the command as it was typed (keys are never on it: they come from the environment)."""
    return shlex.join(["fovea", *sys.argv[1:]])


def positive(args: argparse.Namespace, *options: str) -> None:
    """Refuse options that are not above zero.

    Raises:
        UsageError: the first one that is not.
    """
    for option in options:
        value = getattr(args, option)
        if value is not None and not value > 0:
            raise UsageError(
                "must be above zero", field="--" + option.replace("_", "-"), value=value, fix="give a number above zero"
            )


def publish(
    args: argparse.Namespace,
    data: dict[str, Any],
    text: Callable[[dict[str, Any]], str],
    write: Callable[[dict[str, Any], Path], None],
) -> None:
    """Print a result, then write its files: where the disk is full, the result has been seen.

    Raises:
        UsageError: a file cannot be written.
    """
    print(json.dumps(data, indent=2, ensure_ascii=False) if args.json else text(data), flush=True)
    if args.out:
        write(data, Path(args.out))


def check_out(out: str | None) -> None:
    """Find out before a long run whether its results can be written.

    Raises:
        UsageError: the folder cannot be made or written to.
    """
    if out is None:
        return
    import tempfile

    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UsageError(
            f"cannot write there: {error.strerror}", field="--out", value=out, fix="name a folder that you can write to"
        ) from error
