"""Faults of DMA."""

from __future__ import annotations

import pytest

from bellwire import GuestError, OptionError
from bellwire.faults.changed import ChangedDma
from bellwire.faults.dma import CorruptDma, FailedDma, LateDma, LostDma, StaleDma, TornDma
from bellwire.faults.fault import Fault
from bellwire.testing import Guest
from faults.part import Part, guest

SOURCE, TARGET = 0x1000, 0x2000


def copied(it: Guest[Part], data: bytes) -> bytes:
    it.memory[SOURCE : SOURCE + 8] = data
    it.ring(Part.copy)
    return bytes(it.memory[TARGET : TARGET + 8])


def test_a_bit_is_wrong_and_the_seed_says_which() -> None:
    seen = []
    for seed in (1, 1, 2):
        with guest(CorruptDma(seed=seed)) as it:
            seen.append(int.from_bytes(copied(it, bytes(8)), "little"))
    assert [value.bit_count() for value in seen] == [1, 1, 1]
    assert seen[0] == seen[1] != seen[2]


def test_a_byte_is_wrong() -> None:
    with guest(CorruptDma(kind="byte")) as it:
        assert sum(byte != 0 for byte in copied(it, bytes(8))) == 1


def test_only_sizes_that_are_named_are_struck() -> None:
    with guest(CorruptDma(least=16)) as it:
        assert copied(it, b"ABCDEFGH") == b"ABCDEFGH"


@pytest.mark.parametrize(
    ("kind", "arguments", "why"),
    [
        (CorruptDma, {"least": 10, "most": 5}, "filter corrupt-dma: least=10,most=5: no DMA has such a size"),
        (ChangedDma, {"size": 4, "offset": 4}, "filter changed-dma: size=4,offset=4: the byte lies behind the end"),
    ],
)
def test_sizes_that_no_dma_has_are_refused(kind: type[Fault], arguments: dict[str, int], why: str) -> None:
    with pytest.raises(OptionError, match=why):
        kind(**arguments)


def test_a_stale_read_gives_what_was_there_before() -> None:
    with guest(StaleDma(at=2)) as it:
        assert copied(it, b"ABCDEFGH") == b"ABCDEFGH"
        assert copied(it, b"abcdefgh") == b"ABCDEFGH"
        assert copied(it, b"12345678") == b"12345678"


def test_a_first_read_that_is_stale_gives_zeros() -> None:
    with guest(StaleDma()) as it:
        assert copied(it, b"ABCDEFGH") == bytes(8)


def test_a_torn_read_is_new_and_old() -> None:
    with guest(TornDma(at=2)) as it:
        copied(it, b"ABCDEFGH")
        assert copied(it, b"abcdefgh") == b"abcdEFGH"


@pytest.mark.parametrize(("way", "arrives"), [("read", False), ("write", False), ("both", False)])
def test_a_dma_fails(way: str, arrives: bool) -> None:
    with guest(FailedDma(way=way, at=1)) as it:
        with pytest.raises(GuestError, match="fault failed-dma"):
            copied(it, b"ABCDEFGH")
        assert (bytes(it.memory[TARGET : TARGET + 8]) == b"ABCDEFGH") is arrives
        assert copied(it, b"ABCDEFGH") == b"ABCDEFGH"


def test_a_write_is_lost() -> None:
    with guest(LostDma(at=1)) as it:
        assert copied(it, b"ABCDEFGH") == bytes(8)
        assert copied(it, b"ABCDEFGH") == b"ABCDEFGH"


def test_an_interrupt_overtakes_a_late_write() -> None:
    with guest(LateDma(by="5ms")) as it:
        assert copied(it, b"ABCDEFGH") == bytes(8)
        assert it.interrupts.total() == 1
        it.advance(0.005)
        assert bytes(it.memory[TARGET : TARGET + 8]) == b"ABCDEFGH"
