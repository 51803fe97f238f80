"""Test a driver in a Linux guest, with pytest: ``pip install 'bellwire[pytest]'``.

::

    from bellwire.pytest import machine

    @machine(devices=[Copier], module="driver/copier.ko")
    def test_copy(vm):
        vm.run("copier-test 4096", check=True)
        assert vm.device(Copier).status == Status.DONE

This module is a door: the machine is in :mod:`bellwired.guest`, the plugin in :mod:`bellwired.testing`. Nothing else of
the SDK imports it.
"""

from bellwired.testing.scenarios import scenarios
from bellwired.testing.vm import Vm
from bellwired.testing.wanted import WantedDevice, device, machine

__all__ = ["Vm", "WantedDevice", "device", "machine", "scenarios"]
