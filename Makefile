# One command each; every target installs what it needs into .venv on first use.
#   make demo    fetch the model, answer a question, complete four prompts, report
#   make test    every test (no GPU, no network beyond the package index)
#   make lint    ruff: style, docstrings, types on every signature
#   make lab     JupyterLab on notebooks/
#   make notebooks    run notebooks/src and store the notebooks with their outputs
#   make docs    the site, docs/_build/html/index.html (builds offline once installed)
#   make bench   throughput against Hugging Face, interleaved, on this machine
#   make bench-vllm   the same against vLLM itself (builds an environment of its own, about 4 minutes)
#   make bench-openvino   the same against OpenVINO GenAI, in the same way
#   make bench-all    which measurements in docs/data are older than their code, and how to renew them
#   make gpu-report   all that needs a CUDA GPU, in stages with time limits; runs on the PYTHON given, installs nothing

PYTHON ?= python3
BIN    := .venv/bin

.PHONY: demo test lint lab notebooks docs bench bench-vllm bench-openvino bench-all gpu-report install clean

# The stamp file is newer than the requirements exactly when .venv is up to date.
.venv/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "minivllm needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt -e .
	touch $@

install: .venv/.installed

demo: install
	$(BIN)/python -m minivllm demo

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lab: install
	$(BIN)/jupyter lab notebooks

notebooks: install
	$(BIN)/python notebooks/build.py

.venv/.docs-installed: .venv/.installed docs/requirements.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -r docs/requirements.txt
	touch $@

docs: .venv/.docs-installed
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

bench: install
	$(BIN)/python -m minivllm bench throughput

bench-vllm: install
	$(BIN)/python -m minivllm bench vllm

bench-openvino: install
	$(BIN)/python -m minivllm bench openvino

bench-all: install
	$(BIN)/python -m minivllm bench stale

# No .venv and no package index: a machine with a GPU is often lent as it is. Any folder for the results: OUT=...
gpu-report:
	$(PYTHON) -m minivllm bench gpu-report --output-dir "$${OUT:-docs/data}" $(if $(STAGES),--stages $(STAGES)) $(GPU_REPORT)

clean:
	rm -rf .venv .venv-vllm .venv-openvino build *.egg-info
