"""The door of the kernel: the daemon, its FUSE handlers, and the control socket of a mount."""
