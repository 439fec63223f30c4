"""FUSE requests: the thin layer between pyfuse3 and the tree, the reader and staging.

The only package with errno, and the only one with `async` beside the mount.
Every handler runs in trio's event loop, is guarded (whatever escapes one but
FUSEError would end the mount) and bounded in time, because the kernel waits
uninterruptibly and pyfuse3 delivers no interrupts. What is at hand is answered
in the event loop; only what has to be loaded, fetched or written hops to a
thread or waits for a future.
"""
