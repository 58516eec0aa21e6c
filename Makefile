# `make` alone lists what can be made. Stamps in .venv keep a second run quick.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
JOBS ?= 2
TEST_JOBS ?= 3# tests wait more than they compute, for real services above all
CONFIG ?= penstock.yaml
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv

# Locked files are installed as they stand: every hash is checked, nothing is resolved, nothing is compiled.
INSTALL := $(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build --require-hashes -r
INSTALL_SELF := $(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
COMPILE := UV_CUSTOM_COMPILE_COMMAND='make lock' $(UV) pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url
SERVICES := redis-server rabbitmq-server postgresql
TEST_PACKAGES := valgrind curl jq locales sqlite3 iproute2 prometheus prometheus-alertmanager $(SERVICES)
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/penstock
BENTO := $(CACHE)/bento
TOOLS := $(CACHE)
HELM_VERSION := v3.22.0
KUBECONFORM_VERSION := v0.8.0
KWOK_VERSION := v0.8.0
KUBERNETES_VERSION := 1.36.3
CHART_TOOLS := $(TOOLS)/schemas/custom $(TOOLS)/bin/helm $(TOOLS)/bin/kubeconform $(TOOLS)/bin/control-plane $(TOOLS)/bin/kwok $(TOOLS)/bin/otel-collector
CONTROL_PLANE := tests/cluster/control_plane
SAYS := -X k8s.io/component-base/version.git
SAYS_VERSION := $(SAYS)Version=v$(KUBERNETES_VERSION) $(SAYS)Major=1 $(SAYS)Minor=36
OTEL_COLLECTOR := tests/system/otel_collector
RENDERED := manifests/rendered/penstock.yaml
GO_INSTALL = echo "Building $(@F) into $(@D): minutes on 2 cores the first time" && CGO_ENABLED=0 GOBIN=$(@D) go install -ldflags='-s -w'

.PHONY: help
help: ## list the targets
	@echo "Penstock. Usage: make <target>"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-12s %s\n", $$1, $$2}'

.PHONY: serve
serve: $(VENV)/serve.stamp ## install what is needed and serve $(CONFIG) with a small local model
	$(BIN)/penstock serve -c $(CONFIG)

.PHONY: up
up: $(VENV)/services.stamp $(VENV)/serve.stamp $(BENTO) ## run the whole cluster on this machine from $(CONFIG): services, Bento and all
	$(BIN)/penstock up -c $(CONFIG)

.PHONY: test
test: $(VENV)/test-packages.stamp $(VENV)/dev.stamp $(BENTO) ## run every test but those that need a cluster
	$(BIN)/pytest -n $(TEST_JOBS) --dist worksteal -m "not cluster and not kubernetes and not soak"

.PHONY: test-kubernetes
test-kubernetes: $(VENV)/test-packages.stamp $(VENV)/dev.stamp $(BENTO) $(CHART_TOOLS) ## test the chart: its objects, its containers as processes, installed on a control plane
	$(BIN)/pytest -n $(JOBS) -m "kubernetes and not cluster" tests/chart
	$(BIN)/pytest -n0 -m "kubernetes and not cluster" tests/cluster tests/system/test_traces.py

.PHONY: test-cluster
test-cluster: $(VENV)/test-packages.stamp $(VENV)/dev.stamp $(TOOLS)/bin/helm $(TOOLS)/bin/control-plane ## test scaling on the cluster of KUBECONFIG, which has KEDA installed
	$(BIN)/pytest -n0 -rs -m cluster

.PHONY: kubernetes-tools
kubernetes-tools: $(CHART_TOOLS) ## build helm, kubeconform, a control plane, kwok and a collector of traces, and make schemas, in the user's cache folder

$(TOOLS)/bin/helm: ; @$(GO_INSTALL) helm.sh/helm/v3/cmd/helm@$(HELM_VERSION)
$(TOOLS)/bin/kubeconform: ; @$(GO_INSTALL) github.com/yannh/kubeconform/cmd/kubeconform@$(KUBECONFORM_VERSION)

$(TOOLS)/bin/kwok: ; @$(GO_INSTALL) sigs.k8s.io/kwok/cmd/kwok@$(KWOK_VERSION)

$(TOOLS)/bin/control-plane: $(addprefix $(CONTROL_PLANE)/,main.go go.mod go.sum)
	@echo "Building a Kubernetes control plane into $@: 8 minutes on 2 cores the first time, seconds later"
	@mkdir -p $(@D)
	@cd $(CONTROL_PLANE) && CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags='-s -w $(SAYS_VERSION)' -o $@ .

$(TOOLS)/schemas/custom: | $(VENV)/dev.stamp
	$(BIN)/python -m tests.chart.schemas $(TOOLS)/schemas

.PHONY: manifests
manifests: $(VENV)/dev.stamp $(TOOLS)/bin/helm ## write what is generated: the chart's values and schema, and manifests/rendered
	@$(BIN)/python manifests/generate.py
	@$(TOOLS)/bin/helm template penstock manifests/chart --namespace penstock --kube-version $(KUBERNETES_VERSION) \
	    -f penstock.yaml -f manifests/rendered/values.yaml > $(RENDERED)

.PHONY: dashboards
dashboards: $(VENV)/dev.stamp ## write Grafana's dashboards, config/grafana, and the chart's copies
	@$(BIN)/python -m manifests.dashboards
	@$(BIN)/python manifests/generate.py

.PHONY: docs
docs: $(VENV)/dev.stamp ## build the documentation as a site with search, build/docs; then .venv/bin/mkdocs serve shows it
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/docs/index.html"

.PHONY: check
check: $(VENV)/dev.stamp ## format, lint, types, layers, fast tests, configuration: under two minutes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n $(TEST_JOBS) --dist worksteal -m "not slow and not local_model and not cluster and not kubernetes"
	$(BIN)/penstock check $(CONFIG)
	@if test -x $(BENTO); then for file in config/bento/*.yaml config/bento/resources/*.yaml; do \
	    $(BENTO) -t 'config/bento/templates/*.yaml' lint --labels --deprecated $$file || exit 1; done && \
	    $(BENTO) template lint config/bento/templates/*.yaml && \
	    $(BENTO) test config/bento/resources/*.yaml && \
	    $(BENTO) -t 'config/bento/templates/*.yaml' -r 'config/bento/resources/*.yaml' test config/bento/*.yaml; \
	else echo "Bento is not built, so its streams are not checked: make bento builds it"; fi
	@if command -v promtool >/dev/null && command -v amtool >/dev/null; then \
	    { promtool check config config/prometheus/prometheus.yaml && \
	    amtool check-config config/prometheus/alertmanager.yaml; } >/dev/null; \
	else echo "promtool or amtool is not installed, so rules are not checked: make test installs both"; fi
	@if test -x $(TOOLS)/bin/helm; then \
	    $(TOOLS)/bin/helm lint --quiet --strict manifests/chart -f penstock.yaml -f manifests/rendered/values.yaml; \
	else echo "helm is not built, so the chart is not checked: make kubernetes-tools builds it"; fi

.PHONY: torture
torture: $(VENV)/test-packages.stamp $(VENV)/dev.stamp $(BENTO) ## the tests that count, in full: kills, faults, random operations and schedules, hostile inputs
	PENSTOCK_TORTURE=1 $(BIN)/pytest -m "torture or soak" --timeout 7200

SOAK_MINUTES ?= 120

.PHONY: soak
soak: $(VENV)/test-packages.stamp $(VENV)/dev.stamp $(BENTO) ## two hours of mixed load on a whole cluster with a fault a minute; SOAK_MINUTES=10 for less
	$(BIN)/python -m tests.system.soak --minutes $(SOAK_MINUTES)

.PHONY: drill
drill: $(VENV)/test-packages.stamp $(VENV)/dev.stamp $(BENTO) ## break a cluster in many ways, and see that the right alert fires each time; about 15 minutes
	$(BIN)/python -m tests.system.drill

.PHONY: bento
bento: $(BENTO) ## build our Bento distribution into the user's cache folder

$(BENTO): $(wildcard src/bento/*.go) src/bento/go.mod src/bento/go.sum
	@command -v go >/dev/null || { echo "Bento is built with Go 1.26 or later: install it, and put go on the PATH" >&2; exit 1; }
	@echo "Building Bento into $@: 5 minutes on 2 cores the first time, seconds later"
	@mkdir -p $(CACHE)
	@cd src/bento && CGO_ENABLED=0 go build -v -mod=readonly -trimpath -ldflags='-s -w' -o $@ . 2>&1 \
	    | awk '!/^[A-Za-z0-9.\/_-]+$$/ { print; next } ++packages % 100 == 0 { print "  " packages " packages compiled"; fflush() }'
	@$@ --version | head -n 1

# What is measured runs on the Python of the project's images, Debian's, where there is one.
BENCH_PYTHON ?= $(shell /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo /usr/bin/python3 || echo $(BIN)/python)
BENCH := $(CACHE)/benchmarks/penstock

.PHONY: bench
bench: $(VENV)/uv.stamp $(BENTO) ## measure beside nginx, LiteLLM, Portkey and Celery, all in one run; about 20 minutes
	@$(BENCH_PYTHON) -c 'import ensurepip, venv' 2>/dev/null || requirements/debian.sh python3-venv
	$(UV) venv --quiet --clear --python $(BENCH_PYTHON) $(BENCH)
	$(subst $(BIN)/python,$(BENCH)/bin/python,$(INSTALL)) requirements/dev.txt
	$(subst $(BIN)/python,$(BENCH)/bin/python,$(INSTALL_SELF))
	requirements/debian.sh nginx-light
	$(BENCH)/bin/python -m benchmarks.cpu
	$(BENCH)/bin/python -m benchmarks.admission
	requirements/debian.sh $(SERVICES)
	$(BENCH)/bin/python -m benchmarks.queue_lane
	$(BENCH)/bin/python -m benchmarks.ledger

.PHONY: mutants
mutants: $(VENV)/dev.stamp ## break each comparison and write of the quota, in Python and in Lua, and see that a test notices
	$(BIN)/python -m tests.quota.mutants --jobs $(JOBS)
	$(BIN)/python -m tests.adapters.redis.mutants --jobs $(JOBS)

.PHONY: lock
lock: $(VENV)/uv.stamp ## write requirements/*.txt anew from pyproject.toml; UPGRADE=--upgrade takes newer versions
	$(COMPILE) $(UPGRADE) --extra local --extra tracing --extra dev -o requirements/dev.txt pyproject.toml
	$(COMPILE) $(UPGRADE) --extra local --extra tracing -c requirements/dev.txt -o requirements/serve.txt pyproject.toml
	$(COMPILE) $(UPGRADE) --extra tracing -c requirements/dev.txt -o requirements/cluster.txt pyproject.toml
	$(COMPILE) $(UPGRADE) -c requirements/dev.txt -o requirements/bootstrap.txt requirements/bootstrap.in

.PHONY: clean
clean: ## remove what was installed and made here; data written by `make serve` stays
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(VENV)/uv.stamp: requirements/bootstrap.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "Penstock needs Python 3.11 or later; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || requirements/debian.sh python3-venv
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --only-binary :all: --require-hashes -r $<
	@touch $@

$(VENV)/serve.stamp: requirements/serve.txt pyproject.toml $(VENV)/uv.stamp
	$(INSTALL) $<
	$(INSTALL_SELF)
	@touch $@

$(VENV)/dev.stamp: requirements/dev.txt pyproject.toml $(VENV)/uv.stamp
	$(INSTALL) $<
	$(INSTALL_SELF)
	@touch $@

$(VENV)/services.stamp: requirements/debian.sh Makefile $(VENV)/uv.stamp
	requirements/debian.sh $(SERVICES)
	@touch $@

$(VENV)/test-packages.stamp: requirements/debian.sh Makefile $(VENV)/uv.stamp
	requirements/debian.sh $(TEST_PACKAGES)
	@touch $@
