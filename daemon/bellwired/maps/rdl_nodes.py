"""What is asked of the nodes of an elaborated SystemRDL file."""

from __future__ import annotations

import contextlib
from typing import Any

PREFIX = "bellwire_"


def prop(node: Any, name: str, default: Any = None) -> Any:
    """A property of Bellwire's own; ``default`` where the file does not set or define it."""
    with contextlib.suppress(LookupError):
        found = node.get_property(PREFIX + name, default=default)
        return default if found is None else found
    return default


def words(node: Any) -> str:
    """The description of a node, in one line: its ``desc``, or the ``name`` if it was given one."""
    text = node.get_property("desc", default=None)
    if not text:
        name = node.get_property("name", default=None)
        text = name if name and name != node.inst_name else ""
    return folded(text)


def folded(text: str | None) -> str:
    """A text in one line, without characters that cannot be printed."""
    return " ".join("".join(each for each in word if each.isprintable()) for word in (text or "").split())
