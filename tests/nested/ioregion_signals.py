"""A vCPU that waits for an ioregion gets out, comes back, and does nothing twice. For a kernel that has them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from kvm_ioctls import Exit, Hlt, Interrupted, Kvm, MmioRead, MmioWrite, Vcpu, Vm
from kvm_ioctls.kick import kick_thread
from nested.ioregion_device import DEADLINE, Command, Device, Running, served, serving
from realmode import HLT, MMIO, SPIN, Guest, load, store

pytestmark = pytest.mark.usefixtures("kick_handler")

Boot = Callable[..., Guest]


@pytest.fixture
def device() -> Iterator[Device]:
    with Device() as device:
        yield device


def eax(vcpu: Vcpu) -> int:
    return int(vcpu.get_regs().rax) & 0xFFFF_FFFF


def another(guest: Guest, code: bytes, at: int = 0x8000) -> Vcpu:
    """A second vCPU, about to run ``code``."""
    vcpu = guest.vm.create_vcpu(1)
    vcpu.set_cpuid2(guest.vcpu.get_cpuid2())
    guest.memory[at : at + len(code)] = code
    regs = guest.vcpu.get_regs()
    vcpu.set_sregs(guest.vcpu.get_sregs())
    regs.rip = at
    vcpu.set_regs(regs)
    return vcpu


def test_a_kick_gets_a_waiting_vcpu_out_and_the_answer_is_not_lost(device: Device, boot: Boot) -> None:
    guest = boot(load(0) + HLT)
    with served(guest.vm, device.region(MMIO, 8)):
        running = Running(guest.vcpu)
        device.receive()
        guest.vcpu.kick()
        assert running.result() == Interrupted()
        device.answer(0x1234)
        assert guest.run() == Hlt()
        assert eax(guest.vcpu) == 0x1234
    assert device.idle()


def test_immediate_exit_gets_it_out_as_often_as_asked(device: Device, boot: Boot) -> None:
    guest = boot(load(0) + HLT)
    with served(guest.vm, device.region(MMIO, 8)):
        for _ in range(3):
            guest.vcpu.immediate_exit = True
            assert guest.run() == Interrupted()
        running = Running(guest.vcpu)
        device.receive()
        device.answer(0x99)
        assert running.result() == Hlt()
        assert eax(guest.vcpu) == 0x99
    assert device.idle()


def test_an_answer_that_is_there_is_taken_before_an_immediate_exit(device: Device, boot: Boot) -> None:
    guest = boot(load(0) + SPIN)
    with served(guest.vm, device.region(MMIO, 8)):
        running = Running(guest.vcpu)
        device.receive()
        guest.vcpu.kick()
        assert running.result() == Interrupted()
        device.answer(0x4321)
        guest.vcpu.immediate_exit = True
        assert guest.run() == Interrupted()
        assert eax(guest.vcpu) == 0x4321  # complete, as a VMM may rely on


def test_a_storm_of_signals_neither_loses_nor_repeats_anything(device: Device, boot: Boot) -> None:
    count = 60
    guest = boot(b"".join(store(0, number) + load(4) for number in range(count)) + HLT)
    calm = threading.Event()
    with served(guest.vm, device.region(MMIO, 8)):
        running = Running(guest.vcpu, Interrupted())
        thread_id = running.thread.native_id
        assert thread_id is not None

        def storm() -> None:
            while not calm.is_set():
                kick_thread(thread_id)
                time.sleep(0.0005)

        kicker = threading.Thread(target=storm)
        kicker.start()
        try:
            for number in range(count):
                assert device.receive() == Command(True, 4, True, 0, 0, number)
                assert device.idle()
                device.answer()
                assert device.receive() == Command(False, 4, True, 0, 4, 0)
                assert device.idle()
                device.answer(number)
            assert running.result() == Hlt()
        finally:
            calm.set()
            kicker.join()
    assert device.idle()
    assert eax(guest.vcpu) == count - 1
    assert running.interruptions > count / 4


def test_a_storm_against_a_full_socket_tears_no_command(boot: Boot) -> None:
    count = 200
    guest = boot(b"".join(store(0, number) for number in range(count)) + HLT)
    calm = threading.Event()
    with Device(socket.SOCK_STREAM) as device, served(guest.vm, device.region(MMIO, 8, posted=True)):
        device.kernels.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
        running = Running(guest.vcpu, Interrupted())
        thread_id = running.thread.native_id
        assert thread_id is not None

        def storm() -> None:
            while not calm.is_set():
                kick_thread(thread_id)
                time.sleep(0.0005)

        kicker = threading.Thread(target=storm)
        kicker.start()
        try:
            assert [device.receive().data for _ in range(count)] == list(range(count))
            assert running.result() == Hlt()
        finally:
            calm.set()
            kicker.join()
        assert device.idle()


def test_a_vcpu_that_was_interrupted_and_stays_away_blocks_no_other(device: Device, boot: Boot) -> None:
    guest = boot(load(0) + HLT)
    second = another(guest, store(4, 2) + HLT)
    with served(guest.vm, device.region(MMIO, 8)):
        running = Running(guest.vcpu)
        device.receive()
        guest.vcpu.kick()
        assert running.result() == Interrupted()
        other = Running(second)
        device.answer(0x11)  # the first one's; the second vCPU takes it for it
        assert device.receive() == Command(True, 4, True, 0, 4, 2)
        device.answer()
        assert other.result() == Hlt()
        assert guest.run() == Hlt()
        assert eax(guest.vcpu) == 0x11
    second.close()


def test_a_region_that_goes_leaves_its_accesses_to_the_vmm(device: Device, boot: Boot) -> None:
    guest = boot(load(0) + store(4, 7) + HLT)
    region = device.region(MMIO, 8)
    guest.vm.set_ioregion(region)
    running = Running(guest.vcpu)
    device.receive()
    guest.vm.ioregion_deassign(region)
    found = running.result()
    assert isinstance(found, MmioRead)
    found.reply(b"\x21\0\0\0")
    assert guest.run() == MmioWrite(MMIO + 4, b"\7\0\0\0")


def test_an_interrupted_access_whose_region_goes_is_the_vmms(device: Device, boot: Boot) -> None:
    guest = boot(load(0) + HLT)
    region = device.region(MMIO, 8)
    guest.vm.set_ioregion(region)
    running = Running(guest.vcpu)
    device.receive()
    guest.vcpu.kick()
    assert running.result() == Interrupted()
    guest.vm.ioregion_deassign(region)
    found = guest.run()
    assert isinstance(found, MmioRead)
    assert (found.addr, found.size) == (MMIO, 4)
    found.reply(b"\x21\0\0\0")
    assert guest.run() == Hlt()
    assert eax(guest.vcpu) == 0x21


def test_the_answer_to_a_region_that_has_gone_is_nobody_elses(device: Device, boot: Boot) -> None:
    guest = boot(load(0) + load(8) + HLT)
    first, second = device.region(MMIO, 8, 1), device.region(MMIO + 8, 8, 2)
    guest.vm.set_ioregion(first)
    with served(guest.vm, second):
        running = Running(guest.vcpu)
        assert device.receive().user_data == 1
        guest.vm.ioregion_deassign(first)
        assert isinstance(running.result(), MmioRead)
        running = Running(guest.vcpu)
        device.answer(0xBAD)
        assert device.receive().user_data == 2
        device.answer(0x600D)
        assert running.result() == Hlt()
        assert eax(guest.vcpu) == 0x600D


def test_regions_come_and_go_under_load(device: Device, boot: Boot) -> None:
    count = 400
    guest = boot(b"".join(store(0, number) for number in range(count)) + HLT)
    region = device.region(MMIO, 8)
    written: list[int] = []
    over = threading.Event()

    def run(vm: Vm) -> None:
        while isinstance(found := guest.run(), MmioWrite):
            written.append(int.from_bytes(found.data, "little"))
        over.set()
        assert found == Hlt()

    with serving(device, lambda command: 0) as seen:
        thread = threading.Thread(target=run, args=(guest.vm,))
        thread.start()
        while not over.is_set():
            with served(guest.vm, region):
                pass
        thread.join(DEADLINE)
    numbers = [command.data for command in seen]
    assert numbers == sorted(set(numbers))
    assert written == sorted(set(written))
    assert set(numbers) | set(written) == set(range(count))  # both have what was answered too late


def test_regions_come_and_go_under_two_vcpus_and_a_storm_of_signals(device: Device, boot: Boot) -> None:
    count = 150
    guest = boot(b"".join(store(0, number) for number in range(count)) + HLT)
    second = another(guest, b"".join(store(4, number) for number in range(count)) + HLT)
    regions = [device.region(MMIO + 4 * number, 4, number) for number in range(2)]
    stays = device.region(MMIO + 0x100, 4, 9)  # with it stays the queue, and what was sent for a region that went
    written: list[list[int]] = [[], []]
    ended: list[Exit] = []

    def run(vcpu: Vcpu) -> None:
        while not isinstance(found := vcpu.run(), Hlt):
            if isinstance(found, MmioWrite):
                written[(found.addr - MMIO) // 4].append(int.from_bytes(found.data, "little"))
            else:
                assert found == Interrupted()
        ended.append(found)

    threads = [threading.Thread(target=run, args=(vcpu,)) for vcpu in (guest.vcpu, second)]
    with served(guest.vm, stays), serving(device, lambda command: 0) as seen:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            with served(guest.vm, *regions):
                for thread in threads:
                    assert thread.native_id is not None
                    kick_thread(thread.native_id)
    second.close()
    assert ended == [Hlt(), Hlt()]
    for number in range(2):
        numbers = [command.data for command in seen if command.user_data == number]
        assert numbers == sorted(set(numbers))
        assert written[number] == sorted(set(written[number]))
        assert set(numbers) | set(written[number]) == set(range(count))


WAITS = """
import sys
from kvm_ioctls import IoRegion, Kvm
from realmode import HLT, MMIO, Guest, load
fd = int(sys.argv[1])
with Kvm.open() as kvm, Guest(kvm, load(0) + HLT) as guest:
    guest.vm.set_ioregion(IoRegion(MMIO, 8, 0, read_fd=fd, write_fd=fd))
    guest.run()
"""


def test_a_process_that_is_killed_while_its_vcpu_waits_is_gone_at_once(device: Device) -> None:
    fd = device.kernels.fileno()
    words = [sys.executable, "-c", WAITS, str(fd)]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(words, env=paths, pass_fds=[fd]) as process:
        device.receive()
        device.kernels.close()
        process.kill()
        assert process.wait(DEADLINE) == -signal.SIGKILL
    assert device.ours.recv(1) == b""


def test_a_vm_that_ends_with_an_access_under_way_lets_go_of_the_socket(device: Device, kvm: Kvm) -> None:
    with Guest(kvm, load(0) + HLT) as guest:
        guest.vm.set_ioregion(device.region(MMIO, 8))
        running = Running(guest.vcpu)
        device.receive()
        guest.vcpu.kick()
        assert running.result() == Interrupted()
        device.kernels.close()
    assert device.ours.recv(1) == b""
