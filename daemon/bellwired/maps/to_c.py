"""A header for C and C++, in a kernel or outside: plain macros, so that no other header is needed.

Masks stand at their places in the register, and values of fields start at bit 0, as FIELD_PREP and FIELD_GET of Linux
take them. Numbers of registers of more than four bytes end in ULL.
"""

from __future__ import annotations

import re

from bellwired.maps import register_map as maps
from bellwired.maps.constants import Constant, Heading, Place, constants

_SUFFIXES = {16: "U", 32: "U", 64: "ULL"}


def write(device: maps.Map) -> str:
    """The header's text."""
    prefix = re.sub(r"\W", "_", device.name).upper()
    guard = f"{prefix}_REGS_H"
    out = [f"/* {comment(device.description or device.name)} */", "/* Made by `bellwire export --as c-header`. */"]
    out += [f"#ifndef {guard}", f"#define {guard}"]
    for line in constants(device):
        match line:
            case Heading():
                out += ["", f"/* {comment(line.text)} */"]
            case Constant():
                out.append(_with(f"#define {prefix}_{line.name} {_number(line)}", line.text))
            case Place():
                suffix = _SUFFIXES[line.bits]
                place = f"({line.number:#x}{suffix} + (n) * {line.stride:#x}{suffix})"
                out.append(_with(f"#define {prefix}_{line.name}(n) {place}", line.text))
    return "\n".join([*out, "", f"#endif /* {guard} */", ""])


def comment(text: str) -> str:
    """``text`` as it may stand in a comment: nothing in it ends the comment or begins another."""
    return text.replace("*/", "* /").replace("/*", "/ *").replace("??/", "?? /").rstrip("\\")


def _with(line: str, text: str) -> str:
    return f"{line} /* {comment(text)} */" if text else line


def _number(constant: Constant) -> str:
    suffix = _SUFFIXES[constant.bits]
    if constant.digits:
        return f"0x{constant.number:0{constant.digits}x}{suffix}"
    return f"{constant.number}{suffix}"
