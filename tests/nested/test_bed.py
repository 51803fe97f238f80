"""The bed itself, and what our tests and the demo find there: KVM on emulated AMD, with ioregionfds and without."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import patched as qemu
from bellwired.guest.archive import ArchiveError
from bellwired.guest.toolbox import Toolbox
from nested import boot
from nested.errors import BedError, LackError
from nested.kernel import image
from provision import provision

pytestmark = pytest.mark.nested

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
PYTEST = (
    sys.executable,
    "-m",
    "pytest",
    "-q",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:hypothesispytest",
    "--tb=short",
    "--durations=5",
)
IOREGION = [HERE / f"ioregion_{name}.py" for name in ("errors", "accesses", "signals")]
POST_WRITE = HERE / "post_write.py"
TROUBLE = (
    "WARNING:",
    "BUG:",
    "KASAN",
    "INFO: task",
    "possible circular locking",
    "suspicious RCU",
    "unreferenced object",
)

# A scan reports what an earlier one has seen with the same contents, and nothing younger than five seconds.
LEAKS = "cd /sys/kernel/debug && echo scan >kmemleak && sleep 6 && echo scan >kmemleak && cat kmemleak >/dev/kmsg"


class Ran(NamedTuple):
    """What the command printed, and what the kernel did."""

    text: str
    console: str


Bed = Callable[..., Ran]


@pytest.fixture(scope="session")
def tools() -> Toolbox:
    try:
        return provision()
    except (ArchiveError, OSError) as error:
        pytest.skip(f"no bed could be made: {error}")


def kernel_or_skip(tools: Toolbox, name: str) -> boot.Image:
    """A kernel. Where our patch does not apply, or what it makes does not build, that is a failure."""
    try:
        return image(tools, name, lambda text: None)
    except LackError as error:
        pytest.skip(f"no kernel could be built: {error} {error.hint}")


@pytest.fixture
def patched(tools: Toolbox) -> None:
    """The kernel that `run` boots unless told otherwise."""
    kernel_or_skip(tools, "patched")


@pytest.fixture
def bed(tools: Toolbox) -> Bed:
    """Run a command in the bed, to its good end."""

    def run(kernel: str, *command: str | Path, timeout: float = 600.0, memory: int = 2048) -> Ran:
        built = kernel_or_skip(tools, kernel)
        output: list[bytes] = []
        words = [str(word) for word in command]
        outcome = boot.run(
            tools, built, words, output=output.append, size=boot.Size(memory=memory), timeout=timeout, folder=CHECKOUT
        )
        text = b"".join(output).decode(errors="replace")
        print(f"{text}\n({outcome.seconds:.0f} s)")
        assert outcome.status == 0, text[-4000:]
        return Ran(text, outcome.console)

    return run


def test_the_command_runs_on_the_hosts_files_and_nothing_that_it_writes_stays(bed: Bed, tmp_path: Path) -> None:
    (tmp_path / "here").write_text("before")
    bed("patched", "sh", "-c", f"grep -q before {tmp_path}/here && echo after >{tmp_path}/here && touch {tmp_path}/new")
    assert (tmp_path / "here").read_text() == "before"
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("patched")
def test_the_tool_returns_the_commands_status_and_output() -> None:
    words: list[str | Path] = [HERE / "run", "-q", "--memory", "512", "sh", "-c", "echo hello; exit 7"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (7, "hello\n"), done.stderr


@pytest.mark.usefixtures("patched")
def test_the_tool_gives_up_in_time() -> None:
    words: list[str | Path] = [HERE / "run", "-q", "--timeout", "4", "sleep", "1000"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 124
    assert "not done after 4 s" in done.stderr


@pytest.mark.usefixtures("patched")
def test_the_tool_takes_its_machine_down_when_it_is_told_to_end(tmp_path: Path) -> None:
    words: list[str | Path] = [HERE / "run", "-q", "sh", "-c", "echo up; sleep 1000"]
    with subprocess.Popen(words, env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE) as tool:
        assert tool.stdout is not None
        assert tool.stdout.readline() == b"up\n"
        tool.terminate()
        assert tool.wait(60) == 128 + signal.SIGTERM
    assert not processes_that_name(str(tmp_path))
    assert not list(tmp_path.iterdir())


def processes_that_name(text: str) -> list[str]:
    """Command lines with ``text`` in them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_text(errors="replace"))
    return [line for line in found if text in line]


