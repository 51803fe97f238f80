"""The kind of an instruction, for the message that says why KVM could not emulate it.

Opcode maps: Intel SDM vol. 2, appendix A.
"""

from __future__ import annotations

_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_REX = range(0x40, 0x50)
_VEX, _EVEX = b"\xc4\xc5", 0x62
_X87 = range(0xD8, 0xE0)
_SSE = (range(0x10, 0x18), range(0x28, 0x30), range(0x50, 0x80), range(0xC2, 0xC7), range(0xD0, 0x100))
_TWO_BYTES = {
    0x0B: "ud2: the guest's own code gave up",
    0x01: "a system instruction",
    0xAE: "a save or restore of the FPU's state, or a fence",
    0xB8: "popcnt",
    0xC7: "cmpxchg16b, rdrand or the like",
}
_ONE_BYTE = {0x9B: "x87", 0xCC: "int3", 0xCD: "int n", 0xCF: "iret"}


def kind(code: bytes) -> str:
    """A word or two about the instruction that ``code`` begins with; empty for an ordinary one."""
    at = 0
    while at < len(code) and (code[at] in _PREFIXES or code[at] in _REX):
        at += 1
    opcode = code[at : at + 3]
    if not opcode:
        return ""
    if opcode[0] in _VEX:
        return "AVX or BMI"
    if opcode[0] == _EVEX:
        return "AVX-512"
    if opcode[0] in _X87:
        return "x87"
    if opcode[0] != 0x0F or len(opcode) < 2:
        return _ONE_BYTE.get(opcode[0], "")
    if opcode[1] in (0x38, 0x3A) or any(opcode[1] in block for block in _SSE):
        return "SSE"
    return _TWO_BYTES.get(opcode[1], "")
