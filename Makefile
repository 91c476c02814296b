# One Makefile for people, hooks and CI. Every target sets up what it needs.

PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python -m
# The exact versions that the project is tested with; `pip install argosy` takes ranges.
CONSTRAINTS := constraints.txt
# uv does not read pip's folder of local wheels: pass it on where there is one.
LOCAL_WHEELS := $(wildcard $(or $(PIP_FIND_LINKS),$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null)))
ifneq ($(LOCAL_WHEELS),)
export UV_FIND_LINKS := $(LOCAL_WHEELS)
endif
export UV_LINK_MODE ?= hardlink

.PHONY: setup setup-demo demo picture tree extras test test-all test-processors test-latest test-lowest lint types unit format bench-serve bench-trees bench-tune bench-search bench-conformance bench-clients bench-rollout soak-restart soak-faults bench-publish bench-large trajectories bench-mnist bench-train bench-workers bench-train-kill bench-stream bench-tutorials bench-optimizers bench-guard bench-served bench-way bench-models bench-int8 bench-small bench-minilm clean

# Compiled once, and not in every process that a test or server starts where PYTHONDONTWRITEBYTECODE is set: keras then takes 10 s
# to import and not 5, a server 0.9 s to start and not 0.6.
define install
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install -q --disable-pip-version-check -c $(CONSTRAINTS) uv
	@$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -c $(CONSTRAINTS) -e '.[$(1)]'
	@$(BIN)/python -m compileall -q src
	@touch $@
endef

.venv/.demo: pyproject.toml $(CONSTRAINTS)
	$(call install,demo)

.venv/.dev: pyproject.toml $(CONSTRAINTS)
	$(call install,dev)

setup: .venv/.dev
setup-demo: .venv/.demo

## The main job: train, compress, deploy, update and roll back under load. Ends with a report page.
demo: setup-demo
	$(BIN)/argosy demo

## The picture of the README and the acts below it, of one run of the demo.
picture: setup-demo
	$(BIN)/argosy demo --json --overwrite --picture docs/demo.svg | $(PYTHON) docs/write_acts.py

## The tree of folders in ARCHITECTURE.md, from the packages' docstrings.
tree:
	$(PYTHON) docs/write_tree.py

## How much each extra adds to an installation: the table of docs/installing.md.
extras: setup-demo
	$(BIN)/python docs/measure_extras.py

## What CI runs.
test: lint types unit

lint: setup
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: setup
	$(RUN) pyright --warnings

# Three files at a time, in the order of tests/conftest.py: on two cores, as half of them wait for processes. Then, one after the
# other, what measures. The frameworks, none of whose tests does, take long to import.
PYTEST := $(RUN) pytest
TOGETHER := -n 3 --dist loadfile --no-loadscope-reorder
ALONE := --ignore=tests/frameworks

unit: setup
	$(PYTEST) $(TOGETHER) -m "not alone and not slow"
	$(PYTEST) $(ALONE) -m "alone and not slow"

## The slow tests as well: more formats, backends and trajectories of the same kinds.
test-all: setup
	$(PYTEST) $(TOGETHER) -m "not alone"
	$(PYTEST) $(ALONE) -m alone

# Kernels of older processors and one thread: sums come in another order, as they do on machines that CI has none of. TensorFlow's
# oneDNN is off there: under a lower cap it aborts on bfloat16, which it believes the processor has. That is why OpenVINO is left out.
FLOATS := tests/train tests/optim tests/compress tests/frameworks tests/importers tests/serve/worker tests/serve/test_minilm.py
FLOATS += tests/serve/test_lengths.py tests/serve/test_datatypes.py tests/runtimes/test_preprocess.py tests/cli tests/demo
AVX2 := ONEDNN_MAX_CPU_ISA=AVX2 OPENBLAS_CORETYPE=Haswell ATEN_CPU_CAPABILITY=avx2 NPY_DISABLE_CPU_FEATURES=X86_V4
AVX2 += XLA_FLAGS=--xla_cpu_max_isa=AVX2 TF_ENABLE_ONEDNN_OPTS=0
SSE4 := ONEDNN_MAX_CPU_ISA=SSE41 OPENBLAS_CORETYPE=Nehalem ATEN_CPU_CAPABILITY=default NPY_DISABLE_CPU_FEATURES="X86_V3 X86_V4"
SSE4 += XLA_FLAGS=--xla_cpu_max_isa=SSE4_2 TF_ENABLE_ONEDNN_OPTS=0

## The tests of numbers with the kernels of other processors, and on one thread.
test-processors: setup
	$(AVX2) OMP_NUM_THREADS=1 $(PYTEST) $(TOGETHER) -m "not alone and not slow" $(FLOATS)
	$(SSE4) $(PYTEST) $(TOGETHER) -m "not alone and not slow" $(FLOATS)
	OMP_NUM_THREADS=1 $(PYTEST) $(TOGETHER) -m "not alone and not slow" $(FLOATS)

## The suite with what a user gets today: with all extras; and then with those that need neither TensorFlow nor a protobuf before 7,
## Keras running on JAX. (tritonclient does not say that it works with protobuf 7.) Tests of what is not installed skip themselves.
test-latest: setup
	$(call test_with,latest,highest,dev)
	$(call test_with,plain,highest,test,'protobuf>=7',KERAS_BACKEND=jax)

## The suite with the lowest versions that pyproject.toml admits.
test-lowest: setup
	$(call test_with,lowest,lowest-direct,dev)

