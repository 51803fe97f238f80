"""The tables of options in docs/devices.md, written from the devices: ``make tables``.

A table begins with the line :data:`HEAD`, in the section of its device. The lines below it, up to the end of the table,
are replaced.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from bellwire import PciDevice
from bellwire.virtio import VirtioDevice
from bellwired.find import bundled

PAGE = Path(__file__).parent.parent / "docs" / "devices.md"
HEAD = "| option | type | default | allowed | what |"
LIVE = "may be changed while the device runs"
_TABLE = re.compile(rf"^{re.escape(HEAD)}\n(?:\|.*\n)*", re.MULTILINE)
_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)


def table(device: type[PciDevice]) -> str:
    """The table of one device's options, with its head."""
    rows = [HEAD, "|---|---|---|---|---|"]
    for name, option in device.layout.options.items():
        what = [option.help] + ([LIVE] if ("set", option) in device.layout.hooks else [])
        cells = [f"`{name}`", option.type_name, option.text(option.default), option.allowed, "; ".join(what)]
        rows.append("|" + "|".join(f" {cell} ".replace("  ", " ") for cell in cells) + "|")
    return "\n".join(rows) + "\n"


def written(text: str) -> str:
    """The page's ``text`` with its tables replaced by current ones."""
    devices: dict[str, type[PciDevice]] = {**bundled(), "virtio": VirtioDevice}

    def anew(found: re.Match[str]) -> str:
        return table(devices[_SECTION.findall(text, 0, found.start())[-1]])

    return _TABLE.sub(anew, text)


def main() -> int:
    """Update the page."""
    PAGE.write_text(written(PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
