"""The machine: memory, vCPUs, buses, address spaces, and what a guest boots from."""
