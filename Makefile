# Everything a person types. Each target sets up what it needs in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TRITON := .venv-triton
SUPPLY := .venv-supply
DEPLOY := .venv-deploy
DOCS := .venv-docs
OPERATOR_RULES := deploy/kubernetes/monitoring/prometheusrule.yaml

.DEFAULT_GOAL := help
.PHONY: help demo test soak triton deploy-tools rules pins sbom notices dist audit check lint proto proto-check proto-baseline \
  client-ts docs docs-reference bench bench-peers clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Amnestic needs Python 3.11 or newer, this is %s" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,dev]'
	@touch $@

$(TRITON)/.installed: tests/e2e/triton-requirements.txt
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(SUPPLY)/.installed: deploy/supply-chain-requirements.txt
	$(PYTHON) -m venv $(SUPPLY)
	$(SUPPLY)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(DEPLOY)/.installed: tests/deploy/requirements.txt
	$(PYTHON) -m venv $(DEPLOY)
	$(DEPLOY)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	$(DEPLOY)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps kserve==0.21.0
	@touch $@

$(DOCS)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

demo: $(STAMP) ## train, serve, forget a class while serving
	$(BIN)/amnestic demo

test: $(STAMP) ## run the tests
	@$(MAKE) --no-print-directory triton || echo "no Triton client could be installed: its tests are skipped"
	@$(MAKE) --no-print-directory deploy-tools || echo "no tools for deployments could be installed: their tests are skipped"
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

soak: $(STAMP) ## the runs that take minutes: what is promised under load, many times over
	$(BIN)/python -m pytest -m soak -s

triton: $(TRITON)/.installed ## set up Triton's client and perf_analyzer for the tests

pins: $(SUPPLY)/.installed ## pin what the images install by digest, within constraints.txt
	$(SUPPLY)/bin/python deploy/supply_chain.py pin

sbom: $(SUPPLY)/.installed ## list what the images install in the form of CycloneDX, in out/sbom
	$(SUPPLY)/bin/python deploy/supply_chain.py sbom out/sbom

notices: $(STAMP) ## write THIRD_PARTY_NOTICES.md: whose work the images hold, and under which licence
	$(BIN)/python deploy/notices.py

dist: $(STAMP) ## build the source distribution, and the wheel from it, in dist
	$(BIN)/python -m build

audit: ## look for known vulnerabilities of what the images install
	@$(MAKE) --silent --no-print-directory $(SUPPLY)/.installed || { echo "audit: no pip-audit could be installed; nothing was audited"; exit 0; }; \
	  $(SUPPLY)/bin/python deploy/supply_chain.py audit

deploy-tools: $(DEPLOY)/.installed ## set up kubectl, Compose, hadolint and schemas for the tests of deploy/

rules: ## write the alert rules in the form of the Prometheus operator
	printf 'apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: amnestic\nspec:\n' > $(OPERATOR_RULES)
	sed 's/^./  &/' deploy/prometheus/rules.yml >> $(OPERATOR_RULES)

check: $(STAMP) lint proto-check audit test ## everything that must be green

lint: $(STAMP) ## ruff, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

proto: $(STAMP) ## generate the stubs
	$(BIN)/python proto/generate.py

proto-check: $(STAMP) ## the proto files are in good form and break no caller, the stubs are theirs
	$(BIN)/buf lint proto
	$(BIN)/buf breaking proto --against proto/baseline.binpb
	$(BIN)/python proto/generate.py --check

client-ts: $(STAMP) ## build, lint and test the TypeScript client over a real server
	$(BIN)/python -m pytest tests/client/test_typescript.py

proto-baseline: $(STAMP) ## make the proto files of today those that no change may break; at a release
	$(BIN)/buf build proto --exclude-source-info --output proto/baseline.binpb

docs: $(DOCS)/.installed ## build the documentation as a site, in out/site
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

docs-reference: $(STAMP) ## write the pages of metrics, API and Python client from the code
	$(BIN)/python docs/reference.py

bench: $(STAMP) ## measure serving beside its ceiling, swaps, and forgetting beside retraining
	$(BIN)/amnestic bench serve --rounds 2 --seconds 3
	$(BIN)/amnestic bench swap --shape demo --rounds 1 --seconds 3
	$(BIN)/amnestic bench versions --shape demo --rounds 1 --seconds 3 --count 1 --count 16 --count 100
	$(BIN)/amnestic bench unlearn-impact --rounds 1 --seconds 3 --window 8
	$(BIN)/amnestic bench unlearn --quick

bench-peers: $(STAMP) ## measure MLServer, LitServe, infinity, Triton and plain transformers beside Amnestic; installs them
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,dev,minilm]'
	$(BIN)/python bench/peers/run.py --report docs/benchmarks

clean: ## remove what was built
	rm -rf $(VENV) $(TRITON) $(SUPPLY) $(DEPLOY) $(DOCS) build dist out
