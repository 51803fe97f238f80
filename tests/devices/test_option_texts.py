"""Options in words: what users may write, what is allowed, and how values are written back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bellwire import OptionError
from bellwire.declare.option import Option, parse_options


def named(option: Option[Any]) -> Option[Any]:
    option.name = "size"
    return option


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (Option(3, least=1, most=5), "1 to 5"),
        (Option(3, least=1), "at least 1"),
        (Option(3, most=5), "at most 5"),
        (Option(3), ""),
        (Option(0, least=0, most=0), "0 to 0"),
        (Option("a", choices=("a",)), "a"),
        (Option("a", choices=("a", "b")), "a or b"),
        (Option("a", choices=("a", "b", "c")), "a, b or c"),
        (Option(1.5, least=0.5, most=2.5), "0.5 to 2.5"),
        (Option(0, most=1 << 20), "at most 1M"),
    ],
)
def test_what_is_allowed_is_said(option: Option[Any], words: str) -> None:
    assert option.allowed == words


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"), (-5, "-5"), ((1 << 20) - 1, "1048575"), (1 << 20, "1M"), ((1 << 20) + 1, "0x100001"),
        (1025 << 10, "1025K"), (3 << 20, "3M"), (1 << 30, "1G"), (5 << 30, "5G"), (1 << 40, "1T"), (1 << 50, "1024T"),
        ((1 << 63) - 1, "0x7fffffffffffffff"),
    ],
)  # fmt: skip
def test_a_number_is_written_so_that_it_is_easy_to_read(number: int, text: str) -> None:
    option = named(Option(0))
    assert option.text(number) == text
    assert option.parse(text) == number


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        (Option(False), True, "yes"), (Option(False), False, "no"), (Option(Path()), Path(), ""),
        (Option(Path()), Path("a b"), "a b"), (Option(1.0), 0.25, "0.25"), (Option(""), "x", "x"),
    ],
)  # fmt: skip
def test_a_value_is_written_as_a_user_would(option: Option[Any], value: Any, text: str) -> None:
    assert option.text(value) == text


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        (Option(0), "12", 12), (Option(0), "0x1f", 31), (Option(0), "0b11", 3), (Option(0), "-7", -7),
        (Option(0), "1K", 1024), (Option(0), "2k", 2048), (Option(0), "3m", 3 << 20), (Option(0), "1G", 1 << 30),
        (Option(0), "2T", 2 << 40), (Option(0), "0x10K", 16 << 10),
        (Option(0.0), "1e-3", 0.001), (Option(""), "", ""), (Option(Path()), "a/b", Path("a/b")),
        *((Option(False), word, True) for word in ("1", "yes", "TRUE", "On", "up")),
        *((Option(True), word, False) for word in ("0", "no", "FALSE", "Off", "down")),
    ],
)  # fmt: skip
def test_what_a_user_writes_is_read(option: Option[Any], text: str, value: Any) -> None:
    found = named(option).parse(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("option", "text", "expected"),
    [
        (Option(0), "", "a value of type int"), (Option(0), "K", "a value of type int"),
        (Option(0), "1.5", "a value of type int"), (Option(0), "1P", "a value of type int"),
        (Option(0.0), "x", "a value of type float"), (Option(False), "maybe", "yes or no"),
        (Option(False), "2", "yes or no"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_what_was_expected(option: Option[Any], text: str, expected: str) -> None:
    with pytest.raises(OptionError, match=f"option size={text}: expected {expected}"):
        named(option).parse(text)


@pytest.mark.parametrize(
    ("option", "good", "bad", "expected"),
    [
        (Option(3, least=1, most=5), [1, 5], [0, 6], "1 to 5"),
        (Option(3, least=1), [1, 1 << 99], [0], "at least 1"),
        (Option(3, most=5), [5, -9], [6], "at most 5"),
        (Option("a", choices=("a", "b")), ["a", "b"], ["", "c"], "a or b"),
        (Option(1.0), [0.0, -1e300], [float("nan"), float("inf")], "a finite number"),
        (Option(""), ["", "x"], ["a\0b"], "no NUL"),
        (Option(Path()), [Path(), Path("x")], [Path("a\0b")], "no NUL"),
        (Option(4, check=lambda number: None if number % 2 == 0 else "an even number"), [2], [3], "an even number"),
    ],
)
def test_values_are_allowed_up_to_the_bounds(
    option: Option[Any], good: list[Any], bad: list[Any], expected: str
) -> None:
    assert [option.fault(value) for value in good] == [None] * len(good)
    assert [option.fault(value) for value in bad] == [expected] * len(bad)


@pytest.mark.parametrize(
    ("option", "value", "result"),
    [
        (Option(1.0), 2, 2.0), (Option(1.0), 2.5, 2.5), (Option(1), 2, 2), (Option(False), True, True),
        (Option(Path()), Path("x"), Path("x")), (Option(1), True, None), (Option(False), 1, None),
        (Option(1.0), True, None), (Option(1.0), 1 << 5000, None), (Option(1), 2.0, None), (Option(""), 1, None),
        (Option(1), None, None),
    ],
)  # fmt: skip
def test_a_value_has_the_type_of_the_default(option: Option[Any], value: Any, result: Any) -> None:
    if result is None:
        with pytest.raises(OptionError, match="expected a value of type"):
            parse_options({"size": named(option)}, {"size": value}, "dut")
    else:
        found = parse_options({"size": named(option)}, {"size": value}, "dut")["size"]
        assert (found, type(found)) == (result, type(result))


def test_an_option_that_there_is_not_gets_a_hint() -> None:
    known = {"size": named(Option(1)), "serial": Option("")}
    for name, hint in (("sise", "did you mean size?"), ("zzz", "it has serial, size")):
        with pytest.raises(OptionError, match=f"dut has no option {name}: {hint}"):
            parse_options(known, {name: 1}, "dut")
    with pytest.raises(OptionError, match="it has none"):
        parse_options({}, {"zzz": 1}, "dut")
    with pytest.raises(OptionError) as refused:
        parse_options({"size": named(Option("", check=lambda _: "better"))}, {"size": "a\tb"}, "dut")
    assert str(refused.value) == "option size='a\\tb': expected better"
