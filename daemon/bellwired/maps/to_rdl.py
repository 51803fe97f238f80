"""SystemRDL 2.0 of a register map. What SystemRDL has no word for is said by properties of Bellwire's own.

Each BAR is an address map. A register that holds a plain number has one field, ``value``, or one for each run of bits
that a guest can change and cannot change.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files

from bellwired.maps import register_map as maps
from bellwired.maps.rdl_access import CONSTANT, RO, WORDS, FieldAccess, combine

_KEYWORDS = """
    abstract accesstype addressingtype addrmap alias all bit bitwise boolean bothedge clr component
    componentwidth compact constraint default encode enum external false field fullalign hw inside internal level
    longint mem na negedge nonsticky number onreadtype onwritetype posedge property r rclr ref reg regalign regfile
    rset ruser rw rw1 set signal string struct sw this true type unsigned w w1 wclr woclr woset wot wr wset wuser wzc
    wzs wzt addressing arbiter activehigh activelow bridge cpuif_reset counter count decr desc dontcompare donttest
    enable errextbus field_reset fieldwidth hdl_path hw_mask incr intr lsb0 msb0 name next next_sticky overflow
    precedence reset resetsignal rsvdset shared sharedextbus signalwidth singlepulse sticky stickybit swacc swmod
    swwe swwel sync async threshold underflow we wel width accesswidth regwidth alignment littleendian bigendian
    memwidth mementries onread onwrite paritycheck ispresent
"""
KEYWORDS = frozenset(_KEYWORDS.split())


def write(device: maps.Map) -> str:
    """The file's text, with the definitions of the properties."""
    out = [f"// {device.name}. Made by `bellwire export --as rdl`.", "", _definitions(), ""]
    out += [f"addrmap {identifier(device.name)} {{", *_indented(_device(device)), "};", ""]
    return "\n".join(out)


def identifier(name: str) -> str:
    """A name as SystemRDL takes it: what is no letter or digit becomes an underscore, and keywords are escaped."""
    plain = re.sub(r"\W", "_", name, flags=re.ASCII)
    return f"\\{plain}" if plain in KEYWORDS else plain


def text(words: str) -> str:
    """A string literal. What the preprocessors of SystemRDL would take for theirs is written in another way."""
    tame = words.replace("<%", "< %").replace("%>", "% >").replace("`", "'")
    return '"' + tame.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _definitions() -> str:
    return files(__package__).joinpath("bellwire.rdl").read_text().rstrip()


