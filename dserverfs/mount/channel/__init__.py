"""The channel: a process that owns the FUSE device and answers reads of warm blocks by itself."""
