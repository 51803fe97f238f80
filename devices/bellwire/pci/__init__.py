"""Extended capabilities of PCI Express, one file each: what is declared, and what an instance has in its place.

Section numbers are of PCI Express Base 6.0, unless they say otherwise.
"""
