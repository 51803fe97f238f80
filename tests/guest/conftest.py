from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from attached import Device, Served, serving
from bellwired.guest.archive import ArchiveError
from bellwired.guest.plan import Plugged
from bellwired.guest.toolbox import Toolbox
from crafted import Crafted, crafted
from linux import Guest, Outcome
from machine import Machine, driven
from patched import BuildError, PatchedToolbox, patched, report
from provision import provision
from tap import Tap
from virtio.namespace import Namespace, own_namespace

Report = Callable[[], dict[str, str]]
_REPORTS = pytest.StashKey[list[Report]]()


@pytest.fixture(scope="session")
def tools() -> Toolbox:
    try:
        return provision()
    except (ArchiveError, OSError) as error:
        pytest.skip(f"no QEMU guest could be provided: {error}")


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[Report], None]:
    """Have something told, should the test fail: titles and texts."""
    item: pytest.Item = request.node
    return item.stash.setdefault(_REPORTS, []).append


@pytest.fixture
def serve(tmp_path: Path, tell: Callable[..., None]) -> Iterator[Callable[[Device], Served]]:
    """Serve a device until the test ends. Whatever was tested, no reply was longer than QEMU takes."""
    taps: list[Tap] = []
    with ExitStack() as stack:

        def serve(device: Device) -> Served:
            folder = tmp_path / f"{Path(device.name).stem}-{len(list(tmp_path.iterdir()))}"
            served = stack.enter_context(serving(device, folder))
            taps.append(served.tap)
            tell(lambda: {f"{folder.name}: log": served.log, f"{folder.name}: messages": served.tap.trace()})
            return served

        yield serve
    assert [seen for tap in taps for seen in tap.overlong] == []


@pytest.fixture(scope="session")
def patched_tools(tools: Toolbox) -> PatchedToolbox:
    try:
        return patched(tools, report)
    except (BuildError, OSError) as error:
        pytest.skip(f"no patched QEMU: {error}")


@pytest.fixture
def drive_with(tmp_path: Path, tell: Callable[..., None]) -> Iterator[Callable[..., Machine]]:
    """A machine of the QEMU in these tools, under qtest: ``drive_with(tools, *served, ...)``."""
    with ExitStack() as stack:

        def drive(
            tools: Toolbox, *devices: Served | Crafted, arguments: Sequence[str] = (), **options: bool
        ) -> Machine:
            folder = tmp_path / f"qtest-{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            log = folder / "qemu"
            tell(lambda: {"QEMU": log.read_text() if log.exists() else ""})
            return stack.enter_context(driven(tools, folder, devices, *arguments, **options))

        yield drive


@pytest.fixture
def patched_drive(patched_tools: PatchedToolbox, drive_with: Callable[..., Machine]) -> Callable[..., Machine]:
    """A machine of the patched QEMU."""
    return partial(drive_with, patched_tools)


@pytest.fixture
def old_drive(patched_tools: PatchedToolbox, drive_with: Callable[..., Machine]) -> Callable[..., Machine]:
    """A machine of the QEMU that the patches were made for, without them."""
    return partial(drive_with, patched_tools.unpatched)


@pytest.fixture
def craft(tmp_path: Path) -> Iterator[Callable[..., Crafted]]:
    """A server that answers GET_REGION_IO_FDS as it is told."""
    with ExitStack() as stack:
        yield lambda answer, **options: stack.enter_context(crafted(tmp_path, answer, **options))


@pytest.fixture
def bell() -> Iterator[int]:
    """An eventfd."""
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.fixture
def linux(
    tools: Toolbox, tmp_path: Path, serve: Callable[[Device], Served], tell: Callable[..., None]
) -> Callable[..., Outcome]:
    """Run a script in a Linux guest with these devices: ``linux(script, Device(...), ..., timeout=...)``."""

    def run(script: str, *devices: Device | Served | Plugged, **options: Any) -> Outcome:
        folder = tmp_path / f"linux-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        guest = Guest(tools, folder)
        tell(guest.report)
        served = [serve(device) if isinstance(device, Device) else device for device in devices]
        return guest.run(script, served, **options)

    return run


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A network namespace of the test's own."""
    with own_namespace() as namespace:
        yield namespace


@pytest.fixture
def drive(
    tools: Toolbox, serve: Callable[[Device], Served], drive_with: Callable[..., Machine]
) -> Callable[..., Machine]:
    """A machine under qtest with these devices: ``drive(Device(...), ...)``."""

    def drive(*devices: Device | Served, arguments: Sequence[str] = (), **options: bool) -> Machine:
        served = [serve(device) if isinstance(device, Device) else device for device in devices]
        return drive_with(tools, *served, arguments=arguments, **options)

    return drive


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and report.when != "teardown":
        for told in item.stash.get(_REPORTS, []):
            report.sections += [(title, text) for title, text in told().items() if text]
    return report
