"""Users of their own for workers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellwired.box.users import LAST, Users
from bellwired.errors import CommandError, SettingsError
from bellwired.settings import Daemon, decode


@given(st.text(min_size=1), st.integers(1, LAST), st.integers(0, 1 << 20))
def test_a_name_has_the_same_user_of_the_range_each_time(name: str, first: int, more: int) -> None:
    last = min(LAST, first + more)
    number = Users().of(name, f"{first}-{last}")
    assert first <= number <= last
    assert Users().of(name, f"{first}-{last}") == number


def test_a_device_whose_number_another_one_has_is_refused_by_both_names() -> None:
    users = Users()
    assert users.of("one", "100000-100000") == users.of("one", "100000-100000") == 100000
    with pytest.raises(CommandError, match="two and one would both run as user 100000") as error:
        users.of("two", "100000-100000")
    assert error.value.hint == "give one of them user = in its file, or widen worker-users"


@pytest.mark.parametrize("span", ["2-1", f"1-{LAST + 1}", "0-5", "5", "-5", "a-b", "1-2-3"])
def test_a_range_that_is_none_is_refused(span: str) -> None:
    with pytest.raises(SettingsError, match="expected FIRST-LAST"):
        decode({"worker-users": span}, Daemon, "x")
