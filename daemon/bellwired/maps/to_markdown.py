"""A page in Markdown: what the device is, then a table for each BAR, and one for each register that has fields."""

from __future__ import annotations

from collections.abc import Sequence

from bellwired.maps import register_map as maps
from bellwired.maps.constants import says


def write(device: maps.Map) -> str:
    """The page's text."""
    out = [f"# {device.name}", "", *_lines(device.description)]
    rows = [
        ("vendor and device", f"`{device.vendor:04x}:{device.device:04x}`"),
        ("subsystem", f"`{device.subsystem_vendor:04x}:{device.subsystem:04x}`"),
        ("class", f"`{device.class_code:06x}`, revision {device.revision}"),
    ]
    if device.msix is not None:
        rows.append(("MSI-X", _vectors(device.msix.count)))
    if device.msi:
        rows.append(("MSI", _vectors(device.msi)))
    if device.intx:
        rows.append(("INTx", f"INT{'ABCD'[device.intx - 1]}"))
    out += _table(("what", "value"), rows)
    for bar in device.bars:
        out += _bar(bar)
    return "\n".join(out).rstrip() + "\n"


def _bar(bar: maps.BarMap) -> list[str]:
    kind = "I/O ports" if bar.kind == "io" else f"bytes of {bar.bits}-bit memory"
    out = [f"## BAR {bar.index}: {bar.name}", "", f"{bar.size:#x} {kind}.", "", *_lines(bar.description)]
    out += _table(
        ("offset", "name", "what", "reset", "description"),
        [(f"`{item.offset:#05x}`", f"`{item.name}`", says(item), _reset(item), item.description) for item in bar.items],
    )
    for item in bar.items:
        if isinstance(item, maps.Block):
            out += [
                f"### {item.name}",
                "",
                f"Row n is at {item.offset:#x} + n * {item.stride:#x}, n < {item.count}.",
                "",
            ]
            out += _table(
                ("offset in the row", "name", "what", "reset", "description"),
                [
                    (f"`{member.offset:#05x}`", f"`{member.name}`", says(member), _reset(member), member.description)
                    for member in item.members
                ],
            )
            for member in item.members:
                out += _register(f"{item.name}[n].{member.name}", member)
        else:
            out += _register(item.name, item)
    return out


def _register(name: str, item: maps.Item) -> list[str]:
    if not isinstance(item, maps.Register):
        return []
    out = []
    bits = [
        (f"`{_bits(field)}`", f"`{field.name}`", _access(item, field), _meanings(field.values, field.description))
        for field in reversed(item.fields)
    ]
    if bits:
        out += _table(("bits", "field", "access", "description"), bits)
    named = [*item.masks, *item.values]
    if named:
        out += _table(
            ("value", "name", "description"),
            [(f"`{value.number:#x}`", f"`{value.name}`", value.description) for value in named],
        )
    return [f"### {name}", "", *_lines(item.description or item.kind_description), *out] if out else []


def _vectors(count: int) -> str:
    return "1 vector" if count == 1 else f"{count} vectors"


def _reset(item: maps.Item) -> str:
    return f"`{item.reset:#x}`" if isinstance(item, maps.Register) else ""


def _bits(field: maps.Field) -> str:
    return str(field.low) if field.width == 1 else f"{field.low + field.width - 1}:{field.low}"


def _access(item: maps.Register, field: maps.Field) -> str:
    return item.access if item.writable & field.mask or item.access not in ("rw", "w1c", "w1s", "wo") else "ro"


def _meanings(values: tuple[maps.Value, ...], description: str) -> str:
    meant = "; ".join(f"{value.number} {value.name}{_because(value.description)}" for value in values)
    return ". ".join(filter(None, (description.rstrip("."), meant)))


def _because(text: str) -> str:
    return f" ({text.rstrip('.')})" if text else ""


def _lines(text: str) -> list[str]:
    return [text, ""] if text else []


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    escaped = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    lines = [heads, tuple("---" for _ in heads), *escaped]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]
