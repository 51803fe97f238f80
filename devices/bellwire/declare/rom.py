"""An expansion ROM: code that firmware runs before there is an operating system (PCI 3.0 §6.3)."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from bellwire.declare.declared import Declared, hexadecimal, is_power_of_two
from bellwire.declare.option import Option
from bellwire.declare.rom_image import LARGEST, SMALLEST, RomError, images, padded
from bellwire.errors import OptionError
from bellwire.paths import open_any_file, why

if TYPE_CHECKING:
    from bellwire.device import PciDevice


class Rom(Declared):
    """``boot = Rom("boot.rom")``: an expansion ROM. A guest reads it, and cannot change it.

    ``source`` is a path, relative to the file that declares the device, or the bytes themselves. It may also be an
    :class:`~bellwire.declare.option.Option` of type Path: then users give the file, and without one the device has no
    ROM. ``size`` is what the ROM's BAR decodes, in bytes: a power of two from 2 KiB to 16 MiB. By default it is the
    next one that holds the file. The rest is filled with ones.

    The images in it must be such that firmware accepts them, and one must be for this vendor and device: see
    :mod:`bellwire.declare.rom_image`. A DeclarationError when the class is defined, or an OptionError when the device
    is made, says what is wrong. On an instance the attribute is all that a guest can read, in bytes.
    """

    def __init__(self, source: str | Path | bytes | Option[Path], *, size: int = 0) -> None:
        self.source = source
        self.size = size
        self._module = ""
        self._content: bytes | None = None

    def __set_name__(self, owner: type[Any], name: str) -> None:
        super().__set_name__(owner, name)
        self._module = self._module or owner.__module__

    def check(self, where: str) -> None:
        """Refuse a size that the BAR cannot have, and a file that cannot be read or is no ROM."""
        if self.size and (not is_power_of_two(self.size) or not SMALLEST <= self.size <= LARGEST):
            self.refuse(
                where,
                f"a ROM's size is a power of two from {hexadecimal(SMALLEST)} to {hexadecimal(LARGEST)}, "
                f"not {hexadecimal(self.size)}",
            )
        if isinstance(self.source, Option):
            if not isinstance(self.source.default, Path):
                self.refuse(where, f"its option is a path, and {self.source.name} is a {self.source.type_name}")
            return
        if not isinstance(self.source, str | Path | bytes):
            self.refuse(where, f"give a path, bytes or an option, not {type(self.source).__name__}")
        if self._content is None:
            try:
                content = self.source if isinstance(self.source, bytes) else self._beside(Path(self.source))
                images(content)
                self._content = self._fitted(content)
            except RomError as error:
                self.refuse(where, self._told(str(error)))
            except OSError as error:
                self.refuse(where, self._told(why(error)))

    def check_ids(self, where: str, vendor: int, device: int) -> None:
        """Refuse a ROM without an image for this device: firmware would run nothing."""
        if self._content is not None:
            try:
                _meant_for(self._content, vendor, device)
            except RomError as error:
                self.refuse(where, self._told(str(error)))

    def content(self, options: Mapping[str, Any], vendor: int, device: int) -> bytes:
        """All that a guest of a device with ``options`` can read; empty if it has no ROM.

        An OptionError for a file that an option names and that cannot be used.
        """
        if not isinstance(self.source, Option):
            return self._content or b""
        path = options.get(self.source.name, self.source.default)
        if path == Path():
            return b""
        try:
            with open(open_any_file(path), "rb") as file:
                content = file.read(LARGEST + 1)
            images(content)
            content = self._fitted(content)
            _meant_for(content, vendor, device)
        except RomError as error:
            raise OptionError(f"option {self.source.name}={path}: {error}") from None
        except OSError as error:
            raise OptionError(f"option {self.source.name}={path}: {why(error)}") from None
        return content

    @overload
    def __get__(self, device: None, owner: type[PciDevice]) -> Rom: ...
    @overload
    def __get__(self, device: PciDevice, owner: type[PciDevice]) -> bytes: ...
    def __get__(self, device: PciDevice | None, owner: type[PciDevice]) -> Rom | bytes:
        return self if device is None else device.core.rom

    def _beside(self, path: Path) -> bytes:
        """Read the file as the device's own file was read: what loads a device checks and records all its files."""
        assert self.place is not None
        path = Path(self.place[0]).parent / path
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise RomError("it is no file")
        if status.st_size > LARGEST:
            raise RomError(f"it has {status.st_size} bytes, and a ROM at most {LARGEST}")
        loader = getattr(sys.modules.get(self._module), "__loader__", None)
        get_data = getattr(loader, "get_data", None)
        content: bytes = path.read_bytes() if get_data is None else get_data(str(path))
        return content

    def _fitted(self, content: bytes) -> bytes:
        if self.size and len(content) > self.size:
            raise RomError(f"it has {len(content)} bytes, more than size={hexadecimal(self.size)}")
        return padded(content, self.size)

    def _told(self, text: str) -> str:
        return text if isinstance(self.source, bytes | Option) else f"{self.source}: {text}"


def _meant_for(content: bytes, vendor: int, device: int) -> None:
    found = [(image.vendor, image.device) for image in images(content)]
    if (vendor, device) not in found:
        ids = ", ".join(f"{each[0]:04x}:{each[1]:04x}" for each in dict.fromkeys(found))
        raise RomError(f"its images are for {ids}: the firmware of {vendor:04x}:{device:04x} would run none of them")
