"""Linux in QEMU with devices plugged in: what it is made of, how it boots, and what goes wrong in it."""
