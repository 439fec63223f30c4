"""How large a request's body may be: known from its head, before anything of it is read.

Pure. JSON takes up to 25 times its bytes in memory, so each route has a limit of its
own, some times what a real body has; who shows no token of this server may send what
a login needs.
"""

from __future__ import annotations

from dserverfs.base.limits import MAX_METADATA_BYTES

KIB = 1024
MIB = 1024**2

WITHOUT_TOKEN_BYTES = 64 * KIB
DEFAULT_BYTES = MIB  # 1,000 identifiers, 10,000 parts of an item
LARGEST_BYTES = 512 * MIB  # two million items with their relpaths
_BY_ROUTE = (
    ("POST", "/signed-urls/upload/", LARGEST_BYTES),
    ("PUT", "/uris/", LARGEST_BYTES),
    ("PUT", "/overlays/", MAX_METADATA_BYTES),
    ("PUT", "/readmes/", 64 * MIB),  # 16 MiB of text, a part of it escaped
    ("PUT", "/annotations/", 16 * MIB),
)


def max_body_bytes(method: str, path: str, *, has_token: bool) -> int:
    """Return what a request may have as its body."""
    if not has_token:
        return WITHOUT_TOKEN_BYTES
    for known, prefix, limit in _BY_ROUTE:
        if method == known and path.startswith(prefix):
            return limit
    return DEFAULT_BYTES
