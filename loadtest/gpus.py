"""The NVIDIA GPUs of the machine that sends the load, read through NVML.

They are the server's only when the server runs on this machine; a server elsewhere reports its own through its
Prometheus endpoint.  Without a GPU, its driver or the binding nothing is measured, and the report says which of them is
not there.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

SCOPE = "the machine that sends the load"


class NoGpu(Exception):
    """There is nothing to measure; the text says why."""


@cache
def binding() -> Any:
    """Return NVIDIA's Python binding of NVML.

    vLLM carries NVIDIA's own file in its builds for GPU and CPU alike.  It is loaded by its path, because importing
    vLLM itself takes seconds and imports torch.

    Raises:
        NoGpu: vLLM is not installed, or does not carry it.
    """
    package = importlib.util.find_spec("vllm")
    for folder in (package.submodule_search_locations or ()) if package is not None else ():
        path = Path(folder) / "third_party" / "pynvml.py"
        spec = importlib.util.spec_from_file_location("_fovea_pynvml", path) if path.is_file() else None
        if spec is not None and spec.loader is not None:
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # it looks itself up there
            spec.loader.exec_module(module)
            return module
    raise NoGpu("the NVML binding that comes with vLLM is not installed")


class Gpus:
    """All GPUs of this machine.

    Args:
        nvml: the binding; by default NVIDIA's own.

    Raises:
        NoGpu: no driver, or no GPU.
    """

    def __init__(self, nvml: Any = None):
        self._nvml = nvml if nvml is not None else binding()
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            raise NoGpu(f"no NVIDIA driver in this machine ({error})") from error
        try:
            count = self._nvml.nvmlDeviceGetCount()
            self._handles = [self._nvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
            self.names = [str(self._nvml.nvmlDeviceGetName(handle)) for handle in self._handles]
        except self._nvml.NVMLError as error:
            self.close()
            raise NoGpu(f"the NVIDIA driver gives no access to its GPUs ({error})") from error
        if not self._handles:
            self.close()
            raise NoGpu("the NVIDIA driver knows no GPU")
        self.problems: dict[str, str] = {}

    def sample(self) -> list[tuple[str, str, float]]:
        """Return (figure, unit, value) of every GPU now; what a GPU does not report is left out and noted."""
        found = []
        for index, handle in enumerate(self._handles):
            for name, unit, read in self._readings(handle):
                label = f"GPU {index} {name}"
                try:
                    found.append((label, unit, read()))
                except self._nvml.NVMLError as error:
                    self.problems.setdefault(label, str(error))
        return found

    def energy_j(self) -> list[float | None]:
        """Return the energy that each GPU has used since its driver was loaded, in joules; None where not known."""
        used: list[float | None] = []
        for handle in self._handles:
            try:
                used.append(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3)
            except self._nvml.NVMLError:
                used.append(None)
        return used

    def _readings(self, handle: Any) -> list[tuple[str, str, Callable[[], float]]]:
        nvml = self._nvml
        return [
            ("use", "%", lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
            ("memory", "MiB", lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used / 2**20),
            ("power", "W", lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3),
            ("temperature", "°C", lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))),
        ]

    def close(self) -> None:
        """Let go of the driver."""
        self._nvml.nvmlShutdown()
