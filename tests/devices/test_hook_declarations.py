"""Hooks that could never run, or would not take what they are given, are refused when the class is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from bellwire import Bar, DeclarationError, PciDevice


def refused(words: str) -> pytest.RaisesExc[DeclarationError]:
    return pytest.raises(DeclarationError, match=words)


Item = TypeVar("Item")
IDS = {"vendor": 0x1234, "device": 0x5678, "class_code": 0xFF0000}


def test_a_write_hook_that_could_never_run_is_refused() -> None:
    with refused(r"Mute\.changed is the write hook of one, whose access is ro"):

        class Mute(PciDevice, **IDS):
            mmio = Bar(0, size=16)
            one = mmio.reg(0, access="ro")

            @one.write
            def changed(self, value: int) -> None: ...


def test_a_hook_of_another_devices_register_is_refused() -> None:
    class Other(PciDevice, **IDS, name="other-one"):
        mmio = Bar(0, size=16)
        one = mmio.reg(0)

    with refused(r"Thief\.changed is the write hook of .*Other\.one, which .*Thief does not have"):

        class Thief(PciDevice, **IDS):
            @Other.one.write
            def changed(self, value: int) -> None: ...


def test_a_hook_that_takes_its_registers_name_is_refused() -> None:
    with refused(r"Hidden\.one is the write hook of a Register without a name: does the method have the name"):

        class Hidden(PciDevice, **IDS):
            mmio = Bar(0, size=16)
            one = mmio.reg(0)

            @one.write  # type: ignore[no-redef]  # as properties' setters do it
            def one(self, value: int) -> None: ...


def test_two_hooks_of_one_event_are_refused_and_an_alias_is_none() -> None:
    with refused(r"Double: first and second are both the write hook of one: only one could run"):

        class Double(PciDevice, **IDS):
            mmio = Bar(0, size=16)
            one = mmio.reg(0)

            @one.write
            def first(self, value: int) -> None: ...

            @one.write
            def second(self, value: int) -> None: ...

    class Alias(PciDevice, **IDS):
        mmio = Bar(0, size=16)
        one = mmio.reg(0)

        @one.write
        def changed(self, value: int) -> None: ...

        also = changed


def base() -> type[PciDevice]:
    class Everything(PciDevice):
        mmio = Bar(0, size=64)
        one = mmio.reg(0)
        bell = mmio.doorbell(4)
        valued = mmio.doorbell(8, value=True)
        stretch = mmio.ioregion(16, 16)
        row = mmio.ioregion(32, 16, bell=4)

    return Everything


@pytest.mark.parametrize(
    ("target", "event", "hook", "call"),
    [
        ("one", "write", lambda self: None, "self, value"),
        ("one", "write", lambda self, value, more: None, "self, value"),
        ("one", "read", lambda self, value: 0, "self"),
        ("bell", "ring", lambda self, value: None, "self"),
        ("valued", "ring", lambda self: None, "self, value"),
        ("stretch", "write", lambda self, value: None, "self, offset, size, value"),
        ("stretch", "read", lambda self: 0, "self, offset, size"),
        ("row", "ring", lambda self: None, "self, offset"),
    ],
)
def test_a_hook_that_does_not_take_what_it_is_given_is_refused(
    target: str, event: str, hook: Callable[..., Any], call: str
) -> None:
    ancestor = base()
    tied = getattr(getattr(ancestor, target), event)(hook)
    with refused(rf"Wrong\.odd is the {event} hook of {target}: it is called as odd\({call}\)"):
        type("Wrong", (ancestor,), {"odd": tied})


def test_a_hook_may_take_anything() -> None:
    ancestor: Any = base()

    def anything(self: object, *_: object, more: int = 0) -> int:
        return 0

    type("Right", (ancestor,), {"all": ancestor.one.read(ancestor.stretch.write(ancestor.valued.ring(anything)))})


def test_a_hook_that_waits_to_be_awaited_is_refused() -> None:
    with refused(r"Slow\.changed is the write hook of one: it is called, and never awaited"):

        class Slow(PciDevice, **IDS):
            mmio = Bar(0, size=16)
            one = mmio.reg(0)

            @one.write  # type: ignore[type-var]
            async def changed(self, value: int) -> None: ...


def test_a_hook_that_waits_to_be_iterated_is_refused() -> None:
    with refused(r"Steps\.changed is the write hook of one: it is called, and never iterated"):

        class Steps(PciDevice, **IDS):
            mmio = Bar(0, size=16)
            one = mmio.reg(0)

            @one.write  # type: ignore[type-var]
            def changed(self, value: int) -> Iterator[None]:
                yield
