"""seccomp filters (seccomp(2)): a list of allowed system calls, assembled for the kernel's packet filter machine.

The machine is classic BPF (Linux's Documentation/networking/filter.rst). A filter looks at struct seccomp_data: the
number, the architecture and the arguments of a call. It first ends processes that use another ABI (32 bits, x32), whose
calls have other numbers. Then it finds the number by halving the ranges of numbers with the same answer. The kernel
keeps a bitmap of the numbers that are allowed whatever their arguments are (since Linux 5.11), and does not run the
filter for those.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

from bellwired.box.calls import SILENT, Check, Rules, Way
from bellwired.box.syscalls import NUMBERS

ALLOW, ERRNO, LISTENER, KILL = 0x7FFF_0000, 0x0005_0000, 0x7FC0_0000, 0x8000_0000
X86_64 = 0xC000_003E  # AUDIT_ARCH_X86_64
X32 = 0x4000_0000  # the bit that numbers of the x32 ABI have
MOST_CALLS = 512  # numbers from here on are refused

_LOAD, _AND = 0x20, 0x54  # BPF_LD | BPF_W | BPF_ABS; BPF_ALU | BPF_AND | BPF_K
_EQUAL, _AT_LEAST, _ALWAYS, _RETURN = 0x15, 0x35, 0x05, 0x06  # BPF_JMP | ..., BPF_RET | BPF_K
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_FARTHEST = 255  # instructions that a conditional jump skips at most

_SET_MODE_FILTER, _GET_ACTION_AVAIL = 1, 2
_SPEC_ALLOW, _NEW_LISTENER = 1 << 2, 1 << 3
_SECCOMP = 317

Instruction = tuple[int, int, int, int]
Code = list[Instruction]


def assemble(rules: Rules, refuse: int) -> Code:
    """A filter that allows what ``rules`` have, and answers everything else with ``refuse``."""
    answers: dict[int, Code] = {NUMBERS[name]: _checked(ways, refuse) for name, ways in rules.items()}
    answers |= {NUMBERS[name]: _answer(ERRNO | code) for name, code in SILENT.items()}
    ranges: list[tuple[int, Code]] = []
    for number in range(MOST_CALLS + 1):
        code = answers.get(number, _answer(refuse))
        if not ranges or ranges[-1][1] != code:
            ranges.append((number, code))
    return [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, X86_64),
        *_answer(KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, X32),
        *_answer(KILL),
        *_search(ranges),
    ]


def encode(code: Code) -> bytes:
    """The instructions as an array of struct sock_filter."""
    return b"".join(struct.pack("<HBBI", *each) for each in code)


def install(code: Code, *, listener: bool) -> int:
    """Put this thread, and those that it will start, under the filter. It needs no_new_privs.

    With ``listener`` returns the descriptor of a listener, which gets the calls that the filter answers with LISTENER.
    Raises OSError: EBUSY if another filter of this process has one already.
    """
    data = encode(code)
    buffer = ctypes.create_string_buffer(data, len(data))
    program = struct.pack("<HxxxxxxQ", len(code), ctypes.addressof(buffer))
    flags = _SPEC_ALLOW | (_NEW_LISTENER if listener else 0)
    result: int = _libc.syscall(_SECCOMP, _SET_MODE_FILTER, flags, program)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def run(code: Code, number: int, arguments: Iterable[int] = (), architecture: int = X86_64) -> int:
    """What the filter answers to a call: the machine in Python, for tests and for ``bellwire sandbox``."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *[*arguments, *[0] * 6][:6])
    at = accumulator = 0
    while True:
        operation, if_true, if_false, constant = code[at]
        at += 1
        if operation == _RETURN:
            return constant
        if operation == _LOAD:
            (accumulator,) = struct.unpack_from("<I", data, constant)
        elif operation == _AND:
            accumulator &= constant
        elif operation == _ALWAYS:
            at += constant
        else:
            holds = accumulator == constant if operation == _EQUAL else accumulator >= constant
            at += if_true if holds else if_false


def available() -> bool:
    """Whether this process can have seccomp filters: the kernel has them, and no other filter forbids seccomp(2)."""
    found: int = _libc.syscall(_SECCOMP, _GET_ACTION_AVAIL, 0, struct.pack("<I", ERRNO))
    return found == 0


def _answer(value: int) -> Code:
    return [(_RETURN, 0, 0, value)]


def _search(ranges: list[tuple[int, Code]]) -> Code:
    """Go to the code of the range that the number lies in. A range ends where the next one begins."""
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    low, high = _search(ranges[:middle]), _search(ranges[middle:])
    first = ranges[middle][0]
    if len(low) <= _FARTHEST:
        return [(_AT_LEAST, len(low), 0, first), *low, *high]
    return [(_AT_LEAST, 0, 1, first), (_ALWAYS, 0, 0, len(low)), *low, *high]


def _checked(ways: list[Way], refuse: int) -> Code:
    """Allow if one of the ``ways`` holds."""
    if () in ways:
        return _answer(ALLOW)
    code = [instruction for way in ways for instruction in _way(way)]
    return [*code, *_answer(refuse)]


def _way(way: Way) -> Code:
    """Allow if all conditions hold, else go on behind."""
    code = _answer(ALLOW)
    for check in reversed(way):
        code = [*_load(check), (_EQUAL, 0, len(code), check.value), *code]
    return code


def _load(check: Check) -> Code:
    load: Code = [(_LOAD, 0, 0, _ARGUMENTS + 8 * check.argument)]
    return load if check.mask == 0xFFFF_FFFF else [*load, (_AND, 0, 0, check.mask)]


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
