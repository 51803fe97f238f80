# Two commands to know: `make demo` and `make test`. Each installs what is missing (apt packages through sudo
# where needed, then a virtual environment in .venv) and is quick when everything is there.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PREFIX ?= /usr
LIBDIR := $(PREFIX)/lib/bellwire
NEW := $(abspath $(DESTDIR)$(LIBDIR)/venv.new)
INSTALL := $(NEW)/bin/python -m pip install -q --disable-pip-version-check --no-warn-script-location --no-compile
PINS := --ignore-installed -c constraints.txt
PACKAGES := protocol/vfio_user kvm/kvm_ioctls kvm/bellwire_vmm devices/bellwire daemon/bellwired
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# $(call new_enough,NAMES): the path of the first Python that is 3.11 or newer, links of its name followed: a virtual
# environment then stays with its version when the distribution's `python3` becomes another.
new_enough = $(shell for python in $(1); do \
	"$$python" -c 'import os, sys; sys.version_info < (3, 11) and sys.exit(1); print(os.path.realpath(sys.executable))' 2>/dev/null && break; done)
PYTHON ?= $(call new_enough,python3 python3.14 python3.13 python3.12 python3.11)
# The system's own Python has systemd-python where the distribution's package is installed.
SYSTEM_PYTHON ?= $(or $(call new_enough,/usr/bin/python3),$(PYTHON))
# Where a virtual environment's Python is gone or another (the distribution was upgraded), it is made anew.
STALE := $(shell [ ! -d $(VENV) ] || $(BIN)/python -c 'import pip' 2>/dev/null || echo stale)
# Root builds in a user's checkout as that user, and leaves nothing there that is root's.
AS_OWNER := $(shell owner=$$(stat -c %U .); home=$$(getent passwd "$$owner" | cut -d: -f6); \
	[ "$$(id -u)" != 0 ] || [ "$$owner" = root ] || [ -z "$$home" ] || \
	echo "env HOME=$$home setpriv --reuid=$$owner --regid=$$(stat -c %g .) --init-groups")
PYTEST := $(BIN)/python -m pytest

# $(call need,COMMAND THAT SUCCEEDS WHERE THEY ARE INSTALLED,PACKAGES)
define need
@{ $(1); } >/dev/null 2>&1 || { \
	command -v apt-get >/dev/null || { echo "make: install $(2), or what your system calls it" >&2; exit 1; }; \
	$(SUDO) apt-get update -qq && packages="$(2)" && echo "installing $$packages" && \
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qqy --no-install-recommends $$packages >/dev/null; }
endef

.PHONY: help qemu patched demo tables lspci picture man wheel install deb uninstall check lint types quick test-saved test-kvm test-slow fuzz test-guest test-chaos test-vhost interop provision test-nested test-systemd test on-this-machine in-machines test-fresh coverage bench bench-docs mutants guests clean python

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
	$(BIN)/mypy tests/guest/conftest.py
	$(BIN)/mypy tests/systemd/conftest.py

QUICK := not daemon and not guest and not kvm and not nested and not slow and not systemd
# These tests share nothing, so each core takes files of its own. Without byte code, each process compiles all of them.
quick: $(VENV)/.dev
	env -u PYTHONDONTWRITEBYTECODE $(PYTEST) -q -n auto --maxprocesses 4 --dist loadfile -m "$(QUICK)"

test-saved: $(VENV)/.dev ## the quick tests of bundled devices, which are saved and restored at each access (2 minutes)
	$(PYTEST) -q -n auto --maxprocesses 4 --dist loadfile --saved -m "$(QUICK)" tests/nvme tests/virtio tests/faults tests/filters tests/recording \
		$(addprefix tests/devices/test_,serial.py serial_model.py bundled.py)

test-kvm: $(VENV)/.dev $(VENV)/.tools ## the tests on real KVM
	$(PYTEST) -q -m "kvm"

test-slow: $(VENV)/.dev $(VENV)/.tools
	$(PYTEST) -q -m "slow and not kvm"

MINUTES := 1
fuzz: $(VENV)/.dev ## feed junk to each parser of outside bytes for a minute (MINUTES=5; FUZZ="-k nvme" for some)
	FUZZ_MINUTES=$(MINUTES) $(PYTEST) -q -m long tests/fuzz $(FUZZ)

test-guest: $(VENV)/.dev provision patched ## the tests in stock QEMU, with Linux or a program of our own as the guest
	$(PYTEST) -q -m "guest" --ignore tests/guest/interop

test-chaos: $(VENV)/.dev $(VENV)/.systemd provision ## disturb what serves a busy guest 200 times (as root; 20 minutes)
	$(PYTEST) -q -s -m long tests/guest/test_chaos.py tests/guest/test_hand_over.py tests/vmm/test_handed_over_guest.py

test-vhost: $(VENV)/.dev $(VENV)/.kernel provision patched ## real back ends under much work, without root, and the kernel's own (half an hour)
	$(PYTEST) -q -s -m "guest or nested" tests/guest/test_vhost*.py tests/nested/test_vhost.py

