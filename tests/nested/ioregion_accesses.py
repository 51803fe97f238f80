"""What a kernel with KVM_SET_IOREGION sends for a guest's accesses, and what it makes of the answers."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bellwire_vmm.vmm import Machine
from kvm_ioctls import Hlt, IoIn, IoOut, MmioRead, MmioWrite, Vcpu
from nested.ioregion_device import RESPONSE, Command, Device, Running, served, serving
from realmode import HLT, MMIO, Guest, in_, load, out, store
from vmm.program import Program, execute

PORT = 0x80
VALUE = 0x8877_6655_4433_2211
Boot = Callable[..., Guest]


@pytest.fixture
def device() -> Iterator[Device]:
    with Device() as device:
        yield device


def rax(vcpu: Vcpu) -> int:
    return int(vcpu.get_regs().rax)


def low(value: int, size: int) -> int:
    return value & (1 << 8 * size) - 1


@pytest.mark.parametrize("posted", [True, False])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_writes_of_every_width(device: Device, tmp_path: Path, size: int, posted: bool) -> None:
    with (
        Machine(16 << 20) as machine,
        served(machine.vm, device.region(MMIO, 0x100, 42, posted=posted)),
        serving(device, lambda command: 0) as seen,
    ):
        outcome = execute(machine, Program().store(MMIO + 0x10, VALUE, size), tmp_path, timeout=60)
        assert outcome.run.ok, outcome.run
    assert seen == [Command(True, size, not posted, 42, 0x10, low(VALUE, size))]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_reads_of_every_width(device: Device, tmp_path: Path, size: int) -> None:
    with (
        Machine(16 << 20) as machine,
        served(machine.vm, device.region(MMIO, 0x100, 42, posted=True)),  # a read waits all the same
        serving(device, lambda command: VALUE) as seen,
    ):
        outcome = execute(machine, Program().load(MMIO + 0xF8, size), tmp_path, timeout=60)
    assert outcome.values == (low(VALUE, size),)
    assert seen == [Command(False, size, True, 42, 0xF8, 0)]


@pytest.mark.parametrize("posted", [True, False])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_ports_of_every_width(device: Device, boot: Boot, size: int, posted: bool) -> None:
    guest = boot(out(PORT + 4, low(VALUE, 4), size) + in_(PORT, size) + HLT)
    with (
        served(guest.vm, device.region(PORT, 8, 7, pio=True, posted=posted)),
        serving(device, lambda command: 0x0102_0304) as seen,
    ):
        assert guest.run() == Hlt()
    assert seen == [Command(True, size, not posted, 7, 4, low(VALUE, size)), Command(False, size, True, 7, 0, 0)]
    assert low(rax(guest.vcpu), size) == low(0x0102_0304, size)


STRING = b"\xba\x80\x00\xb9\x05\x00"  # mov dx, PORT; mov cx, 5
REP_OUTSB = b"\xbe\x00\x20" + STRING + b"\x26\xf3\x6e"  # mov si, 0x2000; es rep outsb
REP_INSB = b"\xbf\x00\x20" + STRING + b"\xf3\x6c"  # mov di, 0x2000; rep insb


def test_string_output_is_a_command_for_each_element(device: Device, boot: Boot) -> None:
    guest = boot(REP_OUTSB + HLT)
    guest.memory[0x2000:0x2005] = b"hello"
    with served(guest.vm, device.region(PORT, 1, pio=True)), serving(device, lambda command: 0) as seen:
        assert guest.run() == Hlt()
    assert bytes(command.data for command in seen) == b"hello"


def test_string_input_is_a_command_for_each_element(device: Device, boot: Boot) -> None:
    guest = boot(REP_INSB + HLT)
    letters = iter(b"hello")
    with served(guest.vm, device.region(PORT, 1, pio=True)), serving(device, lambda command: next(letters)):
        assert guest.run() == Hlt()
    assert guest.memory[0x2000:0x2005] == b"hello"


def test_string_output_that_is_cut_off_leaves_the_rest_to_the_vmm(device: Device, boot: Boot) -> None:
    guest = boot(REP_OUTSB + HLT)
    guest.memory[0x2000:0x2005] = b"hello"
    with served(guest.vm, device.region(PORT, 1, pio=True)):
        running = Running(guest.vcpu)
        for letter in b"he":
            assert device.receive().data == letter
            device.answer()
        assert device.receive().data == ord("l")
        device.hang_up()
        assert running.result() == IoOut(PORT, 1, 1, b"l")  # KVM's emulator writes element by element
        assert [guest.run() for _ in range(2)] == [IoOut(PORT, 1, 1, b"l"), IoOut(PORT, 1, 1, b"o")]
        assert guest.run() == Hlt()


def test_string_input_that_is_cut_off_leaves_the_rest_to_the_vmm(device: Device, boot: Boot) -> None:
    guest = boot(REP_INSB + HLT)
    with served(guest.vm, device.region(PORT, 1, pio=True)):
        running = Running(guest.vcpu)
        for letter in b"he":
            device.receive()
            device.answer(letter)
        device.receive()
        device.hang_up()
        found = running.result()
        assert isinstance(found, IoIn)  # and reads as many at once as it can
        assert (found.port, found.size, found.count) == (PORT, 1, 3)
        found.reply(b"LLO")
        assert guest.run() == Hlt()
    assert guest.memory[0x2000:0x2005] == b"heLLO"


def test_a_region_may_be_larger_than_two_gigabytes(device: Device, boot: Boot) -> None:
    guest = boot(store(0x20, 5) + HLT)
    with served(guest.vm, device.region(0x1000_0000, 0xE000_0000, posted=True)):
        assert guest.run() == Hlt()
        assert device.receive() == Command(True, 4, False, 0, MMIO + 0x20 - 0x1000_0000, 5)


def test_what_lies_not_wholly_in_a_region_is_the_vmms(device: Device, boot: Boot) -> None:
    guest = boot(store(6, 5) + load(8, 1) + HLT)
    with served(guest.vm, device.region(MMIO, 8)):
        assert guest.run() == MmioWrite(MMIO + 6, b"\5\0\0\0")
        assert isinstance(guest.run(), MmioRead)
        assert guest.run() == Hlt()
    assert device.idle()


def test_a_region_of_no_size_takes_writes_to_one_address(device: Device, boot: Boot) -> None:
    guest = boot(store(0, 1, 1) + store(0, 2, 2) + store(0, 3, 4) + store(1, 4, 1) + load(0) + HLT)
    with served(guest.vm, device.region(MMIO, 0, 9, posted=True)):
        assert guest.run() == MmioWrite(MMIO + 1, b"\4")
        assert [device.receive() for _ in range(3)] == [
            Command(True, size, False, 9, 0, value) for size, value in ((1, 1), (2, 2), (4, 3))
        ]
        assert isinstance(guest.run(), MmioRead)


def test_no_exit_is_counted_that_the_vmm_does_not_see(device: Device, boot: Boot) -> None:
    guest = boot(store(0, 1) * 10 + store(0x100, 1) + HLT)
    with served(guest.vm, device.region(MMIO, 8, posted=True)), guest.vcpu.stats() as stats:
        assert guest.run() == MmioWrite(MMIO + 0x100, b"\1\0\0\0")
        assert guest.run() == Hlt()
        assert stats.read()["mmio_exits"] == 1


def test_a_hang_up_before_an_access(device: Device, boot: Boot) -> None:
    guest = boot(store(0, 1) + load(0) + in_(PORT) + HLT)
    ports = device.region(PORT, 8, pio=True)
    with served(guest.vm, device.region(MMIO, 8, posted=True), ports):
        device.hang_up()
        assert guest.run() == MmioWrite(MMIO, b"\1\0\0\0")
        assert isinstance(guest.run(), MmioRead)
        assert isinstance(guest.run(), IoIn)
        assert guest.run() == Hlt()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_a_hang_up_during_one(boot: Boot, kind: socket.SocketKind) -> None:
    guest = boot(load(0) + HLT)
    with Device(kind) as device, served(guest.vm, device.region(MMIO, 8)):
        running = Running(guest.vcpu)
        device.receive()
        if kind is socket.SOCK_STREAM:
            device.ours.sendall(RESPONSE.pack(7)[:20])
        device.hang_up()
        found = running.result()
        assert isinstance(found, MmioRead)
        found.reply(b"\x33\0\0\0")
        assert guest.run() == Hlt()
        assert low(rax(guest.vcpu), 4) == 0x33


@pytest.mark.parametrize("length", [1, 31, 33, 4096])
def test_a_response_of_another_length(device: Device, boot: Boot, length: int) -> None:
    guest = boot(load(0) + load(0) + HLT)
    with served(guest.vm, device.region(MMIO, 8)):
        running = Running(guest.vcpu)
        device.receive()
        device.ours.sendall(bytes(length))
        assert isinstance(running.result(), MmioRead)
        running = Running(guest.vcpu)
        device.receive()
        device.answer(0x77)  # the next one is what counts
        assert running.result() == Hlt()
        assert low(rax(guest.vcpu), 4) == 0x77


def test_a_stream_may_bring_a_response_in_pieces(boot: Boot) -> None:
    guest = boot(load(0) + HLT)
    with Device(socket.SOCK_STREAM) as device, served(guest.vm, device.region(MMIO, 8)):
        running = Running(guest.vcpu)
        device.receive()
        for byte in RESPONSE.pack(0x1234):
            device.ours.sendall(bytes([byte]))
        assert running.result() == Hlt()
        assert low(rax(guest.vcpu), 4) == 0x1234


def test_a_device_that_floods_its_socket_harms_nobody(boot: Boot) -> None:
    guest = boot(load(0) * 20 + HLT)
    with Device(socket.SOCK_STREAM) as device, served(guest.vm, device.region(MMIO, 8)):
        device.ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while device.ours.send(bytes(8192)):
                pass
        assert guest.run() == Hlt()


def test_two_sockets_one_for_each_direction(device: Device, boot: Boot) -> None:
    guest = boot(load(4) + HLT)
    with Device() as back:
        region = device.region(MMIO, 8)
        both = type(region)(MMIO, 8, 1, read_fd=back.kernels.fileno(), write_fd=region.write_fd)
        with served(guest.vm, both):
            running = Running(guest.vcpu)
            assert device.receive() == Command(False, 4, True, 1, 4, 0)
            back.answer(0x55)
            assert running.result() == Hlt()
    assert low(rax(guest.vcpu), 4) == 0x55


def test_one_command_at_a_time_and_each_vcpus_in_order(device: Device, boot: Boot) -> None:
    count = 100
    sequence = b"".join(store(0, number) for number in range(count))
    guest = boot(sequence + HLT)
    second = guest.vm.create_vcpu(1)
    second.set_cpuid2(guest.vcpu.get_cpuid2())
    code = sequence.replace(b"\xa3\x00\x00", b"\xa3\x08\x00") + HLT
    guest.memory[0x8000 : 0x8000 + len(code)] = code
    sregs, regs = guest.vcpu.get_sregs(), guest.vcpu.get_regs()
    second.set_sregs(sregs)
    regs.rip = 0x8000
    second.set_regs(regs)
    seen: dict[int, list[int]] = {1: [], 2: []}
    with served(guest.vm, device.region(MMIO, 8, 1), device.region(MMIO + 8, 8, 2)):
        vcpus = Running(guest.vcpu), Running(second)
        for _ in range(2 * count):
            command = device.receive()
            assert device.idle(), "a second command is on its way"
            seen[command.user_data].append(command.data)
            device.answer()
        assert [vcpu.result() for vcpu in vcpus] == [Hlt(), Hlt()]
    second.close()
    assert seen == {1: list(range(count)), 2: list(range(count))}


def test_memory_can_be_changed_while_a_vcpu_waits(device: Device, boot: Boot) -> None:
    guest = boot(load(0) + HLT)
    with served(guest.vm, device.region(MMIO, 8)), Device() as other:
        running = Running(guest.vcpu)
        device.receive()
        done, memory = threading.Event(), mmap.mmap(-1, 4096)
        page = ctypes.c_char.from_buffer(memory)

        def change() -> None:  # each call would hang if the vCPU held what it must not hold
            guest.vm.set_user_memory_region(1, 1 << 20, 4096, ctypes.addressof(page))
            guest.vm.delete_memory_region(1)
            with served(guest.vm, other.region(MMIO + 0x1000, 8)):
                done.set()

        thread = threading.Thread(target=change)
        thread.start()
        assert done.wait(60)
        thread.join()
        device.answer()
        assert running.result() == Hlt()


def test_a_full_socket_holds_the_vcpu_until_there_is_room(device: Device, boot: Boot) -> None:
    device.kernels.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    count = 200
    guest = boot(b"".join(store(0, number) for number in range(count)) + HLT)
    with served(guest.vm, device.region(MMIO, 8, posted=True)):
        running = Running(guest.vcpu)
        assert [device.receive().data for _ in range(count)] == list(range(count))
        assert running.result() == Hlt()
    assert device.idle()
