# Maskstream: three commands. Each sets up what it needs first; nothing else has to be typed.
#
#   make demo    a generated clip through the graph; opens with where the overlay video is   -> runs/demo/
#   make test    all tests, and the style check
#   make setup   the environment alone                                                        -> .venv/, .venv/bin/maskstream
#
# PYTHON names the interpreter that the environment is made with (3.10 to 3.12).

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
.DEFAULT_GOAL := help

.PHONY: help setup demo test lint clean
help:
	@sed -n '3,5p' Makefile | cut -c3-

setup: $(READY)

# Made anew only when a list of packages changes: a second `make demo` starts at once.
$(READY): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else \
		"Maskstream needs Python 3.10 to 3.12, $(PYTHON) is %d.%d. Name another: make setup PYTHON=python3.11" % v)'
	@echo "Setting up $(VENV) (about a minute once packages are at hand) ..."
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "The venv module is missing. On Debian: apt-get install python3-venv"; exit 1; }
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $(READY)

demo: $(READY)
	@$(VENV)/bin/maskstream demo --out runs/demo

test: $(READY) lint
	@$(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	@$(VENV)/bin/ruff check .

clean:
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .ruff_cache
