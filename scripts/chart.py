"""Write what the chart has from elsewhere in the project, or say what is out of date.

python -m scripts.chart            write helm/fovea/values.schema.json, files/catalog.yaml, files/dashboards, README.md
python -m scripts.chart --check    exit code 1 when one of them would change
"""

from __future__ import annotations

import argparse
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from models.catalog.load import load_catalog
from models.fit import GIB, SCHEMES, kv_bytes, load_gpus, weight_bytes
from models.support.files import atomic_write
from scripts.chart_dashboards import dashboards
from scripts.chart_values import Values
from scripts.chart_values_pods import Quantity
from serving.stack import Stack

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "helm" / "fovea"

# vLLM's quantization methods -> schemes of `fovea models fit`; a method that is not here is counted as 16 bits
QUANTIZATION = {
    "awq": "w4a16", "awq_marlin": "w4a16", "gptq": "w4a16", "gptq_marlin": "w4a16", "bitsandbytes": "w4a16",
    "fp8": "fp8", "modelopt": "fp8", "int8": "w8a8", "experts_int8": "w8a8",
    "w4a16": "w4a16", "nf4": "w4a16", "w8a8": "w8a8", "bnb-int8": "w8a8",
}  # fmt: skip
# how the names of quantized checkpoints end -> scheme
SUFFIXES = {
    "w4a16": "-(awq|gptq-int4|int4|(quantized[.])?w4a16)$",
    "w8a8": "-(int8|gptq-int8|(quantized[.])?w8a8)$",
    "fp8": "-fp8(-dynamic|-block)?$",
}


def values_schema() -> dict[str, Any]:
    """Return the JSON Schema of the chart's values, closed everywhere; `stack` is `fovea serve --schema`'s."""
    schema = Values.model_json_schema(by_alias=True)
    return {"$schema": "http://json-schema.org/draft-07/schema#", **schema}


def stack_part(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of `stack` out of the values' schema, in the form of `fovea serve --schema`."""
    definitions = schema["$defs"]
    used: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            name = str(node.get("$ref", "")).removeprefix("#/$defs/")
            if name and name not in used:
                used.add(name)
                walk(definitions[name])
            for one in node.values():
                walk(one)
        elif isinstance(node, list):
            for one in node:
                walk(one)

    walk(definitions["Stack"])
    return {"$defs": {name: definitions[name] for name in sorted(used)}, **definitions["Stack"]}


def catalog() -> dict[str, Any]:
    """Return what the template needs to tell what fits: sizes by the hub id's last part, memory by GPU."""
    models: dict[str, Any] = {}
    for family in load_catalog().families:
        for variant in family.variants:
            if variant.hub is None:
                continue
            per_token = kv_bytes(variant.decoder, variant.context) / variant.context
            models[variant.hub.split("/")[1].casefold()] = {
                "context": variant.context,
                "kv_heads": variant.decoder.kv_heads,
                "kv_mib_per_token": round(per_token / 2**20, 6),
                "weights_gib": {scheme: round(weight_bytes(variant, scheme) / GIB, 3) for scheme in SCHEMES},
            }
    gpus = {name.casefold(): gpu.memory_gib for gpu in load_gpus() for name in (gpu.name, *gpu.aliases)}
    return {"gpus": gpus, "quantization": QUANTIZATION, "suffixes": SUFFIXES, "models": models}


def kind(annotation: Any) -> str:
    """Return a type as the README writes it."""
    origin = get_origin(annotation)
    if annotation is Any:
        return "any"
    if origin is Literal:
        return " \\| ".join(f"`{one}`" for one in get_args(annotation))
    if origin in (Union, types.UnionType):
        return " \\| ".join(kind(one) for one in get_args(annotation) if one is not type(None))
    if origin is list:
        return f"list of {kind(get_args(annotation)[0])}"
    if origin is dict:
        return "map"
    if annotation is Quantity or origin is not None:
        return kind(get_args(annotation)[0])
    names = {str: "text", int: "integer", float: "number", bool: "true \\| false"}
    return names.get(annotation, "section")


def rows(model: type[BaseModel], prefix: str = "", given: Any = None) -> Iterator[tuple[str, str, str, str]]:
    """Yield (path, type, default, meaning) of every value below a model.

    Args:
        given: what values.yaml has there; a value that is not in it has the model's own default.
    """
    for name, field in model.model_fields.items():
        key = field.alias or name
        path, text, annotation = prefix + key, field.description or "", field.annotation
        inner = get_args(annotation)[0] if get_origin(annotation) is list else annotation
        here = given.get(key) if isinstance(given, dict) else None
        if annotation is Stack:
            yield path, "stack file", "see values.yaml", text
        elif isinstance(inner, type) and issubclass(inner, BaseModel):
            many = inner is not annotation
            if many:
                yield path, "list", "see values.yaml" if here else "`[]`", text
            yield from rows(inner, f"{path}[]." if many else f"{path}.", None if many else here)
        elif here is None and field.is_required():
            yield path, kind(annotation), "required", text
        else:
            default = field.get_default(call_default_factory=True) if here is None else here
            yield path, kind(annotation), f"`{json.dumps(default)}`", text


def readme() -> str:
    """Return the chart's README: its head by hand, the values from the models."""
    head = (ROOT / "helm" / "README.head.md").read_text()
    given = yaml.safe_load((CHART / "values.yaml").read_text())
    lines = ["| value | type | default | meaning |", "|---|---|---|---|"]
    lines += [f"| `{path}` | {kind} | {default} | {text} |" for path, kind, default, text in rows(Values, "", given)]
    return (
        head
        + "\n## Values\n\nA value that is not listed here fails `helm install` with its name.\n\n"
        + "\n".join(lines)
        + "\n"
    )


def files() -> dict[Path, str]:
    """Return every generated file with its content."""
    head = "# Written by `python -m scripts.chart` from models/catalog and models/gpus.yaml.\n"
    found = {
        CHART / "values.schema.json": json.dumps(values_schema(), indent=1) + "\n",
        CHART / "files" / "catalog.yaml": head + yaml.safe_dump(catalog(), sort_keys=True, width=120),
        CHART / "README.md": readme(),
    }
    for name, board in dashboards().items():
        found[CHART / "files" / "dashboards" / f"{name}.json"] = json.dumps(board, indent=1) + "\n"
    return found


def main(argv: list[str] | None = None) -> int:
    """Write the files, or check them."""
    parser = argparse.ArgumentParser(prog="python -m scripts.chart", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when something would change")
    args = parser.parse_args(argv)
    stale = [path for path, text in files().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(f"{'out of date' if args.check else 'written'}: {path.relative_to(ROOT)}")
        if not args.check:
            with atomic_write(path) as file:
                file.write(files()[path])
    return 1 if stale and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
