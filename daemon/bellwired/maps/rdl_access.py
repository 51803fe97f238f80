"""How SystemRDL says what a guest's accesses to a field do, and which access word a register has for its fields.

SystemRDL (Accellera, SystemRDL 2.0 §9.4) gives each field its own access; a register of Bellwire has one access word,
and a mask of the bits that a guest can change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

RW, RO, WO, W1C, W1S, RC, CONSTANT = "rw", "ro", "wo", "w1c", "w1s", "rc", "constant"
WORDS = {
    RW: "sw = rw; hw = rw;",
    RO: "sw = r; hw = rw;",
    WO: "sw = w; hw = rw;",
    W1C: "sw = rw; onwrite = woclr; hw = rw;",
    W1S: "sw = rw; onwrite = woset; hw = rw;",
    RC: "sw = r; onread = rclr; hw = rw;",
    CONSTANT: "sw = r; hw = na;",
}
"""Each access word that a field can have, in SystemRDL."""


class FieldAccess(NamedTuple):
    """The access word of one field, and its bits in the register."""

    name: str
    word: str
    mask: int


class Combined(NamedTuple):
    """A register's access word and writable bits; ``lost`` says of fields what this word cannot express."""

    access: str
    writable: int
    lost: tuple[tuple[str, str], ...] = ()


def combine(fields: Sequence[FieldAccess], full: int) -> Combined:
    """The access of a register for those of its fields. ``full`` are all bits of the register."""
    words = {field.word for field in fields}
    changing = words - {RO, CONSTANT}
    if not changing:
        return Combined(CONSTANT if words == {CONSTANT} else RO, full)
    if changing == {RC}:
        lost = [(each.name, "a read clears the whole register") for each in fields if each.word in (RO, CONSTANT)]
        return Combined(RC, full, tuple(lost))
    word = changing.pop() if len(changing) == 1 else RW
    if word == WO and words != {WO}:
        word = RW
    lost = [(each.name, _REASONS[each.word, word]) for each in fields if (each.word, word) in _REASONS]
    dropped = {each.name for each in fields if each.word not in (word, RO, CONSTANT)} & {
        each.name for each in fields if each.word in (W1C, W1S, RC)
    }
    writable = sum({each.mask for each in fields if each.word in (word, WO) and each.name not in dropped})
    return Combined(word, writable, tuple(lost))


_BESIDE = "beside fields of other access, {} is up to a write hook: the register is rw, and these bits keep their value"
_REASONS = {
    (W1C, RW): _BESIDE.format("a one that clears"),
    (W1S, RW): _BESIDE.format("a one that sets"),
    (RC, RW): "beside fields of other access, a read that clears is up to a read hook: the register is rw",
    (RC, W1C): "beside fields of other access, a read that clears is up to a read hook: the register is w1c",
    (RC, W1S): "beside fields of other access, a read that clears is up to a read hook: the register is w1s",
    (WO, RW): "beside fields that can be read, it can be read, too: the register is rw",
}
