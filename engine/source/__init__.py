"""Disks as they were at one instant: something to ask for extents and to read."""
