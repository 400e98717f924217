# These targets set everything up, on Debian 12 with only make and git:
#   make demo    create labs, check every claim, remove the labs
#   make test    lint, types, unit tests, live tests
#   make test-all  every test in its long form, clusters and virtual machines, too
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
# Without bytecode on disk, each command that a test runs would compile all of testbed first.
unexport PYTHONDONTWRITEBYTECODE
# Tools that read what testbed writes, for tests alone; see tests/tools.in.
TOOLS := $(VENV)/tools
MERMAID := $(VENV)/mermaid.min.js
LIBVIRT := /usr/share/vagrant-plugins/plugins.d/vagrant-libvirt.json
# mypy's cache for all clones. Two processes of mypy at once break it.
TYPES := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/testbed-mypy
# The unit tests, half by half: for short tests, pytest-xdist costs more than they do.
UNIT := unit-1 unit-2
# Parallel test processes: tests of labs mostly wait, those of machines and clusters do not.
LIVE := -n 4 --dist loadgroup --no-loadscope-reorder --durations 25
HEAVY := -n 2 --dist loadgroup --no-loadscope-reorder --durations 15
# In CI (SECOND_LOOK=1) a few failed tests of real labs run once more; see there.
PYTEST := $(BIN)/python $(if $(SECOND_LOOK),tests/second_look.py,-m pytest)
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
# Install locked packages. pip installs uv, and uv the others, in a sixth of pip's time; both check
# hashes. uv uses pip's index, if one is set.
INDEX = $(shell $(BIN)/python -m pip config get global.index-url 2> /dev/null)
UV := $(BIN)/uv pip install --quiet --no-config --python
install = $(if $(INDEX),UV_DEFAULT_INDEX=$(INDEX)) $(UV) $(1)/bin/python --require-hashes -r $(2)
# sudo drops environment variables.
LONG = $(if $(TESTBED_LONG),env TESTBED_LONG=1)
# Build what labs with these roles need; this takes long, once.
made = for role in $(1); do $(SUDO) $(BIN)/testbed doctor --role $$role --fix --quick || exit; done

.PHONY: help demo demo-k8s test test-all lint unit $(UNIT) web live thorough crash soak fuzz mutants mutants-all test-vm test-k8s conformance sabotage bench bench-vm bench-k8s docs docs-serve dist publish \
  pictures lock \
  setup clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup  ## create every lab, check every claim, remove all, check for leftovers; report.html
	$(SUDO) $(BIN)/testbed verify --all --check-machine --html report.html

demo-k8s: setup  ## the same for the claims about Kubernetes; report.html
	$(call made,ingress kube-router cilium)
	$(SUDO) $(BIN)/testbed verify --all --lab 'k8s-*' --check-machine --html report.html

test: $(VENV)/ready $(MERMAID)  ## all tests without clusters and virtual machines, in ten minutes
	$(MAKE) --jobs 3 --output-sync=target $(UNIT) lint web
	$(MAKE) live

test-all: export TESTBED_LONG := 1
test-all: docs test thorough test-k8s test-vm  ## everything, in its long form (root)

lint: $(VENV)/ready  ## style, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	flock $(TYPES).lock $(BIN)/mypy --cache-dir $(TYPES)
	$(BIN)/lint-imports

unit: $(VENV)/ready  ## tests that need no root
	$(MAKE) --jobs --output-sync=target $(UNIT)

$(UNIT): $(VENV)/ready
	$(BIN)/python -m pytest --part $(@:unit-%=%)/2 -m "not thorough" tests/unit

web: $(VENV)/ready $(MERMAID)  ## the HTML report in a real browser
	command -v chromium > /dev/null && command -v chromedriver > /dev/null || \
	  { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y --no-install-recommends \
	    chromium chromium-driver fonts-dejavu-core; }
	$(BIN)/python -m pytest tests/web

live: setup $(TOOLS)/ready  ## tests on real labs (root)
	$(SUDO) $(LONG) $(PYTEST) $(LIVE) -m "not whole_machine and not thorough" tests/live tests/crash
	$(SUDO) $(LONG) $(PYTEST) -m whole_machine tests/crash

thorough: setup $(TOOLS)/ready  ## the tests that `make test` has no time for (root)
	$(SUDO) $(LONG) $(PYTEST) $(LIVE) -m thorough tests/unit tests/live tests/crash

crash: setup  ## kill, starve and race testbed at every point: the long form (root)
	$(SUDO) $(BIN)/testbed doctor --provider containerlab --fix --quick
	$(SUDO) env TESTBED_LONG=1 $(BIN)/python -m pytest $(LIVE) -m "not whole_machine" tests/crash
	$(SUDO) env TESTBED_LONG=1 $(BIN)/python -m pytest -m whole_machine tests/crash

soak: setup  ## create, check and remove 200 labs; nothing may grow (root)
	$(SUDO) env PYTHONPATH=tests $(BIN)/python -m crash.soak $(ROUNDS)

fuzz: $(VENV)/ready  ## fuzz topologies and outputs of other programs, a million inputs
	$(BIN)/python tests/fuzz/fuzz.py 1000000 1200

mutants: $(VENV)/ready  ## mutation tests of a sample, in ten minutes
	$(BIN)/python tests/mutation/mutate.py $(if $(SEED),--seed $(SEED))

mutants-all: $(VENV)/ready  ## all mutation tests, in hours
	$(BIN)/python tests/mutation/mutate.py --all

test-vm: setup $(TOOLS)/ready  ## tests on virtual machines, emulated where there is no KVM (root)
	$(SUDO) $(BIN)/testbed doctor --provider vagrant --fix --quick
	$(SUDO) $(LONG) $(PYTEST) $(HEAVY) tests/vm

