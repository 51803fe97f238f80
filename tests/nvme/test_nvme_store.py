"""What of nvme outlives the device: its store, and what is forgotten without one."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bellwire import OptionError
from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.command import AdminOpcode, IoOpcode
from bellwire.bundled.nvme.status import Status
from bellwire.bundled.nvme.store import Store
from bellwire.storage import StorageError
from bellwire.testing import Guest
from nvme.driver import MEMORY, PAGE, Driver, Queues, TestMachine, transfer
from nvme.test_nvme_logs import events, fail_once, get_log
from nvme.test_nvme_namespaces import attach, create, delete, listed
from nvme.test_nvme_self_test import finish_test, results

MIB = 1 << 20


@contextlib.contextmanager
def started(folder: Path, **options: Any) -> Iterator[Driver]:
    """A device on ``disk.img`` and ``store`` in ``folder``."""
    image = folder / "disk.img"
    if not image.exists():
        image.write_bytes(b"1" * MIB)
    given = {"image": str(image), "store": folder / "store", "capacity": 4 * MIB, **options}
    with Guest(Nvme, memory=MEMORY, **given) as guest:
        driver = Driver(TestMachine(guest))
        driver.enable()
        yield driver


def test_a_namespace_that_the_host_has_made_is_there_again_with_what_is_in_it(tmp_path: Path) -> None:
    with started(tmp_path) as driver:
        assert create(driver, 256, form=1).result == 2
        assert attach(driver, 2).status == 0
        page = driver.allocate(PAGE)
        driver.memory[page : page + PAGE] = b"bell" * 1024
        assert transfer(driver.create_queues(), IoOpcode.WRITE, page, 7, 1, nsid=2, shift=12).status == 0
        names = driver.identify(0x03, 2)
    assert (tmp_path / "store" / "namespace-2.img").read_bytes()[7 * PAGE : 8 * PAGE] == b"bell" * 1024
    with started(tmp_path) as driver:
        assert listed(driver, 0x02) == [1, 2]
        assert driver.identify(0x03, 2) == names
        page = driver.allocate(PAGE)
        assert transfer(driver.create_queues(), IoOpcode.READ, page, 7, 1, nsid=2, shift=12).status == 0
        assert driver.memory[page : page + PAGE] == b"bell" * 1024
        assert attach(driver, 2, detach=True).status == 0
        assert create(driver, 8 * 1024 - 2048).result == 3
        assert create(driver, 1).code == Status.NAMESPACE_INSUFFICIENT_CAPACITY
    with started(tmp_path) as driver:
        assert (listed(driver, 0x02), listed(driver, 0x10)) == ([1], [1, 2, 3])
        assert delete(driver, 2).status == 0
    assert not (tmp_path / "store" / "namespace-2.img").exists()


def test_a_namespace_of_an_image_stays_deleted(tmp_path: Path) -> None:
    with started(tmp_path) as driver:
        assert delete(driver, 1).status == 0
    with started(tmp_path) as driver:
        assert listed(driver, 0x10) == []
        assert create(driver, 10 * 1024).result == 1
    assert (tmp_path / "disk.img").read_bytes() == bytes(MIB)


def test_a_format_outlives_the_device(tmp_path: Path) -> None:
    with started(tmp_path) as driver:
        driver.admin.do(AdminOpcode.FORMAT_NVM, nsid=1, dwords=(1,))
    with started(tmp_path) as driver:
        assert struct.unpack_from("<Q", driver.identify(0x00, 1)) == (256,)


def test_a_format_may_leave_a_part_of_a_block(tmp_path: Path) -> None:
    with started(tmp_path) as driver:
        assert create(driver, 91).result == 2
        assert attach(driver, 2).status == 0
        assert driver.admin.do(AdminOpcode.FORMAT_NVM, nsid=2, dwords=(1,)).status == 0
    for _ in range(2):
        with started(tmp_path) as driver:
            assert struct.unpack_from("<Q", driver.identify(0x00, 2)) == (11,)
            page = driver.allocate(PAGE)
            assert transfer(driver.create_queues(), IoOpcode.WRITE, page, 10, 1, nsid=2, shift=12).status == 0


def test_without_a_store_all_is_as_the_options_say(tmp_path: Path) -> None:
    with started(tmp_path, store=Path()) as driver:
        driver.admin.do(AdminOpcode.FORMAT_NVM, nsid=1, dwords=(1,))
        create(driver, 8)
        driver.create_queues().do(IoOpcode.WRITE_UNCORRECTABLE, nsid=1, dwords=(0,))
    with started(tmp_path, store=Path()) as driver:
        assert struct.unpack_from("<Q", driver.identify(0x00, 1)) == (2048,)
        assert listed(driver, 0x10) == [1]
        assert transfer(driver.create_queues(), IoOpcode.READ, driver.allocate(PAGE), 0, 1).status == 0
    assert not (tmp_path / "store").exists()


def test_uncorrectable_blocks_outlive_the_device_until_they_are_written(tmp_path: Path) -> None:
    with started(tmp_path) as driver:
        queues = driver.create_queues()
        assert queues.do(IoOpcode.WRITE_UNCORRECTABLE, nsid=1, dwords=(8, 0, 15)).status == 0
        assert transfer(queues, IoOpcode.WRITE, driver.allocate(PAGE), 12, 1).status == 0
    with started(tmp_path) as driver:
        queues = driver.create_queues()
        page = driver.allocate(PAGE)
        codes = [transfer(queues, IoOpcode.READ, page, block, 1).code for block in (7, 8, 12, 23, 24)]
        lost = Status.UNRECOVERED_READ_ERROR
        assert codes == [0, lost, 0, lost, 0]


def test_logs_outlive_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with started(tmp_path) as driver:
        driver.admin.do(AdminOpcode.DEVICE_SELF_TEST, nsid=1, dwords=(1,))
        finish_test(driver)
        driver.admin.do(AdminOpcode.FORMAT_NVM, nsid=1)
        fail_once(driver, monkeypatch)
    with started(tmp_path) as driver:
        assert results(driver) == [(0x10, 0, 1, 1, 0, 0, 0)]
        assert [kind for kind, _ in events(driver)] == [4, 1, 8, 7, 4, 1]
        assert get_log(driver, 8)[1][382:384] == bytes((1, 1))
        assert struct.unpack_from("<Q", driver.log(2), 112) == (2,)  # power cycles


def test_a_sanitize_goes_on_in_another_process(tmp_path: Path) -> None:
    with started(tmp_path) as driver:
        driver.admin.do(AdminOpcode.SANITIZE, dwords=(2,))
    store = Store(tmp_path / "store")
    store.record.sanitize.status, store.record.sanitize.action = 2, 2
    store.write(*store.encode())
    store.close()
    (tmp_path / "disk.img").write_bytes(b"1" * MIB)
    with started(tmp_path) as driver:
        while struct.unpack_from("<H", driver.log(0x81), 2) == (2,):
            driver.machine.step()
        assert struct.unpack_from("<HHI", driver.log(0x81)) == (0xFFFF, 1, 2)
    assert (tmp_path / "disk.img").read_bytes() == bytes(MIB)


def test_what_cannot_be_stored_is_not_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with started(tmp_path) as driver:
        with monkeypatch.context() as failing:
            failing.setattr(os, "fsync", fail)
            queues = driver.create_queues()
            assert queues.do(IoOpcode.WRITE_UNCORRECTABLE, nsid=1).code == Status.CAPACITY_EXCEEDED
            assert create(driver, 8).code == Status.CAPACITY_EXCEEDED
            assert listed(driver, 0x10) == [1]
            assert attach(driver, 1, detach=True).code == Status.CAPACITY_EXCEEDED
            assert listed(driver, 0x02) == [1]
            assert driver.admin.do(AdminOpcode.SANITIZE, dwords=(2,)).code == Status.CAPACITY_EXCEEDED
            assert struct.unpack_from("<HHI", driver.log(0x81)) == (0xFFFF, 0, 0)
            assert transfer(queues, IoOpcode.READ, driver.allocate(PAGE), 8, 1).status == 0
            assert driver.admin.do(AdminOpcode.FORMAT_NVM, nsid=1).code == Status.CAPACITY_EXCEEDED
        assert queues.do(IoOpcode.WRITE_UNCORRECTABLE, nsid=1).status == 0


def test_what_is_stored_is_on_the_medium_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    store.write(*store.encode())
    assert synced == [str(tmp_path / "store" / "nvme.json.new"), str(tmp_path / "store")]


def test_events_are_stored_soon_and_those_that_come_meanwhile_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = Store.write

    def noted(store: Store, number: int, data: bytes) -> None:
        written.append(number)
        write(store, number, data)

    monkeypatch.setattr(Store, "write", noted)
    with started(tmp_path) as driver:
        assert isinstance(driver.machine, TestMachine)
        driver.machine.guest.advance()
        written.clear()
        page = driver.allocate(PAGE)
        cids = [driver.admin.put(AdminOpcode.SET_FEATURES, prp1=page, dwords=(0x0E,)) for _ in range(20)]
        driver.admin.ring()
        driver.admin.wait(*cids)
        driver.machine.guest.advance()
        assert len(written) == 2
        text = (tmp_path / "store" / "nvme.json").read_bytes()
        assert len(msgspec.json.decode(text)["events"]) == 22


def test_a_store_that_fails_in_the_background_is_logged_and_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "the store is gone")

    with started(tmp_path) as driver:
        monkeypatch.setattr(os, "fsync", fail)
        driver.disable()
        driver.admin = Queues(driver, 0, 32)
        driver.enable()
        assert isinstance(driver.machine, TestMachine)
        driver.machine.guest.advance()
        assert "the store is gone" in caplog.text
        assert driver.identify(0x01)[4:12] != bytes(8)


def test_an_earlier_state_is_not_written_over_a_later_one(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    earlier = store.encode()
    store.record.made = 7
    store.write(*store.encode())
    store.write(*earlier)
    store.close()
    assert Store(tmp_path / "store").record.made == 7


def test_two_devices_do_not_share_a_store(tmp_path: Path) -> None:
    with started(tmp_path), pytest.raises(StorageError, match="another device uses it"):
        Guest(Nvme, store=tmp_path / "store")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Input data was truncated"),
        ('{"version": 2}', "Invalid enum value 2"),
        ('{"spaces": 5}', "Expected `array`"),
        ('{"spaces": [{"nsid": 1, "lba_format": 2, "number": 0}]}', r"<= 1 - at `\$.spaces\[0\].lba_format`"),
        (
            '{"spaces": [{"nsid": 500, "lba_format": 0, "number": 1, "size": 512}]}',
            r"<= 256 - at `\$.spaces\[0\].nsid`",
        ),
        (
            '{"spaces": [{"nsid": 2, "lba_format": 1, "number": 1, "size": 512}]}',
            "namespace 2 of 512 bytes has no block",
        ),
        ('{"spaces": [{"nsid": 1, "lba_format": 0, "number": 3, "size": 512}]}', "start with fewer images"),
        ('{"spaces": [{"nsid": 1, "lba_format": 0, "number": 0, "lost": [[-1, 1]]}]}', "lost"),
        ('{"self_tests": ["AAAA"]}', "length >= 28"),
        ('{"sanitize": {"status": 4}}', "<= 3"),
        ('{"x": ' + "[" * 100_000, "recursion"),
    ],
)
def test_a_store_that_cannot_be_is_refused_and_nothing_stays_locked(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "nvme.json").write_text(text)
    for _ in range(2):
        with pytest.raises(StorageError, match=why), started(tmp_path):
            pass


@pytest.mark.parametrize(
    ("size", "why"), [(None, "namespace-2.img is gone"), (4096, "has 4096 bytes"), (2 * MIB, f"has {2 * MIB} bytes")]
)
def test_a_namespace_whose_image_is_not_what_it_was_is_refused_and_not_forgotten(
    tmp_path: Path, size: int | None, why: str
) -> None:
    with started(tmp_path) as driver:
        assert create(driver, 256, form=1).result == 2
        assert attach(driver, 2).status == 0
    image, aside = tmp_path / "store" / "namespace-2.img", tmp_path / "aside"
    image.rename(aside)
    if size is not None:
        with image.open("wb") as file:
            file.truncate(size)
    for _ in range(2):
        with pytest.raises(StorageError, match=why), started(tmp_path):
            pass
    assert image.exists() is (size is not None)
    aside.rename(image)
    with started(tmp_path) as driver:
        assert listed(driver, 0x02) == [1, 2]


def test_a_store_without_end_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with (tmp_path / "store" / "nvme.json").open("wb") as file:
        file.truncate(1 << 40)
    for _ in range(2):
        with pytest.raises(StorageError, match="1099511627776 bytes, at most"), started(tmp_path):
            pass


def test_a_store_that_nobody_writes_to_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    os.mkfifo(tmp_path / "store" / "nvme.json")
    for _ in range(2):
        with pytest.raises(StorageError, match="it is a FIFO, expected a file"), started(tmp_path):
            pass


def test_a_store_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(StorageError, match="store"), started(tmp_path):
        pass


def test_a_capacity_below_nothing_is_refused() -> None:
    with pytest.raises(OptionError, match="capacity"):
        Guest(Nvme, capacity=-1)
