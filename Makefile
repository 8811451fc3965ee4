# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` set up all they need; the rest is for whoever changes something.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
GUEST  := $(PYTHON) -m tests.rig.guest
GUEST_TESTS := $(PYTHON) -m tests.rig.guest_tests

.PHONY: help
help: ## Show what there is to make.
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | awk 'BEGIN {FS = ":.*## "} {printf "  %-14s %s\n", $$1, $$2}'

.PHONY: setup
setup: ## Install distribution packages, the virtual environment and what the demo needs of the Go tools.
	@tests/rig/setup.sh

.PHONY: demo
demo: setup ## Move the memory of a running VM on an emulated host with four NUMA nodes, and show it.
	@$(PYTHON) -m tests.rig.demo

.PHONY: test
test: lint test-unit test-cluster test-kernel test-e2e ## Check and test all but test-causes, test-contents and the benches.
	@echo "every stage of the tests passed"

.PHONY: lint
lint: setup ## Check style, types and layers.
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports

.PHONY: test-unit
test-unit: setup ## Decisions, without a kernel or a cluster.
	$(PYTEST) tests/unit

.PHONY: test-cluster
test-cluster: setup ## Schema, rights, controller and agent against a real etcd and kube-apiserver.
	@$(PYTHON) -m tests.rig.gotools etcd kube-apiserver kube-controller-manager kubectl kubevirt-crds helm
	$(PYTEST) tests/cluster -n 2 --dist loadfile

.PHONY: test-kernel
test-kernel: setup ## Engine and host command on the machine's kernel with four NUMA nodes and real VMs; every cause.
	$(GUEST_TESTS) --time-limit 1500 -- tests/kernel -m "not cause" --ignore tests/kernel/gigantic --contents-moves 2 --durations=8
	$(GUEST_TESTS) --time-limit 300 --kernel-arg hugepagesz=1G --kernel-arg hugepages=1:1,2:1 --kernel-arg nokaslr -- tests/kernel/gigantic
	$(PYTHON) -m tests.rig.causes machine

.PHONY: test-causes
test-causes: setup ## Every cause of residue made for real, on three kernels of Debian (downloads two); docs/causes.md anew.
	$(PYTHON) -m tests.rig.causes
	$(PYTHON) -m tests.rig.matrix

.PHONY: test-contents
test-contents: setup ## Move VMs that write to all their memory forty times each; longest pauses in build/contents.json.
	@$(PYTHON) -m tests.bench.contents

.PHONY: test-e2e
test-e2e: setup ## The whole way: real cluster, real host, real VM.
	@$(PYTHON) -m tests.rig.gotools etcd kube-apiserver kube-controller-manager kubectl kubevirt-crds
	$(PYTEST) tests/e2e

.PHONY: compare
compare: setup ## Move the same VM by migratepages once and by us once; pages left behind and time of both.
	$(GUEST) --time-limit 600 -- $(PYTHON) -m tests.bench.compare

.PHONY: bench-engine
bench-engine: setup ## The engine against migratepages, a plain loop in C and DAMON, in turns; build/bench/engine.json.
	@$(PYTHON) -m tests.bench.engine

.PHONY: bench-planning
bench-planning: setup ## Plan the move of a VM of 256 GiB, without a kernel: seconds and memory.
	@$(PYTHON) -m tests.bench.planning

.PHONY: bench-show
bench-show: setup ## How long `numaplace show` of a process of 4 GiB takes beyond the kernel's own time.
	@$(PYTHON) -m tests.bench.show

.PHONY: crds
crds: ## Write the custom resource definitions anew from the models.
	$(PYTHON) -m numaplacement.api.crds crds charts/numaplacement/templates

.PHONY: format
format: ## Put the code into its form.
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

.PHONY: lock
lock: ## Resolve the dependencies anew and pin them by hash (needs uv).
	uv pip compile -q --generate-hashes --python-version 3.11 --no-header --no-emit-index-url operator/requirements.in -o operator/requirements.txt
	uv pip compile -q --generate-hashes --python-version 3.11 --no-header --no-emit-index-url tests/requirements.in -o tests/requirements.txt
