"""One instance of a device, with no process around it: its state, its BARs, its config space, its interrupts."""
