# Each target is a line or two; what it does lives in the packages. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ADDRESS ?= 127.0.0.1:50051
METRICS_ADDRESS ?= 127.0.0.1:9464
TEXT ?= The function returns a null pointer.
CONFIG ?= training/configs/en-zh.toml
CHECKPOINT ?= runs/en-zh/averaged
OUTPUT ?= build/models/en-zh
PRECISION ?= int8
FP32 ?= build/models/en-zh-fp32
DATA ?= ../shared/data
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: help serve translate test check proto train export evaluate bench-decoding \
	bench-reference bench-ctranslate2 bench bench-offline bench-online bench-growth bench-overload profile lock sbom clean

help:  ## This list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 20

$(VENV)/.serve: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e '.[cpu]' && touch $@

# torch first and alone: its exact version keeps every later step from choosing another build.
$(VENV)/.dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch==2.13.0
	$(PIP_INSTALL) -e '.[dev]' && touch $(VENV)/.serve $@

serve: $(VENV)/.serve  ## Serve the models of models/ on ADDRESS, metrics on METRICS_ADDRESS
	@exec $(BIN)/python -m service serve --models models --address $(ADDRESS) --metrics-address $(METRICS_ADDRESS) $(ARGS)

# The text reaches the command as it is: neither make nor the shell reads its $, quotes or backticks.
translate: export RAW_TEXT = $(value TEXT)
translate: $(VENV)/.serve  ## Translate TEXT through the running server (ARGS=-v for the details)
	@$(BIN)/python -m service translate --address $(ADDRESS) $(ARGS) -- "$$RAW_TEXT"

test: $(VENV)/.dev  ## Every test (ARGS=... goes to pytest)
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev  ## Lint, types, import contracts, proto
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy && $(BIN)/lint-imports
	$(BIN)/buf lint && $(BIN)/buf format --diff --exit-code

proto: $(VENV)/.dev  ## Generate service/pb from proto/
	$(BIN)/python proto/generate.py

train: $(VENV)/.dev  ## Prepare the data (DATA), train CONFIG and average its checkpoints; goes on where it stopped
	$(BIN)/python -m training prepare $(CONFIG) --data $(DATA) --if-missing
	$(BIN)/python -m training train $(CONFIG) && $(BIN)/python -m training average $(CONFIG)

export: $(VENV)/.dev  ## Export CHECKPOINT to OUTPUT at PRECISION, verified
	$(BIN)/python -m export $(CHECKPOINT) --output $(OUTPUT) --precision $(PRECISION) --data $(DATA) $(ARGS)

evaluate: $(VENV)/.dev  ## BLEU and chrF of the served model on DATA's test sets, through gRPC, held against its card
	@$(BIN)/python -m benchmarks.evaluate --data $(DATA) --models models --card models/en-zh.md $(ARGS)

bench-decoding: $(VENV)/.dev  ## Tokens a second of greedy and beam search, and the share spent outside ONNX Runtime
	@$(BIN)/python -m benchmarks.decoding models/en-zh --data $(DATA) $(ARGS)

$(FP32):
	$(MAKE) export OUTPUT=$(FP32) PRECISION=fp32 ARGS=

bench-reference: $(VENV)/.dev $(FP32)  ## Every search and penalty against the plain reference over CHECKPOINT, in fp32
	@$(BIN)/python -m benchmarks.reference_beam $(CHECKPOINT) $(FP32) --data $(DATA) $(ARGS)

bench-ctranslate2: $(VENV)/.dev $(FP32)  ## Beam 4 beside CTranslate2 with CHECKPOINT's weights, in fp32
	@$(BIN)/python -m benchmarks.ctranslate2_beam $(CHECKPOINT) $(FP32) --data $(DATA) $(ARGS)

bench: bench-offline bench-online bench-growth  ## All three of the following, one after another (ARGS=--quick)

bench-offline: $(VENV)/.dev  ## Speed, memory and BLEU beside CTranslate2, PyTorch and Optimum (ARGS=--quick)
	@$(BIN)/python -m benchmarks.offline $(CHECKPOINT) models/en-zh --data $(DATA) $(ARGS)

bench-online: $(VENV)/.dev  ## Both servers under the same rising load of independent callers, beside CTranslate2 (ARGS=--quick)
	@$(BIN)/python -m benchmarks.online $(CHECKPOINT) --data $(DATA) $(ARGS)

bench-growth: $(VENV)/.dev  ## Cost of a token and memory of the server as sentences, callers and lengths grow (ARGS=--quick)
	@$(BIN)/python -m benchmarks.growth --data $(DATA) $(ARGS)

bench-overload: $(VENV)/.dev  ## Twice as many calls as the server can answer: who is refused how soon, who waits how long (ARGS=--quick)
	@$(BIN)/python -m benchmarks.overload --data $(DATA) $(ARGS)

profile: $(VENV)/.dev  ## Where the time of a step goes, by kernel, as a table and a picture in build/profile/
	@$(BIN)/python -m benchmarks.profile_step models/en-zh --data $(DATA) $(ARGS)

$(VENV)/.supply: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e '.[supply]' && touch $@

LOCK = $(BIN)/uv pip compile pyproject.toml --override requirements/without-torch.txt --python-version 3.11 --quiet \
	--generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock"

lock: $(VENV)/.supply  ## Pin every dependency with its hashes in requirements/ (ARGS=--upgrade for newer ones)
	$(LOCK) $(ARGS) --extra cpu --output-file requirements/service.txt
	$(LOCK) $(ARGS) --extra dev --output-file requirements/dev.txt

sbom: $(VENV)/.supply  ## List what serving needs, as CycloneDX, in build/sbom.json
	mkdir -p build && $(BIN)/cyclonedx-py requirements requirements/service.txt --pyproject pyproject.toml \
		--output-reproducible --output-file build/sbom.json

clean:  ## Remove the virtual environment and caches (never runs/ or models/)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
