# What one does with tessella's sources. `make` alone lists the targets.
#
# Everything runs in .venv, which is made when it is not there. Each group of packages has a
# stamp file, so a second run installs nothing; a changed pyproject.toml or constraints.txt
# installs again. All paths are relative: the folder's own path may contain spaces.

PYTHON ?= python3
MODEL ?=
ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
PINS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format lint docs bench gpu-check serve

help: ## list the targets
	@echo 'make TARGET, where TARGET is one of'
	@sed -n 's/^\([a-z-]*\):.*## /    \1: /p' Makefile

setup: $(VENV)/stamp-check ## install everything that work on tessella needs, into .venv

demo: $(VENV)/stamp-core ## paint pictures with the bundled model
	$(PY) examples/demo.py $(ARGS)

test: $(VENV)/stamp-test ## run the tests; ARGS='-m slow' runs the slow ones
	$(PY) -m pytest $(ARGS)

# The tests come last, so that their closing line is the last that is read. One that fails is run
# once more: if it passes then, the summary names it (RERUN), and it is a bug to mend.
check: lint ## all that CI runs: lint, types, docs, tests
	$(PY) -m mypy
	$(PY) docs/build_reference.py --check
	$(PY) -m pytest --reruns 1 -rR $(ARGS)

format: $(VENV)/stamp-check ## lay out the code and mend what can be mended
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

lint: $(VENV)/stamp-check ## style, layout and spelling
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m codespell_lib

docs: $(VENV)/stamp-check ## write docs/reference/ again
	$(PY) docs/build_reference.py

bench: $(VENV)/stamp-test ## run every benchmark with its quick settings
	@set -e; found=; \
	for script in benchmarks/*.py; do \
		case "$$script" in \
			benchmarks/quality_judge.py|benchmarks/quality_ours.py|benchmarks/quality_peers.py|\
			benchmarks/quality_tokenizers.py|benchmarks/quality_training.py|\
			benchmarks/harness.py|benchmarks/http_clients.py|benchmarks/malformed_*.py|benchmarks/fault_*.py|benchmarks/'*.py') \
			continue;; esac; \
		found=1; echo "$$script --quick"; $(PY) "$$script" --quick; \
	done; \
	test -n "$$found" || echo 'No benchmark scripts in benchmarks/ yet; only its harness.'

gpu-check: $(VENV)/stamp-test ## measure both stages of configs/gpu/stickers.toml on this GPU
	$(PY) benchmarks/training.py --device cuda --compile --config configs/gpu/stickers.toml \
		--images 16384 --rounds 3 $(ARGS)

serve: $(VENV)/stamp-serve ## serve the bundled model, or MODEL=runs/mine
	$(PY) -m tessella serve $(if $(MODEL),"$(MODEL)") $(ARGS)

# --- the environment -------------------------------------------------------------------------

$(VENV)/stamp-venv:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'tessella needs Python 3.11 or newer; this one is older or missing: `$(PYTHON)`.' >&2; \
		echo 'Name another: make PYTHON=/path/to/python3.12 ...' >&2; exit 1; }
	@test -x $(PY) || "$(PYTHON)" -m venv $(VENV) || { \
		echo 'Could not make $(VENV). On Debian or Ubuntu: apt-get install python3-venv' >&2; \
		rm -rf $(VENV); exit 1; }
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo '$(VENV) holds a Python older than 3.11. Remove it: rm -r $(VENV)' >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip --upgrade
	@touch $@

# torch comes first and alone, so that a build for this machine (a CPU build, say) that is
# already installed or at hand is taken.
$(VENV)/stamp-torch: constraints.txt | $(VENV)/stamp-venv
	$(PIP) install -c constraints.txt torch
	@touch $@

$(VENV)/stamp-core: $(PINS) | $(VENV)/stamp-torch
	$(PIP) install -q -c constraints.txt -e .
	@touch $@

$(VENV)/stamp-serve: $(PINS) | $(VENV)/stamp-torch
	$(PIP) install -q -c constraints.txt -e '.[serve]'
	@touch $(VENV)/stamp-core $@

# The group `test` holds `serve`.
$(VENV)/stamp-test: $(PINS) | $(VENV)/stamp-torch
	$(PIP) install -q -c constraints.txt -e '.[test]'
	@touch $(VENV)/stamp-core $(VENV)/stamp-serve $@

$(VENV)/stamp-check: $(PINS) | $(VENV)/stamp-torch
	$(PIP) install -q -c constraints.txt -e '.[test,dev]'
	@touch $(VENV)/stamp-core $(VENV)/stamp-serve $(VENV)/stamp-test $@
