"""A module for Rust: constants, and a const fn for each member of a block. It needs no crate, and no std."""

from __future__ import annotations

from bellwired.maps import register_map as maps
from bellwired.maps.constants import Constant, Heading, Place, constants


def write(device: maps.Map) -> str:
    """The module's text. IDs are u16. What belongs to a register of more than four bytes is u64, the rest u32."""
    out = [f"//! {device.description or device.name}", "//!", "//! Made by `bellwire export --as rust`."]
    for line in constants(device):
        match line:
            case Heading():
                out += ["", f"// {line.text}"]
            case Constant():
                out += _doc(line.text)
                number = f"0x{line.number:0{line.digits}x}" if line.digits else str(line.number)
                out.append(f"pub const {line.name}: u{line.bits} = {number};")
            case Place():
                out += _doc(f"{line.text}; `n` is below {line.count}.")
                body = f"{line.number:#x} + n * {line.stride:#x}"
                out += [f"pub const fn {line.name.lower()}(n: u{line.bits}) -> u{line.bits} {{", f"    {body}", "}"]
    return "\n".join([*out, ""])


def _doc(text: str) -> list[str]:
    return [f"/// {text}"] if text else []
