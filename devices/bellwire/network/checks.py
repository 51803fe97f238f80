"""Checks for the options of a network card. They open nothing."""

from __future__ import annotations

import os
from pathlib import Path

from bellwire.network.interface import HIGHEST_VNI, Vxlan
from bellwire.network.link import LinkError
from bellwire.network.tap import LONGEST_NAME
from bellwire.unix_sockets import LONGEST

LEAST_MTU, MOST_MTU = 68, 65535  # RFC 791 §3.2; virtio 1.2 §5.1.4.1
ADDRESS_SIZE = 6


def given(path: Path) -> bool:
    """Whether a path option has been set."""
    return path != Path()


def socket_fault(path: Path) -> str | None:
    """What was expected, if no socket can have this path; else None."""
    return None if len(os.fsencode(path)) <= LONGEST else f"a socket's path: at most {LONGEST} bytes"


def parse_mac(text: str) -> bytes | None:
    """The six bytes of an address like ``52:54:00:12:34:56``. None if ``text`` is no address that a card can have."""
    try:
        address = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        return None
    return address if len(address) == ADDRESS_SIZE and not address[0] & 1 and any(address) else None


def mac_fault(text: str) -> str | None:
    """What was expected, if ``text`` is neither empty nor the address of a card; else None."""
    return "six bytes in hexadecimal, and no multicast address" if text and parse_mac(text) is None else None


def mtu_fault(size: int) -> str | None:
    """What was expected, if no link can have this MTU; else None."""
    return None if not size or LEAST_MTU <= size <= MOST_MTU else f"0 or {LEAST_MTU} to {MOST_MTU}"


def interface_fault(name: str) -> str | None:
    """What was expected, if no interface can have this name (the kernel's dev_valid_name()); else None."""
    size = len(name.encode(errors="surrogateescape"))
    bad = name in (".", "..") or size > LONGEST_NAME or any(letter in "/:" or letter.isspace() for letter in name)
    return f"an interface's name: at most {LONGEST_NAME} bytes, no spaces, / or :" if bad else None


def vxlan_fault(text: str) -> str | None:
    """What was expected, if ``text`` is neither empty nor a tunnel; else None."""
    try:
        if text:
            Vxlan.parse(text)
    except LinkError:
        return f"NUMBER@ADDRESS, 1 to {HIGHEST_VNI} and another host's address"
    return None
