"""The fixed parts of messages: structs whose fields have names."""

from __future__ import annotations

import struct

from vfio_user.errors import ProtocolError


class Fields:
    """A ``struct.Struct`` whose fields have names: ``Fields("<QII", "offset region count")``."""

    __slots__ = ("_fields", "_pack", "iter_unpack", "size", "unpack", "unpack_from")

    def __init__(self, format: str, fields: str) -> None:
        layout = struct.Struct(format)
        self._fields = fields.split()
        self._pack = layout.pack
        self.size = layout.size
        self.unpack, self.unpack_from, self.iter_unpack = layout.unpack, layout.unpack_from, layout.iter_unpack

    def pack(self, *values: int | bytes) -> bytes:
        """The fields as bytes. Raises ProtocolError, naming all values, if one does not fit its field."""
        try:
            return self._pack(*values)
        except struct.error as error:
            given = ", ".join(f"{field} {value!r}" for field, value in zip(self._fields, values, strict=True))
            raise ProtocolError(f"{given}: {error}") from None
