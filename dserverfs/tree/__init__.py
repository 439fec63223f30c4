"""The file system of one mount: its directories and files. Synchronous, without FUSE."""
