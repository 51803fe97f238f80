"""How long machines live, and what happens between two tests of one."""

from __future__ import annotations

import pytest

from plugin.conftest import Trial

pytestmark = pytest.mark.slow


def test_the_examples_test_runs_word_for_word(trial: Trial) -> None:
    result = trial("""
@machine(devices=[Copier], module="driver/copier.ko")
def test_copy(vm):
    vm.device(Copier).status = Status.DONE
    vm.run("true", check=True)
    assert vm.device(Copier).status == Status.DONE
""")
    result.assert_outcomes(passed=1)
    assert trial.log == ["1: boot copier0", "1: insmod copier.ko", "1: rmmod copier", "1: end"]


TWICE = """
pytestmark = machine(devices=[Copier], module="driver/copier.ko", {more})

def test_one(vm):
    assert vm.device(Copier).count == 0
    vm.device(Copier).count = 9

def test_two(vm):
    assert vm.device(Copier).count == 0
"""


def test_a_module_shares_a_boot_and_each_test_begins_with_a_driver_just_loaded(trial: Trial) -> None:
    trial(TWICE.format(more="")).assert_outcomes(passed=2)
    reloaded = ["1: insmod copier.ko", "1: rmmod copier"]
    assert trial.log == ["1: boot copier0", *reloaded, *reloaded, "1: end"]


@pytest.mark.parametrize("how", ["fresh=True", "scope='function'", "option"])
def test_a_fresh_machine_is_for_one_test(trial: Trial, how: str) -> None:
    arguments = ["--bellwire-fresh"] if how == "option" else []
    trial(TWICE.format(more="" if arguments else how), *arguments).assert_outcomes(passed=2)
    assert [line for line in trial.log if "boot" in line or "end" in line] == [
        *("1: boot copier0", "1: end"),
        *("2: boot copier0", "2: end"),
    ]


@pytest.mark.parametrize(("scope", "boots"), [("module", 2), ("session", 1)])
def test_a_scope_says_how_long_a_machine_lives(trial: Trial, scope: str, boots: int) -> None:
    trial.pytester.makepyfile(
        copiers="""
        from bellwire import PciDevice
        class Copier(PciDevice, vendor=0x1234, device=0x11F0, class_code=0x088000): pass
    """
    )
    text = f"""
        from bellwire.pytest import machine
        from copiers import Copier
        @machine(devices=[Copier], scope={scope!r})
        def test_it(vm): pass
    """
    trial.pytester.makepyfile(test_first=text, test_second=text)
    trial("", "-p", "no:randomly").assert_outcomes(passed=2)
    assert sum("boot" in line for line in trial.log) == boots


def test_devices_keep_what_a_test_has_left_if_it_says_so(trial: Trial) -> None:
    result = trial(TWICE.format(more="reset=False"))
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["E *assert 9 == 0"])


def test_modules_are_loaded_in_order_and_the_last_gets_the_parameters(trial: Trial) -> None:
    trial("""
@machine(devices=[Copier], module=["driver/core.ko", "driver/copier.ko"], parameters="debug=1 rings=2")
def test_it(vm): pass
""").assert_outcomes(passed=1)
    assert trial.log[1:-1] == [
        *("1: insmod core.ko", "1: insmod copier.ko debug=1 rings=2"),
        *("1: rmmod copier", "1: rmmod core"),
    ]


def test_a_test_may_reload_the_driver_itself(trial: Trial) -> None:
    trial("""
@machine(devices=[Copier], module="driver/copier.ko")
def test_it(vm):
    vm.device(Copier).count = 9
    vm.reload()
    assert vm.device(Copier).count == 0
    vm.unload()
    vm.load()
""").assert_outcomes(passed=1)
    assert trial.log[1:-1] == ["1: insmod copier.ko", "1: rmmod copier"] * 3


def test_after_a_reboot_the_driver_is_loaded(trial: Trial) -> None:
    trial("""
@machine(devices=[Copier], module="driver/copier.ko")
def test_it(vm):
    vm.reboot()
""").assert_outcomes(passed=1)
    assert trial.log[1:-1] == ["1: insmod copier.ko", "1: reboot", "1: insmod copier.ko", "1: rmmod copier"]


def test_devices_have_options_and_names(trial: Trial) -> None:
    trial("""
@machine(devices=[device(Copier, most=9), device(Copier, id="second"), "edu"])
def test_it(vm):
    assert [vm.device(which).most for which in (0, "copier0", 1, "second")] == [9, 9, 5, 5]
    assert vm.device("edu").identity.vendor == 0x1234
""").assert_outcomes(passed=1)


def test_devices_have_slots_of_bus_0(trial: Trial) -> None:
    trial("""
@machine(devices=[Copier, "edu"])
def test_it(vm):
    assert [each.properties["addr"] for each in vm.machine.plan.devices] == ["1.0", "2.0"]
""").assert_outcomes(passed=1)


def test_devices_may_be_behind_root_ports(trial: Trial) -> None:
    trial("""
@machine(devices=[Copier, "edu"], root_port=True)
def test_it(vm):
    plan = vm.machine.plan
    assert [each.properties["bus"] for each in plan.devices] == ["bellwire-port0", "bellwire-port1"]
    assert plan.ports == 2
""").assert_outcomes(passed=1)


FUNCTIONS = """
from bellwire import PciDevice
class Engine(PciDevice, vendor=0x1234, device=1, class_code=0x088000): pass
class Console(PciDevice, vendor=0x1234, device=2, class_code=0x070000): pass
functions = [Engine, Console]
"""


