"""The model of one device instance: state, BARs, config space and interrupts. It knows no process and no socket."""
