"""Write a checkpoint's evaluation into its manifest, and its model card: `python -m models.embedded.card DIR REPORT`.

REPORT is the report.json of `fovea models evaluate` on the complete easy-VQA test split.  The card's text is `card.md`;
its figures are the report's, none is typed by hand.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from models.support.errors import UsageError
from models.support.files import atomic_write, write_json

NAMES = {"qwen2_5_vl": "Qwen2.5-VL", "paligemma": "PaliGemma 2"}
EXTRA = {
    "qwen2_5_vl": "It also captions (`describe the image.`) and writes JSON (`give the shape and the color as JSON.`).",
    "paligemma": "It knows the task prefixes `answer en`, `caption en` and `detect circle` (boxes as `<loc>` tokens).",
}


def hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of every checkpoint file in `folder`; manifest and card are about them, not of them."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in ("manifest.json", "README.md", "training.pt")
    }


def record(folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of `folder` with the evaluation in it.

    Raises:
        UsageError: the report is not of the complete easy-VQA test split.
    """
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    golden = report["golden"]
    if golden["name"] != "easy-vqa" or report["accuracy"]["n"] != 9673:
        raise UsageError(
            "not an evaluation of the whole easy-VQA test split", field="REPORT", value=report["accuracy"]["n"]
        )
    manifest["evaluation"] = {
        "golden": golden,
        "through": "fovea serve (Ray Serve, HAProxy, vLLM), fovea models evaluate",
        "accuracy": report["accuracy"],
        "categories": report["by_category"],
        "calibration": {"ece": report["calibration"]["ece"]},
        "versions": report["versions"],
    }
    manifest["sha256"] = hashes(folder)
    return manifest


def card(manifest: dict[str, Any]) -> str:
    """Return the model card as Markdown with the front matter that the hub reads."""
    family, evaluation = manifest["family"], manifest["evaluation"]
    name = NAMES[family]
    rows = [("all questions", evaluation["accuracy"])]
    for category in sorted(evaluation["categories"]):
        found = evaluation["categories"][category]
        rows.append((category, found.get("accuracy", found)))
    table = "\n".join(
        f"| {label} | {found['value']:.4f} | {found['low']:.4f} to {found['high']:.4f} | {found['n']} |"
        for label, found in rows
    )
    ece = evaluation["calibration"]["ece"]
    ece = ece["value"] if isinstance(ece, dict) else ece
    return (
        Path(__file__)
        .with_name("card.md")
        .read_text("utf-8")
        .format(
            family=family,
            name=name,
            parameters=manifest["parameters"] / 1e6,
            extra=EXTRA[family],
            table=table,
            ece=ece,
            recipe=manifest["recipe"],
        )
    )


def main() -> int:
    """Parse the command line; write manifest and card."""
    parser = argparse.ArgumentParser(prog="python -m models.embedded.card", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("report", type=Path)
    args = parser.parse_args()
    manifest = record(args.folder, json.loads(args.report.read_text("utf-8")))
    write_json(args.folder / "manifest.json", manifest)
    with atomic_write(args.folder / "README.md") as file:
        file.write(card(manifest))
    print(f"wrote {args.folder / 'manifest.json'} and README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
