# Two commands are enough to begin with: `make deploy` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
SUITE ?= trixie
# The longest first, so that none is left alone at the end.
SCENARIO ?= store fleet pull rollback security default operator backups controller replication sftp timers failover monitoring diagnose upgrade
# These run on both Debians by themselves; the others on one, and in `make test-all` on each.
BOTH := default failover
# How many parts run at a time, and how many of the unit tests: one more than processors, for they wait as well.
JOBS ?= $(shell echo $$(( $$(nproc) + 1 )))
INVENTORY ?=
ARGS ?=
COMMAND ?=
SIZE ?= 1
KILLS ?= 200
CUTS ?= 20
POINTS ?= 20
LOAD ?= 600
HOSTS ?= 20

VENV := .venv/bin
TESTHOST := $(VENV)/python molecule/resources/testhost.py
BENCH = $(SUDO) env "PATH=$(PATH)" PYTHONPATH=scripts:molecule/resources $(VENV)/python -m benchmarks.bench
TIMINGS = $(VENV)/python scripts/timings.py
FAULTS = $(SUDO) env "PATH=$(PATH)" KILLS=$(KILLS) CUTS=$(CUTS) POINTS=$(POINTS) LOAD=$(LOAD) pytest
FULL ?=
SUDO := $(if $(filter 0,$(shell id -u)),,sudo -E)
# Where a machine sets it, each of thousands of processes would compile its modules anew.
unexport PYTHONDONTWRITEBYTECODE
export PATH := $(CURDIR)/$(VENV):$(CURDIR)/.cache:$(PATH)

PARTS_quick := lint unit-quick
PARTS_test := unit faults-tenth $(SCENARIO:%=scenario-%) lint
PARTS_test-all := faults-machine unit faults-disks faults-kills $(foreach each,$(SCENARIO),$(if $(filter $(each),$(BOTH)),\
  scenario-$(each),scenario-$(each).trixie scenario-$(each).bookworm)) faults-load faults-deploys lint

.PHONY: help deploy destroy ssh tool venv quick test test-all lint unit unit-quick molecule faults faults-tenth bench fleet \
  lock docs screenshot clean packages-host packages-test packages-faults

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-10s %s\n", $$1, $$2}' Makefile

deploy: venv ## deploy to a throwaway systemd host, or to INVENTORY=path
ifeq ($(INVENTORY),)
	@$(MAKE) -s packages-host
	@$(SUDO) $(TESTHOST) create demo --suite $(SUITE) >/dev/null
	@mkdir -p .cache && $(SUDO) $(TESTHOST) inventory demo > .cache/inventory.json
	@$(SUDO) env "PATH=$(PATH)" ansible-playbook deploy.yml -i .cache/inventory.json $(ARGS)
	@printf '%s\n' '' 'The host "demo" runs Abathur'"'"'s database. Go on with:' \
	  '  make ssh                                                        log in (then: abathur-db status)' \
	  '  make ssh COMMAND="systemctl list-timers '"'"'abathur-db@*'"'"'"         watch the timers' \
	  '  less reports/demo/validation.txt                                read the report again' \
	  '  make destroy                                                    throw the host away'
else
	@ansible-playbook deploy.yml -i $(INVENTORY) $(ARGS)
endif

destroy: venv ## throw the host of `make deploy` away
	@$(SUDO) $(TESTHOST) destroy demo >/dev/null

ssh: venv ## log in to the host of `make deploy`, or run COMMAND="..." on it
	@$(SUDO) $(TESTHOST) ssh demo $(if $(COMMAND),"$(COMMAND)")

tool: venv ## build dist/abathur-db, the tool in one file
	@$(VENV)/python scripts/build.py

quick: venv packages-lint packages-test ## lint, and the unit tests that start no playbook, host, store or browser, in 90 s
	$(call RUN_PARTS,quick)

test: venv packages-lint packages-test packages-faults ## run what CI runs: lint, unit tests, every scenario, a tenth of the faults
	$(call RUN_PARTS,test)

test-all: venv packages-lint packages-test packages-faults ## before a release: each scenario on both Debians, all kills and waits at full length
	$(call RUN_PARTS,test-all,FULL=1)

# Runs the parts of a run, JOBS at a time, the output of each at its end; then says what each took.
define RUN_PARTS
	@$(TIMINGS) begin $(1); code=0; \
	$(MAKE) --no-print-directory --jobs=$(JOBS) --output-sync=recurse --keep-going RUN=$(1) $(2) $(PARTS_$(1):%=part-%) || code=$$?; \
	$(TIMINGS) report $(1); exit $$code
endef

part-%:
	@$(TIMINGS) part $(RUN) $* $(MAKE) --no-print-directory $*

lint: venv packages-lint ## check style and types of Python, YAML, roles and shell
	ruff check .
	ruff format --check .
	mypy
	yamllint --strict .
	ansible-lint
	shellcheck .ci/run .ci/packages .ci/venv docs/to-postgresql.sh molecule/monitoring/sendmail molecule/monitoring/page-me

