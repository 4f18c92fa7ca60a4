"""Which scheme runs on which machine, and by which kernel: `kernels.yaml`, read closed, consulted before any work."""

from __future__ import annotations

import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from models.support.errors import UsageError
from quantize.request import Closed
from quantize.schemes import Scheme

TABLE = Path(__file__).with_name("kernels.yaml")


class Machine(Closed):
    """A kind of machine: a GPU generation by its compute capabilities, or a CPU by the flags that it `needs`."""

    name: str
    title: str
    capabilities: list[str] = Field(default_factory=list)
    needs: list[str] | None = None


class Row(Closed):
    """One scheme on some machines."""

    scheme: str
    machines: list[str] = Field(min_length=1)
    verdict: Literal["good", "weights", "slow", "refused"]
    kernel: str
    source: str
    seen: bool = False
    instead: str | None = None
    note: str | None = None


class Table(Closed):
    """The whole file: every scheme has exactly one row for every machine."""

    sources: dict[str, str]
    machines: list[Machine]
    rows: list[Row]

    @model_validator(mode="after")
    def _complete(self) -> Table:
        names = {m.name for m in self.machines}
        seen: set[tuple[str, str]] = set()
        for row in self.rows:
            if row.source not in self.sources:
                raise ValueError(f"{row.scheme}: source {row.source!r} is not listed")
            if row.verdict == "refused" and row.instead is None:
                raise ValueError(f"{row.scheme}: refused without `instead`")
            for machine in row.machines:
                if machine not in names:
                    raise ValueError(f"{row.scheme}: unknown machine {machine!r}")
                if (row.scheme, machine) in seen:
                    raise ValueError(f"{row.scheme} on {machine} stands twice")
                seen.add((row.scheme, machine))
        for scheme in {row.scheme for row in self.rows}:
            missing = sorted(names - {m for s, m in seen if s == scheme})
            if missing:
                raise ValueError(f"{scheme} has no row for {missing[0]}")
        return self

    def row(self, scheme: str, machine: str) -> Row:
        """Return the row of a scheme on a machine.  Raises KeyError when the table has no such scheme."""
        for row in self.rows:
            if row.scheme == scheme and machine in row.machines:
                return row
        raise KeyError(f"{scheme} on {machine}")


@lru_cache(maxsize=4)
def load_table(path: Path = TABLE) -> Table:
    """Return the table.  Raises UsageError when the file is wrong."""
    try:
        return Table.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"is not a kernel table: {reason}", field=str(path)) from error


def cpu_machine(flags: set[str] | None = None) -> str:
    """Return the name of this CPU's kind, the best that its flags allow."""
    if flags is None:
        try:
            text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
        except OSError:
            text = ""
        line = next((n for n in text.splitlines() if n.startswith("flags")), "")
        flags = set(line.split())
    for machine in load_table().machines:
        if machine.needs is not None and set(machine.needs) <= flags:
            return machine.name
    return "cpu-other"


def capability_machine(capability: str) -> str:
    """Return the generation of a CUDA compute capability.  Raises UsageError for one that the table lacks."""
    for machine in load_table().machines:
        if capability in machine.capabilities:
            return machine.name
    known = ", ".join(c for m in load_table().machines for c in m.capabilities)
    raise UsageError("no GPU generation with this compute capability", field="gpu", value=capability, fix=known)


def find_machine(target: str) -> str:
    """Return the machine's name for `here`, `cpu`, a machine of the table, a capability, or a GPU of models/gpus.yaml.

    Raises:
        UsageError: none of them.
    """
    plain = target.strip().casefold()
    if plain == "here":
        return _here()
    if plain == "cpu":
        return cpu_machine()
    if plain in {m.name for m in load_table().machines}:
        return plain
    if plain.replace(".", "").isdigit() and "." in plain:
        return capability_machine(plain)
    from models.fit import find_gpu

    return capability_machine(find_gpu(target).capability)


def _here() -> str:
    """Return this machine: its GPU when nvidia-smi names one, otherwise its CPU."""
    if any(Path(p).exists() for p in ("/dev/nvidiactl", "/proc/driver/nvidia")):
        command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        try:
            told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return cpu_machine()
        lines = told.stdout.split()
        if told.returncode == 0 and lines:
            return capability_machine(lines[0])
    return cpu_machine()


def check_target(scheme: Scheme, target: str) -> list[str]:
    """Return what to know about `scheme` on the machine that will serve it.

    Raises:
        UsageError: the engine would not run it there; the error names the reason and the scheme to take instead.
    """
    if scheme.trial:
        return [f"{scheme.name}: {scheme.title}"]
    machine = find_machine(target)
    table = load_table()
    row = table.row(scheme.name, machine)
    title = next(m.title for m in table.machines if m.name == machine)
    if row.verdict == "refused":
        why = f"does not run on {title}: {row.note or row.kernel} ({table.sources[row.source]})"
        raise UsageError(why, field="scheme", value=scheme.name, fix=f"use --scheme {row.instead}")
    if row.verdict == "good":
        return []
    what = {"weights": "saves memory, not time", "slow": "runs slowly"}[row.verdict]
    return [f"{scheme.name} {what} on {title}: {row.note or row.kernel}"]
