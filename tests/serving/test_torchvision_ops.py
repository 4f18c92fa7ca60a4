"""The torchvision work-around: acts only where it must, costs nothing otherwise, and works in every process."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "serving" / "torchvision_ops.py"

# A torch and a torchvision with just what the work-around looks at; like the real one, torchvision loads its extension
# first, and its registrations fail when an operator has no schema.
TORCH = """
import types
version = types.SimpleNamespace(cuda={cuda!r})
defined = []
class Library:
    def __init__(self, name, kind):
        assert (name, kind) == ("torchvision", "FRAGMENT")
    def define(self, schema):
        defined.append(schema.split("(")[0])
library = types.SimpleNamespace(Library=Library)
"""
EXTENSION = "def _has_ops():\n    return {native!r}\n"
REGISTRATIONS = """
import torch
from torchvision import extension
if not extension._has_ops() and "nms" not in torch.defined:
    raise RuntimeError("operator torchvision::nms does not exist")
"""
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
import copied_operators
early = sorted(name for name in sys.modules if name.startswith("torch"))
before = len(sys.meta_path)
try:
    import torchvision
    error = None
except RuntimeError as caught:
    error = str(caught)
import torch
print(json.dumps({"early": early, "defined": torch.defined, "error": error, "left": before - len(sys.meta_path)}))
"""


def run_with(folder: Path, cuda: str | None, native: bool) -> dict[str, object]:
    """Import torchvision in a fresh process that has only the stand-ins and a copy of the work-around."""
    (folder / "torchvision").mkdir()
    (folder / "torch.py").write_text(TORCH.format(cuda=cuda))
    (folder / "torchvision" / "__init__.py").write_text(
        "import torch\nfrom . import extension\nfrom torchvision import _autograd_registrations, _meta_registrations\n"
    )
    (folder / "torchvision" / "extension.py").write_text(EXTENSION.format(native=native))
    (folder / "torchvision" / "_autograd_registrations.py").write_text(REGISTRATIONS)
    (folder / "torchvision" / "_meta_registrations.py").write_text(REGISTRATIONS)
    shutil.copy(SOURCE, folder / "copied_operators.py")
    command = [sys.executable, "-I", "-S", "-c", PROGRAM, str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    return dict(json.loads(ran.stdout))


@pytest.mark.parametrize(
    ("cuda", "native", "defined"),
    [
        (None, False, ["nms", "qnms"]),  # a CPU torch with the CUDA build of torchvision: the one case to mend
        (None, True, []),  # both are CPU builds
        ("13.0", True, []),  # a GPU machine
    ],
)
def test_schemas_are_defined_only_where_they_are_missing(
    tmp_path: Path, cuda: str | None, native: bool, defined: list[str]
) -> None:
    found = run_with(tmp_path, cuda, native)
    assert found["early"] == [], "torch must not be imported at the start of every process"
    assert found["error"] is None
    assert found["defined"] == defined
    assert found["left"] == 1, "the finder takes itself away once torchvision is there"


def test_a_broken_gpu_installation_is_not_hidden(tmp_path: Path) -> None:
    found = run_with(tmp_path, "13.0", False)
    assert found["defined"] == []
    assert "torchvision::nms does not exist" in str(found["error"])


def fresh(code: str) -> str:
    """Output of a fresh process of this environment."""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_torchvision_can_be_imported_here() -> None:
    assert fresh("import torchvision; print(torchvision.__version__)").startswith("0.28.0")


def test_transformers_finds_its_image_processor() -> None:
    assert fresh("from transformers import Qwen2VLImageProcessor as p; print(p.__name__)") == "Qwen2VLImageProcessor"


def child(results: multiprocessing.Queue[str]) -> None:
    import torchvision

    results.put(torchvision.__version__)


def test_a_spawned_process_has_it_too() -> None:
    """As vLLM starts its engine."""
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[str] = context.Queue()
    process = context.Process(target=child, args=(results,))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert results.get(timeout=10).startswith("0.28.0")


def test_an_operator_without_kernel_says_so() -> None:
    """Only the schema is there: a model that did call it gets torchvision's own clear message, not a crash."""
    import torch
    import torchvision
    from torchvision.extension import _has_ops

    boxes, scores = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0])
    if _has_ops():
        assert torchvision.ops.nms(boxes, scores, 0.5).tolist() == [0]
    else:
        with pytest.raises(RuntimeError, match="Couldn't load custom C"):
            torchvision.ops.nms(boxes, scores, 0.5)
