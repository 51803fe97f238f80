# Two commands to know: `make demo` and `make test`. Each installs what is missing (apt packages through sudo
# where needed, then a virtual environment in .venv) and is quick when everything is there.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PREFIX ?= /usr
LIBDIR := $(PREFIX)/lib/bellwire
# The system's own Python has systemd-python where the distribution's package is installed.
SYSTEM_PYTHON = $(or $(shell /usr/bin/python3 -c 'import sys, ensurepip; sys.version_info < (3, 11) or print(sys.executable)' 2>/dev/null),$(PYTHON),python3.11)
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
PYTEST := $(BIN)/python -m pytest

# $(call need,COMMAND THAT SUCCEEDS WHERE THEY ARE INSTALLED,PACKAGES)
define need
@{ $(1); } >/dev/null 2>&1 || { \
	command -v apt-get >/dev/null || { echo "make: install $(2), or what your system calls it" >&2; exit 1; }; \
	echo "installing $(2)"; \
	$(SUDO) apt-get update -qq && \
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qqy --no-install-recommends $(2) >/dev/null; }
endef

.PHONY: help demo tables man install check lint types quick test-kvm test-slow test-guest provision test-nested test-systemd test coverage bench guests clean python

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(VENV)/.run ## ring a device in every way there is, and show what each costs
	$(BIN)/bellwire demo $(DEMO)

check: lint types quick ## the quick part: lint, types, tests that need no VM (under a minute)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

# These tests share nothing, so each core takes files of its own.
quick: $(VENV)/.dev
	$(PYTEST) -q -n auto --maxprocesses 4 --dist loadfile -m "not daemon and not guest and not kvm and not nested and not slow and not systemd"

test-kvm: $(VENV)/.dev $(VENV)/.tools ## the tests on real KVM
	$(PYTEST) -q -m "kvm"

test-slow: $(VENV)/.dev $(VENV)/.tools
	$(PYTEST) -q -m "slow and not kvm"

test-guest: $(VENV)/.dev provision ## the tests in stock QEMU, with Linux or a program of our own as the guest
	$(PYTEST) -q -m "guest"

# Where it cannot be had, the tests that need it skip, and say why.
provision: $(VENV)/.dev $(VENV)/.tools
	@$(BIN)/python tests/guest/provision.py || true

test-nested: $(VENV)/.dev provision $(VENV)/.kernel ## the tests in an emulated machine with KVM of its own (builds a kernel first)
	$(PYTEST) -q -m "nested"

test-systemd: $(VENV)/.dev $(VENV)/.systemd ## the tests in a systemd booted in namespaces (as root)
	$(PYTEST) -q -m "systemd"

test: check $(VENV)/.tools $(VENV)/.systemd $(VENV)/.kernel provision ## everything but what takes minutes on end
	$(PYTEST) -q -m "(daemon or guest or kvm or nested or slow or systemd) and not long"

coverage: $(VENV)/.dev $(VENV)/.tools $(VENV)/.systemd $(VENV)/.kernel provision ## the same tests, with a coverage report
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q
	$(BIN)/coverage report

bench: $(VENV)/.dev $(VENV)/.tools provision ## measure, side by side: tables, build/bench/results.json and plots (under 10 minutes)
	$(BIN)/python -m bench $(BENCH)

guests: $(VENV)/.tools ## build the micro guests anew, in place
	$(BIN)/python -m bellwire_vmm.guests.build

tables: $(VENV)/.dev ## write the tables of options in docs/devices.md anew
	$(BIN)/python tools/option_tables.py

man: $(VENV)/.dev ## write the manual pages into build/man
	$(BIN)/python tools/manual_pages.py build/man

install: man ## install for all users, below DESTDIR if that is set (the package itself goes to PREFIX/lib/bellwire)
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(LIBDIR)/devices.d $(DESTDIR)$(LIBDIR)/plugins $(DESTDIR)/etc/bellwire/devices.d
	$(SYSTEM_PYTHON) -m venv --system-site-packages $(DESTDIR)$(LIBDIR)/venv
	$(DESTDIR)$(LIBDIR)/venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt .
	sed -i '1s|^#!.*|#!$(LIBDIR)/venv/bin/python|' $(DESTDIR)$(LIBDIR)/venv/bin/bellwire $(DESTDIR)$(LIBDIR)/venv/bin/bellwired
	ln -sf $(LIBDIR)/venv/bin/bellwire $(LIBDIR)/venv/bin/bellwired $(DESTDIR)$(PREFIX)/bin/
	install -Dm644 -t $(DESTDIR)$(PREFIX)/share/man/man1 build/man/bellwire.1
	install -Dm644 -t $(DESTDIR)$(PREFIX)/share/man/man5 build/man/bellwire-device.toml.5
	install -Dm644 -t $(DESTDIR)$(PREFIX)/share/man/man8 build/man/bellwired.8
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/zsh/site-functions
	$(BIN)/bellwire --print-completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/bellwire
	$(BIN)/bellwire --print-completion zsh > $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_bellwire
	install -Dm644 -t $(DESTDIR)$(PREFIX)/share/vfio-user systemd/50-bellwire.json
	install -Dm644 -t $(DESTDIR)$(LIBDIR) systemd/bellwired.toml
	install -Dm644 -t $(DESTDIR)$(PREFIX)/lib/systemd/system systemd/*.service systemd/*.socket
	install -Dm644 -t $(DESTDIR)$(PREFIX)/lib/sysusers.d systemd/sysusers.d/bellwire.conf
	install -Dm644 -t $(DESTDIR)$(PREFIX)/lib/tmpfiles.d systemd/tmpfiles.d/bellwire.conf
	install -Dm644 -t $(DESTDIR)$(PREFIX)/lib/systemd/catalog systemd/catalog/bellwire.catalog

clean: ## remove the virtual environment and everything built
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage

python:
	$(if $(PYTHON),,$(call need,command -v python3.11,python3.11 python3.11-venv))

$(VENV)/bin/python: | python
	$(call need,$(or $(PYTHON),python3.11) -c 'import ensurepip',python3-venv)
	$(or $(PYTHON),python3.11) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.run

# A compiler, to rebuild the micro guests; kernel headers, to check the ioctls' layout; strace, to count them.
$(VENV)/.tools: | $(VENV)/.dev
	$(call need,command -v gcc && command -v objcopy && test -e /usr/include/linux/kvm.h \
		&& test -e /usr/include/stdio.h,gcc binutils libc6-dev linux-libc-dev)
	$(call need,command -v strace,strace)
	@touch $@

# What a kernel is built with.
$(VENV)/.kernel: | $(VENV)/.tools
	$(call need,command -v make && command -v flex && command -v bison && command -v bc && command -v patch \
		&& command -v xz && test -e /usr/include/libelf.h,make flex bison bc patch xz-utils libelf-dev)
	@touch $@

# A systemd to boot, and what the services in it run on: the system's own Python with systemd-python.
$(VENV)/.systemd: | $(VENV)/.dev
	$(call need,test -x /lib/systemd/systemd && command -v nsenter \
		&& cd / && /usr/bin/python3 -c 'import ensurepip; import systemd.journal',\
		systemd util-linux python3-venv python3-systemd)
	@touch $@
