"""A busy Linux guest goes on while whatever serves its devices is killed, hangs, is edited and is restarted.

It uses six devices at the same time and checks every byte: fio on nvme and virtio-blk, iperf3 and copies of a file
over virtio-net, a shell on virtio-console, drivers of edu and bell. ``make test-chaos`` disturbs it 200 times, and
writes the table of pauses to build/chaos.txt. CHAOS_SEED=N does the same as a run that has printed N.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import bed
import iperf
from bellwired.guest.archive import ArchiveError
from bellwired.guest.build import build_modules
from bellwired.guest.headers import tree_of
from bellwired.guest.machine import Machine
from bellwired.guest.plan import MIB, Plan
from bellwired.guest.qemus import inspect
from bellwired.guest.toolbox import Toolbox
from busy import FIO, MODULES, Busy, programs
from docs.documents import ROOT
from hosted import GUEST, HOST, PLUGINS, UNIT, Hosted
from test_virtio_net import GIVES, TAKES, Taker, giver, listening
from virtio.namespace import Namespace

pytestmark = [pytest.mark.guest, pytest.mark.systemd, pytest.mark.long]

SOURCE = Path(__file__).parent / "chaos"
EACH = 50
BETWEEN = 0.05, 0.6  # seconds
WARM = 8.0  # seconds until all programs of the guest are at work
CONTENT = os.urandom(1 << 20) * 4
UP = f"""
ip link set eth0 up
ip addr add {GUEST}/24 dev eth0
until ping -c 1 -W 1 {HOST}; do :; done
"""


@pytest.fixture(scope="module")
def module(tools: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drivers of edu and bell."""
    folder = tmp_path_factory.mktemp("chaos") / "chaos"
    shutil.copytree(SOURCE, folder)
    try:
        tree_of(tools.kernel)
    except (ArchiveError, OSError) as error:
        pytest.skip(f"no headers: {error}")
    (module,) = build_modules(folder, tools.kernel).modules
    return module


@pytest.fixture
def hosted(tell: Callable[..., None]) -> Iterator[Hosted]:
    """The daemon, with its devices running."""
    if reason := bed.why_not():
        pytest.skip(f"cannot boot a systemd here: {reason}")
    with bed.booted() as booted:
        booted.install()
        hosted = Hosted(booted)
        booted.start(UNIT)
        tell(lambda: {"the daemon": hosted.log()})
        yield hosted


@pytest.fixture
def machine(
    tools: Toolbox, hosted: Hosted, module: Path, tmp_path: Path, tell: Callable[..., None]
) -> Iterator[Machine]:
    """The guest, with its network up and the other ends of it at work."""
    place = Namespace(f"/proc/{hosted.bed.init}/ns/net")
    files = {name: path for program in (FIO, iperf.PROGRAM) for name, path in tools.program(program).items()}
    qemu = inspect(tuple(tools.qemu), tools.qemu_environment, tuple(tools.virtiofsd))
    with ExitStack() as stack:
        stack.enter_context(listening(place, GIVES, giver(CONTENT)))
        stack.enter_context(listening(place, TAKES, Taker))
        stack.enter_context(iperf.server(tools, place.name))
        console = stack.enter_context((tmp_path / "console").open("wb", buffering=0))
        tell(lambda: {"the guest's console": (tmp_path / "console").read_text(errors="replace")})
        plan = Plan(
            tools.kernel,
            qemu,
            hosted.plugged(),
            busybox=tools.busybox,
            modules=MODULES,
            files=files,
            cpus=1,  # emulated: it would take all processors from those that serve it
            memory=512 * MIB,
            ports=0,
            listeners=(console.write,),
            boot_time=120,
        )
        machine = stack.enter_context(Machine.start(plan))
        machine.insert(module)
        machine.run(UP, check=True, timeout=60)
        yield machine


def table(pauses: dict[str, list[float]]) -> str:
    """The pauses, a line for each kind."""
    lines = ["kind     times   p50 ms   p99 ms   max ms"]
    for kind, times in pauses.items():
        ordered = sorted(times)
        high = ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))]
        lines.append(f"{kind:8} {len(times):5} {statistics.median(times):8.0f} {high:8.0f} {ordered[-1]:8.0f}")
    return "\n".join(lines) + "\n"


@pytest.mark.timeout(1800)
def test_a_busy_guest_sees_no_more_than_pauses(hosted: Hosted, machine: Machine) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(1 << 32))
    print(f"\nCHAOS_SEED={seed}")
    chance = random.Random(seed)
    kinds = {"kill -9": hosted.kill, "SIGSTOP": hosted.hang, "edit": hosted.edit, "restart": hosted.restart}
    order = [kind for kind in kinds for _ in range(EACH)]
    chance.shuffle(order)
    pauses: dict[str, list[float]] = {kind: [] for kind in kinds}
    busy = Busy(machine, hosted.console, programs(HOST, GIVES, TAKES))
    time.sleep(WARM)
    try:
        for turn, kind in enumerate(order):
            time.sleep(chance.uniform(*BETWEEN))
            name = chance.choice(sorted(PLUGINS) if kind == "edit" else hosted.names)
            pauses[kind].append(kinds[kind](name))
            print(f"{turn:3} {kind:8} {name:8} {pauses[kind][-1]:6.0f} ms", flush=True)
            if busy.failed:
                break
    finally:
        done = busy.stop()
    text = table(pauses) + f"rounds of the guest: {done}\nseed: {seed}\n"
    print(text)
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build/chaos.txt").write_text(text)
    assert {kind: len(times) for kind, times in pauses.items()} == dict.fromkeys(kinds, EACH)
    assert all(done[use] for use in ("nvme", "virtio-blk", "iperf3", "transfer", "shell", "edu_rounds", "bell_rounds"))
