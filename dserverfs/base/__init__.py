"""What every room may use: errors, limits, the words of dtool and dserver, local files, time.

Nothing here crosses the network, knows the cache or knows FUSE.
"""
