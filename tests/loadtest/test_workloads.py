"""Workloads: what is sent is what was asked for, again and again the same, and never repeated by accident."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from loadtest.apis import Part
from loadtest.run import run_load
from loadtest.workloads import WORKLOADS, Item, make_workload
from models.support.errors import UsageError
from tests.loadtest.conftest import config_for
from tests.loadtest.server import Server

SMALL: dict[str, dict[str, Any]] = {
    "text": {"items": 20},
    "image": {"items": 6, "sizes": "32x24,48x48", "formats": "jpeg,png,webp"},
    "audio": {"items": 3, "seconds": 0.3, "formats": "wav,flac,mp3"},
    "video": {"items": 2, "frames": 3, "sizes": "32x24"},
    "chat": {"conversations": 4, "turns": 3, "live": 2},
    "easy-vqa": {"limit": 30},
}


def parts_of(item: Item) -> list[Part]:
    return [p for m in item.messages for p in m.parts]


@pytest.mark.parametrize("name", sorted(SMALL))
def test_same_seed_same_items_and_no_two_alike(name: str) -> None:
    one, two, other = (make_workload(name, seed=s, **SMALL[name]) for s in (1, 1, 2))
    assert one.digest == two.digest and len(one) > 1
    assert [one.item(i).messages for i in range(len(one))] == [two.item(i).messages for i in range(len(two))]
    assert one.item(0).messages != other.item(0).messages
    said = [one.item(i).messages for i in range(len(one))]
    assert len({str(m) for m in said}) == len(said)


def test_every_registered_workload_is_tried() -> None:
    make_workload("text")
    assert set(WORKLOADS) == {*SMALL, "broken", "golden", "jsonl", "trace"}


def test_images_have_the_sizes_and_formats_asked_for() -> None:
    made = make_workload("image", items=30, sizes="40x30,64x64", formats="png,jpeg", images=2)
    seen = set()
    for i in range(30):
        pictures = [p for p in parts_of(made.item(i)) if p.kind == "image"]
        assert len(pictures) == 2 == made.item(i).shape.images
        for p in pictures:
            with Image.open(io.BytesIO(p.data)) as opened:
                opened.load()
                seen.add((opened.format, opened.size, p.media_type))
    assert {(f, s) for f, s, _ in seen} == {(f, s) for f in ("PNG", "JPEG") for s in ((40, 30), (64, 64))}


def test_sharing_and_repeating_in_the_measure_asked_for() -> None:
    shared = make_workload("image", items=200, sizes="16x16", shared_image=0.5)
    pictures = [parts_of(shared.item(i))[0].data for i in range(200)]
    assert 70 <= max(pictures.count(p) for p in set(pictures)) <= 130
    repeated = make_workload("text", items=400, repeat=0.3)
    distinct = len({str(repeated.item(i).messages) for i in range(400)})
    assert 250 <= distinct <= 310
    prefixed = make_workload("text", items=200, shared_prefix=50, shared_ratio=0.5, prefixes=2)
    systems = [m.parts[0].text for i in range(200) for m in prefixed.item(i).messages if m.role == "system"]
    assert len(set(systems)) == 2 and 70 <= len(systems) <= 130
    assert all(len(s.split()) == 50 for s in systems)


def test_sounds_and_videos_are_real() -> None:
    import soundfile

    made = make_workload("audio", items=6, seconds=0.5, formats="wav,flac,mp3")
    kinds = set()
    for i in range(6):
        part = parts_of(made.item(i))[0]
        samples, rate = soundfile.read(io.BytesIO(part.data))
        assert rate == 16000 and abs(len(samples) / rate - 0.5) < 0.1
        kinds.add(part.media_type)
    assert len(kinds) >= 2
    clip = parts_of(make_workload("video", items=1, frames=4, sizes="32x24").item(0))[0]
    head, *frames = clip.uri().removeprefix("data:video/jpeg;base64,").split(",")
    for frame in [head, *frames]:
        with Image.open(io.BytesIO(base64.b64decode(frame))) as opened:
            assert opened.size == (32, 24)
    assert len(frames) == 3
    stills = parts_of(make_workload("video", items=1, frames=4, sizes="32x24", send="images").item(0))
    assert [p.kind for p in stills] == ["image"] * 4 + ["text"]


def test_conversations_carry_what_was_said() -> None:
    made = make_workload("chat", conversations=2, turns=3, live=2, image_size="16x16", answers="fixed")
    ids = [made.item(i).id for i in range(6)]
    assert ids == ["chat-0-0", "chat-1-0", "chat-0-1", "chat-1-1", "chat-0-2", "chat-1-2"]
    first, second = made.item(0).messages, made.item(2).messages
    assert second[: len(first)] == first
    assert [m.role for m in second] == ["user", "assistant", "user"]


def test_pictures_from_a_folder(tmp_path: Path) -> None:
    Image.new("RGB", (10, 8)).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no picture")
    made = make_workload("image", items=3, folder=str(tmp_path))
    assert made.item(2).shape.width == 10
    (tmp_path / "a.png").unlink()
    with pytest.raises(UsageError, match="has no JPEG"):
        make_workload("image", folder=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("text", {"items": 0}, "items"),
        ("text", {"repeat": 2}, "repeat"),
        ("text", {"colour": 1}, "wrong options"),
        ("image", {"sizes": "10"}, "sizes"),
        ("image", {"sizes": "0x5"}, "sizes"),
        ("image", {"formats": "gif"}, "formats"),
        ("audio", {"formats": "ogg"}, "formats"),
        ("video", {"send": "tape"}, "send"),
        ("golden", {"set": "nothing"}, "golden"),
        ("image", {"folder": "/no/such"}, "folder"),
    ],
)
def test_wrong_options(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make_workload(name, **options)


def write(path: Path, *rows: Any) -> str:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return str(path)


def test_jsonl_in_all_its_forms(tmp_path: Path) -> None:
    Image.new("RGB", (12, 9)).save(tmp_path / "p.png")
    uri = "data:image/png;base64," + base64.b64encode((tmp_path / "p.png").read_bytes()).decode()
    path = write(
        tmp_path / "w.jsonl",
        {"id": "a", "prompt": "x", "image": "p.png", "expected": 4, "accept": {"rule": "numeric", "abs": 0.5}},
        {"question": "y", "images": [uri, "https://host/x.png"], "max_tokens": 5, "system": "brief"},
        "",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": uri}}]}]},
    )
    made = make_workload(path, shuffle=False)
    a, b, c = (made.item(i) for i in range(3))
    assert a.check is not None and a.check("4.2") and not a.check("5")
    assert (a.shape.width, a.shape.height, a.shape.images) == (12, 9, 1)
    assert (
        b.options == {"max_tokens": 5}
        and [p.uri() for p in parts_of(b) if p.kind == "image"][1] == "https://host/x.png"
    )
    assert c.messages[0].parts[0].data == (tmp_path / "p.png").read_bytes() and c.id == "4"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("[1]", "line 1: not an object"),
        ({"text": "x"}, "unknown key 'text'"),
        ({"prompt": ""}, "needs a prompt"),
        ({"prompt": "x", "image": "gone.png"}, "cannot read the image"),
        ({"prompt": "x", "image": "data:image/png;base64,***"}, "not valid base64"),
        ({"prompt": "x", "images": "a.png"}, "images must be a list"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "a part must be"),
        ({"prompt": "x", "accept": {"rule": "exact"}}, "accept without expected"),
        ({"prompt": "x", "expected": "y", "accept": {"rule": "magic"}}, "unknown rule"),
    ],
)
def test_jsonl_errors_name_the_line(tmp_path: Path, row: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make_workload(write(tmp_path / "w.jsonl", row))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=150))
def test_any_file_is_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "w.jsonl"
    path.write_bytes(data)
    with pytest.raises(UsageError):
        make_workload(str(path))
        raise UsageError("it held something after all")


def test_replaying_lengths_and_times_together(serve: Callable[..., Server], tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.jsonl",
        {"timestamp": 0, "input_length": 130, "output_length": 7, "hash_ids": []},
        {"timestamp": 300, "input_length": 13, "output_length": 9, "hash_ids": []},
    )
    server = serve()
    run_load(config_for(server, "trace", trace=path, workload_options={"path": path}, check_model=False))
    sent = [r for _, r in server.requests]
    assert [len(r["messages"][0]["content"].split()) for r in sent] == [100, 10]
    assert [(r["max_tokens"], r["ignore_eos"]) for r in sent] == [(7, True), (9, True)]


def test_classes_with_their_own_slo(serve: Callable[..., Server], prompts: str, tmp_path: Path) -> None:
    from loadtest.config import make_config
    from tests.loadtest.server import Plan

    server = serve(lambda request: Plan(first_s=0.2 if request["max_tokens"] == 99 else 0.002))
    quick = {"name": "interactive", "workload": prompts, "rate": 40, "max_tokens": 5, "slo": {"latency_ms": 150}}
    batch = {"name": "batch", "workload": "text", "concurrency": 2, "workload_options": {"max_tokens": 99}}
    batch["slo"] = {"latency_ms": 150}
    config = make_config(url=server.url, model="m", duration_s=2, classes=[quick, batch], max_slip_ms=5000)
    data = run_load(config).data
    both = data["classes"]
    assert both["interactive"]["requests"] + both["batch"]["requests"] == data["requests"]
    assert both["batch"]["goodput"]["share"]["value"] == 0.0
    assert both["interactive"]["goodput"]["share"]["value"] > 0.5
    assert both["batch"]["latency_ms"]["min"] >= 200