def test_a_kernel_that_dies_is_told_with_its_last_words(bed: Bed) -> None:
    with pytest.raises(BedError, match="ended before the command did") as caught:
        bed("patched", "sh", "-c", "echo c >/proc/sysrq-trigger")
    assert "sysrq triggered crash" in caught.value.hint


def report(bed: Bed, kernel: str) -> dict[str, dict[str, Any]]:
    """What the demo measured, by path."""
    text = bed(kernel, sys.executable, "-m", "bellwired", "demo", "--count", "400", "--json", "-", timeout=300).text
    found = json.loads(text[text.index("{") : text.rindex("}") + 1])
    assert found["ok"] is True
    return {path["name"]: path for path in found["paths"]}


def test_the_demo_finds_ioregionfds_in_a_kernel_that_has_them_and_no_exit(bed: Bed) -> None:
    found = report(bed, "patched")
    for name in ("ioregionfd posted", "ioregionfd acknowledged"):
        path = found[name]
        assert (path["mechanism"], path["vm_exits"], path["mmio_exits"]) == ("ioregionfd kernel", 0, 0)
        assert path["rung"] == path["received"] == 400
    path = found["shadow ioeventfd"]
    assert (path["mechanism"], path["vm_exits"], path["mmio_exits"]) == ("shadow kernel", 0, 0)


def test_the_demo_relays_on_a_distributions_kernel(bed: Bed) -> None:
    found = report(bed, "debian")
    for name in ("ioregionfd posted", "ioregionfd acknowledged"):
        assert (found[name]["mechanism"], found[name]["vm_exits"]) == ("ioregionfd relay", 400)
    assert (found["shadow ioeventfd"]["mechanism"], found["shadow ioeventfd"]["vm_exits"]) == ("shadow relay", 400)
    assert found["ioeventfd wildcard"]["vm_exits"] == found["ioeventfd values"]["vm_exits"] == 0


@pytest.mark.long
@pytest.mark.parametrize("kernel", ["patched", "debian"])
def test_the_projects_kvm_tests_pass(bed: Bed, kernel: str) -> None:
    # The guests as they are: to compile them takes long here, and their sources are checked outside.
    bed(kernel, *PYTEST, "-m", "kvm", "-k", "not rebuilt and not built_from", "tests/kvm", "tests/vmm", timeout=900)


@pytest.mark.long
@pytest.mark.parametrize("kernel", ["patched", "debian"])
def test_what_runs_devices_for_virtual_machines_passes(bed: Bed, kernel: str) -> None:
    bed(kernel, *PYTEST, "-m", "kvm", "tests/daemon", "tests/operating", "tests/devices", timeout=1200)


@pytest.mark.long
def test_bellwire_boot_where_kvm_runs_linux(bed: Bed) -> None:
    bed("debian", *PYTEST, "-o", "timeout=900", HERE / "boots.py", timeout=1200)


def test_our_patches_in_the_kernel(bed: Bed) -> None:
    bed("patched", *PYTEST, *IOREGION, POST_WRITE, timeout=400)


@pytest.mark.long
@pytest.mark.parametrize("kernel", ["patched", "debian"])
def test_rings_under_the_patched_qemu_with_kvm(tools: Toolbox, bed: Bed, kernel: str) -> None:
    try:
        qemu.patched(tools, lambda text: None)  # here: in the bed, a build would take hours
    except (qemu.BuildError, OSError) as error:
        pytest.skip(f"no patched QEMU: {error}")
    bed(kernel, *PYTEST, "-o", "timeout=500", HERE / "qemu_bell.py", HERE / "qemu_rings.py", timeout=1500)


@pytest.mark.long
def test_our_patches_in_a_kernel_that_watches_itself(bed: Bed) -> None:
    steps = (
        "mount -t debugfs none /sys/kernel/debug",
        "echo scan=off >/sys/kernel/debug/kmemleak",  # it takes a processor for a minute, again and again
        shlex.join(map(str, (*PYTEST, *IOREGION, POST_WRITE))),
        LEAKS,
        "grep 'debug_locks: *1' /proc/lockdep_stats",  # it gives up at its first report, or for want of room
    )
    # Not much memory: the search for leaks goes through all of it.
    ran = bed("debug", "sh", "-c", " && ".join(steps), timeout=2400, memory=1024)
    assert "KernelAddressSanitizer initialized" in ran.console
    assert not [line for line in ran.console.splitlines() if any(word in line for word in TROUBLE)]
