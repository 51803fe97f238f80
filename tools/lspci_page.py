"""docs/lspci.md: what ``lspci -vvv`` shows of each bundled device: ``make lspci``.

lspci decodes a dump of config space, so no guest runs. It is Debian's, from the cache that ``bellwire boot`` uses.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from bellwire import PciDevice
from bellwire.model.capabilities import BAR0, INTERRUPT_LINE, INTERRUPT_PIN, template
from bellwired.find import bundled
from bellwired.guest.fetch import fetch_guest_tools
from bellwired.guest.progress import shown
from bellwired.guest.toolbox import Toolbox

PAGE = Path(__file__).parent.parent / "docs" / "lspci.md"
LSPCI = "usr/bin/lspci"
SLOT = "00:00.0"
HEAD = """# What lspci shows

This page has the output of `lspci -n -vvv` for each device that comes with Bellwire. Firmware has given addresses to
its BARs, and no driver has turned anything on yet. `make lspci` writes the page, and a test compares it.
[QEMU](qemu.md#capabilities) changes some capabilities before a guest sees them.
"""
MEMORY, PORTS, IRQ = 0xE000_0000, 0xC000, 11


def dump(device: type[PciDevice]) -> str:
    """Config space of ``device`` once its BARs have addresses, as ``lspci -xxxx`` prints it, for ``lspci -F``."""
    assert device.identity is not None  # bundled devices are complete
    space = template(device.identity, device.layout)
    content = space.content
    memory, ports = MEMORY, PORTS
    for plan in device.layout.bars.values():
        bar = plan.bar
        size = max(bar.size, 0x1000)
        if bar.io:
            address, ports = ports, ports + size
        else:
            address = -(-memory // size) * size
            memory = address + size
        content[BAR0 + 4 * bar.index] |= address & 0xFF
        content[BAR0 + 4 * bar.index + 1 : BAR0 + 4 * bar.index + 4] = (address >> 8).to_bytes(3, "little")
    content[INTERRUPT_LINE] = IRQ if content[INTERRUPT_PIN] else 0
    rows = (f"{at:02x}: {content[at : at + 16].hex(' ')}" for at in range(0, len(content), 16))
    return f"{SLOT} Device\n" + "\n".join(rows) + "\n\n"


def decoded(tools: Toolbox, device: type[PciDevice]) -> str:
    """What lspci makes of the dump."""
    with tempfile.NamedTemporaryFile("w", suffix=".lspci") as file:
        file.write(dump(device))
        file.flush()
        words = [*tools.command(LSPCI), "-n", "-vvv", "-F", file.name]
        text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return text.replace("\t", "    ").strip() + "\n"


def page(tools: Toolbox) -> str:
    """The whole page."""
    sections = (f"\n## {name}\n\n```text\n{decoded(tools, device)}```\n" for name, device in sorted(bundled().items()))
    return HEAD + "".join(sections)


def main() -> int:
    """Write the page."""
    with shown() as progress:
        tools = fetch_guest_tools(progress, ("pciutils",))
    PAGE.write_text(page(tools))
    return 0


if __name__ == "__main__":
    sys.exit(main())
