"""Recorded traces in the forms that are about, and clear words for those that are broken."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadtest.run import run_load
from loadtest.traces import read_trace
from models.support.errors import UsageError
from tests.loadtest.conftest import config_for
from tests.loadtest.server import Server

MOONCAKE = """{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}
{"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": [46]}
"""
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
BURST += "5,ChatGPT,472,18,490,C\n45.5,GPT-4,8,4,12,C\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
AZURE += "2023-11-16 18:15:50.9951690,396,109\n"


@pytest.mark.parametrize(
    ("text", "times", "inputs", "outputs"),
    [
        (MOONCAKE, [0, 3.053], [6955, 6472], [52, 26]),
        (BURST, [0, 40.5], [472, 8], [18, 4]),
        (AZURE, [0, 4.314579], [374, 396], [44, 109]),
        ('{"timestamp": 3}\n\n{"timestamp": 1}\n', [0, 2], [-1, -1], [-1, -1]),
    ],
)
def test_known_forms(tmp_path: Path, text: str, times: list[float], inputs: list[int], outputs: list[int]) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    trace = read_trace(path)
    assert trace.times.tolist() == pytest.approx(times, abs=1e-5)
    assert trace.inputs.tolist() == inputs and trace.outputs.tolist() == outputs


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ('{"timestamp": 1}\n{"timestamp": \n', "line 2: not JSON"),
        ('{"when": 1}', "line 1: no time"),
        ("timestamp\nsoon\n", "line 2: not a time"),
        ('{"timestamp": true}', "not a time"),
        ("timestamp\nnan\n", "not a time"),
    ],
)
def test_broken_traces_are_named_by_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(UsageError, match=says):
        read_trace(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "trace"
    path.write_bytes(data)
    with contextlib.suppress(UsageError):
        assert len(read_trace(path).times) > 0


def test_replay_sends_at_the_recorded_times(serve: Callable[..., Server], prompts: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(f'{{"timestamp": {t}}}\n' for t in (10, 10.5, 10.5, 11)))
    report = run_load(config_for(serve(), prompts, trace=str(path)))
    assert report.records["intended"].tolist() == pytest.approx([0, 0.5, 0.5, 1.0], abs=1e-6)
    assert report.data["requests"] == 4
