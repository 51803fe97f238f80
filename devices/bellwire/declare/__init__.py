"""The declarations in the body of a device class, and the layout that the SDK makes of them."""