# A part of the rows goes to build/interop.md.
interop: $(VENV)/.dev $(VENV)/.tools provision patched ## firmware, kernels, QEMUs and other servers: writes docs/interop.md (3 to 10 minutes; INTEROP="-k seabios" for some)
	INTEROP_PAGE=docs/interop.md $(PYTEST) -q -m long tests/guest/interop $(INTEROP)

# As `make qemu`, for the tests: they skip where there is no such QEMU, and say why.
patched: $(VENV)/.dev $(VENV)/.qemu provision
	@$(BIN)/python tests/guest/patched.py >/dev/null || true

qemu: $(VENV)/.dev $(VENV)/.qemu ## build a QEMU whose guests ring doorbells by file descriptor, and print how to start it
	@$(BIN)/python tests/guest/patched.py

# Where it cannot be had, the tests that need it skip, and say why.
provision: $(VENV)/.dev $(VENV)/.tools
	@$(BIN)/python tests/guest/provision.py || true

test-nested: $(VENV)/.dev provision $(VENV)/.kernel ## the tests in an emulated machine with KVM of its own (builds a kernel first)
	$(PYTEST) -q -m "nested"

test-systemd: $(VENV)/.dev $(VENV)/.systemd ## the tests in a systemd booted in namespaces (as root)
	$(PYTEST) -q -m "systemd"

test: check $(VENV)/.tools $(VENV)/.systemd $(VENV)/.kernel provision patched ## everything but what takes minutes on end
	$(MAKE) --no-print-directory -j2 on-this-machine in-machines

# A part of `make test-saved` comes first: some tests of each bundled device.
on-this-machine:
	$(PYTEST) -q --saved -m "$(QUICK)" $(addprefix tests/,devices/test_serial.py devices/test_bundled.py nvme/test_nvme_queues.py \
		$(addprefix virtio/test_virtio_,rng.py races.py net_filter.py console_life.py))
	$(PYTEST) -q --durations=12 -m "(daemon or kvm or slow or systemd) and not guest and not nested and not long"

# Each takes one processor.
in-machines:
	$(PYTEST) -q --durations=12 -m "(guest or nested) and not long"

test-fresh: $(VENV)/.dev $(VENV)/.systemd ## the README and the package on minimal Debian systems (as root; FRESH="-k trixie" for one)
	$(call need,command -v mmdebstrap && command -v buildah,mmdebstrap buildah)
	$(PYTEST) -q -m fresh tests/fresh $(FRESH)

coverage: $(VENV)/.dev $(VENV)/.tools $(VENV)/.systemd $(VENV)/.kernel provision patched ## the same tests, with a coverage report
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q -m "not fresh"
	$(BIN)/coverage report

# It starts some hundred devices, which takes each of them three times as long without byte code.
bench: $(VENV)/.dev $(VENV)/.tools provision ## measure, side by side: tables, build/bench/results.json and plots (less than 10 minutes)
	env -u PYTHONDONTWRITEBYTECODE PYTHONPATH=tests $(BIN)/python -m bench $(BENCH)

mutants: $(VENV)/.dev ## see whether tests notice small mistakes: within an hour, 95 % of each area (MUTANTS="--seed 2 nvme")
	nice $(BIN)/python -m mutants $(MUTANTS)

