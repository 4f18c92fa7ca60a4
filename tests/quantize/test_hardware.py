"""The kernel table, and advice from it."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import yaml

from models.fit import load_gpus
from models.support.errors import UsageError
from quantize.advise import advise, scheme_table
from quantize.hardware import TABLE, capability_machine, check_target, cpu_machine, find_machine, load_table
from quantize.schemes import SCHEMES, find_scheme


def test_every_scheme_has_a_row_for_every_machine_and_gpu() -> None:
    table = load_table()
    for scheme in SCHEMES.values():
        if not scheme.trial:
            for machine in table.machines:
                assert table.row(scheme.name, machine.name).kernel
    for gpu in load_gpus():
        assert capability_machine(gpu.capability)


@pytest.mark.parametrize(
    ("flags", "machine"),
    [
        ({"avx512f", "avx512_vnni", "amx_tile"}, "cpu-amx"),
        ({"avx512f", "avx512_vnni", "avx512_bf16"}, "cpu-bf16"),
        ({"avx512f", "avx512_vnni"}, "cpu-vnni"),
        ({"avx512f"}, "cpu-avx512"),
        ({"avx2"}, "cpu-other"),
        (set(), "cpu-other"),
    ],
)
def test_the_cpu_by_its_flags(flags: set[str], machine: str) -> None:
    assert cpu_machine(flags) == machine


def test_machines_by_name() -> None:
    assert find_machine("H100") == "hopper"
    assert find_machine("8.6") == "ampere"
    assert find_machine("blackwell") == "blackwell"
    assert find_machine("cpu").startswith("cpu-")
    assert find_machine("here") in {m.name for m in load_table().machines}
    with pytest.raises(UsageError, match="no GPU generation"):
        find_machine("3.5")
    with pytest.raises(UsageError, match="unknown GPU"):
        find_machine("H1000x")


def test_int8_is_refused_on_blackwell_and_fp8_proposed() -> None:
    with pytest.raises(UsageError, match=r"does not run on Blackwell.*54311.*use --scheme fp8") as caught:
        check_target(find_scheme("w8a8"), "B200")
    assert caught.value.exit_code == 2
    assert check_target(find_scheme("fp8"), "B200") == []


def test_fp8_on_ampere_is_explained() -> None:
    (told,) = check_target(find_scheme("fp8"), "A100")
    assert "weight-only Marlin" in told and "saves memory, not time" in told


def test_a_trial_scheme_says_what_it_is() -> None:
    assert "broken on purpose" in check_target(find_scheme("w2-trial"), "cpu")[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["rows"].pop(), "has no row for"),
        (lambda d: d["rows"].append(d["rows"][0]), "stands twice"),
        (lambda d: d["rows"][0].update(machines=["mars"]), "unknown machine"),
        (lambda d: d["rows"][0].update(source="rumour"), "not listed"),
        (lambda d: d["rows"][0].update(verdict="refused"), "without `instead`"),
        (lambda d: d["rows"][0].update(colour="red"), "Extra inputs"),
    ],
)
def test_a_wrong_table_is_one_error(tmp_path: Path, change: object, words: str) -> None:
    data = yaml.safe_load(TABLE.read_text())
    change(data)  # type: ignore[operator]
    path = tmp_path / "kernels.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(UsageError, match=words):
        load_table(path)


def arguments(**values: object) -> argparse.Namespace:
    known = {"model": "qwen2.5-vl-7b", "gpu": None, "memory": None, "concurrency": 8, "image": "1024x1024"}
    return argparse.Namespace(**{**known, "images": 1, "context": None, **values})


def test_advice_on_hopper_ampere_and_blackwell() -> None:
    hopper, blackwell = advise(arguments(gpu="H100")), advise(arguments(gpu="B200"))
    assert hopper["choice"]["scheme"] == blackwell["choice"]["scheme"] == "fp8"
    assert any("w8a8 not taken: refused" in line for line in blackwell["reasons"])
    ampere = advise(arguments(gpu="A100"))
    assert ampere["choice"]["scheme"] == "w8a8"
    assert any("fp8 not taken: weights" in line for line in ampere["reasons"])


def test_advice_takes_int4_where_only_int4_fits() -> None:
    found = advise(arguments(gpu="T4", memory=10.0, concurrency=1))
    assert found["choice"]["scheme"] == "w4a16"
    assert not any(r["fits"] for r in found["rows"] if r["scheme"] == "bf16")
    none = advise(arguments(model="qwen2.5-vl-72b", gpu="T4"))
    assert none["choice"] is None and "nothing fits" in none["reasons"][0]


def test_advice_needs_a_gpu_and_a_picture_size() -> None:
    with pytest.raises(UsageError, match="which GPU"):
        advise(arguments())
    with pytest.raises(UsageError, match="WIDTHxHEIGHT"):
        advise(arguments(gpu="H100", image="big"))
    by_memory = advise(arguments(memory=80.0))
    assert by_memory["gpu"] is None and by_memory["choice"]["scheme"] == "fp8"


def test_the_table_of_schemes() -> None:
    everywhere = scheme_table(None)
    assert len(everywhere) == len(load_table().machines) * 6
    assert {r["machine"] for r in scheme_table("H100")} == {"hopper"}