test-k8s: setup  ## tests on a Kubernetes cluster (root); its programs are downloaded or built once, in 30 min
	$(call made,ingress conformance kube-router)
	$(SUDO) $(LONG) $(PYTEST) $(HEAVY) tests/k8s

conformance: setup  ## upstream's network tests on a Kubernetes cluster, with both modes of kube-proxy (root)
	$(call made,kubernetes conformance)
	for proxy in nftables iptables; do \
	  $(SUDO) $(BIN)/testbed up k8s-two-node --name conformance --proxy $$proxy -q && \
	  $(SUDO) $(BIN)/testbed conformance conformance --junit conformance-$$proxy.xml \
	    --html conformance-$$proxy.html; status=$$?; \
	  $(SUDO) $(BIN)/testbed down conformance; [ $$status = 0 ] || exit $$status; \
	done

sabotage: setup  ## break labs and tools in known ways: each check must fail (root)
	$(SUDO) env TESTBED_LONG=1 $(BIN)/python -m pytest $(LIVE) -q --tb=short tests/live/sabotage

bench-vm: setup  ## times of labs of virtual machines, by stage (root)
	$(SUDO) $(BIN)/testbed doctor --provider vagrant --fix --quick
	$(SUDO) $(BIN)/python bench/virtual.py

bench: setup  ## times and ratios against a bare shell script and containerlab (root)
	command -v busybox > /dev/null || $(SUDO) apt-get install -y --no-install-recommends busybox-static
	$(SUDO) $(BIN)/testbed doctor --provider containerlab --fix --quick
	$(SUDO) $(BIN)/python bench/bench.py

bench-k8s: setup  ## times and memory of a Kubernetes cluster, and of labs of 10 to 1,000 Pods (root)
	$(call made,kubernetes)
	command -v openssl > /dev/null || $(SUDO) apt-get install -y --no-install-recommends openssl
	$(SUDO) $(BIN)/python bench/cluster.py
	$(SUDO) $(BIN)/python bench/pods.py
	$(SUDO) $(BIN)/python bench/pod_labs.py

setup: $(VENV)/ready  ## virtual environment, Debian packages, binaries, image
	$(SUDO) $(BIN)/testbed doctor --fix --quick
	$(call made,frr bird)

# Vagrant and ssh, and other programs in the cache, are for tests of exports, too; tshark reads
# capture files.
$(TOOLS)/ready: $(VENV)/ready tests/requirements.txt
	{ command -v vagrant && command -v ssh && command -v tshark && test -e $(LIBVIRT); } > /dev/null || \
	  { $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y \
	    --no-install-recommends vagrant vagrant-libvirt openssh-client tshark; }
	$(SUDO) $(BIN)/testbed doctor --provider containerlab --fix --quick
	$(SUDO) $(BIN)/testbed artifacts build compose sshd
	$(PYTHON) -m venv --without-pip $(TOOLS)
	$(call install,$(TOOLS),tests/requirements.txt)
	touch $@

# Mermaid's own parser, for the browser.
$(MERMAID): $(VENV)/ready
	command -v npm > /dev/null || \
	  { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y --no-install-recommends npm; }
	rm -rf $(VENV)/npm && mkdir $(VENV)/npm
	cd $(VENV)/npm && npm pack --silent mermaid@12.3.0
	tar -xzf $(VENV)/npm/mermaid-*.tgz -C $(VENV)/npm package/dist/mermaid.min.js
	echo 336df803d87a38b70a01e736e666c8f7601d2ce42f5e47c8fafe5d721074b9a3 \
	  $(VENV)/npm/package/dist/mermaid.min.js | sha256sum --check --quiet
	mv $(VENV)/npm/package/dist/mermaid.min.js $@ && touch $@ && rm -rf $(VENV)/npm

# Hashes are checked; versions are locked.
$(VENV)/ready: requirements.txt pyproject.toml
	$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
	  $(SUDO) apt-get update -qq && \
	  $(SUDO) apt-get install -y --no-install-recommends python3 python3-venv; }
	$(PYTHON) -m venv $(VENV)
	awk '/^uv==/, !/\\$$/' requirements.txt > $(VENV)/uv.txt
	$(BIN)/python -m pip install --quiet --require-hashes -r $(VENV)/uv.txt
	$(call install,$(VENV),requirements.txt)
	$(UV) $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

docs: export NO_MKDOCS_2_WARNING := 1
docs: $(VENV)/docs  ## the documentation site in build/site; broken links and anchors are errors
	$(BIN)/mkdocs build --strict

docs-serve: export NO_MKDOCS_2_WARNING := 1
docs-serve: $(VENV)/docs  ## serve the site at http://127.0.0.1:8000 and rebuild it after each change
	$(BIN)/mkdocs serve --strict

# The versions of packages that both files name are the same.
$(VENV)/docs: $(VENV)/ready docs/requirements.txt
	$(call install,$(VENV),docs/requirements.txt)
	touch $@

dist: $(VENV)/ready  ## the distributions in dist/, from a clean folder
	rm -rf dist
	$(BIN)/uv build --quiet --no-build-isolation --python $(BIN)/python --out-dir dist

publish: $(VENV)/ready  ## upload dist/ to PyPI; only for the workflow of a release
	$(BIN)/uv publish --trusted-publishing always dist/*

pictures: setup  ## draw the pictures of README.md from a lab (root)
	$(SUDO) $(BIN)/python docs/images/draw.py

lock:  ## lock requirements.txt, docs/requirements.txt and tests/requirements.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --extra dev \
	  --python-version 3.11 -o requirements.txt pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --extra docs -c requirements.txt \
	  --python-version 3.11 -o docs/requirements.txt pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
	  -o tests/requirements.txt tests/tools.in

clean:  ## remove the files that these targets created in this folder
	rm -rf $(VENV) build dist mutants