bench-docs: ## for a release: put the plots of the last `make bench` beside docs/performance.md
	install -m644 -t docs/performance build/bench/*.svg

guests: $(VENV)/.tools ## build the micro guests, and the agent of bellwire boot, anew, in place
	$(BIN)/python -m bellwire_vmm.guests.build
	$(BIN)/python -m bellwired.guest.agent.build

tables: $(VENV)/.dev ## write the tables of options in docs/devices.md anew
	$(BIN)/python tools/option_tables.py

picture: $(VENV)/.dev ## draw docs/observing/*.svg and docs/faults/*.svg anew
	$(BIN)/python tools/view_picture.py
	$(BIN)/python tools/timeline_pictures.py

lspci: $(VENV)/.dev ## write docs/lspci.md anew
	$(BIN)/python tools/lspci_page.py

man: $(VENV)/.run ## write the manual pages into build/man
	$(BIN)/python -m bellwired.install.manual_pages build/man

wheel: build/wheel/.built ## build the wheel into build/wheel

build/wheel/.built: $(shell find $(PACKAGES) systemd docs/monitoring -type f ! -name '*.pyc') pyproject.toml hatch_build.py README.md LICENSE $(STALE) | $(VENV)/bin/python
	rm -rf build/wheel
	$(BIN)/python -m pip wheel -q --disable-pip-version-check --no-deps -w build/wheel .
	@touch $@

# The package gets a virtual environment in PREFIX/lib/bellwire. It is made beside the old one, which it then replaces;
# scripts and byte code name the place where they will be. The wheel is installed twice, since the first time pip notes
# where it has found it, and the second time it needs nothing else.
install: ## install for all users, below PREFIX (/usr, or /usr/local) and, for packages, below DESTDIR
	+@$(AS_OWNER) $(MAKE) --no-print-directory wheel
	$(call need,$(SYSTEM_PYTHON) -c 'import ensurepip',python3 python3-venv)
	$(if $(and $(filter $(realpath /usr/bin/python3),$(SYSTEM_PYTHON)),$(shell command -v apt-get)),$(if $(DESTDIR),,$(call \
		need,cd / && $(SYSTEM_PYTHON) -c 'import systemd.journal',python3-systemd)))
	umask 022 && mkdir -p $(dir $(NEW)) && rm -rf $(NEW) && $(SYSTEM_PYTHON) -m venv --system-site-packages $(NEW) && \
		$(INSTALL) $(PINS) build/wheel/*.whl && \
		$(INSTALL) --force-reinstall --no-deps --no-index --find-links build/wheel bellwire && \
		find $(NEW) -name __pycache__ -prune -exec rm -r {} + && \
		grep -rlIZF $(NEW) $(NEW) | xargs -0 sed -i 's|$(NEW)|$(LIBDIR)/venv|g' && \
		$(NEW)/bin/python -m compileall -q -s $(NEW) -p $(LIBDIR)/venv $(NEW)/lib && \
		rm -rf $(NEW:.new=) && mv $(NEW) $(NEW:.new=)
	$(NEW:.new=)/bin/python -B $(NEW:.new=)/bin/bellwire install --system --prefix $(PREFIX) \
		$(addprefix --destdir=,$(abspath $(DESTDIR)))

# Built from a copy, since debhelper works in the source tree. What the distribution has of Python packages is used, and
# the rest comes from PyPI.
DEB := build/deb/bellwire
DEB_USES := python3-msgspec python3-prometheus-client python3-rich python3-shtab
DEB_HAS = $$(for package in $(DEB_USES); do ! apt-cache show $$package >/dev/null 2>&1 || echo $$package; done)
deb: ## build a Debian package into build/deb
	$(call need,command -v dpkg-buildpackage && command -v dh && dpkg-query -W python3-venv $(DEB_HAS),dpkg-dev debhelper python3-venv $(DEB_HAS))
	rm -rf build/deb && mkdir -p $(DEB)
	cp -a Makefile pyproject.toml hatch_build.py constraints.txt README.md LICENSE $(sort $(patsubst %/,%,$(dir $(PACKAGES)))) systemd $(DEB)
	cp -a --parents docs/monitoring $(DEB)
	cp -a packaging/debian $(DEB)
	cd $(DEB) && dpkg-buildpackage --build=binary --no-sign --no-check-builddeps  # no compiler is needed

uninstall: ## remove what `make install` has installed; configuration and state stay
	rm -rf $(NEW) $(NEW:.new=)
	PYTHONPATH=daemon $(SYSTEM_PYTHON) -B -m bellwired.install.record $(LIBDIR)/installed $(abspath $(DESTDIR))

clean: ## remove the virtual environment and everything built
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage

# The distribution's own where that is new enough.
CANDIDATE = $$(dpkg --compare-versions "$$(apt-cache show --no-all-versions python3 | sed -n 's/^Version: //p')" ge 3.11 \
	&& echo python3 python3-venv || echo python3.11 python3.11-venv)
python:
	$(if $(PYTHON),,$(call need,false,$(CANDIDATE)))

$(VENV)/bin/python: $(STALE) | python
	$(call need,$(PYTHON) -c 'import ensurepip',$(if $(filter /usr/bin/python3.%,$(PYTHON)),$(notdir $(PYTHON))-venv,python3-venv))
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt $(STALE) | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(STALE) | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.run

.PHONY: stale
stale:

# A compiler, to rebuild the micro guests; kernel headers, to check the ioctls' layout; strace, to count them; shells,
# to press Tab in.
$(VENV)/.tools: | $(VENV)/.dev
	$(call need,command -v gcc && command -v objcopy && test -e /usr/include/linux/kvm.h \
		&& test -e /usr/include/stdio.h,gcc binutils libc6-dev linux-libc-dev)
	$(call need,command -v strace,strace)
	$(call need,command -v zsh && command -v fish,zsh fish)
	$(call need,command -v chromium,chromium)
	@touch $@

# What a kernel is built with.
$(VENV)/.kernel: | $(VENV)/.tools
	$(call need,command -v make && command -v flex && command -v bison && command -v bc && command -v patch \
		&& command -v xz && test -e /usr/include/libelf.h,make flex bison bc patch xz-utils libelf-dev)
	@touch $@

# What QEMU is built with.
$(VENV)/.qemu: | $(VENV)/.tools
	$(call need,command -v g++ && command -v ninja && command -v pkg-config && command -v patch && command -v dpkg-source \
		&& command -v xz && pkg-config --exists glib-2.0 json-c cmocka,g++ ninja-build pkg-config patch dpkg-dev xz-utils libglib2.0-dev \
		libjson-c-dev libcmocka-dev)
	@touch $@

# A systemd to boot, and what the services in it run on: the system's own Python with systemd-python.
$(VENV)/.systemd: | $(VENV)/.dev
	$(call need,test -x /lib/systemd/systemd && command -v nsenter \
		&& cd / && /usr/bin/python3 -c 'import ensurepip; import systemd.journal',\
		systemd util-linux python3-venv python3-systemd)
	@touch $@
