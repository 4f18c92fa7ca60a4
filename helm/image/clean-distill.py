"""Write a recipe of 24 pictures into this folder, its teacher the stack at URL: `clean-distill.py URL`.

clean-root.sh runs a distillation job with it: questions are answered by the stack, and the student trains four steps.
"""

import json
import sys
from pathlib import Path

import yaml

from models.golden import load_golden

N = 24

items = [item for item in load_golden("easy-vqa").items if item.question.startswith("what color")][:N]
assert len(items) == N, len(items)
with Path("rows.jsonl").open("w") as rows:
    for number, item in enumerate(items):
        Path(f"{number}.png").write_bytes(item.image_bytes())
        split = "train" if number < N - 6 else "validation"
        row = {"id": f"r{number}", "image": f"{number}.png", "question": item.question, "split": split}
        rows.write(json.dumps(row) + "\n")
teacher = {"name": "own", "model": "fovea-qwen", "base_url": f"{sys.argv[1]}/v1", "temperature": 0, "max_tokens": 8}
teacher |= {"price": {"input": "0.10", "output": "0.40"}, "licence": {"training": "allowed"}}
colors = sorted({str(item.expected) for item in items})
recipe = {
    "name": "colours",
    "task": {"description": "Name the colour.", "answer_schema": {"enum": colors}},
    "data": {"rows": "rows.jsonl"},
    "teachers": [teacher],
    "prompts": {"reply": "text"},
    "budget": {"max_usd": "1.00"},
    "student": {"model": "qwen2-5-vl-embedded", "max_tokens": 64},
    "train": {
        "base": "/opt/fovea/models/embedded/qwen2_5_vl",
        "batch": 6,
        "stages": [{"steps": 4, "rate": 1e-4}],
        "evaluate_every": 2,
    },
}
Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
