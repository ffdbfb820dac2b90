# condensec: everything a developer runs. `make` alone lists it.
#
#   PYTHON=python3.13 make test       another interpreter (CPython 3.10 to 3.13; default: 3.11, else the newest)
#   ARGS='-k oracle -x' make test     further arguments for pytest, the demo or a benchmark

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= $(shell for p in python3.11 python3.13 python3.12 python3.10 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null && { echo $$p; break; }; done)
ARGS ?=

DEV := .venv
WHEEL_ENV := .cache/wheel-env
DEMO_ENV := .cache/demo-env
DOCS_ENV := .cache/docs-env
TYPED := .cache/typed
DEBIAN := chromium fonts-dejavu-core cmake ninja-build
APT := env DEBIAN_FRONTEND=noninteractive apt-get -qq -y

# A virtual environment in $(1). Debian keeps venv in a package of its own: fetched when that is possible.
define venv
test -n "$(PYTHON)" || { echo "no CPython 3.10 to 3.13 found; install one or set PYTHON" >&2; exit 1; }
$(PYTHON) -c 'import ensurepip' 2>/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	&& $(APT) update && $(APT) install python3-venv >/dev/null; } \
	|| { echo "$(PYTHON) has no venv; install it (Debian: python3-venv)" >&2; exit 1; }
test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
echo "$@: $(1), $$($(1)/bin/python --version)"
endef

.PHONY: help setup test lint format demo readme docs debian bench-list clean

help: ## what there is to make (this list)
	@awk 'BEGIN { FS = ":.*## " } /^[a-z%-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(DEV)/.stamp ## .venv with condensec (editable) and the developer's tools

$(DEV)/.stamp: pyproject.toml
	@$(call venv,$(DEV))
	$(DEV)/bin/python -m pip install -qq --editable '.[dev]'
	touch $@

test: debian ## build the wheel, install it in an environment of its own, run the tests against it
	@$(call venv,$(WHEEL_ENV))
	rm -rf build dist
	$(WHEEL_ENV)/bin/python -m pip wheel -qq --no-deps --wheel-dir dist .
	rm -rf build
	$(WHEEL_ENV)/bin/python -m pip install -qq "$$(echo dist/condensec-*.whl)[dev]" --requirement examples/requirements.txt
	$(WHEEL_ENV)/bin/python -m pip install -qq --no-deps --force-reinstall dist/condensec-*.whl
	$(WHEEL_ENV)/bin/pytest $(ARGS)

# Debian packages the tests use. Where they can't be installed, the tests that need one skip and name it.
debian:
	@missing=$$(for p in $(DEBIAN); do dpkg -s $$p >/dev/null 2>&1 || printf ' %s' $$p; done)
	if test -n "$$missing"; then
		if test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then
			{ $(APT) update && $(APT) install --no-install-recommends $$missing >/dev/null; } </dev/null \
				|| echo "could not install$$missing; some tests will skip" >&2
		else
			echo "not installed:$$missing; some tests will skip" >&2
		fi
	fi

# The folders compiler/, passes/ and hardware/ are the package condensec; mypy sees them through links.
lint: $(DEV)/.stamp ## ruff check, ruff format --check, mypy --strict
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	rm -rf $(TYPED)
	mkdir -p $(TYPED)/condensec
	ln -s $(addprefix $(CURDIR)/,$(wildcard compiler/*)) $(CURDIR)/passes $(CURDIR)/hardware $(TYPED)/condensec/
	MYPYPATH=$(TYPED) $(DEV)/bin/mypy --strict --package condensec \
		| sed -E 's#^$(TYPED)/condensec/(passes|hardware)/#\1/#; s#^$(TYPED)/condensec/#compiler/#'

format: $(DEV)/.stamp ## let ruff format and fix what it can
	$(DEV)/bin/ruff check --fix .
	$(DEV)/bin/ruff format .

demo: $(DEMO_ENV)/.stamp ## a trained model made faster by one command, checked on lines nobody has seen
	$(DEMO_ENV)/bin/python examples/demo.py --output demo $(ARGS)

$(DEMO_ENV)/.stamp: pyproject.toml examples/requirements.txt $(shell find compiler passes hardware -type f -not -name '*.pyc')
	@$(call venv,$(DEMO_ENV))
	rm -rf build
	$(DEMO_ENV)/bin/python -m pip install -qq . --requirement examples/requirements.txt
	rm -rf build
	$(DEMO_ENV)/bin/python -m pip install -qq --no-deps rapidocr-onnxruntime==1.4.4
	touch $@

readme: $(DEMO_ENV)/.stamp ## put the last demo's figures and a picture of its report into the README
	$(DEMO_ENV)/bin/python docs/refresh.py demo

bench-%: $(DEMO_ENV)/.stamp ## run benchmarks/%.py (dashes for underscores), e.g. bench-import-time
	$(DEMO_ENV)/bin/python benchmarks/$(subst -,_,$*).py $(ARGS)

bench-list: ## the benchmarks there are
	@cd benchmarks
	grep -l '^def main' *.py */*.py | sed 's/\.py$$//; s/_/-/g' | while read -r name; do
		printf '  make bench-%-20s %s\n' "$$name" "$$(head -1 "$${name//-/_}.py" | tr -d '"')"
	done

docs: $(DOCS_ENV)/.stamp ## the documentation as a site in site/; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(DOCS_ENV)/bin/mkdocs build --strict --quiet

$(DOCS_ENV)/.stamp: Makefile pyproject.toml
	@$(call venv,$(DOCS_ENV))
	$(DOCS_ENV)/bin/python -m pip install -qq 'mkdocs-material>=9.5,<10' --editable .
	touch $@

clean: ## remove everything made here
	rm -rf .venv .cache build dist site demo *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
