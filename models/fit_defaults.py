"""Assumptions of `fit` that its command line shows: here, so that `--help` does not read the catalog."""

UTILIZATION = 0.92  # vLLM 0.29: gpu_memory_utilization
OVERHEAD_GIB = 1.0  # CUDA context and libraries 0.1-0.4 GiB in public vLLM logs, the rest for captured CUDA graphs
