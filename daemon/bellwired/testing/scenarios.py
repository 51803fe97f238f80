"""Tests under scenarios of faults: the mark, and the fixture ``scenario``. It imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from bellwire.faults.scenario import Scenario
    from bellwired.testing.tried import Tried

MARK = "bellwire_scenarios"
FIXTURE = "scenario"


def scenarios(*names: str) -> pytest.MarkDecorator:
    """A decorator for tests, classes and ``pytestmark``: the test runs under each of these scenarios, one by one.

    ``names`` are scenarios that come with Bellwire (``bellwire fault --list``), or paths of their files. A test of a
    machine has the faults in its devices from the moment at which its driver is loaded. Any other test takes the
    fixture ``scenario``, and puts them into its guest: ``Guest(Copier, filters=scenario.faults(Copier))``. The name
    of the test says which scenario it is: ``test_copy[lost-irq]``.
    """
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError("scenarios(...) takes names of scenarios, as in scenarios('lost-irq', 'all-ones')")
    mark: pytest.MarkDecorator = getattr(pytest.mark, MARK)(*names)
    return mark


def names_of(node: pytest.Item | pytest.Collector) -> tuple[str, ...]:
    """The scenarios that the nearest mark names; none without a mark."""
    mark = node.get_closest_marker(MARK)
    return mark.args if mark else ()


def spread(metafunc: pytest.Metafunc) -> None:
    """Make a test for each scenario. An unknown one is an error of collection."""
    names = names_of(metafunc.definition)
    if not names:
        return
    from bellwire.faults.scenario import ScenarioError, find_scenario

    try:
        found = [find_scenario(name).name for name in names]
    except ScenarioError as error:
        raise pytest.Collector.CollectError(
            f"{metafunc.definition.nodeid}: {error}" + (f" ({error.hint})" if error.hint else "")
        ) from None
    if not {FIXTURE, "vm"} & set(metafunc.fixturenames):
        raise pytest.Collector.CollectError(
            f"{metafunc.definition.nodeid} runs under scenarios, and takes neither {FIXTURE} nor vm"
        )
    if FIXTURE not in metafunc.fixturenames:
        metafunc.fixturenames.append(FIXTURE)
    metafunc.parametrize(FIXTURE, names, indirect=True, ids=found)


def given(request: pytest.FixtureRequest) -> Scenario:
    """The scenario of a test. The test fails if it has no mark."""
    __tracebackhide__ = True
    name: str | None = getattr(request, "param", None)
    if name is None:
        pytest.fail(
            f"{request.node.nodeid} uses the fixture {FIXTURE} and does not say which: "
            "decorate it with @scenarios(...) of bellwire.pytest",
            pytrace=False,
        )
    from bellwire.faults.scenario import find_scenario
    from bellwired.testing.tried import Tried

    return Tried.of(find_scenario(name))


def check(item: pytest.Item) -> None:
    """Warn of a test that has passed, if no fault of its scenario has struck: it tests nothing."""
    scenario: Tried | None = getattr(item, "funcargs", {}).get(FIXTURE) if names_of(item) else None
    if scenario is not None and not scenario.struck:
        item.warn(
            pytest.PytestWarning(
                f"no fault of scenario {scenario.name} has struck: does the test put its faults in, last until they "
                "begin, and do what they strike?"
            )
        )
