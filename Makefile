# `make demo` and `make test` set up .venv when it is not there, and reuse it when it is: `make demo` with what the
# demonstration needs, the others with all there is.
# `make bench` measures speed beside a plain implementation (up to 40 minutes), `make bench QUICK=1` on small sizes (under 3).
# Variables: PYTHON=<interpreter to make .venv with>  ARGS=<more options for pytest, the demo or benchmarks.run>

VENV := .venv
READY := $(VENV)/ready
READY_DEMO := $(VENV)/ready-demo
PYTHON ?=
ARGS ?=
QUICK ?=

unexport PYTHONHOME PYTHONPATH

# .venv is usable if its set-up came to an end, in this directory (an environment does not survive a move), and its
# Python still runs and is the one asked for.
UNUSABLE := $(shell version='import sys; print(sys.version)'; [ ! -e $(VENV)/setting-up ] && \
	[ "$$(cat $(READY) 2>/dev/null || cat $(READY_DEMO) 2>/dev/null)" = "$(CURDIR)" ] && \
	has=$$($(VENV)/bin/python -c "$$version" 2>/dev/null) && \
	{ [ -z "$(PYTHON)" ] || [ "$$has" = "$$("$(PYTHON)" -c "$$version" 2>/dev/null)" ]; } || echo unusable)

.PHONY: demo test lint bench clean unusable

demo: $(READY_DEMO)
	$(VENV)/bin/ebrm demo --out demo-out $(ARGS)

test: $(READY)
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

lint: $(READY)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(READY)
	$(VENV)/bin/python -m benchmarks.run $(if $(filter-out 0,$(QUICK)),--quick) $(ARGS)

clean:
	rm -rf $(VENV) demo-out build dist htmlcov .coverage .coverage.* .hypothesis .import_linter_cache \
		.mypy_cache .pytest_cache .ruff_cache

# Python 3.11 comes first because constraints.txt was made with it.
$(READY): stage := all
$(READY_DEMO): stage := demo
$(READY) $(READY_DEMO): pyproject.toml constraints.txt $(UNUSABLE)
	@check='import sys; sys.version_info >= (3, 11) or sys.exit("it is %d.%d" % sys.version_info[:2]); \
		import bz2, ctypes, ensurepip, lzma, sqlite3, ssl, venv'; \
	for python in $(if $(PYTHON),"$(PYTHON)",python3.11 python3.12 python3.13 python3.14 python3 python); do \
		why=$$("$$python" -c "$$check" 2>&1) && exec "$$python" .ci/set_up.py $(VENV) $(stage) $(UNUSABLE); \
		tried="$$tried  $$python: $$(echo "$$why" | tail -n 1)\n"; \
	done; \
	echo "ebrm needs Python 3.11 or newer with its standard modules, venv and ensurepip among them. Tried:" >&2; \
	printf "%b" "$$tried" >&2; \
	echo "Install one (on Debian and Ubuntu: python3 and python3-venv) or name it: make PYTHON=/path/to/python3" >&2; \
	exit 1
