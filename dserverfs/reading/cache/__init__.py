"""The disk cache of blocks, shared by all processes of a user. Knows no server and no URL."""
