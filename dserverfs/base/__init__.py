"""Errors, limits, the types of dtool and dserver, local files and disks, time: for every room.

Nothing here crosses the network or knows FUSE.
"""
