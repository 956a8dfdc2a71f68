# `make run` and `make test` need Python 3.11+, make and a package index; they set up .venv by themselves.
PYTHON ?= python3
CUDA ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed$(if $(CUDA),-cuda)

# Programs that the tests compile, small ones too, are kept between runs and shared by the workers and the processes
# that they start.
CACHE := JAX_COMPILATION_CACHE_DIR=$(abspath $(VENV))/jax-cache JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
# The threads of NumPy's products wait for each other in loops: one for each worker, which has a core.
ALONE := OPENBLAS_NUM_THREADS=1
# Old packages warn of what newer JAX deprecates: that is theirs to mend.
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal $(if $(FLOORS),-W ignore::DeprecationWarning)
# The processes of the suite share the accelerator's memory.
ON_CUDA := JAX_PLATFORMS=cuda,cpu XLA_PYTHON_CLIENT_PREALLOCATE=false

.PHONY: run test quick suite unmarked lint style mutants floors bench docs clean
.DELETE_ON_ERROR:

run: $(STAMP)
	$(BIN)/perturbkernel run --scenario a --size 0.14 --out results/digits_a
	@echo
	$(BIN)/perturbkernel run --scenario b --size 1.4 --out results/digits_b

# Types are checked on one core while tests run on the other.
test:
	@$(MAKE) --no-print-directory --jobs=2 lint suite

# For trying a change while one works: leaves out documentation, reproductions, processes and devices, and the files that try
# one property on many kernels, norms, losses or dtypes.
quick:
	@$(MAKE) --no-print-directory --jobs=2 lint unmarked

suite: $(STAMP)-test
	$(CACHE) $(ALONE) $(PYTEST)

unmarked: $(STAMP)-test
	$(CACHE) $(ALONE) $(PYTEST) -m "not slow$(if $(FLOORS),, and not thorough)"

lint: $(STAMP)-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# How readable the text is, in numbers.
style: $(STAMP)-test
	$(BIN)/python tools/style.py perturbkernel benchmarks

# Breaks the code in many places, one at a time, and shows which tests notice. Long.
mutants: $(STAMP)-test
	$(BIN)/python tools/mutants.py

# The oldest packages that requirements.txt allows, in an environment of their own, under all tests that are not slow.
floors:
	$(MAKE) VENV=.venv-floors FLOORS=1 unmarked

# The full suite: page and figures in results/bench, every run kept in results/history; `make bench CUDA=1` measures an
# NVIDIA device, BENCH='--only start,sizes' a part.
bench: $(STAMP)
	$(if $(CUDA),$(ON_CUDA) $(BIN)/python -c 'import jax; raise SystemExit("CUDA=1: JAX finds no NVIDIA device" if jax.default_backend() == "cpu" else 0)')
	$(if $(CUDA),$(ON_CUDA)) $(BIN)/perturbkernel bench --out results/bench --history results/history $(BENCH)

# The manual in site/; `make test` builds it too, into a temporary folder.
docs: $(STAMP)-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# neural-tangents and the project go in with --no-deps: requirements-neural-tangents.txt says why. For FLOORS every floor is
# the version.
$(STAMP): requirements.txt requirements-neural-tangents.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "perturbkernel needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	sed '$(if $(FLOORS),s/>=/==/)' requirements.txt > $(VENV)/requirements.txt
	sed '$(if $(FLOORS),s/>=/==/)' requirements-neural-tangents.txt > $(VENV)/requirements-neural-tangents.txt
	$(BIN)/python -m pip install --quiet --no-warn-conflicts --requirement $(VENV)/requirements.txt $(if $(CUDA),'jax[cuda]')
	$(BIN)/python -m pip install --quiet --no-warn-conflicts --no-deps --requirement $(VENV)/requirements-neural-tangents.txt \
		--editable .
	touch $@

# The extras `test` and `docs`, read from pyproject.toml so that they are listed once.
$(STAMP)-test: $(STAMP)
	$(BIN)/python -c 'import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; print(*extras["test"], *extras["docs"], sep="\n")' > $(VENV)/requirements-test.txt
	$(BIN)/python -m pip install --quiet --no-warn-conflicts --requirement $(VENV)/requirements-test.txt \
		--constraint $(VENV)/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) .venv-floors results site build dist *.egg-info
