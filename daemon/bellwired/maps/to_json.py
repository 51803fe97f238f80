"""The register map in JSON, and the JSON Schema of that."""

from __future__ import annotations

import json

import msgspec

from bellwired.maps import register_map as maps


def write(device: maps.Map) -> str:
    """The map. Numbers are numbers; what has its default value is there too."""
    return json.dumps(msgspec.to_builtins(device), indent=2) + "\n"


def write_schema(_: maps.Map) -> str:
    """The JSON Schema (2020-12) that every map in JSON fits."""
    return json.dumps(msgspec.json.schema(maps.Map), indent=2) + "\n"
