"""What every declaration in a device class has: a name, an owner, and a way to be refused by it."""

from __future__ import annotations

from typing import Any, Never, NoReturn

from bellwire.errors import DeclarationError


class Declared:
    """Something assigned in the body of a device class. Python tells it its name."""

    name = "?"
    owner = "?"

    def __set_name__(self, owner: type[Any], name: str) -> None:
        if self.name == "?":  # an alias, or a subclass that repeats the assignment, keeps the first name
            self.name = name
            self.owner = owner.__qualname__

    def __set__(self, device: Any, value: Never) -> None:
        """An attribute would hide the declaration, and no snapshot would have it."""
        kind = type(self).__name__
        raise AttributeError(f"{self} is a {kind}: only what is in it can be changed, as by {self.name}[:]")

    def __str__(self) -> str:
        return f"{self.owner}.{self.name}"

    def refuse(self, where: str, why: str) -> NoReturn:
        """Raise a DeclarationError that names the file's own names; ``where`` is the class in the making."""
        raise DeclarationError(f"{where}.{self.name}: {why}")


def is_power_of_two(number: int) -> bool:
    """Whether ``number`` is 1, 2, 4, ..."""
    return number > 0 and not number & (number - 1)


def hexadecimal(number: int) -> str:
    """``number`` as datasheets print it; negative numbers keep their sign."""
    return f"{number:#x}"