def test_a_file_with_functions_is_one_device(trial: Trial) -> None:
    trial.pytester.makepyfile(card=FUNCTIONS)
    trial("""
@machine(devices=["./card.py", Copier])
def test_it(vm):
    at = [each.properties for each in vm.machine.plan.devices]
    assert [each["addr"] for each in at] == ["1.0", "1.1", "2.0"]
    assert [each.get("multifunction", False) for each in at] == [True, True, False]
    assert [vm.device(which).identity.device for which in (0, "console", Copier)] == [1, 2, 0x11F0]
""").assert_outcomes(passed=1)


def test_options_of_a_file_with_functions_are_refused(trial: Trial) -> None:
    trial.pytester.makepyfile(card=FUNCTIONS)
    result = trial("""
@machine(devices=[device("./card.py", most=1)])
def test_it(vm): pass
""")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*card.py: which of its functions has the options?*", "*name one: ./card.py:0, *"])


def test_a_device_of_which_there_are_several_must_be_named(trial: Trial) -> None:
    result = trial("""
import pytest
@machine(devices=[Copier, Copier])
def test_it(vm):
    with pytest.raises(LookupError, match="2 devices of the machine are Copier: there are copier0 .Copier., copier1"):
        vm.device(Copier)
    with pytest.raises(LookupError, match="no devices of the machine are nobody"):
        vm.device("nobody")
""")
    result.assert_outcomes(passed=1)


def test_a_parameter_of_a_test_may_choose_the_machine(trial: Trial) -> None:
    trial("""
import pytest
@pytest.mark.parametrize("most", [pytest.param(n, marks=machine(devices=[device(Copier, most=n)])) for n in (1, 2)])
def test_it(vm, most):
    assert vm.device(Copier).most == most
""").assert_outcomes(passed=2)


def test_programs_beside_the_module_and_the_test_are_found(trial: Trial) -> None:
    for place in ("driver/copier-test", "beside"):
        path = trial.pytester.path / place
        path.write_text("#!/bin/sh\necho $0 $1\n")
        path.chmod(0o755)
    trial("""
@machine(devices=[Copier], module="driver/copier.ko")
def test_it(vm):
    assert vm.run("copier-test 4096").stdout.endswith(b"driver/copier-test 4096\\n")
    assert vm.run(["beside", "a b"]).stdout.endswith(b"beside a b\\n")
    assert vm.run("cat", input=b"fed").stdout == b"fed"
    assert vm.commands[0].startswith("copier-test 4096: status 0, ")
""").assert_outcomes(passed=1)


def test_a_test_may_name_mark_and_fixture_and_import_nothing(trial: Trial) -> None:
    trial.pytester.makepyfile(
        test_names="""
        import pytest
        @pytest.mark.bellwire(devices=["edu"], module="driver/copier.ko")
        def test_it(vm):
            assert vm.device("edu").identity.device == 0x11E8
    """
    )
    trial("").assert_outcomes(passed=1)


def test_a_fixture_without_a_machine_says_what_is_missing(trial: Trial) -> None:
    result = trial("def test_it(vm): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*decorate it with @machine(devices=[[]...[]]) of bellwire.pytest*"])


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("devices='edu'", "TypeError: devices= is a list of devices, not 'edu'"),
        ("devices=Copier", "TypeError: devices= is a list of devices"),
        ("devices=[], scope='class'", "ValueError: scope='class': expected one of function, module, session"),
        ("devices=[], timeout=-1", "ValueError: timeout=-1: expected seconds, more than 0"),
        ("devices=[], memory=512", 'ValueError: memory=512: expected bytes or a text such as "512M", and at least *'),
        ("devices=[], memory='much'", "TypeError: memory='much': expected int or a text such as \"512M\""),
        ("devices=[], root='host2'", "ValueError: root='host2': expected 'host' or 'minimal'"),
        ("devices=[], modules='uio'", "TypeError: modules='uio': expected Sequence"),
        ("devices=[], listeners=()", "TypeError: machine() has no listeners=: a guest has kernel, qemu, root, *"),
    ],
)
def test_a_wrong_machine_is_told_when_tests_are_collected(trial: Trial, words: str, error: str) -> None:
    result = trial(f"@machine({words})\ndef test_it(vm): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"*{error}*"])


def test_a_module_that_is_nowhere_is_told_with_the_places(trial: Trial) -> None:
    result = trial('@machine(devices=[Copier], module="elsewhere/x.ko")\ndef test_it(vm): pass')
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*there is no module elsewhere/x.ko, and no Makefile beside it, in *"])


def test_a_driver_whose_probe_does_not_end_fails_its_test_after_the_timeout_of_the_machine(trial: Trial) -> None:
    result = trial("""
@machine(devices=[Copier], module="driver/stuck.ko", timeout=7)
def test_it(vm): pass
""")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E *CommandTimeout: loading stuck.ko has not ended after 7 s"])


def test_a_driver_whose_exit_does_not_end_fails_its_test_after_the_timeout_of_the_run(trial: Trial) -> None:
    text = """
pytestmark = machine(devices=[Copier], module="driver/waiting.ko")
def test_one(vm): pass
def test_two(vm): pass
"""
    result = trial(text, "--bellwire-timeout=9")
    result.assert_outcomes(passed=2, errors=2)
    result.stdout.fnmatch_lines(["E *CommandTimeout: unloading waiting has not ended after 9 s"])
    assert trial.log.count("2: end") == 1  # a new machine for the second test


def test_a_guest_that_hangs_is_not_waited_for(trial: Trial) -> None:
    result = trial("""
@machine(devices=[Copier])
def test_it(vm):
    vm.run(["a driver hangs"])
""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *MachineError: the guest hangs: INFO: task insmod:71 blocked for more than *"])
