"""Bytes of items, verified: from memory, the disk cache or the store, each block fetched once."""
