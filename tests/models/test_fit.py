"""`fit`: the arithmetic by hand, what vLLM itself logged, and the ways it can be asked wrongly."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fovea
from models.catalog import load_catalog
from models.catalog.schema import Decoder
from models.fit import (
    GIB,
    SCHEMES,
    Load,
    activation_bytes,
    advice,
    engine_defaults,
    find_gpu,
    fit,
    kv_bytes,
    load_gpus,
    weight_bytes,
)
from models.support.errors import UsageError

CATALOG = load_catalog()
QWEN = CATALOG.variant("qwen2.5-vl-7b")
GEMMA = CATALOG.variant("gemma-3-27b")
LLAMA_3_8B = Decoder(layers=32, heads=32, kv_heads=8, head_dim=128, hidden=4096, intermediate=14336, vocab=128256)


def test_weights_by_hand() -> None:
    assert weight_bytes(QWEN, "bf16") == 2 * 8_292_166_656
    assert weight_bytes(QWEN, "fp32") == 4 * 8_292_166_656
    linear = 7_615_616_512 - 1_089_994_752  # language less embeddings and head
    rest = 8_292_166_656 - linear
    assert weight_bytes(QWEN, "w8a8") == linear + 2 * rest
    assert weight_bytes(QWEN, "w4a16") == pytest.approx(linear * (4 + 16 / 128) / 8 + 2 * rest, abs=1)
    phi = CATALOG.variant("phi-4-multimodal")
    assert weight_bytes(phi, "bf16") == 2 * (phi.parameters.total + 830_472_192)  # its adapters are loaded too


def test_kv_cache_by_hand() -> None:
    assert kv_bytes(QWEN.decoder, 1600) == 1600 * 2 * 28 * 4 * 128 * 2
    assert kv_bytes(QWEN.decoder, 1) == kv_bytes(QWEN.decoder, 16)  # whole blocks
    assert kv_bytes(QWEN.decoder, 1600, value_bytes=1, gpus=2) == 1600 * 2 * 28 * 2 * 128
    assert kv_bytes(QWEN.decoder, 1600, gpus=8) == 1600 * 2 * 28 * 1 * 128 * 2  # a head each, not half of one
    # 10 of 62 layers keep everything, 52 keep 1,024 tokens
    assert kv_bytes(GEMMA.decoder, 8192) == 2 * 16 * 128 * 2 * (10 * 8192 + 52 * 1024)
    whisper = CATALOG.variant("whisper-tiny").decoder
    assert kv_bytes(whisper, 448) == 2 * 6 * 64 * 2 * 4 * (448 + 1504)


def test_what_vllm_logged_for_llama_3_1_8b() -> None:
    """Logged with 8,192 batched tokens, 256 sequences: activations 1.21 GiB, 54.68 GiB of cache for 447,776 tokens."""
    language, vision, logits = activation_bytes(LLAMA_3_8B, None, batched=8192, sequences=256, encoder_tokens=0)
    assert vision == 0
    assert (language + logits) / GIB == pytest.approx(1.21, rel=0.15)
    assert kv_bytes(LLAMA_3_8B, 447_776) / GIB == pytest.approx(54.68, rel=0.001)


def test_engine_defaults_are_vllms() -> None:
    assert engine_defaults(178.35, "B200") == (16384, 1024)
    assert engine_defaults(79.1, "H100") == (8192, 1024)
    assert engine_defaults(79.14, "A100-80") == (2048, 256)
    assert engine_defaults(21.96, "L4") == (2048, 256)


def test_7b_on_an_l4() -> None:
    load = Load(concurrency=8, image=(1024, 1024))
    found = fit(QWEN, 21.96, load, gpu=find_gpu("L4"))
    assert found.fits and found.image_tokens == 1369 and found.request_tokens == 1369 + 1024
    assert found.needed == found.weights + found.activations + found.overhead + found.kv
    assert found.kv == 8 * kv_bytes(QWEN.decoder, 2393)
    assert found.max_concurrency == (found.budget - found.needed + found.kv) // found.kv_per_request
    assert not fit(QWEN, 21.96, replace(load, concurrency=found.max_concurrency + 1), gpu=find_gpu("L4")).fits
    assert fit(QWEN, 21.96, replace(load, concurrency=found.max_concurrency), gpu=find_gpu("L4")).fits


def test_advice_holds() -> None:
    gpu = find_gpu("L4")
    variant = CATALOG.variant("qwen2.5-vl-32b")
    load = Load(image=(640, 480))
    assert not fit(variant, gpu.memory_gib, load, gpu=gpu).fits
    would = advice(variant, gpu.memory_gib, load, gpu=gpu)
    assert would == ["--gpus 4", "--gpu H100"]
    assert advice(QWEN, gpu.memory_gib, replace(load, scheme="fp32"), gpu=gpu)[0] == "--scheme fp8"
    for flag, value in (w.split() for w in would):
        if flag == "--gpus":
            assert fit(variant, gpu.memory_gib, replace(load, gpus=int(value)), gpu=gpu).fits
        elif flag == "--gpu":
            assert fit(variant, find_gpu(value).memory_gib, load, gpu=find_gpu(value)).fits
        else:
            assert fit(variant, gpu.memory_gib, replace(load, scheme=value), gpu=gpu).fits


@given(
    concurrency=st.integers(1, 500),
    more=st.integers(1, 500),
    context=st.integers(1500, 60_000),
    extra=st.integers(0, 60_000),
    memory=st.floats(1, 400),
    scheme=st.sampled_from(sorted(SCHEMES)),
    gpus=st.sampled_from([1, 2, 4]),
)
@settings(max_examples=150, deadline=None)
def test_more_load_never_fits_where_less_does_not(
    concurrency: int, more: int, context: int, extra: int, memory: float, scheme: str, gpus: int
) -> None:
    load = Load(
        concurrency=concurrency, image=(1024, 1024), context=context, scheme=scheme, gpus=gpus, overhead_gib=0.5
    )
    less = fit(QWEN, memory, load)
    heavier = fit(QWEN, memory, replace(load, concurrency=concurrency + more, context=context + extra))
    assert heavier.kv > less.kv and heavier.max_concurrency <= less.max_concurrency
    assert less.fits or not heavier.fits
    assert less.fits == (less.needed <= less.budget)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"concurrency": 0}, "concurrency"),
        ({"gpus": 3}, "gpus"),
        ({"gpus": 0}, "gpus"),
        ({"scheme": "int3"}, "scheme"),
        ({"kv_dtype": "int4"}, "kv-dtype"),
        ({"utilization": 1.5}, "utilization"),
        ({"overhead_gib": -1}, "overhead"),
        ({"context": 1000, "image": (1024, 1024)}, "context"),
        ({"context": 200_000}, "context"),
        ({"image": (10_000, 10)}, "image"),
        ({"images": -1}, "images"),
    ],
)
def test_wrong_loads_name_the_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(UsageError) as error:
        fit(QWEN, 40, replace(Load(), **change))
    assert error.value.field == field


def test_whisper_takes_no_images_and_memory_must_be_there() -> None:
    with pytest.raises(UsageError, match="no images"):
        fit(CATALOG.variant("whisper-tiny"), 16, Load(image=(10, 10)))
    for memory in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="memory"):
            fit(QWEN, memory, Load())


def test_gpus() -> None:
    assert find_gpu("nvidia-h100").name == "H100" and find_gpu("A100").name == "A100-80"
    assert find_gpu("rtx 4090").name == "RTX-4090"
    with pytest.raises(UsageError, match="L40S"):
        find_gpu("L40")
    assert [g.memory_gib for g in load_gpus()] == sorted(g.memory_gib for g in load_gpus())


@pytest.mark.parametrize(
    ("gpu", "scheme", "word"),
    [("T4", "bf16", "fp16"), ("B200", "w8a8", "Blackwell"), ("A10G", "fp8", "Marlin"), ("L4", "fp8", "")],
)
def test_kernel_notes(gpu: str, scheme: str, word: str) -> None:
    row = find_gpu(gpu)
    notes = " ".join(fit(QWEN, row.memory_gib, Load(scheme=scheme), gpu=row).notes)
    assert word in notes and (word or "Marlin" not in notes)


def test_every_model_has_an_answer_on_every_gpu() -> None:
    for _, variant in CATALOG.variants():
        for gpu in load_gpus():
            image = (1024, 768) if variant.image is not None else None
            found = fit(variant, gpu.memory_gib, Load(image=image), gpu=gpu)
            assert found.fits == (found.needed <= found.budget) and len(found.lines) == 5


# ---- the command


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["models", "fit", "qwen2.5-vl-7b", "--gpu", "L4", "--image", "1024x1024", "--concurrency", "8"]
    assert fovea.main(line) == 0
    out = capsys.readouterr().out
    for word in ("weights", "KV cache", "activations", "overhead", "fits; 24 such requests"):
        assert word in out
    assert fovea.main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["image_tokens"] == 1369
    assert fovea.main([*line, "--dtype", "float32"]) == 1
    assert "would fit: --scheme fp8" in capsys.readouterr().out


def test_command_for_a_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert fovea.main(["models", "fit", "qwen2.5-vl", "--memory", "22", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["fits"] for row in rows] == [True, True, False, False]
    assert fovea.main(["models", "fit", "llama-4", "--gpu", "L4"]) == 1
    assert "llama-4-maverick" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags",
    [
        ["--gpu", "L4", "--memory", "3"],
        [],
        ["--gpu", "L4", "--image", "big"],
        ["--gpu", "L4", "--image", "0x5"],
        ["--gpu", "Z9"],
        ["--memory", "nan"],
    ],
)
def test_command_refuses(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = fovea.main(["models", "fit", "qwen2.5-vl-7b", *flags])
    except SystemExit as stop:  # argparse
        code = int(str(stop.code))
    assert code == 2 and capsys.readouterr().err
