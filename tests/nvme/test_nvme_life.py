"""nvme's registers, life, interrupts and options."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from bellwire import OptionError
from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.command import AdminOpcode, IoOpcode
from bellwire.bundled.nvme.queues import BATCH
from bellwire.storage import StorageError
from bellwire.testing import Guest, conformance
from nvme.driver import CC, ENABLE, MEMORY, PAGE, Driver, Queues, TestMachine
from vfio_user import IrqIndex

counts = pytest.mark.unsaved("counts interrupts, and a restore adds one for each queue that was not read")

TestNvme = conformance(Nvme, size=1 << 20)
TestShadowNvme = conformance(Nvme, size=1 << 20, doorbells="shadow")


def interrupts(guest: Guest[Nvme], vector: int) -> int:
    return guest.interrupts[IrqIndex.MSIX, vector]


def move(driver: Driver) -> None:
    """The state goes on in another process."""
    assert isinstance(driver.machine, TestMachine)
    core = driver.machine.guest.device.core
    snapshot = core.snapshot()
    core.reset()
    core.restore(snapshot)


def test_it_is_an_nvme_controller_of_version_1_4(guest: Guest[Nvme]) -> None:
    assert guest.config_read(0x09, 3) == 0x010802
    assert guest.read(Nvme.vs) == 0x0001_0400
    assert guest.read(Nvme.cap) & 0xFFFF == 1023


def test_enabling_makes_it_ready_and_disabling_ends_that(driver: Driver) -> None:
    assert driver.csts == 1
    driver.disable()
    assert driver.csts == 0


@pytest.mark.parametrize("configuration", [0x0046_0011, 0x0046_0081, 0x0046_0801])
def test_a_configuration_that_it_does_not_offer_is_fatal(guest: Guest[Nvme], configuration: int) -> None:
    driver = Driver(TestMachine(guest))
    guest.write(Nvme.aqa, 0x001F_001F)
    guest.write(Nvme.cc, configuration)
    assert driver.csts == 2
    guest.write(Nvme.cc, 0)
    assert driver.csts == 0


def test_a_queue_of_one_entry_is_fatal(guest: Guest[Nvme]) -> None:
    guest.write(Nvme.cc, 0x0046_0001)
    assert guest.read(Nvme.csts) == 2


def test_an_admin_queue_outside_memory_is_fatal_once_it_is_rung(guest: Guest[Nvme]) -> None:
    driver = Driver(TestMachine(guest))
    driver.admin.sq = 1 << 40
    driver.enable()
    driver.machine.write(0x1000, 1, 4)
    assert driver.csts & 2


def test_shutdown_is_notified_when_all_is_on_the_disk(on_image: Driver) -> None:
    on_image.machine.write(CC, 0x0046_4001, 4)
    assert on_image.csts & 0xC == 0x4
    on_image.wait_for(0xC, 0x8)


def test_a_shutdown_is_gone_through_with_by_whoever_takes_the_state_over(on_image: Driver) -> None:
    on_image.machine.write(CC, 0x0046_4001, 4)
    move(on_image)
    assert on_image.csts & 0xC == 0x4
    on_image.wait_for(0xC, 0x8)


def test_a_broken_controller_is_still_broken_in_another_process(driver: Driver) -> None:
    driver.admin.sq = 1 << 40
    driver.disable()
    driver.enable()
    driver.machine.write(0x1000, 1, 4)
    assert driver.csts & 2
    move(driver)
    assert driver.csts & 2


def test_a_controller_enabled_before_it_has_stopped_starts_when_it_has(on_image: Driver) -> None:
    queues = on_image.create_queues(1)
    queues.put(IoOpcode.FLUSH, nsid=1)
    queues.ring()
    on_image.machine.write(CC, ENABLE & ~1, 4)
    on_image.machine.write(CC, ENABLE, 4)
    on_image.machine.step()
    again = Driver(on_image.machine)
    again.disable()
    again.enable()
    assert again.create_queues(1).do(IoOpcode.FLUSH, nsid=1).status == 0


def test_a_function_level_reset_brings_registers_and_queues_back(driver: Driver, guest: Guest[Nvme]) -> None:
    driver.create_queues(1)
    express = guest.device.core.config.at[0x10]
    guest.config_write(express + 8, 0x8000, 2)
    assert (guest.read(Nvme.cc), guest.read(Nvme.csts), guest.read(Nvme.asq)) == (0, 0, 0)
    guest.enable()
    again = Driver(TestMachine(guest))
    again.enable()
    again.create_queues(1)


def test_a_controller_reset_keeps_the_admin_queues_registers(driver: Driver, guest: Guest[Nvme]) -> None:
    driver.disable()
    assert guest.read(Nvme.asq) == driver.admin.sq


@counts
def test_one_interrupt_stands_for_a_batch(driver: Driver, guest: Guest[Nvme]) -> None:
    queues = driver.create_queues(1, 64)
    page = driver.allocate(PAGE)
    for block in range(BATCH):
        queues.put(IoOpcode.READ, nsid=1, prp1=page, dwords=(block,))
    queues.ring()
    assert len(queues.reap()) == BATCH
    assert interrupts(guest, 1) == 1


@counts
def test_coalescing_waits_for_the_threshold_or_the_time(driver: Driver, guest: Guest[Nvme]) -> None:
    queues = driver.create_queues(1, 64)
    driver.admin.do(AdminOpcode.SET_FEATURES, dwords=(8, 10 << 8 | 3))
    for _ in range(3):
        queues.put(IoOpcode.FLUSH, nsid=1)
        queues.ring()
    assert interrupts(guest, 1) == 0
    guest.advance(0.001)
    assert interrupts(guest, 1) == 1
    for _ in range(4):
        queues.put(IoOpcode.FLUSH, nsid=1)
        queues.ring()
    assert interrupts(guest, 1) == 2


@counts
def test_a_reset_while_an_interrupt_is_held_back_leaves_nothing_behind(driver: Driver, guest: Guest[Nvme]) -> None:
    hold_three_back(driver)
    driver.disable()
    guest.advance(0.01)
    assert interrupts(guest, 1) == 0
    again = Driver(driver.machine)
    again.enable()
    hold_three_back(again)
    assert interrupts(guest, 1) == 0
    guest.advance(0.001)
    assert interrupts(guest, 1) == 1


def hold_three_back(driver: Driver) -> None:
    """As many completions as need no interrupt at once."""
    queues = driver.create_queues(1, 64)
    driver.admin.do(AdminOpcode.SET_FEATURES, dwords=(8, 10 << 8 | 3))
    for _ in range(3):
        queues.put(IoOpcode.FLUSH, nsid=1)
        queues.ring()


def test_an_interrupt_that_was_held_back_comes_from_another_process(driver: Driver, guest: Guest[Nvme]) -> None:
    queues = driver.create_queues(1, 64)
    driver.admin.do(AdminOpcode.SET_FEATURES, dwords=(8, 10 << 8 | 3))
    queues.put(IoOpcode.FLUSH, nsid=1)
    queues.ring()
    assert interrupts(guest, 1) == 0
    move(driver)
    guest.advance(0.001)
    assert interrupts(guest, 1) == 1


@counts
def test_a_vector_may_be_left_out_of_coalescing(driver: Driver, guest: Guest[Nvme]) -> None:
    queues = driver.create_queues(1, 64)
    driver.admin.do(AdminOpcode.SET_FEATURES, dwords=(8, 10 << 8 | 3))
    driver.admin.do(AdminOpcode.SET_FEATURES, dwords=(9, 1 << 16 | 1))
    queues.do(IoOpcode.FLUSH, nsid=1)
    assert interrupts(guest, 1) == 1


def test_the_line_is_up_while_completions_wait(guest: Guest[Nvme]) -> None:
    guest.config_write(guest.device.core.config.at[0x11] + 2, 0, 2)
    driver = Driver(TestMachine(guest))
    driver.enable()
    driver.admin.auto_head = False
    cid = driver.admin.put(0x7F)
    driver.admin.ring()
    assert guest.line
    guest.write(Nvme.intms, 1)
    assert not guest.line
    guest.write(Nvme.intmc, 1)
    assert guest.line
    driver.admin.wait(cid)
    driver.admin.take_head()
    assert not guest.line


def test_msi_has_one_message_and_msix_a_vector_for_each_queue(guest: Guest[Nvme]) -> None:
    capabilities = guest.device.core.config.at
    assert guest.config_read(capabilities[0x05] + 2, 2) >> 1 & 7 == 0  # 2**0 messages (PCI 3.0 §6.8.1.3)
    assert guest.config_read(capabilities[0x11] + 2, 2) & 0x7FF == 65 - 1  # Table Size (§6.8.2.3)


@counts
def test_msi_is_one_message_for_all_queues(guest: Guest[Nvme]) -> None:
    capabilities = guest.device.core.config.at
    assert guest.config_read(capabilities[0x05] + 2, 2) >> 1 & 7 == 0  # two to the power of that many may be asked for
    msi = guest.device.layout.msi
    assert msi is not None
    assert msi.count == 1
    guest.config_write(capabilities[0x11] + 2, 0, 2)
    guest.config_write(capabilities[0x05] + 2, 1, 2)
    driver = Driver(TestMachine(guest))
    driver.enable()
    driver.create_queues(1, vector=0).do(IoOpcode.FLUSH, nsid=1)
    assert guest.interrupts[IrqIndex.MSI, 0] == 3
    assert not guest.line


@pytest.mark.parametrize(
    "options",
    [
        {"size": -1},
        {"size": 511},
        {"block_size": 1024},
        {"queues": 0},
        {"queues": 65},
        {"serial": "x" * 21},
        {"doorbells": "loud"},
        {"threads": 0},
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises((OptionError, StorageError), match=next(iter(options))):
        Nvme(**options)


def test_an_image_is_made_where_a_size_is_given(tmp_path: Path) -> None:
    path = tmp_path / "new.img"
    with pytest.raises(StorageError, match="give size="):
        Guest(Nvme, image=str(path))
    with Guest(Nvme, image=str(path), size=1 << 20):
        assert path.stat().st_size == 1 << 20
    with Guest(Nvme, image=str(path), size=2 << 20):
        assert path.stat().st_size == 1 << 20  # it is there now, and keeps its size


def test_an_image_larger_than_there_can_be_is_refused(limited_folder: Path) -> None:
    with pytest.raises(OptionError, match=f"size={1 << 63}: expected 0 to {(1 << 63) - 1:#x}"):
        Nvme(size=1 << 63)
    size = (1 << 63) - 512
    with pytest.raises(StorageError, match=f"a disk of {size} bytes cannot be made"):
        Guest(Nvme, size=size, image=str(limited_folder / "new.img"))


def test_two_devices_do_not_share_an_image(on_image: Driver, image: Path) -> None:
    with pytest.raises(StorageError, match="another device uses it"):
        Guest(Nvme, image=str(image))


def test_an_image_may_have_a_comma_in_its_name(tmp_path: Path) -> None:
    with Guest(Nvme, image=f"{tmp_path}/a,,b.img,{tmp_path}/c,,,,d.img", size=1 << 20):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a,b.img", "c,,d.img"]


def test_images_and_memory_may_be_mixed(image: Path) -> None:
    with Guest(Nvme, memory=MEMORY, image=str(image), namespaces=2) as guest:
        driver = Driver(TestMachine(guest))
        driver.enable()
        assert [struct.unpack_from("<Q", driver.identify(0, nsid))[0] for nsid in (1, 2)] == [2048, 131072]


def test_a_controller_that_has_failed_executes_nothing_until_it_is_reset(driver: Driver, guest: Guest[Nvme]) -> None:
    """§9.5: CSTS.CFS."""
    queues = driver.create_queues()
    guest.device.controller.break_down("a test")
    assert driver.csts & 3 == 3
    for each in (driver.admin, queues):
        each.put(0x00, nsid=1)
        each.ring()
        guest.advance()
        assert each.reap() == []
    driver.disable()
    driver.admin = Queues(driver, 0, 32)
    driver.enable()
    assert driver.csts & 3 == 1
    assert driver.admin.do(0x7F).status != 0