def _indented(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        yield f"    {line}" if line else ""


def _words(name: str, description: str) -> Iterator[str]:
    if name:
        yield f"name = {text(name)};"
    if description:
        yield f"desc = {text(description)};"


def _device(device: maps.Map) -> Iterator[str]:
    plain = identifier(device.name).lstrip("\\")
    yield from _words(device.name if plain != device.name else "", device.description)
    yield f"bellwire_vendor = 0x{device.vendor:04x};"
    yield f"bellwire_device = 0x{device.device:04x};"
    yield f"bellwire_class_code = 0x{device.class_code:06x};"
    if device.revision:
        yield f"bellwire_revision = {device.revision};"
    if (device.subsystem_vendor, device.subsystem) != (device.vendor, device.device):
        yield f"bellwire_subsystem_vendor = 0x{device.subsystem_vendor:04x};"
        yield f"bellwire_subsystem = 0x{device.subsystem:04x};"
    if device.msix is not None:
        yield f"bellwire_msix = {device.msix.count};"
        if device.msix.bar is not None:
            yield f"bellwire_msix_bar = {device.msix.bar};"
            yield f"bellwire_msix_offset = 0x{device.msix.offset:x};"
    if device.msi:
        yield f"bellwire_msi = {device.msi};"
    if device.intx:
        yield f"bellwire_intx = {device.intx};"
    at = 0
    for bar in device.bars:
        at = -(-at // bar.size) * bar.size
        yield ""
        yield "addrmap {"
        yield from _indented(_bar(bar))
        yield f"}} {identifier(bar.name)} @ 0x{at:x};"
        at += bar.size


def _bar(bar: maps.BarMap) -> Iterator[str]:
    yield from _words("", bar.description)
    yield f"bellwire_bar = {bar.index};"
    yield f"bellwire_size = 0x{bar.size:x};"
    if bar.kind == "io":
        yield "bellwire_io = true;"
    if bar.bits != 32:
        yield f"bellwire_bits = {bar.bits};"
    if bar.prefetchable:
        yield "bellwire_prefetchable = true;"
    if bar.fill:
        yield f"bellwire_fill = 0x{bar.fill:02x};"
    yield from _items(bar.items)
    if not bar.items:  # SystemRDL wants something in each address map
        yield 'reg { bellwire_access = "absent"; field {} value[31:0]; } nothing @ 0x0;'


def _items(items: tuple[maps.Item, ...]) -> Iterator[str]:
    shared: dict[int, list[maps.Doorbell]] = {}
    for item in items:
        if isinstance(item, maps.Doorbell):
            shared.setdefault(item.offset, []).append(item)
    for item in items:
        match item:
            case maps.Register():
                yield from _register(item, shared.pop(item.offset, []))
            case maps.Doorbell():
                if item.offset in shared:
                    first, *others = shared.pop(item.offset)
                    yield from _doorbell(first, others)
            case maps.Block():
                yield "regfile {"
                yield from _indented(_words("", item.description))
                yield from _indented(_items(item.members))
                place = f"[{item.count}] @ 0x{item.offset:x} += 0x{item.stride:x}"
                yield f"}} {identifier(item.name)}{place};"
            case _:
                yield from _memory(item)


def _memory(item: maps.Range | maps.Area) -> Iterator[str]:
    yield "external mem {"
    yield from _indented(_words("", item.description))
    width = 4 if item.size % 4 == 0 else 1
    yield f"    memwidth = {8 * width}; mementries = 0x{item.size // width:x}; sw = rw;"
    if isinstance(item, maps.Range):
        posted = " bellwire_posted = true;" if item.posted else ""
        bell = f" bellwire_bell = {item.bell};" if item.bell else ""
        yield f"    bellwire_hooked = true;{posted}{bell}"
    yield f"}} {identifier(item.name)} @ 0x{item.offset:x};"


def _rings(bells: list[maps.Doorbell], size: int) -> Iterator[str]:
    """Doorbells beside another item at their place; a size is told where it differs. Their descriptions are lost."""
    words = (f"{bell.name}={bell.match:#x}{'' if bell.size == size else f':{bell.size}'}" for bell in bells)
    if bells:
        yield f"bellwire_rings = {text(' '.join(words))};"


def _doorbell(bell: maps.Doorbell, others: list[maps.Doorbell]) -> Iterator[str]:
    yield "reg {"
    yield from _indented(_words("", bell.description))
    words = ["bellwire_doorbell = true;"]
    if bell.value:
        words.append("bellwire_value = true;")
    if bell.match is not None:
        words.append(f"bellwire_match = 0x{bell.match:x};")
    yield f"    {' '.join(words)} regwidth = {8 * bell.size};"
    yield from _indented(_rings(others, bell.size))
    yield f"    field {{ sw = w; hw = r; }} value[{8 * bell.size - 1}:0];"
    yield f"}} {identifier(bell.name)} @ 0x{bell.offset:x};"


def _register(item: maps.Register, bells: list[maps.Doorbell]) -> Iterator[str]:
    if item.size & (item.size - 1):
        yield from _odd_register(item)
        return
    fields = list(_fields(item))
    combined = combine([each for each, _ in fields], maps.full(item.size))
    yield "reg {"
    yield from _indented(_words("", item.description))
    yield f"    regwidth = {8 * item.size}; bellwire_kind = {text(item.kind)};"
    if combined.access != item.access:
        yield f"    bellwire_access = {text(item.access)};"
    if combined.writable != item.writable or combined.access != item.access:
        yield f"    bellwire_writable = 0x{item.writable:x};"
    if item.kind_description:
        yield f"    bellwire_kind_desc = {text(item.kind_description)};"
    if item.reset & ~sum(each.mask for each, _ in fields):
        yield f"    bellwire_reset = 0x{item.reset:x};"
    if item.masks:
        yield f"    bellwire_masks = {text(' '.join(f'{mask.name}={mask.number:#x}' for mask in item.masks))};"
    yield from _indented(_rings(bells, item.size))
    for _, lines in fields:
        yield from _indented(iter(lines))
    yield f"}} {identifier(item.name)} @ 0x{item.offset:x};"


def _odd_register(item: maps.Register) -> Iterator[str]:
    """SystemRDL has no registers of 3, 5, 6 or 7 bytes."""
    yield "external mem {"
    yield from _indented(_words("", item.description))
    yield f"    memwidth = 8; mementries = {item.size}; bellwire_register = true; bellwire_reset = 0x{item.reset:x};"
    yield f"    bellwire_access = {text(item.access)}; bellwire_writable = 0x{item.writable:x};"
    yield f"}} {identifier(item.name)} @ 0x{item.offset:x};"


def _fields(item: maps.Register) -> Iterator[tuple[FieldAccess, list[str]]]:
    """Each field's access, and its lines."""
    if item.content == maps.FLAGS and item.fields:
        for field in item.fields:
            yield _field(item, field)
        return
    width = 8 * item.size
    if item.content == maps.VALUES:
        spans = list(maps.runs(item.writable))
        if len(spans) == 1 and spans[0][0] == 0:
            width = spans[0][1]
        yield _field(item, maps.Field("value", 0, width, values=item.values))
        return
    changing = item.writable if item.access in WORDS and item.access not in (RO, CONSTANT) else maps.full(item.size)
    spans = sorted([*maps.runs(changing), *maps.runs(changing ^ maps.full(item.size))])
    for low, width in spans:
        name = "value" if len(spans) == 1 else f"bits_{low + width - 1}_{low}"
        yield _field(item, maps.Field(name, low, width))


def _field(item: maps.Register, field: maps.Field) -> tuple[FieldAccess, list[str]]:
    word = item.access if item.access in WORDS else RO
    if word not in (RO, CONSTANT) and not item.writable & field.mask:
        word = RO
    reset = (item.reset & field.mask) >> field.low
    lines = []
    encode = ""
    if field.values:
        enum = f"{field.name}_values"
        lines.append(f"enum {enum} {{")
        for value in field.values:
            about = f" {{ desc = {text(value.description)}; }}" if value.description else ""
            lines.append(f"    {identifier(value.name)} = {field.width}'d{value.number}{about};")
        lines.append("};")
        encode = f" encode = {enum};"
    lines.append("field {")
    lines += [f"    {line}" for line in _words("", field.description)]
    lines.append(f"    {WORDS[word]}{encode}")
    lines.append(f"}} {identifier(field.name)}[{field.low + field.width - 1}:{field.low}] = 0x{reset:x};")
    return FieldAccess(field.name, word, field.mask), lines
