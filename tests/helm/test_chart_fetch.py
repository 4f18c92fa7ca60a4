"""fetch.py: checkpoints from buckets and claims into the model cache, with pyarrow's own clients."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helm.bucket_simulator import BUCKET, Buckets
from tests.helm.chart import CHART

FILES = {
    "q/config.json": b"{}",
    "q/model.safetensors": bytes(range(256)) * 4000,
    "q/sub/a b.txt": b"x",
    "q/empty": b"",
    "question/config.json": b"another one",
}
WANTED = {name.removeprefix("q/"): data for name, data in FILES.items() if name.startswith("q/")}
URIS = {
    "s3": "s3://{bucket}/{folder}?endpoint_override={address}&scheme=http&region=x",
    "gs": "gs://anonymous@{bucket}/{folder}?endpoint_override={address}&scheme=http&retry_limit_seconds=1",
    "folder": "{files}/{folder}",
}


@pytest.fixture
def buckets() -> Iterator[Buckets]:
    found = Buckets(dict(FILES))
    yield found
    found.close()


def uri(kind: str, buckets: Buckets, tmp_path: Path, folder: str = "q") -> str:
    """Return where the files are, under one of the schemes."""
    files = tmp_path / "files"
    for name, data in buckets.files.items():
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_bytes(data)
    return URIS[kind].format(bucket=BUCKET, folder=folder, address=buckets.address, files=files)


def fetch(source: str, target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(CHART / "files" / "fetch.py"), source, str(target)]
    key = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_EC2_METADATA_DISABLED": "true"}
    environment = {"PATH": os.environ["PATH"], "AWS_MAX_ATTEMPTS": "1", **key}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)


def there(target: Path) -> dict[str, bytes]:
    return {str(one.relative_to(target)): one.read_bytes() for one in target.rglob("*") if one.is_file()}


@pytest.mark.parametrize("kind", URIS)
def test_a_checkpoint_arrives_whole_and_once(kind: str, buckets: Buckets, tmp_path: Path) -> None:
    source, target = uri(kind, buckets, tmp_path), tmp_path / "models" / "q"
    done = fetch(source, target)
    assert done.returncode == 0 and "4 files copied now" in done.stdout, done.stdout + done.stderr
    assert there(target) == WANTED
    (target / "model.safetensors").write_bytes(b"cut")
    buckets.read.clear()
    again = fetch(source, target)
    assert again.returncode == 0 and "1 files copied now" in again.stdout and there(target) == WANTED
    assert buckets.read == (["q/model.safetensors"] if kind != "folder" else [])


@pytest.mark.parametrize("kind", URIS)
@pytest.mark.parametrize("folder", ["nothing", "q/sub"])
def test_what_is_no_checkpoint_is_refused(kind: str, folder: str, buckets: Buckets, tmp_path: Path) -> None:
    target = tmp_path / "models"
    done = fetch(uri(kind, buckets, tmp_path, folder), target)
    assert done.returncode == 1 and folder in done.stdout and not target.exists() and done.stderr == ""


def test_a_file_that_ends_early_is_not_taken_for_whole(buckets: Buckets, tmp_path: Path) -> None:
    buckets.cut.add("q/model.safetensors")
    target = tmp_path / "models"
    done = fetch(uri("gs", buckets, tmp_path), target)
    assert done.returncode == 1 and not (target / "model.safetensors").exists()
    buckets.cut.clear()
    assert fetch(uri("gs", buckets, tmp_path), target).returncode == 0
    assert {name: data for name, data in there(target).items() if not name.endswith(".part")} == WANTED


def test_a_key_in_the_address_is_not_printed(buckets: Buckets, tmp_path: Path) -> None:
    source = uri("s3", buckets, tmp_path).replace("s3://", "s3://public:hidden@")
    assert "hidden" in source
    done = fetch(source, tmp_path / "models")
    assert done.returncode == 0 and "hidden" not in done.stdout + done.stderr


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    source = "gs://anonymous@bucket/q?endpoint_override=127.0.0.1:9&scheme=http&retry_limit_seconds=0.1"
    done = fetch(source, tmp_path / "models")
    assert done.returncode == 1 and done.stdout.startswith("gs://bucket/q: ") and done.stderr == ""