# In an environment of its own, made anew: name, versions, extra, a package that is installed over what others say, variables.
# torch is the one of .venv: what an index gives untold brings gigabytes of CUDA's libraries along.
define test_with
	$(PYTHON) -m venv --clear .venv-$(1)
	$(BIN)/uv pip freeze -q --python $(BIN)/python | grep '^torch==' > .venv-$(1)/constraints.txt
	$(BIN)/uv pip install -q --compile-bytecode --resolution $(2) --python .venv-$(1)/bin/python \
		-c .venv-$(1)/constraints.txt -e '.[$(3)]'
	$(if $(4),$(BIN)/uv pip install -q --compile-bytecode --python .venv-$(1)/bin/python $(4))
	$(BIN)/uv pip list --python .venv-$(1)/bin/python
	$(5) .venv-$(1)/bin/python -m pytest $(TOGETHER) -m "not alone and not slow"
	$(5) .venv-$(1)/bin/python -m pytest $(ALONE) -m "alone and not slow"
endef

format: setup
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

## Requests/s, CPU and latency beside nine rivals (needs wrk and h2load; TorchServe needs Java).
bench-serve: setup
	$(BIN)/python benchmarks/serve.py

## This source tree beside another one, in turn: make bench-trees BEFORE=FOLDER (needs wrk and h2load).
bench-trees: setup
	$(BIN)/python benchmarks/trees.py $(BEFORE)

## What argosy tune chooses, against every setting of a grid.
bench-tune: setup
	$(BIN)/python benchmarks/tune_grid.py

## The methods of argosy.search at equal trials on surfaces that are known; the tables of docs/searching.md.
## Then on recipes of MiniLM and networks for MNIST, each measured once (hours) and kept in TABLES, so that it goes on when killed.
TABLES ?= $(HOME)/.cache/argosy-search
bench-search: setup
	$(BIN)/python benchmarks/search_methods.py
	$(BIN)/python benchmarks/search_tables.py mnist $(TABLES)
	$(BIN)/python benchmarks/search_tables.py minilm $(TABLES)
	$(BIN)/python benchmarks/search_replay.py $(TABLES) --plot docs/searching.svg

## The conformance suite against Argosy, MLServer, KServe and Triton; writes the tables of docs/conformance.md.
bench-conformance: setup
	$(BIN)/python benchmarks/conformance_rivals.py

## Public clients that need environments of their own: KServe's SDK, mlserver infer, perf_analyzer (needs root for debootstrap).
bench-clients: setup
	$(BIN)/python benchmarks/compat.py

## Twenty rollouts and rollbacks under 32 clients.
bench-rollout: setup
	$(BIN)/python benchmarks/rollout.py

## Two servers behind nginx, restarted in turn under 16 clients: nothing lost (needs nginx).
soak-restart: setup
	$(BIN)/python benchmarks/soak_restart.py
	$(BIN)/python benchmarks/soak_restart.py --keepalive

## Half an hour of faults, one after the other, under clients that check every answer (as root: a full disk as well).
soak-faults: setup
	$(BIN)/python benchmarks/soak_faults.py

## Kills of publishing processes at random moments.
bench-publish: setup
	$(BIN)/python benchmarks/publish_kill.py
	$(BIN)/python benchmarks/publish_kill_processes.py

## A model of 2 GB: publish, deploy, update, share pages.
bench-large: setup
	$(BIN)/python benchmarks/large_model.py

## Every optimizer against its reference in every framework, all combinations; two and four workers against one.
trajectories: setup
	TRAJECTORIES=all $(PYTEST) -m slow tests/frameworks/test_trajectories.py tests/frameworks/test_workers.py

## MNIST in every framework with every optimizer, served; writes docs/mnist.md.
bench-mnist: setup
	$(BIN)/python benchmarks/train_mnist.py

## What argosy.train costs over the loops that users write by hand.
bench-train: setup
	$(BIN)/python benchmarks/train_overhead.py
	$(BIN)/python benchmarks/train_loaders.py

## Time and CPU time to an accuracy with two training workers, beside one, and beside torch's DDP by hand.
bench-workers: setup
	$(BIN)/python benchmarks/train_workers.py

## Kills of training runs at random moments, resumed bit for bit.
bench-train-kill: setup
	$(BIN)/python benchmarks/train_kill.py

## A Parquet set of 4 GB beside the same rows in memory: samples/s, memory, time to the first step.
bench-stream: setup
	$(BIN)/python benchmarks/stream.py

## Twelve known tutorials by argosy.train and by their framework's own loop, over five seeds, each served.
bench-tutorials: setup
	$(BIN)/python benchmarks/tutorials.py

## The race of the optimizers; writes the plot and the tables of docs/optimizers.md.
bench-optimizers: setup
	$(BIN)/python benchmarks/optimizers.py

## Ruined and good versions through the guard of compression: how many of each it lets through.
bench-guard: setup
	$(BIN)/python benchmarks/guard.py

## What a search of argosy compress chooses, against every recipe, measured as served.
bench-served: setup
	$(BIN)/python benchmarks/compress_served.py

## The whole way under load: train, deploy; compress and roll out in one command while clients ask without pause.
bench-way: setup
	$(BIN)/python benchmarks/whole_way.py

## Public models out of packages, each compressed on rows of its own kind.
bench-models: setup
	$(BIN)/python benchmarks/compress_models.py

## A CNN and MXNet's ResNet-18 on digits, compressed by one command: accuracy, size and a worker's own time.
bench-int8: setup
	$(BIN)/python benchmarks/compress_int8.py

## An MNIST network made small by pruning and by distillation, served beside its teacher.
bench-small: setup
	$(BIN)/python benchmarks/compress_small.py

## MiniLM compressed by one command, beside NNCF, Neural Compressor and Olive by hand; the last two in environments of their own.
bench-minilm: setup
	$(BIN)/python benchmarks/compress_minilm.py --rivals

clean:
	rm -rf .venv .bench .ruff_cache .pytest_cache .hypothesis
