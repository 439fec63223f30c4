"""What `ls` shows: one mount as a tree of directories and files. Synchronous, without FUSE."""
