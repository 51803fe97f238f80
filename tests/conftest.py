"""What all tests share: KVM tests run wherever /dev/kvm exists, and skip nowhere else in silence."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from folders import folder_that, has_a_medium, limits_sizes
from huge import huge_page, one_more

KVM = Path("/dev/kvm")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--saved", action="store_true", help="save and restore bundled devices while tests use them")


def pytest_configure(config: pytest.Config) -> None:
    """A shell has what it runs in the background ignore Ctrl-C, and so would every program that a test interrupts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    hypothesis.settings.register_profile("patient", deadline=None, max_examples=50)  # a busy machine takes its time
    hypothesis.settings.load_profile("patient")
    os.umask(0o022)  # a plugin that a group may write is refused, where that group has others in it
    if config.getoption("--saved"):
        from saved import Saved

        config.pluginmanager.register(Saved())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes on end may take an hour, and what runs in an emulated machine 20 minutes."""
    for item in items:
        if item.get_closest_marker("long") or item.get_closest_marker("fresh"):
            item.add_marker(pytest.mark.timeout(3600))
        elif item.get_closest_marker("nested"):
            item.add_marker(pytest.mark.timeout(1200))


def pytest_collection_finish() -> None:
    """The tests themselves stay to the end: the collector need not look at them again before each file."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("kvm") and not KVM.exists():
        pytest.skip("no /dev/kvm on this machine")


@pytest.fixture(scope="module", autouse=True)
def no_garbage_of_others() -> None:
    """Descriptors that the collector closes in the middle of a test would spoil its count.

    What is left is looked at no more: each file would otherwise pay for all that were run before it.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def impatient() -> Iterator[None]:
    """A system call that blocks the test's own thread for 30 seconds is interrupted, and the test fails."""

    def ring(*_: object) -> None:
        raise AssertionError("this has blocked for 30 seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 30)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def disk_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for images that are opened with O_DIRECT."""
    with folder_that(has_a_medium, tmp_path) as folder:
        yield folder


@pytest.fixture
def limited_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in which no file can be of 4 EiB."""
    with folder_that(limits_sizes, tmp_path) as folder:
        yield folder


@pytest.fixture
def huge_file() -> Iterator[int]:
    """A file of one huge page, which root has the kernel make if there is none in reserve."""
    with contextlib.ExitStack() as stack:
        try:
            with contextlib.suppress(OSError):
                stack.enter_context(one_more())
            fd = stack.enter_context(huge_page())
        except OSError as error:
            pytest.skip(f"no huge page is free, and none can be made: {error}")
        yield fd


@pytest.fixture
def open_fds() -> set[int]:
    """The descriptors open when the test starts, to compare with at its end."""
    return {int(name) for name in os.listdir("/proc/self/fd")}
