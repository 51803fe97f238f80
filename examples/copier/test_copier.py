"""Tests of copier's driver, in a Linux guest."""

from copier import Copier, Status

from bellwire.pytest import machine


@machine(devices=[Copier], module="driver/copier.ko")
def test_copy(vm):
    vm.run("copier-test 4096", check=True)
    assert vm.device(Copier).status == Status.DONE
