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
#   make bench-gpu    kernels and engine on a CUDA GPU, with random weights of Llama 1B's and 8B's size

PYTHON ?= python3
BIN    := .venv/bin

.PHONY: demo test lint lab notebooks docs bench bench-vllm bench-openvino bench-all bench-gpu install clean

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
	$(BIN)/python -m pytest -n 2 --dist loadfile

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

# KV blocks are given, because minivllm would take 90% of the GPU and leave nothing to the other backend.
bench-gpu: install
	$(BIN)/python -m pytest -n 4 --dist loadfile tests/kernels
	$(BIN)/python -m minivllm bench kernels --output-json docs/data/gpu_kernels.json \
	  --plot docs/data/gpu_kernels.png
	for shape in llama-3.2-1b llama-3.1-8b; do \
	  test -e build/$$shape/complete || \
	    { rm -rf build/$$shape && $(BIN)/python -m minivllm.weights.random_model $$shape build/$$shape && touch build/$$shape/complete; } || exit 1; \
	  $(BIN)/python -m minivllm bench throughput --model build/$$shape --num-prompts 64 --num-blocks 4096 \
	    --backend minivllm hf-continuous --repeats 5 --output-json docs/data/gpu_$$shape.json || exit 1; \
	done
	$(BIN)/python docs/make_performance.py

clean:
	rm -rf .venv .venv-vllm .venv-openvino build *.egg-info
