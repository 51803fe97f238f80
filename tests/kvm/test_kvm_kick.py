"""A vCPU is stopped from another thread: always, at once, and with no kick lost."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from kvm_ioctls import (
    KICK_SIGNAL,
    Exit,
    Hlt,
    Interrupted,
    InvalidArgumentError,
    MmioRead,
    Vcpu,
    install_kick_handler,
)
from realmode import HALT_FOR_EVER, HLT, SPIN, Guest, load, store

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kick_handler")]

Boot = Callable[..., Guest]
DEADLINE = 10.0


@contextmanager
def running(vcpu: Vcpu, until: Callable[[Exit], bool]) -> Iterator[queue.SimpleQueue[Exit]]:
    """Run a vCPU in a thread of its own, and hand its exits over, until one of them is the last."""
    exits: queue.SimpleQueue[Exit] = queue.SimpleQueue()

    def loop() -> None:
        while True:
            found = vcpu.run()
            exits.put(found)
            if until(found):
                return

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield exits
    finally:
        thread.join(DEADLINE)
        assert not thread.is_alive()


def interrupted(found: Exit) -> bool:
    return found == Interrupted()


def test_a_kick_ends_a_run_that_would_never_end(boot: Boot) -> None:
    guest = boot(store(0, 1) + SPIN)
    with running(guest.vcpu, interrupted) as exits:
        exits.get(timeout=DEADLINE)  # it is running
        guest.vcpu.kick()
        assert exits.get(timeout=DEADLINE) == Interrupted()


def test_a_kick_ends_a_halt_in_the_kernel(boot: Boot) -> None:
    guest = boot(store(0, 1) + HALT_FOR_EVER, irqchip=True)
    with running(guest.vcpu, interrupted) as exits:
        exits.get(timeout=DEADLINE)
        guest.vcpu.kick()
        assert exits.get(timeout=DEADLINE) == Interrupted()


def test_a_kick_ends_the_wait_of_a_cpu_that_was_never_started(boot: Boot) -> None:
    guest = boot(HLT, irqchip=True)
    with guest.vm.create_vcpu(1) as second, running(second, interrupted):
        second.kick()


def test_a_kick_before_the_run_is_kept_for_it(boot: Boot) -> None:
    vcpu = boot(SPIN).vcpu
    vcpu.kick()
    assert vcpu.immediate_exit
    assert vcpu.run() == Interrupted()
    assert not vcpu.immediate_exit


def test_a_kick_between_an_exit_and_the_next_run_comes_after_the_reply_has_landed(boot: Boot) -> None:
    guest = boot(load(0x10, 4) + HLT)
    read = guest.run()
    assert isinstance(read, MmioRead)
    read.reply(b"\1\2\3\4")
    guest.vcpu.kick()
    assert guest.run() == Interrupted()
    assert guest.vcpu.get_regs().rax == 0x04030201
    assert guest.run() == Hlt()


def test_the_guest_goes_on_where_it_was(boot: Boot) -> None:
    guest = boot(store(0, 1) + HLT)
    guest.vcpu.kick()
    assert guest.run() == Interrupted()
    assert len(guest.mmio_writes()) == 1


def test_no_kick_is_ever_lost(boot: Boot) -> None:
    """Each kick follows a change; the vCPU's thread must see the change, wherever the kick found it."""
    guest = boot(SPIN)
    wanted, seen = 0, queue.SimpleQueue[int]()

    def loop() -> None:
        last = 0
        while last >= 0:
            assert guest.vcpu.run() == Interrupted()
            if wanted != last:
                last = wanted
                seen.put(last)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        for number in (*range(1, 1001), -1):
            wanted = number
            guest.vcpu.kick()
            assert seen.get(timeout=DEADLINE) == number
    finally:
        wanted = -1
        guest.vcpu.kick()
        thread.join(DEADLINE)


def test_many_threads_may_kick(boot: Boot) -> None:
    guest, stop = boot(SPIN), threading.Event()

    def kick() -> None:
        for _ in range(100):
            guest.vcpu.kick()

    with running(guest.vcpu, lambda found: stop.is_set()) as exits:
        kickers = [threading.Thread(target=kick) for _ in range(4)]
        for kicker in kickers:
            kicker.start()
        for kicker in kickers:
            kicker.join(DEADLINE)
        assert exits.get(timeout=DEADLINE) == Interrupted()
        stop.set()
        guest.vcpu.kick()


def test_a_kick_after_the_thread_is_gone_does_no_harm(boot: Boot) -> None:
    guest = boot(HLT)
    with running(guest.vcpu, lambda found: True):
        pass
    guest.vcpu.kick()
    assert guest.run() == Interrupted()


def test_a_kick_after_the_vcpu_is_closed_does_no_harm(boot: Boot) -> None:
    vcpu = boot(HLT).vcpu
    assert vcpu.run() == Hlt()
    vcpu.close()
    vcpu.kick()


def test_any_other_signal_interrupts_as_well(boot: Boot) -> None:
    guest = boot(store(0, 1) + SPIN)
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with running(guest.vcpu, interrupted) as exits:
            exits.get(timeout=DEADLINE)
            thread = next(each for each in threading.enumerate() if each is not threading.main_thread())
            assert thread.ident
            while exits.empty() and thread.is_alive():  # it may not be in the guest yet
                signal.pthread_kill(thread.ident, signal.SIGUSR1)
                thread.join(0.01)
            assert exits.get(timeout=DEADLINE) == Interrupted()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_kick_without_a_handler_is_refused_instead_of_fatal(boot: Boot) -> None:
    vcpu = boot(HLT).vcpu
    assert vcpu.run() == Hlt()
    signal.signal(KICK_SIGNAL, signal.SIG_DFL)
    with pytest.raises(InvalidArgumentError, match="install_kick_handler"):
        vcpu.kick()


def test_the_handler_is_for_the_main_thread_to_install() -> None:
    caught: list[BaseException] = []

    def install() -> None:
        try:
            install_kick_handler()
        except ValueError as error:
            caught.append(error)

    thread = threading.Thread(target=install)
    thread.start()
    thread.join(DEADLINE)
    assert caught
