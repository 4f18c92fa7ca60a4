"""vLLM's worker inside the engine's own process, on a CPU.

vLLM starts the CPU worker as a process of its own because OpenMP reads its settings from the environment when a process
starts.  Engine and worker then hand every step over through shared memory, and both wait for it by calling
`sched_yield` in a loop.  With a small model that hand-over is a large part of the step (docs/benchmarks.md).
Here the number of threads is set in the process itself, so nothing has to be handed over; and the kernels of
`serving/cpu_kernels.py` are known before the model is loaded.
"""

from __future__ import annotations

import torch
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from serving import cpu_kernels


class InProcess(UniProcExecutor):
    """One worker, in the engine's process, with as many OpenMP threads as vLLM would bind to processors."""

    def _init_executor(self) -> None:
        bound = OMPProcessManager(self.vllm_config).cpu_lists
        if bound:  # empty: VLLM_CPU_OMP_THREADS_BIND=nobind, the environment decides
            torch.set_num_threads(len(bound[0]))
        cpu_kernels.install()
        super()._init_executor()
