"""A proxied device: one function of the PCI bus here, its vfio-user server at the far end of a socket."""
