"""A QEMU that ends before it should: the error says how, and what QEMU said. No guest runs in it."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from bellwired.guest.channel import Channel
from bellwired.guest.errors import MachineError, MachineGone
from bellwired.guest.frames import Kind
from bellwired.guest.hardware import Hardware
from bellwired.guest.machine import Machine
from bellwired.guest.plan import Plan
from bellwired.guest.qemus import OLDEST, Qemu
from bellwired.guest.toolbox import Toolbox
from daemon.commands import children
from linux import Guest

pytestmark = pytest.mark.guest

PATIENCE = 60.0  # seconds
STOPPED = ("-S",)
NO_SUCH_DEVICE = ("-device", "nothing-like-it")
COMPLAINT = "'nothing-like-it' is not a valid device model name"


def plan(tools: Toolbox, *arguments: str) -> Plan:
    qemu = Qemu(tuple(tools.qemu), OLDEST, "tcg", tools.qemu_environment)
    return Plan(tools.kernel, qemu, busybox=tools.busybox, ports=0, arguments=arguments)


def test_a_qemu_that_is_killed_before_it_has_read_all_is_told_by_its_signal(tools: Toolbox) -> None:
    """The kernel resets a connection whose end closes with bytes unread."""
    before = set(children(os.getpid()))
    hardware = Hardware(plan(tools, *STOPPED))
    with Channel(hardware.channel, hardware.why_lost) as channel:
        try:
            hardware.control.ask("query-status")  # it runs
            running = channel.ask(Kind.SYNC)
            (qemu,) = set(children(os.getpid())) - before
            os.kill(qemu, signal.SIGABRT)
            with pytest.raises(MachineGone, match=r"^QEMU was ended by SIGABRT$"):
                running.wait(PATIENCE)
        finally:
            hardware.close()


def test_what_qemu_complained_about_is_in_the_error(tools: Toolbox) -> None:
    hardware = Hardware(plan(tools, *NO_SUCH_DEVICE))
    with Channel(hardware.channel, hardware.why_lost) as channel:
        try:
            with pytest.raises(MachineError, match=f"^QEMU has ended with status 1: .*{COMPLAINT}"):
                channel.wait_until_ready(PATIENCE)
        finally:
            hardware.close()


def test_a_guest_test_that_fails_with_its_qemu_tells_both(tools: Toolbox, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=f"^QEMU has ended with status 1: .*{COMPLAINT}"):
        Guest(tools, tmp_path).run("true", arguments=NO_SUCH_DEVICE)


def test_a_guest_that_takes_no_commands_is_switched_off(tools: Toolbox) -> None:
    before = set(children(os.getpid()))
    with pytest.raises(MachineError, match="the guest takes no commands after 0 s"):
        Machine.start(replace(plan(tools, *STOPPED), boot_time=0.1))
    assert set(children(os.getpid())) <= before
