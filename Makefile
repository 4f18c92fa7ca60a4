# Every target but help, clean and distclean first brings .venv to the state of its lock (docs/setup.md); that takes
# no noticeable time when nothing changed. Settings: PYTHON=/path/to/python3.12, FOVEA_PROFILE=cpu|gpu.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
PY := .venv/bin/python

.PHONY: help setup setup-quantize demo test lint observe bench bench-loadtest bench-layers bench-affinity drill soak bench-quantize demo-distill prove-distill prove lock clean distclean

help: ## list the targets (the default)
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 \t\2/p' Makefile | expand -t 24

setup: ## make .venv: GPU profile when an NVIDIA GPU is there, otherwise CPU
	@sh scripts/setup serve $(if $(filter setup,$(MAKECMDGOALS)),,--quiet)

setup-quantize: setup ## make .venv-quantize, the environment of the quantization jobs
	@sh scripts/setup quantize $(if $(filter setup-quantize,$(MAKECMDGOALS)),,--quiet)

demo: setup ## serve a real model, ask it about an image, load-test it, price it
	@$(PY) scripts/demo.py $(ARGS)

test: lint setup-quantize ## lint, then all tests (ARGS="tests/serving -k doctor" for some)
	$(PY) -m pytest -n 2 --no-loadscope-reorder --durations 40 $(ARGS)

lint: setup ## ruff and mypy over the whole tree
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

demo-distill: setup ## a large served teacher, a pruned student, the report: the shortened proof
	@$(PY) -m distill.proof.run $(ARGS)

prove-distill: setup setup-quantize ## the same, whole: two tasks, a student from random weights, INT8 and INT4 (ARGS="--task shapes")
	@$(PY) -m distill.proof.run --whole $(ARGS)

observe: setup ## serve the demo under Prometheus, with the chart's rules and dashboards
	@$(PY) -m scripts.observe $(ARGS)

bench: setup ## the stack against bare vLLM, same load, in one run
	@$(PY) scripts/bench_serving.py $(ARGS)

bench-loadtest: setup ## the load generator against a fixed answer
	@$(PY) -m loadtest.bench $(ARGS)

bench-layers: setup ## what each layer costs by itself, and what the batch lane is worth
	@$(PY) -m serving.bench_layers $(ARGS)
	@$(PY) -m serving.bench_lane

bench-affinity: setup ## what it is worth that requests with one image go to one replica
	@$(PY) -m serving.bench_affinity $(ARGS)

drill: setup ## kill replica, engine, proxy and Valkey under load, fill the disk; what clients saw
	@$(PY) -m serving.drill $(ARGS)

soak: setup ## half an hour of load on every layer: is the memory flat
	@$(PY) -m serving.soak $(ARGS)

bench-quantize: setup setup-quantize ## each quantization scheme: size, decode speed, accuracy through the gate
	@$(PY) -m quantize.bench $(ARGS)

prove: setup ## start a tiny checkpoint of every catalog family in vLLM, and record which ran
	@$(PY) fovea.py models prove --out models/proof/results.json $(ARGS)

lock: setup ## write requirements/*.lock from pyproject.toml (UPGRADE=1: newest versions)
	@$(PY) -m scripts.lock $(if $(UPGRADE),--upgrade)

clean: ## remove what was built and cached; not .venv, nor the committed weights, nor runs/
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .cache/setup
	find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv and .venv-quantize
	rm -rf .venv .venv-quantize