unit: venv packages-test ## run the unit and contract tests with coverage
	$(SUDO) env "PATH=$(PATH)" coverage run -m pytest --numprocesses $(JOBS) --dist loadfile tests
	$(SUDO) env "PATH=$(PATH)" coverage combine --quiet
	$(SUDO) env "PATH=$(PATH)" coverage report

unit-quick: venv packages-test
	$(SUDO) env "PATH=$(PATH)" pytest --numprocesses $(JOBS) --dist loadfile -m "not engine" tests

molecule: venv packages-host ## run the scenarios on real systemd hosts, or SCENARIO=name; the output of several comes at the end of each
	@$(MAKE) --no-print-directory --jobs=$(JOBS) $(if $(word 2,$(SCENARIO)),--output-sync=target) $(SCENARIO:%=scenario-%)

# scenario-NAME, or scenario-NAME.SUITE for a Debian of your choice.
scenario-%:
	$(SUDO) env "PATH=$(PATH)" $(if $(suffix $*),SUITE=$(patsubst .%,%,$(suffix $*))) FULL=$(FULL) \
	  MOLECULE_EPHEMERAL_DIRECTORY=$(CURDIR)/.cache/molecule/$* molecule test --no-command-borders -s $(basename $*)

faults: venv packages-faults ## try to break it: KILLS=200, power CUTS=20, POINTS=20 of full disks, LOAD=600 seconds
	$(FAULTS) faults $(ARGS)

faults-tenth: KILLS = 20
faults-tenth: POINTS = 1
faults-tenth: LOAD = 10
faults-tenth: venv packages-faults
	$(FAULTS) -m "not machine" faults

FAULTS_disks := faults/test_full_disk.py faults/test_flushes.py
FAULTS_kills := faults/test_kills.py
FAULTS_deploys := faults/test_kills_of_deploys.py
FAULTS_load := faults/test_load.py
FAULTS_machine := faults/test_time.py faults/test_power.py
faults-%: venv packages-faults
	$(FAULTS) $(or $(FAULTS_$*),$(error there is no part faults-$*))

bench: venv .cache/bench/lock packages-host ## measure our jobs and deploys against their peers, with SIZE=gigabytes (default 1)
	@.ci/packages sqlite3 zstd
	@mkdir -p docs
	$(BENCH) --size $(SIZE) $(ARGS)

fleet: venv packages-host ## measure deploys to a fleet of HOSTS=20 throwaway hosts against one of 10
	$(BENCH) --hosts $(HOSTS) $(ARGS)

venv: .venv/lock ## install the pinned Python packages into .venv

.venv/lock: requirements.txt
	@.ci/venv $(PYTHON) .venv $<

# The peers of `make bench` have an environment of their own.
.cache/bench/lock: benchmarks/requirements.txt
	@.ci/venv $(PYTHON) .cache/bench $<

packages-lint:
	@.ci/packages shellcheck

packages-host:
	@.ci/packages systemd-nspawn:systemd-container mmdebstrap ssh:openssh-client

packages-test: packages-host .cache/promtool
	@.ci/packages podman runc zstd chromium

packages-faults: packages-host
	@.ci/packages strace zstd mkfs.ext4:e2fsprogs qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils

# Out of its package: installed, it would bring a server along that starts and listens.
.cache/promtool:
	@mkdir -p .cache/prometheus && cd .cache/prometheus && $(SUDO) apt-get update -qq && $(SUDO) apt-get download -qq -o APT::Sandbox::User=root prometheus
	@dpkg-deb --fsys-tarfile .cache/prometheus/prometheus_*.deb | tar -x -C .cache --strip-components=3 ./usr/bin/promtool
	@rm -r .cache/prometheus

lock: venv ## pin the newest versions that requirements.in allows
	uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-emit-index-url --no-header \
	  --upgrade requirements.in -o requirements.txt
	uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-emit-index-url --no-header \
	  --upgrade benchmarks/requirements.in -o benchmarks/requirements.txt
	uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-emit-index-url --no-header \
	  --constraints requirements.txt --upgrade roles/abathur_pull/files/requirements.in -o roles/abathur_pull/files/requirements.txt
	uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-emit-index-url --no-header \
	  --upgrade molecule/controller/oldest.in -o molecule/controller/oldest.txt

docs: venv ## write the README's generated tables anew
	@PYTHONPATH=. $(VENV)/python scripts/docs.py

screenshot: venv ## make the README's pictures from a demonstration database
	@.ci/packages chromium pngquant
	$(VENV)/python scripts/screenshot.py

clean: ## delete what was generated, but for test hosts
	rm -rf .venv .cache dist reports .mypy_cache .ruff_cache .pytest_cache .coverage .ansible
